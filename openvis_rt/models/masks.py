"""The `masks` graph in PyTorch: mask logits to masks of the source frame's size.

As `sem_seg_postprocess` of the public evaluation does it: to the padded frame, cut to the network's
frame, to the source's frame, > 0.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Masks"]


class Masks(nn.Module):
    """The graph.

    Args:
        padded_size: (height, width) that the mask logits cover, pixels.
        network_size: the part of it, from the top left, that is the picture.
        frame_size: of the masks, pixels.
    """

    def __init__(
        self,
        padded_size: tuple[int, int],
        network_size: tuple[int, int],
        frame_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.padded_size, self.network_size = padded_size, network_size
        self.frame_size = frame_size

    def forward(self, mask_logits: Tensor, selected: Tensor) -> Tensor:
        """Logits float32 [N, T, h, w] and indices int64 [n] to bool [n, T, Hs, Ws]."""
        height, width = self.network_size
        padded = _bilinear(mask_logits[selected], self.padded_size)
        return _bilinear(padded[..., :height, :width], self.frame_size) > 0


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
