"""PyTorch's matrix products, for :mod:`.peak`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from openvis_rt.bench.products import SIZES, Peak, best_product

__all__ = ["cpu_peaks", "cuda_peaks"]

_CUDA_SIZES = (4096, 8192)


def cpu_peaks(threads: int) -> list[Peak]:
    """Float32 products of each size on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [
            best_product(
                _product(n, torch.float32, "cpu"), n, f"torch {torch.__version__}", threads
            )
            for n in SIZES
        ]
    finally:
        torch.set_num_threads(before)


def cuda_peaks() -> list[Peak]:
    """Float32 products without TF32, and float16 ones; none where there is no CUDA device."""
    if not torch.cuda.is_available():
        return []
    torch.backends.cuda.matmul.allow_tf32 = False
    name = f"torch {torch.__version__}"
    return [
        best_product(_product(n, dtype, "cuda"), n, f"{name} {dtype}", 0, "cuda")
        for n in _CUDA_SIZES
        for dtype in (torch.float32, torch.float16)
    ]


def _product(size: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        with torch.inference_mode():
            torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return product
