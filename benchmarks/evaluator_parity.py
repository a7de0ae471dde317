"""The evaluator against COCOeval over videos, COCOeval itself and trackeval, on many random sets.

    PYTHONPATH=.:tests python benchmarks/evaluator_parity.py [--seeds 100] [--json FILE]

The tests do the same with few seeds; tests/reference_evaluators.py says how the references are
made. A case is a data set; a figure is one that both sides give: the precision at a recall, a
threshold, a class and an area range, a recall, or a mean over classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from generated_annotations import Generated, burst_from, generate
from reference_evaluators import VideoEval, burst_figures, coco_one_frame, trackeval_figures

from openvis_rt.evaluation.accumulation import Accumulated
from openvis_rt.evaluation.annotation_files import annotations_from_ytvis
from openvis_rt.evaluation.annotations import Annotations
from openvis_rt.evaluation.burst import annotations_from_burst, entries_from_burst
from openvis_rt.evaluation.metrics import Evaluation, evaluate
from openvis_rt.evaluation.report import FIGURES
from openvis_rt.evaluation.results_files import predictions_from
from openvis_rt.evaluation.rules import BURST, COCO, YTVIS, Rules

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]  # figures of ours and of the reference

SETS = (
    {},
    {"shuffled": True},
    {"categories": 40, "tracks": 12, "predictions": 30},
    {"categories": 1, "tracks": 8, "predictions": 40},
    {"crowd": 0.6, "categories": 2, "predictions": 30},
    {"tracks": 1, "predictions": 2, "missing": 0.7},
    {"videos": 2, "categories": 1, "predictions": 260, "tracks": 20},
)
UNLIMITED = (1, 10, 10**6)  # TrackMAP's recall has no limit


def main() -> None:
    """Compare and print a line for each reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # what trackeval and OpenCV warn of while they are imported
    found = {}
    for name, (compare, sets) in REFERENCES.items():
        cases, figures, worst, unequal = 0, 0, 0.0, 0
        for seed in range(options.seeds):
            data = generate(seed, **sets[seed % len(sets)])
            if not data.annotations["annotations"]:
                continue
            cases += 1
            for ours, theirs in compare(data, seed):
                difference = np.abs(np.asarray(ours) - theirs)
                figures += difference.size
                unequal += int((difference > 0).sum())
                worst = max(worst, float(difference.max(initial=0.0)))
        found[name] = {"cases": cases, "figures": figures, "unequal": unequal, "largest": worst}
        print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def accumulated(
    annotations: Annotations, entries: list[dict], rules: Rules, *, classes: bool = True
) -> Accumulated:
    """Our precision and recall."""
    run = Evaluation(annotations, class_agnostic=not classes, rules=rules)
    run.add(predictions_from(entries, annotations, class_agnostic=not classes))
    return run.accumulated()


def over_videos(data: Generated, *, classes: bool) -> Pairs:
    """COCOeval's matching, accumulation and summary with the IoU of videos."""
    reference = VideoEval(data, YTVIS, classes=classes)
    figures = reference.run()
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    found = accumulated(annotations, data.results, YTVIS, classes=classes)
    yield found.precision, reference.eval["precision"][..., -1]
    yield found.recall, reference.eval["recall"]
    report = evaluate(annotations, data.results, class_agnostic=not classes)
    yield official(report.overall), figures


def one_frame(data: Generated, _seed: int) -> Pairs:
    """COCOeval itself on images."""
    data.results = [entry for entry in data.results if entry["segmentations"][0]]
    if not data.results:
        return
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    reference = coco_one_frame(data)
    found = accumulated(annotations, data.results, COCO)
    yield found.precision, reference.eval["precision"][..., -1]
    yield found.recall, reference.eval["recall"]
    report = evaluate(annotations, data.results, rules=COCO)
    yield official(report.overall), reference.stats


def track_map(data: Generated, seed: int) -> Pairs:
    """Trackeval's YouTubeVIS and TrackMAP."""
    thresholds = YTVIS.thresholds if seed % 2 else BURST.thresholds
    rules = replace(BURST, areas=YTVIS.areas, thresholds=thresholds, recall_limits=UNLIMITED)
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    with tempfile.TemporaryDirectory() as folder:
        reference = trackeval_figures(data, Path(folder), rules)
    yield from means(accumulated(annotations, data.results, rules), reference, rules)


def burst(data: Generated, seed: int) -> Pairs:
    """Trackeval's BURST and TrackMAP."""
    truth, results = burst_from(data, seed)
    annotations = annotations_from_burst(truth)
    if not annotations.tracks:
        return
    rules = replace(BURST, recall_limits=UNLIMITED)
    with tempfile.TemporaryDirectory() as folder:
        reference = burst_figures(truth, results, Path(folder), BURST)
    entries = list(entries_from_burst(results, annotations))
    yield from means(accumulated(annotations, entries, rules), reference, rules)


def means(found: Accumulated, reference: dict[str, np.ndarray], rules: Rules) -> Pairs:
    """AP and AR at every threshold in every area range, the mean over classes."""
    for index, (name, _, _) in enumerate(rules.areas):
        for kind, values in (
            ("AP", found.precision[..., index].transpose(0, 2, 1)),
            ("AR", found.recall[:, :, index, -1]),
        ):
            rows = [row[row > -1] for row in values]
            mean = np.array([row.mean() if row.size else -1 for row in rows])
            yield mean, np.asarray(reference[f"{kind}_{name}"])


def official(figures: dict[str, float | None]) -> np.ndarray:
    """With the official code's -1 for what is absent."""
    return np.array([-1 if figures[name] is None else figures[name] for name in FIGURES])


REFERENCES: dict[str, tuple[Callable[[Generated, int], Pairs], tuple[dict, ...]]] = {
    "COCOeval over videos": (lambda data, _: over_videos(data, classes=True), SETS),
    "COCOeval over videos, without classes": (
        lambda data, _: over_videos(data, classes=False),
        SETS,
    ),
    "COCOeval on one-frame videos": (
        one_frame,
        ({"frames": (1, 1), "missing": 0.0, "crowd": 0.0, "predictions": 20},),
    ),
    "trackeval, YouTubeVIS": (track_map, tuple(s for s in SETS if "shuffled" not in s)),
    "trackeval, BURST": (
        burst,
        ({"crowd": 0.0, "categories": 8, "tracks": 9, "predictions": 30, "frames": (2, 5)},),
    ),
}


if __name__ == "__main__":
    main()
