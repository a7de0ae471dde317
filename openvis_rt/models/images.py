"""Frames as networks want them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["padded_images"]


def padded_images(frames: Tensor, mean: Tensor, std: Tensor, divisor: int) -> Tensor:
    """Normalise and pad; the padding is zero after the normalisation.

    Args:
        frames: uint8, or float32 of 0..255, [B, H, W, 3], RGB.
        mean, std: float32 [3, 1, 1], for 0..255.
        divisor: both sides are padded, at the right and the bottom, to multiples of it.

    Returns:
        float32 [B, 3, H', W'].
    """
    images = (frames.to(torch.float32).permute(0, 3, 1, 2) - mean) / std
    return F.pad(images, (0, -images.shape[-1] % divisor, 0, -images.shape[-2] % divisor))
