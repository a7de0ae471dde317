"""What all mask networks are trained by: batches of the world, deep supervision, live norms.

The losses are taken after every decoder layer and before the first (Mask2Former, section 3.2),
each prediction with a matching of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.query_decoder import QueryDecoder
from openvis_rt.models.resnet import FrozenNorm
from openvis_rt.training.losses import mask_losses, objectness_loss
from openvis_rt.training.matcher import Matches, Targets, match_queries
from openvis_rt.training.run import Losses
from openvis_rt.training.world import World, WorldVideo

__all__ = [
    "Batch",
    "LayerLosses",
    "best_overlaps",
    "deep_losses",
    "each_layer",
    "frame_targets",
    "frozen_state",
    "generator_of",
    "live_norms",
    "match_objects",
    "matched_losses",
    "world_batch",
]

POINTS = 1024  # of a frame, for matching and losses; a stride-4 mask of the miniatures has 1792
_LEAST_PIXELS = 12  # what shows fewer in a whole window is no target

LayerLosses = Callable[[Tensor, Tensor], tuple[Losses, list[Matches]]]
"""From queries [B, N, C] and mask logits [B, N, T, h, w] to weighted losses and the matches."""


@dataclass(frozen=True)
class Batch:
    """Windows of the world.

    Attributes:
        frames: uint8 [B * T, H, W, 3] RGB.
        targets: B, of what shows enough to be one; their classes are places in ``CATEGORIES``.
    """

    frames: Tensor
    targets: list[Targets]


def world_batch(world: World, iteration: int, count: int) -> Batch:
    """Windows that no other iteration has: the videos of a world whole.

    Args:
        world: videos of T frames.
        iteration: from 0.
        count: B.
    """
    videos = [world[iteration * count + index] for index in range(count)]
    frames = torch.from_numpy(np.concatenate([video.images for video in videos]))
    return Batch(frames, [_targets(video) for video in videos])


def _targets(video: WorldVideo) -> Targets:
    kept = np.flatnonzero(video.masks.sum((1, 2, 3)) >= _LEAST_PIXELS)
    masks = torch.from_numpy(video.masks[kept]).float()
    return Targets(masks, torch.from_numpy(video.categories[kept]))


def frame_targets(video: WorldVideo) -> tuple[list[Targets], list[Tensor]]:
    """Targets of every frame for itself, and which objects of the video they are, int64 [n]."""
    seen = video.masks.sum((2, 3)) >= _LEAST_PIXELS
    kept = [np.flatnonzero(seen[:, frame]) for frame in range(len(video.images))]
    targets = [
        Targets(
            torch.from_numpy(video.masks[objects, frame, None]).float(),
            torch.from_numpy(video.categories[objects]),
        )
        for frame, objects in enumerate(kept)
    ]
    return targets, [torch.from_numpy(objects) for objects in kept]


def generator_of(seed: int, iteration: int) -> torch.Generator:
    """What draws the points of an iteration."""
    return torch.Generator().manual_seed(seed * 1_000_003 + iteration)


def each_layer(
    predictor: QueryDecoder, mask_features: Tensor, memory: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """As the decoder's ``forward``, but with the predictions before and after every layer.

    Yields:
        queries float32 [B, N, C] after ``decoder_norm``, and mask logits [B, N, h, w]; of a window
        [1, N, C] and [1, N, T, h, w].
    """
    query = predictor.first_queries(mask_features)
    features = [predictor.features_at(mask_features, level) for level in memory]
    for index in range(predictor.layers):
        yield predictor.decoder_norm(query), predictor.mask_logits(query, mask_features)
        at = index % len(memory)
        logits = predictor.mask_logits(query, features[at])
        query = predictor.layer(index, query, memory[at], logits)
    yield predictor.decoder_norm(query), predictor.mask_logits(query, mask_features)


def match_objects(
    logits: Tensor,
    objects: Tensor,
    targets: Sequence[Targets],
    generator: torch.Generator,
    class_scores: Tensor | None = None,
) -> list[Matches]:
    """Which query answers for which object, by masks and objectness, at :data:`POINTS` a frame.

    Args:
        logits: of masks, float32 [B, N, T, h, w].
        objects: logits of an object and of none, float32 [B, N, 2].
        targets: B.
        generator: draws the points.
        class_scores: in 0 .. 1, float32 [B, N, K], to match by classes as well.
    """
    return match_queries(
        logits.detach(),
        targets,
        class_scores=class_scores,
        object_scores=objects.detach().softmax(-1)[..., 0],
        points=POINTS,
        generator=generator,
    )


def matched_losses(
    logits: Tensor,
    objects: Tensor,
    targets: Sequence[Targets],
    generator: torch.Generator,
    class_scores: Tensor | None = None,
) -> tuple[Losses, list[Matches]]:
    """The class-agnostic losses of one prediction: 2 L_obj + 5 L_mask + 5 L_dice.

    Arguments as for :func:`match_objects`.
    """
    matches = match_objects(logits, objects, targets, generator, class_scores)
    masks, dice = mask_losses(logits, targets, matches, points=POINTS, generator=generator)
    found = {"objectness": 2 * objectness_loss(objects, matches), "mask": 5 * masks}
    return {**found, "dice": 5 * dice}, matches


def deep_losses(
    predictions: Sequence[tuple[Tensor, Tensor]], losses_of: LayerLosses
) -> tuple[Losses, list[Matches]]:
    """Losses of the last prediction by their names, and the sum of the earlier ones' as ``deep``.

    Args:
        predictions: of :func:`each_layer`, with mask logits as ``losses_of`` takes them.
        losses_of: of one prediction.

    Returns:
        the losses, and the last prediction's matches.
    """
    earlier = [losses_of(*prediction)[0] for prediction in predictions[:-1]]
    losses, matches = losses_of(*predictions[-1])
    deep = torch.stack([loss for found in earlier for loss in found.values()]).sum()
    return {**losses, "deep": deep}, matches


def live_norms(module: nn.Module) -> None:
    """Put batch norms that learn in the place of frozen ones, for training from nothing."""
    for name, child in module.named_children():
        if isinstance(child, FrozenNorm):
            norm = nn.BatchNorm2d(len(child.bias))
            norm.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, norm)
        else:
            live_norms(child)


def frozen_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of live norms as frozen norms take it."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@torch.inference_mode()
def best_overlaps(
    propose: Callable[[Tensor], dict[str, Tensor]], world: World, count: int
) -> dict[str, float]:
    """How well the best proposal fits each object.

    Args:
        propose: a network's, of frames uint8 [T, H, W, 3].
        world: videos of T frames.
        count: of videos.

    Returns:
        ``mean IoU`` at the frame's size, and the parts of objects ``above 0.5``, ``above 0.75``, in
        percent.
    """
    best = []
    for index in range(count):
        video = world[index]
        targets = _targets(video)
        logits = propose(torch.from_numpy(video.images))["mask_logits"]
        size = targets.masks.shape[-2:]
        masks = F.interpolate(logits, size=size, mode="bilinear", align_corners=False) > 0
        found, truth = masks.flatten(1).float(), targets.masks.flatten(1)
        both = found @ truth.T
        iou = both / (found.sum(1)[:, None] + truth.sum(1)[None] - both).clamp(min=1)
        best.append(iou.max(0).values)
    overlaps: Any = torch.cat(best)
    parts = {"mean IoU": overlaps, "above 0.5": overlaps > 0.5, "above 0.75": overlaps > 0.75}
    return {name: 100 * float(value.float().mean()) for name, value in parts.items()}
