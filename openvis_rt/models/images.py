"""Frames as networks want them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Normalise"]

Colour = tuple[float, float, float]


class Normalise(nn.Module):
    """Normalises and pads; the padding is zero after the normalisation.

    Args:
        mean, std: RGB, for 0..255.
        divisor: both sides are padded, at the right and the bottom, to multiples of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Colour, std: Colour, divisor: int = 1) -> None:
        super().__init__()
        self.divisor = divisor
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames uint8, or float32 of 0..255, [B, H, W, 3], RGB, to float32 [B, 3, H', W']."""
        images = (frames.to(torch.float32).permute(0, 3, 1, 2) - self.mean) / self.std
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
