"""How old results are when they are known, over any number of frames, in memory that is fixed."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Ages"]

_SHORTEST, _STEP, _BINS = 1e-4, 1.02, 1000  # seconds; each bin ends 2 % later: up to 11 hours


class Ages:
    """Counts ages by their logarithm, so that a quantile is right to 2 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Count one age."""
        place = math.log(max(seconds, _SHORTEST) / _SHORTEST) / math.log(_STEP)
        self._counts[min(round(place), _BINS - 1)] += 1

    def quantile(self, share: float) -> float | None:
        """The age in seconds that a share (0..1) of all reaches at most; None without any."""
        total = int(self._counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return float(_SHORTEST * _STEP**place)

    def to_json(self) -> dict[str, float] | None:
        """Milliseconds: ``p50`` and ``p99``; None without any age."""
        half, most = self.quantile(0.5), self.quantile(0.99)
        if half is None or most is None:
            return None
        return {"p50": round(1000 * half, 1), "p99": round(1000 * most, 1)}
