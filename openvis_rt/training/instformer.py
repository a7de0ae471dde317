"""Train InstFormer's miniature: stage one, masks and tokens, and stage two, the tracker.

    proposals   L = 2 L_cls + 5 L_mask + 5 L_dice + w L_SC        a class-agnostic Mask2Former
    tokens      L_cls of the instances' class logits               LoRA on InstCLIP's q and v
    tracker     L_TC                                               the rollout's RNN

(OpenVIS, section 4.) The first two are the paper's stage one. No gradient goes from the one to the
other, since a guidance mask is made of detached logits, so they are trained in turn.

    python -m openvis_rt.training.instformer proposals FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from openvis_rt.checkpoints.instformer import InstFormerParts, model_from_parts
from openvis_rt.models.images import Normalise
from openvis_rt.models.instformer import (
    InstFormer,
    build,
    clip_and_proposal,
    default_config,
)
from openvis_rt.models.mask2former import Mask2Former
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
from openvis_rt.training.instance_tokens import token_accuracy, token_parts, train_tokens
from openvis_rt.training.losses import semantic_contrast_loss
from openvis_rt.training.matcher import Matches
from openvis_rt.training.rollout import train_rollout
from openvis_rt.training.run import Losses, Run, trained_weights
from openvis_rt.training.segmentation import (
    best_overlaps,
    deep_losses,
    each_layer,
    frozen_state,
    generator_of,
    live_norms,
    matched_losses,
    world_batch,
)
from openvis_rt.training.world import World

__all__ = ["parts_of_runs", "train_proposals", "with_proposals", "with_tokens"]

_VARIANT = VARIANTS["instformer-mini"]


def train_proposals(
    folder: Path,
    *,
    iterations: int,
    batch: int,
    rate: float,
    contrast: float,
    seed: int,
) -> Mask2Former:
    """Stage one, the masks.

    Args:
        folder: of the run.
        iterations: in all.
        batch: frames of an iteration.
        rate: learning rate.
        contrast: weight of L_SC; 0 is without it.
        seed: of weights and videos.

    Returns:
        the network with frozen norms, in evaluation mode.
    """
    model = _proposal(seed)
    live_norms(model)
    model.requires_grad_(requires_grad=True).train()
    normalise = Normalise(_VARIANT.pixel_mean, _VARIANT.pixel_std, _VARIANT.size_divisor)
    world = World("train", frames=1, seed=seed)

    def step(iteration: int) -> Losses:
        data, generator = world_batch(world, iteration, batch), generator_of(seed, iteration)

        def losses_of(queries: Tensor, logits: Tensor) -> tuple[Losses, list[Matches]]:
            objects = model.predictor.class_embed(queries)
            found, matches = matched_losses(logits, objects, data.targets, generator)
            if contrast:
                found["contrast"] = contrast * semantic_contrast_loss(queries)
            return found, matches

        with torch.autocast("cpu", torch.bfloat16):
            features = model.backbone(normalise(data.frames))
            mask_features, memory = model.sem_seg_head.pixel_decoder(features)
            predictions = list(each_layer(model.predictor, mask_features, memory))
        frames = [(q.float(), x.float()[:, :, None]) for q, x in predictions]
        return deep_losses(frames, losses_of)[0]

    Run(folder, model, rate=rate).train(step, iterations)
    trained = _proposal(seed)
    trained.load_state_dict(frozen_state(model.state_dict()))
    return trained


def _proposal(seed: int) -> Mask2Former:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return clip_and_proposal(_VARIANT, default_config(_VARIANT))[1].eval()


def with_proposals(proposals: Path, clip: Path, seed: int = 0) -> InstFormer:
    """An InstFormer of trained proposals and a trained CLIP, as stage one adapts it.

    Args:
        proposals, clip: folders of their runs.
        seed: of the untrained network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(_VARIANT)
    model.proposal.load_state_dict(frozen_state(trained_weights(proposals)))
    model.clip_model.load_state_dict(trained_weights(clip))
    model.instance_clip.set_tokens()
    return model


def with_tokens(proposals: Path, clip: Path, tokens: Path) -> InstFormer:
    """The same with what stage one has trained of InstCLIP."""
    model = model_from_parts(_VARIANT, parts_of_runs(proposals, clip, tokens), tokens)
    assert isinstance(model, InstFormer)
    return model


def parts_of_runs(
    proposals: Path, clip: Path, tokens: Path, tracker: Path | None = None
) -> InstFormerParts:
    """A checkpoint's parts from the folders of the runs that trained them."""
    return InstFormerParts(
        config=default_config(_VARIANT),
        proposal=frozen_state(trained_weights(proposals)),
        clip=trained_weights(clip),
        **token_parts(trained_weights(tokens)),
        tracker={} if tracker is None else trained_weights(tracker),
    )


app = typer.Typer(
    help="Train InstFormer's miniature, stage by stage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_Run = Annotated[Path, typer.Option(help="Folder of that run.")]


@app.command("proposals")
def _proposals(
    folder: Folder,
    iterations: Iterations = 8000,
    batch: Batch = 8,
    rate: Rate = 5e-4,
    contrast: Annotated[float, typer.Option(min=0, help="Weight of L_SC.")] = 0.1,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Stage one, the masks; tells how well they fit held-out objects."""
    torch.set_num_threads(threads)
    model = train_proposals(
        folder, iterations=iterations, batch=batch, rate=rate, contrast=contrast, seed=seed
    )
    normalise = Normalise(_VARIANT.pixel_mean, _VARIANT.pixel_std, _VARIANT.size_divisor)

    def propose(frames: Tensor) -> dict[str, Tensor]:
        return {"mask_logits": model(normalise(frames)).mask_logits.transpose(0, 1)}

    world = World("validation", frames=1, seed=seed)
    tell(best_overlaps(propose, world, 200))


@app.command("tokens")
def _tokens(
    folder: Folder,
    proposals: _Run,
    clip: _Run,
    iterations: Iterations = 1500,
    batch: Batch = 16,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Stage one, LoRA and first tokens; tells how many held-out instances are named rightly."""
    torch.set_num_threads(threads)
    model = with_proposals(proposals, clip, seed)
    train_tokens(folder, model, iterations=iterations, batch=batch, rate=rate, seed=seed)
    world = World("validation", frames=1, seed=seed)
    for name, model in (
        ("without training", with_proposals(proposals, clip, seed)),
        ("trained", with_tokens(proposals, clip, folder)),
    ):
        tell(token_accuracy(model, world, 200), f"{name}, ")


@app.command("tracker")
def _tracker(
    folder: Folder,
    proposals: _Run,
    clip: _Run,
    tokens: _Run,
    iterations: Iterations = 1000,
    videos: Annotated[int, typer.Option(min=1, help="To learn from.")] = 400,
    frames: Annotated[int, typer.Option(min=2, help="Of a video.")] = 12,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Stage two, the rollout."""
    torch.set_num_threads(threads)
    model = with_tokens(proposals, clip, tokens)
    train_rollout(folder, model, iterations=iterations, videos=videos, frames=frames, seed=seed)


if __name__ == "__main__":
    run_command(app)
