"""Which true object each found track is: one to one, by the IoU over the whole video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from openvis_rt.runtime.video.drawing import RGB, color_of
from openvis_rt.runtime.video.results import FrameResult

__all__ = ["FoundTrack", "colors_by_object", "tracks_of"]

_LEAST = 0.1  # an IoU below is by chance


@dataclass(frozen=True)
class FoundTrack:
    """One track that some frame shows.

    Attributes:
        id: of the track.
        name: that the system gives it.
        score: of the video, 0..1.
        object: the true object that it covers best, from 0; None where it covers none by an IoU of
            0.1, or another track covers it better.
        iou: with that object, over the whole video, 0..1; 0 without one.
    """

    id: int
    name: str
    score: float
    object: int | None
    iou: float


def tracks_of(results: Sequence[FrameResult], truth: npt.NDArray[np.bool_]) -> list[FoundTrack]:
    """The tracks of a video in the order of their ids, each with its object.

    The pairs have the largest sum of IoUs, the sum over frames of the common pixels by that of all:

        IoU = sum_t |d_t and g_t| / sum_t |d_t or g_t|

    Args:
        results: one a frame, of a whole video's tracks.
        truth: what is seen of each object, bool [n, T, H, W].
    """
    facts: dict[int, tuple[str, float]] = {}
    for result in results:
        for instance in result.instances:
            facts.setdefault(instance.track_id, (instance.name, instance.score))
    ids = sorted(facts)
    shared = np.zeros((len(ids), len(truth)))
    sizes = np.zeros(len(ids))
    for frame, result in enumerate(results):
        for instance in result.instances:
            row, mask = ids.index(instance.track_id), instance.mask
            sizes[row] += mask.sum()
            shared[row] += (truth[:, frame] & mask).sum((1, 2))
    union = sizes[:, None] + truth.sum((1, 2, 3)) - shared
    ious = shared / np.maximum(union, 1)
    rows, columns = linear_sum_assignment(-ious)
    pairs = {int(row): int(column) for row, column in zip(rows, columns, strict=True)}
    found = []
    for row, number in enumerate(ids):
        column = pairs.get(row)
        iou = 0.0 if column is None else float(ious[row, column])
        column, iou = (column, iou) if iou >= _LEAST else (None, 0.0)
        found.append(FoundTrack(number, *facts[number], column, iou))
    return found


def colors_by_object(tracks: Sequence[FoundTrack], objects: int) -> dict[int, RGB]:
    """Track id -> colour: a true object's in every system, and one of its own for any other track.

    Object i has the colour of track i + 1, as in a drawing of the truth.
    """
    others = iter(range(objects + 1, objects + 1 + len(tracks)))
    return {
        track.id: color_of(next(others) if track.object is None else track.object + 1)
        for track in tracks
    }
