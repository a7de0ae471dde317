"""The time of a matrix product; :mod:`.peak` and :mod:`.torch_peak` measure with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

__all__ = ["SIZES", "Peak", "best_product"]

SIZES = (512, 1024, 2048)
"""n of the square matrices on a CPU."""
_REPEATS = 5


@dataclass(frozen=True)
class Peak:
    """The best product.

    Attributes:
        flops: a second; 2 n^3 over the seconds of the fastest repetition.
        size: n of the square matrices, float32.
        library: that was fastest.
        threads: of a CPU; 0 on a GPU.
        device: ``cpu`` or ``cuda``.
    """

    flops: float
    size: int
    library: str
    threads: int
    device: str


def best_product(
    product: Callable[[], object], size: int, library: str, threads: int, device: str = "cpu"
) -> Peak:
    """The fastest of a few repetitions of a product of two square matrices."""
    product()
    best = math.inf
    for _ in range(_REPEATS):
        begin = perf_counter()
        product()
        best = min(best, perf_counter() - begin)
    return Peak(2 * size**3 / best, size, library, threads, device)
