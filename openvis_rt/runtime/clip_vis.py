"""CLIP-VIS: temporal top-K association, official scoring from sums over frames."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.family import Family, Scores
from openvis_rt.runtime.tracking.scoring import VideoScores, merge_synonyms

__all__ = ["ClipVis"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class ClipVis(Family):
    """See :class:`Family`."""

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_iou", "mask_area", "mask_mass"),
        "classify": ("class_scores",),
    }
    bound: Mapping[str, str] = {"features": "propose", "pool_mask": "propose"}

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """The official ones."""
        return _OfficialScores(tracks, rows, keep=keep)


class _OfficialScores(VideoScores):
    """:class:`VideoScores` of the graphs' own outputs."""

    def __init__(self, tracks: int, rows: list[int], *, keep: bool) -> None:
        super().__init__(tracks, len(rows), keep=keep)
        self._rows_of_class = rows

    def add_output(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame; ``output`` is in the queries' order, track j is query ``order[j]``."""
        self.add(
            merge_synonyms(output["class_scores"], self._rows_of_class)[order],
            output["mask_iou"][order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )
