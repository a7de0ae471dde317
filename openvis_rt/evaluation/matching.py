"""Detections of one video and class against its annotated tracks, for every range and threshold.

The official rule, ``evaluateVid`` of ``ytvoseval.py``: detections choose in the order of their
scores (equal scores in the order of the file). Each takes the free track of the largest IoU at or
above the threshold; of equal IoUs the later one. Tracks that do not count (crowds, and those
outside the area range) are asked last, and only by a detection that found no other; a detection
that takes one does not count either. Nor does one that took none and is itself outside the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.evaluation.rules import Rules

__all__ = ["Detections", "Matches", "Truths", "match"]

_NEARLY_ONE = 1 - 1e-10  # the official code's bound for a threshold of 1


@dataclass(frozen=True, slots=True)
class Truths:
    """The annotated tracks of one video and class.

    Attributes:
        areas: mean area in pixels, float64 [G].
        crowd: bool [G].
    """

    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of one video and class.

    Attributes:
        scores: float64 [D].
        areas: mean area in pixels, float64 [D].
        ious: with each annotated track, float64 [D, G].
        exhaustive: whether every object of the class is annotated in this video; where it is not, a
            detection without a match does not count.
    """

    scores: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    ious: npt.NDArray[np.float64]
    exhaustive: bool = True


@dataclass(frozen=True, slots=True)
class Matches:
    """What became of the detections, best first, in each of A area ranges at each of T thresholds.

    Attributes:
        scores: float64 [D], falling.
        matched, ignored: bool [A, T, D]; ignored ones count neither as right nor as wrong.
        positives: annotated tracks that count, int64 [A].
    """

    scores: npt.NDArray[np.float64]
    matched: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    positives: npt.NDArray[np.int64]


def match(detections: Detections, truths: Truths, rules: Rules) -> Matches:
    """Match one video and class in every area range at every threshold."""
    order = np.argsort(-detections.scores, kind="stable")[: rules.limit]
    ious = detections.ious[order]
    out_of_range = ~rules.in_range(truths.areas) | truths.crowd  # [A, G]
    taken = np.full((len(rules.areas), len(rules.thresholds), len(order)), -1)
    candidates = np.flatnonzero((ious >= rules.thresholds[0] - rules.tolerance).any(1))
    if candidates.size:  # else no detection can take anything
        crowd = truths.crowd & rules.crowd_repeats
        for taken_of_range, ignored in zip(taken, out_of_range, strict=True):
            for taken_at, threshold in zip(taken_of_range, rules.thresholds, strict=True):
                _choose(ious, candidates, ignored, crowd, threshold, rules.tolerance, taken_at)
    matched = taken >= 0
    ignored = ~matched  # of a range and threshold; where matched, what the track says
    ignored &= (~rules.in_range(detections.areas[order]) | (not detections.exhaustive))[:, None]
    for index, of_range in enumerate(out_of_range):
        if of_range.size:
            ignored[index] |= matched[index] & of_range[taken[index]]
    return Matches(detections.scores[order], matched, ignored, (~out_of_range).sum(1))


def _choose(
    ious: npt.NDArray[np.float64],
    candidates: npt.NDArray[np.int64],
    ignored: npt.NDArray[np.bool_],
    repeats: npt.NDArray[np.bool_],
    threshold: float,
    tolerance: float,
    taken: npt.NDArray[np.int64],
) -> None:
    """One range at one threshold: write the track that each detection takes into ``taken`` [D]."""
    tracks = np.argsort(ignored, kind="stable").tolist()  # those that do not count come last
    free = set(tracks)
    for detection in candidates.tolist():
        row = ious[detection].tolist()
        best, found = min(threshold, _NEARLY_ONE), -1
        for track in tracks:
            if track not in free:
                continue
            if found >= 0 and not ignored[found] and ignored[track]:
                break
            if row[track] < best - tolerance:
                continue
            best, found = row[track], track
        if found >= 0:
            taken[detection] = found
            if not repeats[found]:
                free.discard(found)
