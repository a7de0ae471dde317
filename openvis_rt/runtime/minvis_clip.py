"""MinVIS-CLIP: query embeddings matched to the previous frame's, scores from mean logits."""

from __future__ import annotations

from collections.abc import Mapping

from openvis_rt.runtime.family import Family, Scores
from openvis_rt.runtime.tracking.mean_logits import MeanLogits, among_classes

__all__ = ["MinVisClip"]


class MinVisClip(Family):
    """See :class:`Family`."""

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area"),
        "classify": ("class_scores",),
    }
    bound: Mapping[str, str] = {"frames": "propose", "mask_logits": "propose"}

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """See :class:`MeanLogits`."""
        return MeanLogits(tracks, rows, among_classes, visible_only=True, keep=keep)
