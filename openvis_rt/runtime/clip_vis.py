"""CLIP-VIS: temporal top-K association, official scoring from sums over frames."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.association import TemporalTopK
from openvis_rt.runtime.frame_pipeline import Scores
from openvis_rt.runtime.scoring import VideoScores, merge_synonyms
from openvis_rt.vocabulary import Vocabulary

__all__ = ["ClipVis"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class ClipVis:
    """See :class:`~openvis_rt.runtime.frame_pipeline.Family`.

    Args:
        frames, top_k: T and K of :class:`TemporalTopK`.
    """

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_iou", "mask_area", "mask_mass"),
        "classify": ("class_scores",),
    }
    bound: tuple[str, ...] = ("features", "pool_mask")

    def __init__(self, frames: int, top_k: int) -> None:
        self._tracker = TemporalTopK(frames, top_k)

    def reset(self) -> None:
        """Forget the video."""
        self._tracker.reset()

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """By the query embeddings."""
        return self._tracker.step(output["queries"])

    def scores(self, tracks: int, vocabulary: Vocabulary, *, keep: bool) -> Scores:
        """The official ones."""
        return _OfficialScores(tracks, vocabulary.rows_of_class, keep=keep)


class _OfficialScores(VideoScores):
    """:class:`VideoScores` of the graphs' own outputs.

    Args:
        tracks, keep: as there.
        rows: of `class_scores` for each class.
    """

    def __init__(self, tracks: int, rows: list[int], *, keep: bool) -> None:
        super().__init__(tracks, len(rows), keep=keep)
        self._rows_of_class = rows

    def add_frame(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame; ``output`` is in the queries' order, track j is query ``order[j]``."""
        self.add(
            merge_synonyms(output["class_scores"], self._rows_of_class)[order],
            output["mask_iou"][order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )
