"""InstFormer: rollout association of tracking tokens, scores from mean logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.family import Family, Scores, Tracker
from openvis_rt.runtime.tracking.association import unit_rows
from openvis_rt.runtime.tracking.mean_logits import MeanLogits, among_classes, objects_among_classes

__all__ = ["InstFormer"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class InstFormer(Family):
    """See :class:`Family`.

    Args:
        tracker: of tracking tokens.
        normalise_parts: of a tracking token Cat(query, instance token).
        objectness: scores are multiplied with it.
    """

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area"),
        "classify": ("instance_tokens", "class_scores"),
    }
    bound: Mapping[str, str] = {"frames": "propose", "guidance_mask": "propose"}

    def __init__(self, tracker: Tracker, *, normalise_parts: bool, objectness: bool) -> None:
        super().__init__(tracker)
        self._normalise = normalise_parts
        self._score = objects_among_classes if objectness else among_classes

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """By the tracking tokens."""
        parts = [output["queries"], output["instance_tokens"]]
        if self._normalise:
            parts = [unit_rows(part) for part in parts]
        return self._tracker.step(np.concatenate(parts, axis=1))

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """See :class:`MeanLogits`."""
        return MeanLogits(tracks, rows, self._score, visible_only=True, keep=keep)
