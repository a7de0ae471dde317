"""Video-level scores from mean logits (InstFormer, MinVIS, VideoOVFormer).

For track q, class c and the frames or windows t = 1..T, or those of them in which the track's mask
has a pixel:

    z[q, c] = mean_t class_scores[q, t, c]      of a class with several rows their largest
    o[q]    = softmax( mean_t object_logits[q, t] )[0]

    softmax                S = softmax_c(z)           InstFormer, MinVIS-CLIP
    softmax-objectness     S = softmax_c(z) o         InstFormer with objectness
    softmax-without-last   S = softmax_c(z) without the last class     MinVIS: "no object"
    sigmoid-objectness     S = sqrt( sigmoid(z) o )   VideoOVFormer (`video_ovformer_model.py`)

A track that was never looked at has score 0. Nothing grows but a bit a track and frame, in video
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from openvis_rt.runtime.tracking.scoring import Detection, best_rows, object_probability

__all__ = ["FORMULAS", "Formula", "MeanLogits"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Formula:
    """One S of this module's docstring.

    Attributes:
        score: from z [N, C] and o [N] to S.
        extra_rows: columns of the logits that are no class of the vocabulary, behind the others.
    """

    score: Callable[[Floats64, Floats64], Floats64]
    extra_rows: int = 0


def _softmax(logits: Floats64) -> Floats64:
    out: Floats64 = softmax(logits, axis=1)
    return out


def _sigmoid_objectness(logits: Floats64, objects: Floats64) -> Floats64:
    out: Floats64 = np.sqrt(expit(logits) * objects[:, None])
    return out


FORMULAS = {
    "softmax": Formula(lambda logits, _: _softmax(logits)),
    "softmax-objectness": Formula(lambda logits, objects: _softmax(logits) * objects[:, None]),
    "softmax-without-last": Formula(lambda logits, _: _softmax(logits)[:, :-1], extra_rows=1),
    "sigmoid-objectness": Formula(_sigmoid_objectness),
}
"""By the name that a bundle records."""


class MeanLogits:
    """Running sums over the frames or windows of one video, in track order.

    Args:
        tracks: N.
        rows: of the logits for each class of the vocabulary, in order.
        formula: S of the means.
        visible_only: a frame counts for the tracks of which it shows a pixel; else for all.
        keep: keep which frames show each track, for :meth:`detections`.
        reported: how many of the classes, from the first on, can be reported; None for all.
    """

    def __init__(
        self,
        tracks: int,
        rows: list[int],
        formula: Formula,
        *,
        visible_only: bool,
        keep: bool,
        reported: int | None = None,
    ) -> None:
        self._rows = [*rows, *[1] * formula.extra_rows]
        self._score, self._visible_only, self._keep = formula.score, visible_only, keep
        self._reported = len(rows) if reported is None else reported
        self._sum = np.zeros((tracks, len(self._rows)))
        self._objects = np.zeros((tracks, 2))
        self._counted = np.zeros(tracks, np.int64)
        self._history: list[npt.NDArray[np.uint8]] = []  # a frame: a bit a track

    def add_output(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame or a window.

        Args:
            output: ``class_scores`` logits [N, K], ``object_logits`` [N, 2] if the model has them,
                and ``mask_area`` [N] or [N, T], in the queries' order.
            order: int64 [N], the query of each track.
        """
        visible = output["mask_area"].reshape(len(order), -1)[order] > 0
        counts = visible.any(1) if self._visible_only else np.ones(len(order), np.bool_)
        logits = best_rows(output["class_scores"], self._rows)[order]
        self._sum[counts] += logits[counts]
        if "object_logits" in output:
            self._objects[counts] += output["object_logits"][order][counts]
        self._counted += counts
        if self._keep:
            self._history += [np.packbits(frame) for frame in visible.T]

    def scores(self) -> Floats64:
        """S [N, C] of the frames so far."""
        count = np.maximum(self._counted, 1)[:, None]
        objects = object_probability(self._objects / count).astype(np.float64)
        return self._score(self._sum / count, objects) * (self._counted > 0)[:, None]

    def running_scores(self) -> tuple[Ints, Floats64, Bools]:
        """Best class, its score so far, and whether it can be reported; [N] each."""
        scores = self.scores()
        categories = scores.argmax(1)
        shown = categories < self._reported
        return categories, scores[np.arange(len(scores)), categories], shown

    def detections(self, count: int) -> list[Detection]:
        """The best (track, class) pairs of the whole video, ``count`` at most, best first."""
        if not self._history:
            return []
        scores = self.scores()[:, : self._reported]
        tracks, categories = np.divmod(
            np.argsort(-scores, axis=None, kind="stable")[:count], scores.shape[1]
        )
        visible = np.unpackbits(np.stack(self._history), axis=1, count=len(scores)).astype(bool)
        return [
            Detection(int(t), int(c), float(scores[t, c]), visible[:, t])
            for t, c in zip(tracks, categories, strict=True)
        ]

    def close(self) -> None:
        """Nothing is kept outside memory."""
