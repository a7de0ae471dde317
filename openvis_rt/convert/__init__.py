"""Finished results in other forms: a page to look at, Rerun, COCO, MOTS, MOT and tables."""
