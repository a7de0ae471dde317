"""Pillow's bilinear resize as two matrix products: a graph resizes as the evaluations do.

Pillow widens the triangle filter by the scale when it shrinks (antialiasing), works on one axis at
a time, columns first, and rounds after each. With R [H, Hs] and C [W, Ws] holding the weights,

    y = round( R round( x C^T ) ),   round(v) = floor(v + 1/2), held in 0 .. 255.

ONNX's own Resize with antialiasing differs in the borders and is not known to TensorRT.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["PillowResize", "filter_matrix"]


class PillowResize(nn.Module):
    """Frames of one size to another, as Pillow does it but for ties.

    Pillow sums weights of 22 bits in integers, so where a sum ends on a half it may round the other
    way: no difference at 720p to 480x853, one grey level at 0.6 % of the values from 1080p.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(filter_matrix(source[0], target[0])))
        self.register_buffer("columns", torch.from_numpy(filter_matrix(source[1], target[1])))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames uint8 [B, Hs, Ws, 3] to float32 [B, H, W, 3] of whole numbers, 0..255."""
        x = frames.to(torch.float32).permute(0, 3, 1, 2)
        x = _to_levels(x @ self.columns.T)
        x = _to_levels(self.rows @ x)
        return x.permute(0, 2, 3, 1)


def filter_matrix(source: int, target: int) -> npt.NDArray[np.float32]:
    """Weights of Pillow's bilinear filter along one axis.

    Args:
        source, target: pixels before and after.

    Returns:
        float32 [target, source]; each row sums to 1.
    """
    scale = source / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / reach
    # Pillow's window of whole pixels: a weight outside of it is left out even where it is not zero
    first = np.maximum(0, (centres - reach + 0.5).astype(np.int64))[:, None]
    last = np.minimum(source, (centres + reach + 0.5).astype(np.int64))[:, None]
    index = np.arange(source)
    weights = np.where((index >= first) & (index < last), np.maximum(0.0, 1.0 - distance), 0.0)
    out: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return out


def _to_levels(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0.0, 255.0)
