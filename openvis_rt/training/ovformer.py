"""Train OVFormer's miniature: queries of windows, aligned with CLIP's embeddings of whole frames.

    L = 2 L_ins + 2 L_cls + 5 L_mask,  L_mask = BCE + dice         OVFormer, eq. 14

over windows of T frames of base categories, with CLIP frozen. Backbone and decoders begin with
the weights of the class-agnostic proposals, as the paper begins with those of images.

    python -m openvis_rt.training.ovformer FOLDER --proposals RUN --clip RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from openvis_rt.models.clip import picture_side
from openvis_rt.models.ovformer import OVFormer, build
from openvis_rt.models.zero_shot import ZeroShotHead
from openvis_rt.runtime.preprocessing import clip_picture
from openvis_rt.systems import VARIANTS
from openvis_rt.training.clip import class_embeddings
from openvis_rt.training.command import Folder, Iterations, Rate, Seed, Threads, run_command, tell
from openvis_rt.training.losses import classification_loss
from openvis_rt.training.matcher import Matches, Targets
from openvis_rt.training.run import Losses, Run, trained_weights
from openvis_rt.training.segmentation import (
    best_overlaps,
    deep_losses,
    each_layer,
    frozen_state,
    generator_of,
    matched_losses,
    world_batch,
)
from openvis_rt.training.world import World
from openvis_rt.training.world_categories import BASE

__all__ = ["pictures_of", "some_classes", "train_ovformer", "trained_ovformer"]

_VARIANT = VARIANTS["ovformer-mini"]
_CLASSES = 48  # of an iteration: those that it shows and others, LVIS's federated loss


def train_ovformer(
    folder: Path,
    proposals: Path,
    clip: Path,
    *,
    iterations: int,
    windows: int,
    frames: int,
    rate: float,
    seed: int,
) -> OVFormer:
    """Train the miniature.

    Args:
        folder: of the run.
        proposals, clip: folders of the runs that it begins with.
        iterations: in all.
        windows, frames: of an iteration, and T of each window.
        rate: learning rate.
        seed: of weights and videos.

    Returns:
        the network, in evaluation mode.
    """
    model = _untrained(clip, seed)
    network = model.network
    begin = frozen_state(trained_weights(proposals))
    known = {key for key in begin if ".class_embed." not in key}
    left = network.load_state_dict({key: begin[key] for key in known}, strict=False)
    assert not left.unexpected_keys
    network.requires_grad_(requires_grad=True)
    texts = class_embeddings(model.clip_model, _VARIANT.prompts)
    world = World("train", frames=frames, seed=seed)

    def step(iteration: int) -> Losses:
        data, generator = world_batch(world, iteration, windows), generator_of(seed, iteration)
        classes = some_classes(data.targets, np.random.default_rng((seed, iteration)))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                pictures = pictures_of(data.frames, picture_side(model.clip_model))
                seen = model.embed(pictures)["image_embeddings"].float()
            features = network.backbone(model.normalise(data.frames))
            mask_features, memory = network.sem_seg_head.pixel_decoder(features)
        sums: Losses = {}
        for number, target in enumerate(data.targets):
            part = slice(number * frames, (number + 1) * frames)
            places = (target.classes[:, None] == classes).long().argmax(1)
            found = _window_losses(
                model,
                (mask_features[part], [level[part] for level in memory]),
                (seen[part], texts[classes]),
                Targets(target.masks, places),
                generator,
            )
            for name, loss in found.items():
                sums[name] = sums.get(name, 0) + loss / windows
        return sums

    Run(folder, network, rate=rate, slower={"backbone.": 0.3}).train(step, iterations)
    return model.requires_grad_(requires_grad=False)


def some_classes(targets: Sequence[Targets], rng: np.random.Generator) -> Tensor:
    """Base categories to tell apart in an iteration, int64 [K], among them all that are shown."""
    shown = torch.cat([target.classes for target in targets]).unique()
    others = [index for index in rng.permutation(BASE) if index not in shown]
    return torch.cat((shown, torch.tensor(others[: max(0, _CLASSES - len(shown))]).long()))


def _window_losses(
    model: OVFormer,
    features: tuple[Tensor, list[Tensor]],
    clip: tuple[Tensor, Tensor],
    target: Targets,
    generator: torch.Generator,
) -> Losses:
    """Of one window: mask features and memory; image embeddings of its frames, and all texts."""
    predictor = model.network.predictor
    with torch.autocast("cpu", torch.bfloat16):
        predictions = list(each_layer(predictor, *features))

    def losses_of(queries: Tensor, logits: Tensor) -> tuple[Losses, list[Matches]]:
        objects = predictor.object_embed(queries)
        classes = ZeroShotHead.logits(predictor.class_embed(queries[0], clip[0]), clip[1])[None]
        scores = classes.detach().sigmoid()
        found, matches = matched_losses(logits, objects, [target], generator, scores)
        found["class"] = 2 * classification_loss(classes, [target], matches)
        return found, matches

    return deep_losses([(q.float(), x.float()) for q, x in predictions], losses_of)[0]


def pictures_of(frames: Tensor, side: int) -> Tensor:
    """CLIP's picture of each frame: uint8 [T, H, W, 3] to uint8 [T, side, side, 3]."""
    return torch.from_numpy(np.stack([clip_picture(frame, side) for frame in frames.numpy()]))


def trained_ovformer(folder: Path, clip: Path) -> OVFormer:
    """The network from the folders of its run and of its CLIP's."""
    model = _untrained(clip, 0)
    model.network.load_state_dict(trained_weights(folder))
    return model


def _untrained(clip: Path, seed: int) -> OVFormer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(_VARIANT, quick_gelu=_VARIANT.quick_gelu)
    model.clip_model.load_state_dict(trained_weights(clip))
    return model


def main(
    folder: Folder,
    proposals: Annotated[Path, typer.Option(help="Folder of the run of InstFormer's proposals.")],
    clip: Annotated[Path, typer.Option(help="Folder of the run that trained its CLIP.")],
    iterations: Iterations = 6000,
    windows: Annotated[int, typer.Option(min=1, help="Of an iteration.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="T, of a window.")] = 5,
    rate: Rate = 5e-4,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Train OVFormer's miniature and tell how well its proposals fit held-out objects."""
    torch.set_num_threads(threads)
    model = train_ovformer(
        folder,
        proposals,
        clip,
        iterations=iterations,
        windows=windows,
        frames=frames,
        rate=rate,
        seed=seed,
    )
    world = World("validation", frames=frames, seed=seed)
    tell(best_overlaps(model.propose, world, 200))


if __name__ == "__main__":
    run_command(main)
