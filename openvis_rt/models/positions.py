"""Sine position tables (DETR's normalised form)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sine_positions", "window_positions"]


def sine_positions(height: int, width: int, channels: int = 256) -> Tensor:
    """Positions of a grid's cells.

    With u = 2 pi (i + 1) / (size + 1e-6) for row or column i, and m = channels / 2 numbers for each
    axis,

        p[2j] = sin(u / 10000^(2j / m)),   p[2j + 1] = cos(u / 10000^(2j / m)),

    rows first, then columns (`transformer_decoder/position_encoding.py`).

    Returns:
        float32 [channels, height, width].
    """
    half = channels // 2
    rows = _table(height, half).T[:, :, None].expand(half, height, width)
    columns = _table(width, half).T[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns))


def window_positions(frames: int, channels: int = 256) -> Tensor:
    """Positions of a window's frames, which depend on the window's length.

    The same formula with m = channels, size = T and i = t (``PositionEmbeddingSine3D``); a cell's
    position in frame t is the sum of both.

    Args:
        frames: T; while a graph is traced it may be a symbol.
        channels: of the result.

    Returns:
        float32 [T, channels].
    """
    return _table(frames, channels)


def _table(size: int, channels: int) -> Tensor:
    """Sines and cosines of one axis: float32 [size, channels]."""
    exponent = 2 * torch.div(torch.arange(channels), 2, rounding_mode="floor") / channels
    count = torch.arange(1, size + 1, dtype=torch.float32)
    angle = (count / (count[-1:] + 1e-6) * (2 * math.pi))[:, None] / 10000.0**exponent
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)
