"""OV2Seg and OVFormer: a clip-by-clip model, and two per-frame models with one scoring."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.family import Family, Scores
from openvis_rt.runtime.tracking.mean_logits import MeanLogits, each_class_and_objectness
from openvis_rt.runtime.tracking.scoring import SigmoidScores, best_rows

__all__ = ["Ov2Seg", "OvFormerFrame", "OvFormerVideo"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class OvFormerVideo(Family):
    """VideoOVFormer; see :class:`Family`. Logits are averaged over windows, long or short."""

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area"),
        "classify": ("class_scores",),
    }
    bound: Mapping[str, str] = {"queries": "propose", "image_embeddings": "embed"}

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """See :class:`MeanLogits`."""
        return MeanLogits(tracks, rows, each_class_and_objectness, visible_only=False, keep=keep)


class Ov2Seg(Family):
    """OV2Seg; see :class:`Family`."""

    fetched: Mapping[str, tuple[str, ...]] = {
        "propose": ("queries", "object_logits", "mask_area", "mask_mass"),
        "classify": ("class_scores",),
    }
    bound: Mapping[str, str] = {"queries": "propose"}

    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """The official ones."""
        return _OfficialScores(tracks, rows, keep=keep)


class OvFormerFrame(Ov2Seg):
    """OVFormerVideo: OV2Seg's association and scores, with image embeddings."""

    bound: Mapping[str, str] = {**Ov2Seg.bound, "image_embeddings": "embed"}


class _OfficialScores(SigmoidScores):
    """:class:`SigmoidScores` of the graphs' own outputs."""

    def __init__(self, tracks: int, rows: list[int], *, keep: bool) -> None:
        super().__init__(tracks, len(rows), keep=keep)
        self._rows_of_class = rows

    def add_output(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame; ``output`` is in the queries' order, track j is query ``order[j]``."""
        self.add(
            best_rows(output["class_scores"], self._rows_of_class)[order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )
