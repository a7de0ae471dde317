"""How large the numbers of a tensor get, and the range that INT8 covers of them.

A range r stands for -r .. r in steps of r / 127, and what is outside is clipped. Where uint8 with a
zero point stores a tensor, the part of -r .. r in which it has numbers is covered. Every method
below chooses r from a histogram of magnitudes, so they can be compared, and chosen anew, without
the frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError

__all__ = ["BINS", "METHODS", "Histogram", "Method", "method_named", "range_of"]

BINS = 2048
Method = Literal["max", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
_LEVELS = 127  # magnitudes that INT8 tells apart, 0 aside
_PERCENT = 99.99  # of the numbers that `percentile` covers

Floats = npt.NDArray[np.float64]


class Histogram:
    """Magnitudes of all numbers that a tensor had.

    Attributes:
        counts: numbers in each of :data:`BINS` equal bins from 0 to ``top``, float64 [BINS].
        top: end of the last bin; it doubles when a number does not fit, and bins become one in two.
        lowest, highest: of all numbers and 0.
    """

    def __init__(self) -> None:
        self.counts: Floats = np.zeros(BINS)
        self.top, self.lowest, self.highest = 0.0, 0.0, 0.0

    @property
    def largest(self) -> float:
        """Magnitude of all numbers."""
        return max(-self.lowest, self.highest)

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Count a tensor's numbers.

        Raises:
            InputError: one is infinite or no number.
        """
        numbers = np.asarray(values, np.float32).ravel()
        if not numbers.size:
            return
        low, high = float(numbers.min()), float(numbers.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("infinite numbers, or values that are no numbers")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        largest, magnitudes = max(-low, high), np.abs(numbers)
        if not self.top:
            self.top = largest
        while self.top < largest:
            self.counts = np.concatenate((self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)))
            self.top *= 2
        if not self.top:  # nothing but zeros so far
            self.counts[0] += magnitudes.size
            return
        bins = np.minimum((magnitudes / self.top * BINS).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise InputError(f"there is no method {name!r}; there are: {', '.join(METHODS)}")


def range_of(histogram: Histogram, method: Method) -> float:
    """The range r of a tensor, above 0.

    Args:
        histogram: of its numbers.
        method: ``max`` covers them all; ``percentile`` 99.99 % of them; ``mse`` makes the mean
            squared error of rounding and clipping least; ``entropy`` the divergence of the
            distributions before and after (TensorRT's calibrator, GTC 2017).

    Raises:
        InputError: the tensor was never anything but 0, so there is no range to find.
    """
    if not histogram.largest:
        raise InputError("nothing but zeros")
    return min(_CHOOSE[method](histogram), histogram.largest)


def _of_percentile(histogram: Histogram) -> float:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    covered = int(np.searchsorted(share, _PERCENT / 100)) + 1
    return histogram.top * covered / BINS


def _of_squares(histogram: Histogram) -> float:
    centres = (np.arange(BINS) + 0.5) * (histogram.top / BINS)
    ranges = histogram.top * np.arange(_LEVELS, BINS + 1, 8) / BINS
    errors = []
    for limit in ranges:
        step = limit / _LEVELS
        rounded = np.minimum(np.rint(centres / step), _LEVELS) * step
        errors.append(float(histogram.counts @ (centres - rounded) ** 2))
    return float(ranges[int(np.argmin(errors))])


def _of_entropy(histogram: Histogram) -> float:
    counts = histogram.counts.copy()
    counts[0] = counts[1]  # zeros are exact in INT8, and ReLU makes many
    ends = np.arange(_LEVELS + 1, BINS + 1, 8)
    divergences = [_divergence(counts, int(end)) for end in ends]
    return float(histogram.top * ends[int(np.argmin(divergences))] / BINS)


def _divergence(counts: Floats, end: int) -> float:
    """KL divergence of the first bins, which end with all beyond, from what INT8 makes of them."""
    before = counts[:end].copy()
    before[-1] += counts[end:].sum()
    levels = np.arange(end) * (_LEVELS + 1) // end
    seen = counts[:end] > 0
    sums = np.bincount(levels, counts[:end], _LEVELS + 1)
    cells = np.bincount(levels, seen, _LEVELS + 1)
    after = np.where(seen, (sums / np.maximum(cells, 1))[levels], 0.0)
    if not before.any() or not after.any():
        return float("inf")
    p, q = before / before.sum(), after / after.sum()
    told = p > 0
    return float((p[told] * np.log(p[told] / np.maximum(q[told], 1e-10))).sum())


_CHOOSE: dict[Method, Callable[[Histogram], float]] = {
    "max": lambda histogram: histogram.largest,
    "percentile": _of_percentile,
    "mse": _of_squares,
    "entropy": _of_entropy,
}
