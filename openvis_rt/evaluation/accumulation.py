"""Matches of all videos to precision and recall, class by class: ``accumulate`` of ``cocoeval.py``.

The detections of a class stand in the order of their scores over all videos; equal ones in the
order of the videos (a stable sort). With tp and fp the running counts:

    recall     r_i = tp_i / positives
    precision  p_i = tp_i / (tp_i + fp_i + 2^-52),  then the largest of all p_j with j >= i
    at recall R the precision is that of the first i with r_i >= R; 0 where there is none
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.evaluation.matching import Matches
from openvis_rt.evaluation.rules import RECALLS, Rules

__all__ = ["ABSENT", "Accumulated", "accumulate"]

ABSENT = -1.0
"""Stands where a class has no annotated track that counts; no mean takes it."""


@dataclass(frozen=True, slots=True)
class Accumulated:
    """Precision and recall of K classes in A area ranges at T thresholds.

    Attributes:
        precision: float64 [T, 101, K, A], at the recalls 0, 0.01, ..., 1; -1 where absent.
        recall: float64 [T, K, A, M], the highest that is reached with the best 1, 10, 100
            detections of each video and class; -1 where absent.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]


def accumulate(classes: Sequence[Iterable[Matches]], rules: Rules) -> Accumulated:
    """All classes: of each the matches of its videos, in the order of the videos."""
    thresholds, ranges = len(rules.thresholds), len(rules.areas)
    precision = np.full((thresholds, len(RECALLS), len(classes), ranges), ABSENT)
    recall = np.full((thresholds, len(classes), ranges, len(rules.recall_limits)), ABSENT)
    for index, matches in enumerate(classes):
        _accumulate_class(list(matches), rules, precision[:, :, index], recall[:, index])
    return Accumulated(precision, recall)


def _accumulate_class(
    videos: list[Matches],
    rules: Rules,
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
) -> None:
    """One class, into ``precision`` [T, 101, A] and ``recall`` [T, A, M]."""
    if not videos:
        return
    positives = np.sum([video.positives for video in videos], axis=0)
    if not positives.any():
        return
    scores = np.concatenate([video.scores for video in videos])
    rank = np.concatenate([np.arange(len(video.scores)) for video in videos])
    order = np.argsort(-scores, kind="stable")
    rank = rank[order]
    matched = np.concatenate([video.matched for video in videos], axis=2)[:, :, order]
    ignored = np.concatenate([video.ignored for video in videos], axis=2)[:, :, order]
    right, wrong = matched & ~ignored, ~matched & ~ignored
    for area in np.flatnonzero(positives):
        for place, limit in enumerate(rules.recall_limits):
            found = right[area][:, rank < limit].sum(1)
            recall[:, area, place] = found / positives[area]
        for at in range(len(rules.thresholds)):
            precision[at, :, area] = _precision(
                right[area, at], wrong[area, at], int(positives[area])
            )


def _precision(
    right: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_], positives: int
) -> npt.NDArray[np.float64]:
    """Precision at the 101 recalls, of detections that are right or wrong (bool [D])."""
    tp, fp = np.cumsum(right).astype(np.float64), np.cumsum(wrong).astype(np.float64)
    precision = tp / (fp + tp + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(tp / positives, RECALLS, side="left")
    out = np.zeros(len(RECALLS))
    reached = places < len(precision)
    out[reached] = precision[places[reached]]
    return out
