"""MinVIS: query embeddings matched to the previous frame's, the checkpoint's own classes."""

from __future__ import annotations

from collections.abc import Mapping

from openvis_rt.runtime.family import Family, Scores
from openvis_rt.runtime.tracking.mean_logits import MeanLogits, among_classes_and_none

__all__ = ["MinVis"]


class MinVis(Family):
    """See :class:`Family`."""

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "mask_area"),
        "classify": ("class_scores",),
    }
    bound: Mapping[str, str] = {"queries": "propose"}

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """See :class:`MeanLogits`; one column more than classes is "no object"."""
        columns = [*rows, 1]
        return MeanLogits(tracks, columns, among_classes_and_none, visible_only=False, keep=keep)
