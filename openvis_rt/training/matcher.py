"""Which query answers for which object: one assignment for all frames of a window.

The cost of query i for object j is, over P points in each of T frames,

    C[i, j] = w_class * -p_i(c_j)  +  w_object * -o_i
            + w_mask * 1/(TP) sum_p BCE(sigmoid(x_ip), y_jp)
            + w_dice * (1 - (2 sum_p s_ip y_jp + 1) / (sum_p s_ip + sum_p y_jp + 1))

with s = sigmoid(x). It is Mask2Former's (section 3.3.1), and L_match of OVFormer (eq. 14); CLIP-VIS
(section III-D) takes no classes. The matches minimise the sum of C: each query has one object at
most, and each object has one query as long as there are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from openvis_rt.training.points import sample_points

__all__ = [
    "MatcherWeights",
    "Matches",
    "Targets",
    "match_queries",
    "matching_cost",
    "window_targets",
]


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of one window.

    Attributes:
        masks: 0 or 1, float [n, T, H, W], over the same area as the predicted masks: of the padded
            frames where these are padded.
        classes: int64 [n]; what they count is the recipe's.
    """

    masks: Tensor
    classes: Tensor


class Matches(NamedTuple):
    """Pairs of one window, in the order of the queries.

    Attributes:
        queries: int64 [m].
        objects: int64 [m], m = min(N, n).
    """

    queries: Tensor
    objects: Tensor


@dataclass(frozen=True, slots=True)
class MatcherWeights:
    """Weights of the costs; those of Mask2Former and OVFormer (its section 4.1) by default.

    Attributes:
        classes, objectness: of the scores; a cost whose scores are not given counts nothing.
        mask, dice: of the two mask costs.
    """

    classes: float = 2.0
    objectness: float = 2.0
    mask: float = 5.0
    dice: float = 5.0


def window_targets(masks: Tensor, classes: Tensor) -> tuple[Targets, Tensor]:
    """The objects of a window, without those that none of its frames shows.

    Args:
        masks: bool [n, T, H, W].
        classes: int64 [n].

    Returns:
        the targets, and the places of the kept objects, int64 [m].
    """
    kept = masks.flatten(1).any(1).nonzero()[:, 0]
    return Targets(masks[kept].float(), classes[kept]), kept


@torch.no_grad()
def match_queries(
    mask_logits: Tensor,
    targets: Sequence[Targets],
    *,
    class_scores: Tensor | None = None,
    object_scores: Tensor | None = None,
    weights: MatcherWeights | None = None,
    points: int = 12544,
    generator: torch.Generator | None = None,
) -> list[Matches]:
    """Match queries with objects, window by window.

    Args:
        mask_logits: float [B, N, T, h, w].
        targets: B, each with masks of T frames.
        class_scores: p, in 0 .. 1, float [B, N, K], or None to match without classes.
        object_scores: o, in 0 .. 1, float [B, N], or None to match without them.
        weights: of the costs.
        points: P, in each frame, the same for all masks of a frame.
        generator: draws the points, on the device of the logits.

    Returns:
        B matches, on the device of the logits.
    """
    found = []
    for index, target in enumerate(targets):
        cost = matching_cost(
            mask_logits[index],
            target,
            None if class_scores is None else class_scores[index],
            None if object_scores is None else object_scores[index],
            weights or MatcherWeights(),
            torch.rand(
                *(mask_logits.shape[2], points, 2),
                generator=generator,
                device=mask_logits.device,
                dtype=mask_logits.dtype,
            ),
        )
        pairs = linear_sum_assignment(cost.cpu().numpy())
        found.append(Matches(*(torch.as_tensor(p, device=mask_logits.device) for p in pairs)))
    return found


def matching_cost(
    mask_logits: Tensor,
    target: Targets,
    class_scores: Tensor | None,
    object_scores: Tensor | None,
    weights: MatcherWeights,
    coordinates: Tensor,
) -> Tensor:
    """C of this module's docstring.

    Args:
        mask_logits: x, float [N, T, h, w].
        target: y and c, of n objects.
        class_scores: p, float [N, K], or None.
        object_scores: o, float [N], or None.
        weights: w.
        coordinates: of the points in each frame, float [T, P, 2]; see :mod:`.points`.

    Returns:
        float [N, n].
    """
    x = _at_points(mask_logits, coordinates)
    y = _at_points(target.masks.to(x.dtype), coordinates)
    # BCE(sigmoid(x), y) = y softplus(-x) + (1 - y) softplus(x)
    mask = (F.softplus(-x) @ y.T + F.softplus(x) @ (1 - y).T) / x.shape[1]
    s = x.sigmoid()
    dice = 1 - (2 * s @ y.T + 1) / (s.sum(1)[:, None] + y.sum(1)[None] + 1)
    cost = weights.mask * mask + weights.dice * dice
    if class_scores is not None:
        cost = cost - weights.classes * class_scores[:, target.classes]
    if object_scores is not None:
        cost = cost - weights.objectness * object_scores[:, None]
    return cost


def _at_points(masks: Tensor, coordinates: Tensor) -> Tensor:
    """[A, T, h, w] at [T, P, 2]: [A, T * P]."""
    count, frames, height, width = masks.shape
    repeated = coordinates.expand(count, -1, -1, -1).flatten(0, 1)
    sampled = sample_points(masks.reshape(count * frames, height, width), repeated)
    return sampled.reshape(count, frames * coordinates.shape[1])
