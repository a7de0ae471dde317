"""What this machine multiplies at best: FLOP/s of large float32 matrix products.

A model's operations over its time are held against this, not against a data sheet. It is the best
of a few sizes and of the libraries that are here, each by as many threads as the contenders have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from openvis_rt.bench.products import SIZES, Peak, best_product

__all__ = ["measured_peak"]


def measured_peak(threads: int, device: str = "cpu") -> Peak | None:
    """Measure it, for a second or two; None on a GPU that PyTorch does not reach.

    Args:
        threads: of the CPU.
        device: ``cpu`` or ``cuda``.
    """
    found = _with_numpy(threads) if device == "cpu" else []
    with contextlib.suppress(ImportError):
        from openvis_rt.bench.torch_peak import cpu_peaks, cuda_peaks

        found += cpu_peaks(threads) if device == "cpu" else cuda_peaks()
    return max(found, key=lambda peak: peak.flops, default=None)


def _with_numpy(threads: int) -> list[Peak]:
    def product(size: int) -> Callable[[], object]:
        a, b = (np.full((size, size), value, np.float32) for value in (0.5, 0.25))
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)

    with threadpool_limits(threads):
        return [best_product(product(n), n, f"numpy {np.__version__}", threads) for n in SIZES]
