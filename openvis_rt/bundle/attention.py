"""Attention over so many keys that an FP16 sum of ones is infinite.

The graphs ask for a softmax in FP32, but TensorRT fuses it into an attention that computes and sums
in FP16 (docs/fp16.md).
"""

from __future__ import annotations

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.systems.graphs import INT8

__all__ = ["LARGEST_HALF", "attention_keys", "long_attention"]

LARGEST_HALF = 65_504
"""The largest number of FP16."""
_FINEST_STRIDE = 8  # of the maps that queries attend to


def attention_keys(bundle: Bundle) -> int:
    """How many places of a window the queries of `propose` attend to, at the finest level."""
    height, width = bundle.manifest.preprocess.network_size
    frame = (height // _FINEST_STRIDE) * (width // _FINEST_STRIDE)
    return frame * bundle.manifest.window_length


def long_attention(bundle: Bundle, graph: str, precision: str) -> str | None:
    """What to know of a graph whose attention TensorRT may overflow; None if there is nothing."""
    keys = attention_keys(bundle)
    if graph != "propose" or precision not in ("fp16", INT8) or keys <= LARGEST_HALF:
        return None
    return (
        f"queries attend to {keys} places of a window, and a sum of so many ones is beyond FP16 "
        f"({LARGEST_HALF}): TensorRT's fused attention may give infinity or NaN. Export at a "
        "smaller --size, or run --precision fp32"
    )
