"""Pillow's resize as sums of a few rows and columns: a graph resizes as the evaluations do.

Pillow widens its filter, a triangle (bilinear) or Keys' cubic with a = -1/2 (bicubic), by the scale
when it shrinks (antialiasing), works on one axis at a time, columns first, and rounds after each.
With R [H, Hs] and C [W, Ws] holding the weights,

    y = round( R round( x C^T ) ),   round(v) = floor(v + 1/2), held in 0 .. 255.

A row of R or C has few weights that are not zero, side by side (5 of 1920 from 1080p to 480x853).
So a product is a sum of that many *taps*, each a row (column) of the picture for each of the
target, times its weight:

    (R x)_i = sum_k  w_ki  x_(f_i + k),      k = 0 .. taps - 1,  f_i the first row with a weight

which a compiler for a GPU makes one kernel of, both axes together, that reads the frame's bytes and
writes the small picture. A filter of more than 12 taps, such as the cubic one from 1080p to CLIP's
224, stays a product of matrices: ONNX Runtime is faster with it, and so many taps of two axes do
not become one kernel. (Pillow 13 takes rows first where the height shrinks much more than the
width, which that of a picture that keeps its shape never does.) ONNX's own Resize with antialiasing
differs in the borders and is not known to TensorRT.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from openvis_rt.geometry import centre_crop

__all__ = ["PillowResize", "filter_matrix", "resize_to_clip", "taps"]


Floats = npt.NDArray[np.float64]
Kernel = Literal["bilinear", "bicubic"]

_MOST_TAPS = 12


class PillowResize(nn.Module):
    """Frames of one size to another, or a part of it, as Pillow does it but for ties.

    Pillow sums weights of 22 bits in integers, so where a sum ends on a half it may round the other
    way: no difference at 720p to 480x853, one grey level at 0.6 % of the values from 1080p.

    Args:
        source, target: (height, width) before and after, pixels.
        kernel: the filter.
        crop: rows and columns of the target that are wanted.
    """

    def __init__(
        self,
        source: tuple[int, int],
        target: tuple[int, int],
        kernel: Kernel = "bilinear",
        crop: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        super().__init__()
        self.rows, self.columns = (
            _AxisFilter(filter_matrix(source[axis], target[axis], kernel)[crop[axis]])
            for axis in (0, 1)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Frames uint8 [B, Hs, Ws, 3] to float32 [B, H, W, 3] of whole numbers, 0..255."""
        # the axis that is summed over comes second: a tap is then whole lines of memory
        x = _to_levels(self.columns(frames.to(torch.float32).permute(0, 2, 1, 3)))
        return _to_levels(self.rows(x.permute(0, 2, 1, 3)))


class _AxisFilter(nn.Module):
    """A matrix of :func:`filter_matrix` times pictures, along their second axis."""

    places: Tensor | None
    weights: Tensor

    def __init__(self, matrix: npt.NDArray[np.float32]) -> None:
        super().__init__()
        places, weights = taps(matrix)
        few = len(places) <= _MOST_TAPS
        self.register_buffer("weights", torch.from_numpy(weights if few else matrix))
        self.register_buffer("places", torch.from_numpy(places) if few else None)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [B, source, L, 3] to [B, target, L, 3]."""
        if self.places is None:
            product: Tensor = (self.weights @ x.flatten(2)).unflatten(2, x.shape[2:])
            return product
        terms = [
            x.index_select(1, places) * weights[:, None, None]
            for places, weights in zip(self.places, self.weights, strict=True)
        ]
        total: Tensor = reduce(torch.add, terms)
        return total


def resize_to_clip(source: tuple[int, int], side: int) -> PillowResize:
    """Whole frames to CLIP's pictures, [B, side, side, 3]: bicubic, then the centre."""
    target, (top, left) = centre_crop(*source, side)
    return PillowResize(
        source, target, "bicubic", (slice(top, top + side), slice(left, left + side))
    )


def filter_matrix(source: int, target: int, kernel: Kernel = "bilinear") -> npt.NDArray[np.float32]:
    """Weights of Pillow's filter along one axis.

    Args:
        source, target: pixels before and after.
        kernel: the filter.

    Returns:
        float32 [target, source]; each row sums to 1.
    """
    function, support = _KERNELS[kernel]
    scale = source / target
    stretch = max(scale, 1.0)
    reach = support * stretch
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centres[:, None]) / stretch
    # Pillow's window of whole pixels: a weight outside of it is left out even where it is not zero
    first = np.maximum(0, (centres - reach + 0.5).astype(np.int64))[:, None]
    last = np.minimum(source, (centres + reach + 0.5).astype(np.int64))[:, None]
    index = np.arange(source)
    weights = np.where((index >= first) & (index < last), function(distance), 0.0)
    out: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return out


def taps(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What of a matrix of :func:`filter_matrix` is not zero.

    Args:
        matrix: float32 [target, source].

    Returns:
        index int64 and weights float32, [taps, target]: ``matrix[i, index[k, i]] == weights[k, i]``
        and nothing else of the matrix is other than zero. No row has an index twice.
    """
    target, source = matrix.shape
    used = matrix != 0
    first = used.argmax(1)
    number = int((source - used[:, ::-1].argmax(1) - first).max())
    index = np.minimum(first, source - number) + np.arange(number)[:, None]
    return index, matrix[np.arange(target), index]


def _triangle(d: Floats) -> Floats:
    return np.maximum(0.0, 1.0 - d)


def _cubic(d: Floats) -> Floats:
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


_KERNELS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


def _to_levels(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0.0, 255.0)
