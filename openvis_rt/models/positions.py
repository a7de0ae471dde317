"""Sine position tables (DETR's normalised form)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sine_positions"]


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
    frequency = 10000.0 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)

    def table(size: int) -> Tensor:  # [size, half]
        u = torch.arange(1, size + 1, dtype=torch.float32) / (size + 1e-6) * (2 * math.pi)
        angle = u[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = table(height).T[:, :, None].expand(half, height, width)
    columns = table(width).T[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns))
