"""Whether a contender computes what the base computes, before its time is quoted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from openvis_rt.bench.report import Agreement
from openvis_rt.compare.differences import sqnr
from openvis_rt.runtime.backends.base import Array
from openvis_rt.runtime.video.results import FrameResult

__all__ = ["GATE", "agreement_of"]

GATE = 40.0
"""Least SQNR in dB between FP32 backends, the median over windows. Rounding alone leaves 80 to 120;
an attention-mask bit that flips on it costs a few frames more than that; a wrong input or layer
leaves about 0. Sums over thresholded pixels are held to the same."""

_BOUND = 200.0
Outputs = Sequence[dict[str, Array]]


def agreement_of(
    found: tuple[Outputs, Sequence[FrameResult]],
    wanted: tuple[Outputs, Sequence[FrameResult]],
    *,
    gate: float | None = GATE,
) -> Agreement:
    """Compare what two contenders give for the same frames.

    Args:
        found, wanted: of the contender and of the base, as a player's ``outputs`` gives them.
        gate: least SQNR in dB; None to let everything pass, such as FP16 beside FP32.
    """
    ratios = {name: _median(found[0], wanted[0], name) for name in wanted[0][0]}
    classes, ious = [], []
    for ours, theirs in zip(found[1], wanted[1], strict=True):
        held = {instance.track_id: instance for instance in ours.instances}
        for instance in theirs.instances:
            other = held.get(instance.track_id)
            classes.append(other is not None and other.category_id == instance.category_id)
            if other is not None:
                pair = [other.segmentation], [instance.segmentation], [0]
                ious.append(float(coco.iou(*pair)[0, 0]))
    passed = gate is None or all(ratio >= gate for ratio in ratios.values())
    return Agreement(
        len(wanted[1]),
        ratios,
        float(np.mean(classes)) if classes else 1.0,
        float(np.mean(ious)) if ious else None,
        passed,
        gate,
    )


def _median(found: Outputs, wanted: Outputs, name: str) -> float:
    """In dB, at most 200; -200 where an output is missing, of another shape or not finite."""
    ratios = []
    for ours, theirs in zip(found, wanted, strict=True):
        value, reference = ours.get(name), theirs[name]
        if value is None or value.shape != reference.shape or not np.isfinite(value).all():
            return -_BOUND
        ratios.append(max(-_BOUND, min(_BOUND, sqnr(value, reference))))
    return float(np.median(ratios))
