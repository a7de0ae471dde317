"""InstFormer: rollout association of tracking tokens, scores from mean logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.association import unit_rows
from openvis_rt.runtime.frame_pipeline import Scores
from openvis_rt.runtime.mean_logits import MeanLogits
from openvis_rt.runtime.rollout import Cell, Rollout
from openvis_rt.vocabulary import Vocabulary

__all__ = ["InstFormer"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class InstFormer:
    """See :class:`~openvis_rt.runtime.frame_pipeline.Family`.

    Args:
        cell: the recurrence that predicts tokens; None for plain matching.
        normalise_parts: of a tracking token Cat(query, instance token).
        objectness: scores are multiplied with it.
    """

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area"),
        "classify": ("instance_tokens", "class_scores"),
    }
    bound: tuple[str, ...] = ("frames", "guidance_mask")

    def __init__(self, cell: Cell | None, *, normalise_parts: bool, objectness: bool) -> None:
        self._tracker = Rollout(cell)
        self._normalise, self._objectness = normalise_parts, objectness

    def reset(self) -> None:
        """Forget the video."""
        self._tracker.reset()

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """By the tracking tokens."""
        parts = [output["queries"], output["instance_tokens"]]
        if self._normalise:
            parts = [unit_rows(part) for part in parts]
        return self._tracker.step(np.concatenate(parts, axis=1))

    def scores(self, tracks: int, vocabulary: Vocabulary, *, keep: bool) -> Scores:
        """See :class:`MeanLogits`."""
        rows = vocabulary.rows_of_class
        return MeanLogits(tracks, rows, objectness=self._objectness, keep=keep)
