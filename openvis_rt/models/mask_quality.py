"""What the host is told of masks instead of the masks."""

from __future__ import annotations

from torch import Tensor

__all__ = ["mask_quality"]


def mask_quality(mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """How large masks are and how sure.

    Args:
        mask_logits: float32 [A, B, h, w], any two leading axes.

    Returns:
        the number of logits above 0, and the sum of their sigmoids; float32 [A, B] each.
    """
    inside = (mask_logits > 0).to(mask_logits.dtype)
    return inside.sum((2, 3)), (mask_logits.sigmoid() * inside).sum((2, 3))
