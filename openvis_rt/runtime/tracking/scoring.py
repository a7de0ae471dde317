"""Video-level scores of CLIP-VIS and of OV2Seg, summed frame by frame.

For track q, class c and frames t = 1..T, with p = class probability (CLIP-VIS) or class logit
(OV2Seg, OVFormerVideo) and o = softmax(object logits)[0]:

    s1[q, c]  = mean_t sqrt( p[q, t, c] * iou[q, t] )     CLIP-VIS, `clipvis_video.py`, 380-482
    s1[q, c]  = sigmoid( mean_t p[q, t, c] )              OV2Seg, `ov2seg_model_video.py`, 272-306
    S[q, c]   = sqrt( s1[q, c] * softmax( mean_t object_logits[q, t] )[0] )
    the detections are the largest S over all (q, c)
    frame t of a detection is dropped where  sqrt( sigmoid(p[q, t, c]) * o[q, t] ) < 0.1 S
    score     = S * (sum of sigmoids) / (number of pixels), over kept frames' pixels with logit > 0

(sigmoid of a probability is the public code's own.) All but the dropping needs sums only. For the
dropping, p of every frame is needed once the detections are known; it cannot matter for a row whose
least sigmoid(p) o is 0.01 or more, since S <= 1, so only the other rows are kept, in a temporary
file once they pass 64 MiB.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from openvis_rt.errors import OutputError

__all__ = [
    "Detection",
    "FrameLogits",
    "FrameProbabilities",
    "best_rows",
    "merge_synonyms",
    "object_probability",
]

Floats = npt.NDArray[np.float32]

_KEEP = 0.1  # of S: a frame below it is dropped
_SPOOL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Detection:
    """One track under one class: its score 0..1, and which frames show it (bool [T])."""

    track: int
    category: int
    score: float
    shown: npt.NDArray[np.bool_]


class _FrameScores(ABC):
    """Running sums over the frames of one video, in track order.

    Args:
        tracks: N.
        rows: of `classify`'s scores for each class, in order.
        keep: keep what :meth:`detections` needs of every frame; without it memory stays flat, and
            only :meth:`running_scores` can be asked.
        reported: how many of the classes, from the first on, can be reported; None for all.
    """

    def __init__(
        self, tracks: int, rows: list[int], *, keep: bool = True, reported: int | None = None
    ) -> None:
        self._rows_of_class, classes = rows, len(rows)
        self._tracks, self._classes, self._keep_frames = tracks, classes, keep
        self._frames, self._reported = 0, classes if reported is None else reported
        self._terms = np.zeros((tracks, classes))  # whose mean is s1, or what s1 is made of
        self._logits = np.zeros((tracks, 2))
        self._area, self._mass = np.zeros(tracks), np.zeros(tracks)
        self._now = np.zeros((tracks, classes), np.float32)  # p of the last frame
        self._object_now = np.zeros(tracks, np.float32)
        self._objects: list[Floats] = []  # [N] a frame
        self._areas: list[Floats] = []
        self._masses: list[Floats] = []
        self._rows: list[npt.NDArray[np.int64]] = []  # tracks of the kept rows, a frame
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - see close

    @property
    def frames(self) -> int:
        """Frames added so far."""
        return self._frames

    def _add(
        self,
        terms: Floats,
        p: Floats,
        object_logits: Floats,
        mask_area: Floats,
        mask_mass: Floats,
    ) -> None:
        """Add a frame: float32 [N, C] twice, [N, 2], [N] and [N]."""
        self._terms += terms
        self._logits += object_logits
        self._area += mask_area
        self._mass += mask_mass
        self._frames += 1
        self._now, self._object_now = p, object_probability(object_logits)
        if self._keep_frames:
            self._keep(self._object_now, mask_area, mask_mass)

    @abstractmethod
    def _class_scores(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The docstring's s1, of the mean of the terms."""

    def _keep(self, objects: Floats, mask_area: Floats, mask_mass: Floats) -> None:
        least = expit(self._now.min(1).astype(np.float64))
        rows = np.flatnonzero(least * objects < _KEEP**2)
        self._objects.append(objects)
        self._areas.append(mask_area)
        self._masses.append(mask_mass)
        self._rows.append(rows)
        try:
            self._spool.write(np.ascontiguousarray(self._now[rows], np.float32).tobytes())
        except OSError as exc:
            raise OutputError(
                f"the temporary folder {tempfile.gettempdir()} took no more of the video's class "
                f"scores ({exc.strerror}): video mode needs up to "
                f"{4 * self._tracks * self._classes} bytes a frame there. Set TMPDIR to a larger "
                "one, or use streaming."
            ) from exc

    def scores(self) -> npt.NDArray[np.float64]:
        """S [N, C] of the frames so far."""
        frames = max(1, self.frames)
        objects = object_probability(self._logits / frames)
        s1 = self._class_scores(self._terms / frames)
        out: npt.NDArray[np.float64] = np.sqrt(s1 * objects[:, None])
        return out

    def running_scores(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """What is known after the last frame, by the same formulas over the frames so far.

        But for one thing: the mask quality is that of all frames so far, as the frames that
        :meth:`detections` drops are known at the end only, and without the frames not at all.

        Returns:
            for each track its best class int64 [N], that class's score float64 [N] in 0..1, and
            whether the last frame shows the track (bool [N]; its f is not below 0.1 S, and its
            class can be reported).
        """
        scores = self.scores()
        categories = scores.argmax(1)
        tracks = np.arange(self._tracks)
        best = scores[tracks, categories]
        f = _frame_score(self._now[tracks, categories], self._object_now)
        shown = (f >= _KEEP * best) & (categories < self._reported)
        return categories, best * self._mass / (self._area + 1e-6), shown

    def detections(self, count: int) -> list[Detection]:
        """The best (track, class) pairs of the whole video, best S first.

        Args:
            count: how many at most (the public TEST.DETECTIONS_PER_IMAGE).
        """
        if not self.frames:
            return []
        scores = self.scores()[:, : self._reported]
        order = np.argsort(-scores, axis=None, kind="stable")[:count]
        tracks, categories = np.divmod(order, self._reported)
        best = scores[tracks, categories]
        shown = self._shown(tracks, categories, best)  # [T, n]
        mass = (np.stack(self._masses)[:, tracks].astype(np.float64) * shown).sum(0)
        area = (np.stack(self._areas)[:, tracks].astype(np.float64) * shown).sum(0)
        final = best * mass / (area + 1e-6)
        return [
            Detection(int(track), int(category), float(score), shown[:, index])
            for index, (track, category, score) in enumerate(
                zip(tracks, categories, final, strict=True)
            )
        ]

    def _shown(
        self,
        tracks: npt.NDArray[np.int64],
        categories: npt.NDArray[np.int64],
        best: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.bool_]:
        out = np.ones((self.frames, len(tracks)), np.bool_)
        self._spool.seek(0)
        for frame, rows in enumerate(self._rows):
            data = self._spool.read(len(rows) * self._classes * 4)
            kept = np.frombuffer(data, np.float32).reshape(len(rows), self._classes)
            place = np.full(self._tracks, -1)
            place[rows] = np.arange(len(rows))
            for index in np.flatnonzero(place[tracks] >= 0):
                p = kept[place[tracks[index]], categories[index]]
                f = _frame_score(p, self._objects[frame][tracks[index]])
                out[frame, index] = f >= _KEEP * best[index]
        self._spool.seek(0, 2)
        return out

    def close(self) -> None:
        """Drop the temporary file."""
        self._spool.close()


class FrameProbabilities(_FrameScores):
    """CLIP-VIS's."""

    def add(
        self,
        probabilities: Floats,
        mask_iou: Floats,
        object_logits: Floats,
        mask_area: Floats,
        mask_mass: Floats,
    ) -> None:
        """Add a frame.

        Args:
            probabilities: float32 [N, C], p of the classes, each row sums to 1.
            mask_iou: float32 [N], 0..1.
            object_logits: float32 [N, 2].
            mask_area: float32 [N], pixels of the stride-4 mask.
            mask_mass: float32 [N], sum of their sigmoids.
        """
        terms = np.sqrt(probabilities * mask_iou[:, None])
        self._add(terms, probabilities, object_logits, mask_area, mask_mass)

    def add_output(self, output: Mapping[str, Floats], order: npt.NDArray[np.int64]) -> None:
        """Add a frame of the graphs' outputs, in the queries' order; track j is ``order[j]``."""
        self.add(
            merge_synonyms(output["class_scores"], self._rows_of_class)[order],
            output["mask_iou"][order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )

    def _class_scores(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return mean


class FrameLogits(_FrameScores):
    """OV2Seg's, and those of OVFormer's per-frame model."""

    def add(
        self, logits: Floats, object_logits: Floats, mask_area: Floats, mask_mass: Floats
    ) -> None:
        """Add a frame.

        Args:
            logits: float32 [N, C], p of the classes, without the background.
            object_logits, mask_area, mask_mass: as for :meth:`FrameProbabilities.add`.
        """
        self._add(logits, logits, object_logits, mask_area, mask_mass)

    def add_output(self, output: Mapping[str, Floats], order: npt.NDArray[np.int64]) -> None:
        """Add a frame of the graphs' outputs, in the queries' order; track j is ``order[j]``."""
        self.add(
            best_rows(output["class_scores"], self._rows_of_class)[order],
            output["object_logits"][order],
            output["mask_area"][order],
            output["mask_mass"][order],
        )

    def _class_scores(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = expit(mean)
        return out


def _frame_score(p: npt.ArrayLike, objects: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The f of this module's docstring: sqrt( sigmoid(p) * o ), float64, elementwise."""
    score: npt.NDArray[np.float64] = np.sqrt(
        np.asarray(objects, np.float64) / (1 + np.exp(-np.asarray(p, np.float64)))
    )
    return score


def object_probability(logits: npt.NDArray[np.floating]) -> Floats:
    """Softmax over the last axis of [..., 2], first entry: the probability of an object."""
    return np.asarray(expit(logits[..., 0] - logits[..., 1]), np.float32)


def best_rows(scores: Floats, rows_of_class: list[int]) -> Floats:
    """Of each class its best row.

    Args:
        scores: float32 [N, K].
        rows_of_class: rows of each class, in order; they sum to K.

    Returns:
        float32 [N, C].
    """
    if len(rows_of_class) == scores.shape[1]:
        return scores
    out: Floats = np.maximum.reduceat(scores, np.cumsum([0, *rows_of_class[:-1]]), axis=1)
    return out


def merge_synonyms(scores: Floats, rows_of_class: list[int]) -> Floats:
    """Class probabilities from the scores of the text classifier's rows.

        softmax_c( max_{k in c} z_k ) = max_{k in c} s_k / sum_c' max_{k in c'} s_k,   s =
        softmax(z)

    Args:
        scores: float32 [N, K], softmax over rows.
        rows_of_class: rows of each class, in order; they sum to K.

    Returns:
        float32 [N, C].
    """
    if len(rows_of_class) == scores.shape[1]:
        return scores
    best = best_rows(scores, rows_of_class)
    tiny = np.float32(1e-30)  # a backend that gives zeros gives no NaN either
    out: Floats = best / np.maximum(best.sum(1, keepdims=True), tiny)
    return out
