"""Masks at sampled points, so that matching and losses do not need whole masks.

Masked-attention Mask Transformer (Mask2Former), section 3.3.1, after PointRend: the matcher takes
the same random points for all masks, and the losses take for each mask more points where the
prediction is unsure.

Coordinates are x, y in 0 .. 1 of the area that a mask covers, so that predictions and truth may
have different sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["sample_points", "uncertain_points"]

_OVERSAMPLING = 3  # PointRend's k: so many times the points are drawn, and the least sure are kept
_UNSURE_PART = 0.75  # PointRend's beta: this part of the points; the others are drawn evenly


def sample_points(masks: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear values of masks at points; beyond the middle of the outer pixels they fall to 0.

    Args:
        masks: float [A, h, w].
        coordinates: x, y in 0 .. 1, float [A, P, 2].

    Returns:
        float [A, P].
    """
    grid = (2 * coordinates - 1)[:, None]  # [A, 1, P, 2]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, points: int, generator: torch.Generator | None = None
) -> Tensor:
    """Points for a loss: three quarters where a logit is near 0, the others anywhere.

    Args:
        mask_logits: float [A, h, w].
        points: P, for each mask.
        generator: draws them, on the device of the logits.

    Returns:
        x, y in 0 .. 1, float [A, P, 2].
    """
    count = len(mask_logits)

    def drawn(number: int) -> Tensor:
        return torch.rand(
            *(count, number, 2),
            generator=generator,
            device=mask_logits.device,
            dtype=mask_logits.dtype,
        )

    unsure = int(_UNSURE_PART * points)
    many = drawn(_OVERSAMPLING * points)
    sureness = sample_points(mask_logits, many).abs()
    chosen = sureness.topk(unsure, dim=1, largest=False).indices
    kept = many.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((kept, drawn(points - unsure)), 1)
