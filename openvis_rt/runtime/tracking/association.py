"""Association by query embeddings: temporal top-K matching, and matching with one memory a track.

Temporal top-K-enhanced matching (CLIP-VIS, section III-C; `clipvis_video.py`). A memory of the last
T frames keeps their query embeddings, already put into track order. For a new frame with embeddings
e and memory m_1 (oldest) .. m_n:

    C_i = 1 - cos(e, m_i)                     [current, track]
    p_i = hungarian(C_i^T),   c_i = sum of C_i along p_i
    n < K:   the permutation p_i of the smallest c_i
    n >= K:  hungarian( mean over the K frames of smallest c_i of  i * C_i )^T

The weight i is the frame's place in the memory, so a newer frame's costs weigh more; the paper's
weight (t - k) reads the other way, but the released weights were evaluated with this one.

One memory a track (`ov2seg_model_video.py`, 346-354; `video_ovformer_model.py`, 228-275):

    p = hungarian( (1 - cos(e, m))^T ),   m <- alpha e[p] + (1 - alpha) m,   at first m = e

with alpha = 0.7 for OV2Seg and OVFormerVideo, and 1, the last frame or window itself, for MinVIS
and VideoOVFormer. Embeddings are not normalised before they are added up.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from openvis_rt.errors import InputError

__all__ = ["Momentum", "TemporalTopK", "hungarian", "unit_rows"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_MOST_FRAMES = 10_000  # each takes 4 bytes for each number of each query


class TemporalTopK:
    """Gives each frame's queries their tracks; knows nothing of graphs.

    Args:
        frames: T, how many past frames are remembered, 1 to 10,000 (released: 9).
        top_k: K, how many of them decide together, 1 to 10,000 (released: 5; the paper's best: 3).

    Raises:
        InputError: T or K is out of range.
    """

    def __init__(self, frames: int = 9, top_k: int = 5) -> None:
        if not (1 <= frames <= _MOST_FRAMES and 1 <= top_k <= _MOST_FRAMES):
            raise InputError(
                f"the tracker needs T and K of 1 to {_MOST_FRAMES}; got T = {frames} and "
                f"K = {top_k}"
            )
        self.top_k = top_k
        self._memory: deque[Floats] = deque(maxlen=frames)

    def reset(self) -> None:
        """Forget every frame; the next one starts new tracks."""
        self._memory.clear()

    def step(self, queries: Floats) -> Ints:
        """Match a frame with the tracks.

        Args:
            queries: float32 [N, C], not normalised; read only.

        Returns:
            int64 [N]: track j is query ``out[j]`` of this frame. The first frame's is 0..N-1.
        """
        unit = unit_rows(queries)
        order = self._match(unit) if self._memory else np.arange(len(queries), dtype=np.int64)
        self._memory.append(unit[order])
        return order

    def _match(self, unit: Floats) -> Ints:
        costs = [1 - unit @ past.T for past in self._memory]
        orders = [hungarian(cost) for cost in costs]
        tracks = np.arange(len(unit))
        totals = np.array([c[o, tracks].sum() for c, o in zip(costs, orders, strict=True)])
        if len(costs) < self.top_k:
            return orders[int(totals.argmin())]
        best = np.argsort(totals, kind="stable")[: self.top_k]
        return hungarian(np.mean([costs[i] * np.float32(i + 1) for i in best], axis=0))


class Momentum:
    """Matches queries with one memory a track.

    Args:
        alpha: weight of the newest frame in the memory, above 0 and up to 1.

    Raises:
        InputError: alpha is out of range.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha <= 1:
            raise InputError(f"alpha of the tracker is above 0 and at most 1; got {alpha}")
        self.alpha = alpha
        self._memory: Floats | None = None

    def reset(self) -> None:
        """Forget every frame; the next one starts new tracks."""
        self._memory = None

    def step(self, queries: Floats) -> Ints:
        """Match a frame, or a window, with the tracks; see :meth:`TemporalTopK.step`."""
        if self._memory is None:
            self._memory = queries.astype(np.float32, copy=True)
            return np.arange(len(queries), dtype=np.int64)
        order = hungarian(1 - unit_rows(queries) @ unit_rows(self._memory).T)
        self._memory *= np.float32(1 - self.alpha)
        self._memory += np.float32(self.alpha) * queries[order]
        return order


def unit_rows(queries: Floats) -> Floats:
    """Rows [N, C] over their norms; a row of zeros stays one."""
    norm = np.linalg.norm(queries, axis=1, keepdims=True)
    unit: Floats = queries / np.maximum(norm, np.float32(1e-8))
    return unit


def hungarian(cost: Floats) -> Ints:
    """For each track (column) the query (row) of the cheapest one-to-one assignment."""
    return linear_sum_assignment(cost.T)[1].astype(np.int64)
