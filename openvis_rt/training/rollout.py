"""Stage two of InstFormer: the rollout tracker learns what a track's next token is, all else fixed.

    a_t = RNN(x_{t-1}, h_{t-1}),    L_TC of a_t and x_t            OpenVIS, eq. 5 and 6

A slot of an object holds the token of the query that finds it. The other queries have the slots of
their own numbers where these are free, and so stand in for the objects that are hidden.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.errors import InputError
from openvis_rt.files import output_file
from openvis_rt.models.instformer import InstFormer
from openvis_rt.training.losses import temporal_contrast_loss
from openvis_rt.training.run import Losses, Run
from openvis_rt.training.segmentation import frame_targets, generator_of, match_objects
from openvis_rt.training.world import World

__all__ = ["slot_tokens", "train_rollout"]

_BATCH = 32  # videos
_TEMPERATURE = 0.1  # of L_TC; at the paper's 1, cosines are too close for a sharp choice


@torch.inference_mode()
def slot_tokens(model: InstFormer, world: World, index: int, seed: int = 0) -> Tensor:
    """Tracking tokens of a video by slots, float32 [T, N, C + Dt]: row i is slot i in every frame.

    Args:
        model: trained but for its tracker.
        world: of the video.
        index: of the video.
        seed: of the points that are matched at.
    """
    video = world[index]
    frames = torch.from_numpy(video.images)
    found = model.proposal(model.normalise(frames))
    targets, kept = frame_targets(video)
    draws = generator_of(seed, index)
    matches = match_objects(found.mask_logits[:, :, None], found.class_logits, targets, draws)
    rows = []
    for frame, match in enumerate(matches):
        guidance = model.guidance(found.mask_logits[frame])
        seen = model.instance_clip(model.normalise_for_clip(frames[frame : frame + 1]), guidance)
        token = torch.cat((F.normalize(found.queries[frame], dim=-1), F.normalize(seen, dim=-1)), 1)
        slots = kept[frame][match.objects]
        rows.append(token[_order(slots, match.queries, len(token))])
    return torch.stack(rows)


def _order(slots: Tensor, queries: Tensor, count: int) -> Tensor:
    """Which query is in which slot, int64 [count], where some are given.

    A free query has the slot of its own number, so that it stays there from frame to frame; those
    whose slot is taken fill what is left.
    """
    order = torch.full((count,), -1)
    order[slots] = queries
    taken = set(queries.tolist())
    free = [q for q in range(count) if q not in taken]
    for query in free:
        if order[query] < 0:
            order[query] = query
    left = [q for q in free if order[q] != q]
    order[order < 0] = torch.tensor(left, dtype=torch.long)
    return order


def train_rollout(
    folder: Path, model: InstFormer, *, iterations: int, videos: int, frames: int, seed: int
) -> dict[str, Tensor]:
    """Train the recurrence.

    Args:
        folder: of the run.
        model: trained but for its tracker.
        iterations: in all.
        videos, frames: whose tokens it learns from. They are made once and kept in the folder, so
            a model that was trained anew needs a new one.
        seed: of weights and videos.

    Raises:
        InputError: the folder keeps tokens of other numbers.

    Returns:
        the weights of torch's ``RNN``.
    """
    tokens = _stored_tokens(folder / "tokens.npy", model, videos, frames, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cell = nn.RNN(tokens.shape[-1], tokens.shape[-1], batch_first=True)

    def step(iteration: int) -> Losses:
        rng = np.random.default_rng((seed, iteration))
        chosen = tokens[torch.from_numpy(rng.choice(len(tokens), min(_BATCH, len(tokens)), False))]
        windows = chosen.transpose(1, 2)  # [B, N, T, D]: a slot is a sequence
        predicted, _ = cell(windows[:, :, :-1].flatten(0, 1))
        predicted = predicted.unflatten(0, windows.shape[:2]).transpose(1, 2).flatten(0, 1)
        wanted = windows[:, :, 1:].transpose(1, 2).flatten(0, 1)
        loss = temporal_contrast_loss(predicted, wanted, temperature=_TEMPERATURE)
        return {"rollout": loss / windows.shape[1]}

    Run(folder, cell, rate=2e-3, decay=0.0).train(step, iterations, warm_up=50)
    return {key: value.detach() for key, value in cell.state_dict().items()}


def _stored_tokens(path: Path, model: InstFormer, videos: int, frames: int, seed: int) -> Tensor:
    """Tokens of so many videos, float32 [V, T, N, D], from a file that is made if it is missing."""
    if not path.exists():
        world = World("train", frames=frames, seed=seed)
        numbers = track(range(videos), "tokens", console=Console(stderr=True))
        with output_file(path) as partial:
            np.save(partial, np.stack([slot_tokens(model, world, n, seed) for n in numbers]))
    tokens = torch.from_numpy(np.load(path))
    wanted = (videos, frames, model.config.queries, model.tracking_width)
    if tuple(tokens.shape) != wanted:
        raise InputError(
            f"{path} holds tokens {list(tokens.shape)}, and {list(wanted)} (videos, frames, "
            "queries, width) are needed: remove it, or give a new folder"
        )
    return tokens
