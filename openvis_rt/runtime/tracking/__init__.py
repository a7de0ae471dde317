"""Association and scores, in numpy."""
