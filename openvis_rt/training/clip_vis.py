"""Train CLIP-VIS's miniature: masks over a frozen CLIP, without a class label.

    L = 2 L_obj + 2 L_iou + 5 L_mask + 5 L_dice                    CLIP-VIS, eq. 13

CLIP is the image encoder and stays as it is; the pixel decoder, the query decoder and its three
heads learn from single frames.

    python -m openvis_rt.training.clip_vis FOLDER --clip CLIP_RUN
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from openvis_rt.models.clip_vis import ClipVis, build
from openvis_rt.systems import VARIANTS
from openvis_rt.training.command import (
    Batch,
    Folder,
    Iterations,
    Rate,
    Seed,
    Threads,
    run_command,
    tell,
)
from openvis_rt.training.losses import iou_loss
from openvis_rt.training.matcher import Matches
from openvis_rt.training.run import Losses, Run, trained_weights
from openvis_rt.training.segmentation import (
    best_overlaps,
    deep_losses,
    each_layer,
    generator_of,
    matched_losses,
    world_batch,
)
from openvis_rt.training.world import World

__all__ = ["train_clip_vis"]

_VARIANT = VARIANTS["clip-vis-mini"]


def train_clip_vis(
    folder: Path, clip: Path, *, iterations: int, batch: int, rate: float, seed: int
) -> ClipVis:
    """Train the miniature.

    Args:
        folder: of the run.
        clip: folder of the run that trained its CLIP.
        iterations: in all.
        batch: frames of an iteration.
        rate: learning rate.
        seed: of weights and videos.

    Returns:
        the network, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(_VARIANT)
    model.clip_model.load_state_dict(trained_weights(clip))
    head = model.sem_seg_head.requires_grad_(requires_grad=True)
    world = World("train", frames=1, seed=seed)

    def step(iteration: int) -> Losses:
        data, generator = world_batch(world, iteration, batch), generator_of(seed, iteration)

        def losses_of(queries: Tensor, logits: Tensor) -> tuple[Losses, list[Matches]]:
            objects, mask_iou = head.predictor.heads(queries)
            found, matches = matched_losses(logits, objects, data.targets, generator)
            found["iou"] = 2 * iou_loss(mask_iou, logits, data.targets, matches)
            return found, matches

        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = model.backbone(model.normalise(data.frames))
            mask_features, memory = head.pixel_decoder(features)
            predictions = list(each_layer(head.predictor, mask_features, memory))
        frames = [(q.float(), x.float()[:, :, None]) for q, x in predictions]
        return deep_losses(frames, losses_of)[0]

    Run(folder, head, rate=rate).train(step, iterations)
    return model.requires_grad_(requires_grad=False)


def main(
    folder: Folder,
    clip: Annotated[Path, typer.Option(help="Folder of the run that trained its CLIP.")],
    iterations: Iterations = 8000,
    batch: Batch = 8,
    rate: Rate = 5e-4,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Train CLIP-VIS's miniature and tell how well its proposals fit held-out objects."""
    torch.set_num_threads(threads)
    model = train_clip_vis(folder, clip, iterations=iterations, batch=batch, rate=rate, seed=seed)
    world = World("validation", frames=1, seed=seed)
    tell(best_overlaps(model.propose, world, 200))


if __name__ == "__main__":
    run_command(main)
