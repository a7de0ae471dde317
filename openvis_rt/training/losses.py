"""Losses of CLIP-VIS, InstFormer and OVFormer, each with its equation.

Shapes: B windows, N queries, T frames, K classes; ``targets`` and ``matches`` have one entry a
window (:mod:`~openvis_rt.training.matcher`). M is the number of matched pairs of the batch. All are
scalars, in the type of their logits (float32; float64 in tests), and are 0 with gradients of 0
where there is nothing to learn from.

    CLIP-VIS, eq. 13    L = 2 L_obj + 2 L_iou + 5 L_mask + 5 L_dice
    OVFormer, eq. 14    L = 2 L_ins + 2 L_cls + 5 L_mask, whose L_mask is BCE and dice
    InstFormer          stage one: eq. 2 and "instance segmentation loss"; stage two: eq. 6
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from openvis_rt.training.matcher import Matches, Targets
from openvis_rt.training.points import sample_points, uncertain_points

__all__ = [
    "classification_loss",
    "dice_loss",
    "iou_loss",
    "mask_bce_loss",
    "mask_losses",
    "objectness_loss",
    "semantic_contrast_loss",
    "temporal_contrast_loss",
]


def mask_losses(
    mask_logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Matches],
    *,
    points: int = 12544,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """L_mask and L_dice of the matched queries, at points where the prediction is unsure.

    The frames of a window are one mask: the sums of both losses run over its T * P points.

    Args:
        mask_logits: float [B, N, T, h, w].
        targets: B.
        matches: B.
        points: P, in each frame.
        generator: draws them, on the device of the logits.

    Returns:
        :func:`mask_bce_loss` and :func:`dice_loss`.
    """
    chosen, truth = _matched_masks(mask_logits, targets, matches)
    if not len(chosen):
        nothing = mask_logits.sum() * 0
        return nothing, nothing
    flat, flat_truth = chosen.flatten(0, 1), truth.flatten(0, 1)  # [M * T, h, w]
    coordinates = uncertain_points(flat.detach(), points, generator)
    x = sample_points(flat, coordinates).reshape(len(chosen), -1)
    with torch.no_grad():
        y = sample_points(flat_truth, coordinates).reshape(len(chosen), -1)
    return mask_bce_loss(x, y), dice_loss(x, y)


def mask_bce_loss(x: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of masks: L_mask of CLIP-VIS, eq. 13, and of OVFormer, eq. 14.

        1/M sum_i 1/P sum_p -( y log s + (1 - y) log(1 - s) ),  s = sigmoid(x)

    Args:
        x: logits at points, float [M, P].
        y: the truth there, 0 .. 1, float [M, P].
    """
    if not len(x):
        return x.sum() * 0
    return F.binary_cross_entropy_with_logits(x, y)


def dice_loss(x: Tensor, y: Tensor) -> Tensor:
    """Dice loss of masks: L_dice of CLIP-VIS, eq. 13, part of L_mask of OVFormer, eq. 14.

        1/M sum_i 1 - (2 sum_p s y + 1) / (sum_p s + sum_p y + 1),  s = sigmoid(x)

    Both papers cite V-Net, whose denominator has squares; this is Mask2Former's form, from which
    their code comes. The ones make it 0 where nothing is there and nothing is predicted.

    Args:
        x: logits at points, float [M, P].
        y: the truth there, 0 .. 1, float [M, P].
    """
    if not len(x):
        return x.sum() * 0
    s = x.sigmoid()
    return (1 - (2 * (s * y).sum(1) + 1) / (s.sum(1) + y.sum(1) + 1)).mean()


def objectness_loss(
    object_logits: Tensor, matches: Sequence[Matches], *, no_object: float = 0.1
) -> Tensor:
    """Whether a query has an object: L_obj of CLIP-VIS, eq. 13 with S_obj of eq. 2.

        sum_i w_i -log softmax(x_i)[c_i] / sum_i w_i

    with c = 0 and w = 1 for matched queries, c = 1 and w = ``no_object`` for the others, over all
    queries of the batch. OVFormer's L_ins, eq. 14, is the same on its two logits.

    Args:
        object_logits: x, float [B, N, 2]: object, no object.
        matches: B.
        no_object: the weight of queries without an object, above 0; Mask2Former's by default.
    """
    classes = torch.ones(object_logits.shape[:2], dtype=torch.long, device=object_logits.device)
    for index, match in enumerate(matches):
        classes[index, match.queries] = 0
    weight = object_logits.new_tensor((1.0, no_object))
    return F.cross_entropy(object_logits.flatten(0, 1), classes.flatten(), weight)


def iou_loss(
    mask_iou: Tensor,
    mask_logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Matches],
) -> Tensor:
    """How well a mask fits, as the model predicts it: L_iou of CLIP-VIS, eq. 13, S_iou of eq. 3.

        1/M sum_i | iou_i - |P_i and Y_i| / |P_i or Y_i| |

    P are the pixels with a logit above 0 in any of the T frames, Y those of the stride-4 grid that
    the object fills by half at least. Where both are empty the IoU counts as 0. The masks get no
    gradient from it.

    Args:
        mask_iou: after the sigmoid, float [B, N].
        mask_logits: float [B, N, T, h, w].
        targets: B.
        matches: B.
    """
    chosen, truth = _matched_masks(mask_logits.detach(), targets, matches)
    if not len(chosen):
        return mask_iou.sum() * 0
    small = F.interpolate(truth, size=chosen.shape[-2:], mode="area")
    predicted, there = (chosen > 0).flatten(1), (small >= 0.5).flatten(1)
    union = (predicted | there).sum(1)
    fit = (predicted & there).sum(1) / union.clamp(min=1)
    told = torch.cat([mask_iou[i, match.queries] for i, match in enumerate(matches)])
    return (told - fit.to(told.dtype)).abs().mean()


def classification_loss(
    class_logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Matches],
    *,
    activation: Literal["sigmoid", "softmax"] = "sigmoid",
    no_object: float = 0.1,
) -> Tensor:
    """Which class a query has: L_cls of OVFormer, eq. 14, on the class head's 50 cos (eq. 9).

        sigmoid    sum_i w_i sum_k BCE(sigmoid(x_ik), [k = c_i]) / sum_i w_i
        softmax    sum_i w_i -log softmax([x_i, 0])[c_i] / sum_i w_i

    with w = 1 for matched queries and ``no_object`` for the others, whose target is 0 for every
    class, or the background. Eq. 9 has a softmax, and the text a binary cross-entropy, which is the
    sigmoid that the public code scores with. Its background is a text embedding of zeros, whose
    logit is 0.

    Args:
        class_logits: x, float [B, N, K], without the background.
        targets: B, with classes of 0 .. K - 1.
        matches: B.
        activation: of the class head.
        no_object: the weight of queries without an object, above 0.
    """
    background = class_logits.shape[-1]
    classes = torch.full(
        class_logits.shape[:2], background, dtype=torch.long, device=class_logits.device
    )
    for index, (target, match) in enumerate(zip(targets, matches, strict=True)):
        classes[index, match.queries] = target.classes[match.objects].to(classes.device)
    if activation == "softmax":
        logits = torch.cat((class_logits, class_logits.new_zeros(*classes.shape, 1)), -1)
        weight = class_logits.new_ones(background + 1)
        weight[background] = no_object
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight)
    wanted = F.one_hot(classes, background + 1)[..., :background].to(class_logits.dtype)
    each = F.binary_cross_entropy_with_logits(class_logits, wanted, reduction="none").sum(-1)
    weight = torch.ones_like(each).masked_fill(classes == background, no_object)
    return (weight * each).sum() / weight.sum()


def semantic_contrast_loss(queries: Tensor, *, margin: float = 0.8) -> Tensor:
    """Queries that are too much alike: L_SC of InstFormer, eq. 2.

        1/B sum_b sum_i sum_{j != i} max(0, cos(q_i, q_j) - margin)

    The paper's sum includes j = i, which adds N (1 - margin) and no gradient; it is left out here,
    so that 0 is reached.

    Args:
        queries: float [B, N, C].
        margin: alpha, -1 .. 1; 0.8 is the paper's best (its table 6).
    """
    unit = F.normalize(queries, dim=-1)
    alike = (unit @ unit.transpose(1, 2) - margin).relu()
    itself = torch.eye(queries.shape[1], dtype=torch.bool, device=queries.device)
    return alike.masked_fill(itself, 0).sum() / len(queries)


def temporal_contrast_loss(
    rollout_tokens: Tensor,
    tracking_tokens: Tensor,
    valid: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """The rollout tracker's loss: L_TC of InstFormer, eq. 6.

        1/B sum_b sum_i -log softmax_j( cos(a_i, t_j) / temperature )[i]

    where row i of both is the same instance. It is the paper's double sum with the cross-entropy
    taken over j, whose target is [i = j]. Eq. 6 compares with the tokens of frame t - 1, while the
    text and the association compare the prediction for frame t with those of frame t: the caller
    gives either.

    Args:
        rollout_tokens: a, what the tracker predicts, float [B, n, D].
        tracking_tokens: t, float [B, n, D].
        valid: which rows are an instance that both frames show, bool [B, n]; None for all. Others
            are neither drawn nor pushed away.
        temperature: above 0; the paper names none, which is 1.
    """
    if valid is None:
        valid = torch.ones(rollout_tokens.shape[:2], dtype=torch.bool, device=rollout_tokens.device)
    predicted, found = (F.normalize(t, dim=-1) for t in (rollout_tokens, tracking_tokens))
    similar = predicted @ found.transpose(1, 2) / temperature
    # a finite bias, so that rows without any instance have no NaN in their gradient
    similar = similar.masked_fill(~valid[:, None], -1e4).log_softmax(-1)
    own = similar.diagonal(dim1=1, dim2=2)
    return -own.masked_fill(~valid, 0).sum() / len(rollout_tokens)


def _matched_masks(
    mask_logits: Tensor, targets: Sequence[Targets], matches: Sequence[Matches]
) -> tuple[Tensor, Tensor]:
    """Logits [M, T, h, w] and true masks [M, T, H, W] of all matched pairs of the batch."""
    chosen = [mask_logits[i, match.queries] for i, match in enumerate(matches)]
    truth = [t.masks[m.objects] for t, m in zip(targets, matches, strict=True)]
    return torch.cat(chosen), torch.cat(truth).to(mask_logits)
