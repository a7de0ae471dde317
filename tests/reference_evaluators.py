"""What the evaluator is held against: pycocotools' COCOeval over videos, and trackeval.

``ytvoseval.py`` is ``cocoeval.py`` with another IoU and another area, and no more: here COCOeval
itself matches, accumulates and summarises, and is given the IoU of videos by the formula.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from generated_annotations import Generated, rle_of
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval

from openvis_rt.evaluation.rules import Rules


class VideoEval(COCOeval):
    """COCOeval with images that are videos."""

    def __init__(self, data: Generated, rules: Rules, *, classes: bool = True) -> None:
        super().__init__(None, None, "segm")
        self.data = data
        self.params.imgIds = sorted(video["id"] for video in data.annotations["videos"])
        self.params.catIds = sorted(entry["id"] for entry in data.annotations["categories"])
        self.params.areaRng = [[low, high] for _, low, high in rules.areas]
        self.params.useCats = int(classes)

    def _prepare(self) -> None:
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        for entry in self.data.annotations["annotations"]:
            masks = [rle_of(s) for s in entry["segmentations"]]
            area = _mean([a for a in entry["areas"] if a])
            truth = {**entry, "masks": masks, "area": area, "ignore": entry["iscrowd"]}
            self._gts[entry["video_id"], entry["category_id"]].append(truth)
        for number, entry in enumerate(self.data.results, 1):
            masks = [rle_of(s) for s in entry["segmentations"]]
            area = _mean([int(coco.area(m)) for m in masks if m])
            found = {**entry, "masks": masks, "area": area, "id": number}
            self._dts[entry["video_id"], entry["category_id"]].append(found)
        self.evalImgs, self.eval = defaultdict(list), {}

    def computeIoU(self, video: int, category: int) -> Any:  # noqa: N802 - COCOeval's name
        classes = [category] if self.params.useCats else self.params.catIds
        truths = [t for c in classes for t in self._gts[video, c]]
        found = [d for c in classes for d in self._dts[video, c]]
        if not truths and not found:
            return []
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        found = [found[index] for index in order[: self.params.maxDets[-1]]]
        return np.array([[video_iou(d["masks"], t["masks"]) for t in truths] for d in found])

    def run(self) -> np.ndarray:
        """The twelve official figures."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
            self.summarize()
        return self.stats


def video_iou(found: list[Any], truth: list[Any]) -> float:
    """Pixels of both over pixels of either, over all frames, by merging run lengths."""
    both = either = 0
    for d, g in zip(found, truth, strict=True):
        masks = [m for m in (d, g) if m]
        if masks:
            either += int(coco.area(coco.merge(masks, False)))
        if len(masks) == 2:
            both += int(coco.area(coco.merge(masks, True)))
    return both / either if either else 0.0


def _mean(areas: list[int]) -> float:
    return float(np.mean(areas)) if areas else 0.0


def coco_one_frame(data: Generated) -> COCOeval:
    """COCOeval as it stands, on videos of one frame."""
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": v["id"], "height": v["height"], "width": v["width"]}
            for v in data.annotations["videos"]
        ],
        "categories": data.annotations["categories"],
        "annotations": [
            {
                "id": a["id"],
                "image_id": a["video_id"],
                "category_id": a["category_id"],
                "iscrowd": a["iscrowd"],
                "segmentation": rle_of(a["segmentations"][0]),
                "area": a["areas"][0],
            }
            for a in data.annotations["annotations"]
        ],
    }
    found = [
        {
            "image_id": r["video_id"],
            "category_id": r["category_id"],
            "score": r["score"],
            "segmentation": r["segmentations"][0],
        }
        for r in data.results
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def trackeval_figures(data: Generated, folder: Path, rules: Rules) -> dict[str, np.ndarray]:
    """TrackMAP's AP and AR of each area range, float64 [T], by trackeval's own YouTubeVIS."""
    import trackeval

    truth, tracker = folder / "youtube_vis_part", folder / "trackers" / "youtube_vis_part"
    (tracker / "ours" / "data").mkdir(parents=True)
    truth.mkdir()
    (truth / "truth.json").write_text(json.dumps(data.annotations))
    (tracker / "ours" / "data" / "results.json").write_text(json.dumps(data.results))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.YouTubeVIS(
            {
                "GT_FOLDER": f"{folder}/",
                "TRACKERS_FOLDER": f"{folder}/trackers/",
                "SPLIT_TO_EVAL": "part",
                "PRINT_CONFIG": False,
            }
        )
        dataset.global_tid_counter = 1  # a detection of the id 0 would match again and again
        return track_map(dataset, "ours", rules)


def burst_figures(
    annotations: dict[str, Any], results: dict[str, Any], folder: Path, rules: Rules
) -> dict[str, np.ndarray]:
    """The same by trackeval's own BURST."""
    import trackeval

    truth, tracker = folder / "truth", folder / "trackers" / "ours" / "data"
    tracker.mkdir(parents=True)
    truth.mkdir()
    (truth / "truth.json").write_text(json.dumps(annotations))
    (tracker / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.BURST(
            {
                "GT_FOLDER": str(truth),
                "TRACKERS_FOLDER": str(folder / "trackers"),
                "PRINT_CONFIG": False,
            }
        )
        return track_map(dataset, "ours", rules)


def track_map(dataset: Any, tracker: str, rules: Rules) -> dict[str, np.ndarray]:
    """Every sequence and class of a data set through TrackMAP."""
    import trackeval

    metric = trackeval.metrics.TrackMAP(
        {
            "USE_TIME_RANGES": False,
            "AREA_RANGES": [[low, high] for _, low, high in rules.areas[1:]],
            "AREA_RANGE_LABELS": [name for name, _, _ in rules.areas[1:]],
            "IOU_THRESHOLDS": np.array(rules.thresholds),
            "MAX_DETECTIONS": rules.limit or 0,
            "PRINT_CONFIG": False,
        }
    )
    classes: dict[str, dict[str, Any]] = {name: {} for name in dataset.class_list}
    for sequence in dataset.seq_list:
        raw = dataset.get_raw_seq_data(tracker, sequence)
        for name, found in classes.items():
            found[sequence] = metric.eval_sequence(dataset.get_preprocessed_seq_data(raw, name))
    by_class = {name: metric.combine_sequences(found) for name, found in classes.items()}
    return metric.combine_classes_class_averaged(by_class)
