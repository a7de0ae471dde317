"""Video-level scores from mean logits (InstFormer, MinVIS).

For track q, class c and the frames t in which the track's mask has a pixel:

    S[q, c] = softmax_c( mean_t z[q, t, c] )      z = max of the class's rows
    with objectness:  S[q, c] * softmax( mean_t object_logits[q, t] )[0]

A track without any pixel has score 0. Nothing grows but a bit a track and frame, in video mode.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from openvis_rt.runtime.scoring import Detection, object_probability

__all__ = ["MeanLogits"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class MeanLogits:
    """Running sums over the frames of one video, in track order.

    Args:
        tracks: N.
        rows: of the logits for each class, in order.
        objectness: multiply with it.
        keep: keep which frames show each track, for :meth:`detections`.
    """

    def __init__(self, tracks: int, rows: list[int], *, objectness: bool, keep: bool) -> None:
        self._starts = np.cumsum([0, *rows[:-1]])
        self._objectness, self._keep = objectness, keep
        self._sum = np.zeros((tracks, len(rows)))
        self._objects = np.zeros((tracks, 2))
        self._seen = np.zeros(tracks, np.int64)
        self._visible = np.zeros(tracks, np.bool_)
        self._history: list[npt.NDArray[np.uint8]] = []  # a bit a track

    def add_frame(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame.

        Args:
            output: ``class_scores`` logits [N, K], ``object_logits`` [N, 2] and ``mask_area`` [N],
                in the queries' order.
            order: int64 [N], the query of each track.
        """
        visible = output["mask_area"][order] > 0
        logits = np.maximum.reduceat(output["class_scores"], self._starts, axis=1)[order]
        self._sum[visible] += logits[visible]
        self._objects[visible] += output["object_logits"][order][visible]
        self._seen += visible
        self._visible = visible
        if self._keep:
            self._history.append(np.packbits(visible))

    def scores(self) -> Floats64:
        """S [N, C] of the frames so far."""
        frames = np.maximum(self._seen, 1)[:, None]
        out: Floats64 = softmax(self._sum / frames, axis=1) * (self._seen > 0)[:, None]
        if self._objectness:
            out *= object_probability(self._objects / frames)[:, None]
        return out

    def now(self) -> tuple[Ints, Floats64, Bools]:
        """Best class, its score so far, and whether the last frame shows the track; [N] each."""
        scores = self.scores()
        categories = scores.argmax(1)
        return categories, scores[np.arange(len(scores)), categories], self._visible

    def detections(self, count: int) -> list[Detection]:
        """The best (track, class) pairs of the whole video, ``count`` at most, best first."""
        if not self._history:
            return []
        scores = self.scores()
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
