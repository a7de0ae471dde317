"""MinVIS-CLIP: query embeddings matched to the previous frame's, scores from mean logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.frame_pipeline import Scores
from openvis_rt.runtime.mean_logits import MeanLogits
from openvis_rt.runtime.rollout import Rollout
from openvis_rt.vocabulary import Vocabulary

__all__ = ["MinVisClip"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class MinVisClip:
    """See :class:`~openvis_rt.runtime.frame_pipeline.Family`.

    A rollout without a recurrence is MinVIS's rule: the cost is 1 - cos of each query embedding and
    the track's last one.
    """

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area"),
        "classify": ("class_scores",),
    }
    bound: tuple[str, ...] = ("frames", "mask_logits")

    def __init__(self) -> None:
        self._tracker = Rollout(None)

    def reset(self) -> None:
        """Forget the video."""
        self._tracker.reset()

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """By the query embeddings."""
        return self._tracker.step(output["queries"])

    def scores(self, tracks: int, vocabulary: Vocabulary, *, keep: bool) -> Scores:
        """See :class:`MeanLogits`."""
        return MeanLogits(tracks, vocabulary.rows_of_class, objectness=False, keep=keep)
