"""Stage one of InstFormer, the tokens: LoRA on InstCLIP's q and v, and learned first tokens.

    L_cls = CE( exp(logit_scale) cos(token_i, E), c_i )        OpenVIS, eq. 4

over the text embeddings E of all base categories. Instances are guided by the masks that the
proposal network finds for them; all other weights of CLIP stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from openvis_rt.checkpoints.lora import Adapter
from openvis_rt.models.instformer import InstFormer
from openvis_rt.training.clip import class_embeddings
from openvis_rt.training.matcher import Matches
from openvis_rt.training.run import Losses, Run
from openvis_rt.training.segmentation import Batch, generator_of, match_objects, world_batch
from openvis_rt.training.world import World
from openvis_rt.training.world_categories import BASE, CATEGORIES

__all__ = [
    "LowRank",
    "adapted",
    "first_tokens",
    "matched_proposals",
    "token_accuracy",
    "token_parts",
    "train_tokens",
]

RANK, ALPHA = 8, 16.0  # r and alpha of LoRA
_PLACES = torch.full((len(CATEGORIES),), -1).index_copy(
    0, torch.tensor(BASE), torch.arange(len(BASE))
)


class LowRank(nn.Module):
    """What is added to a block's joined projection [3 d, d]: alpha / r B A for q and for v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in "qv":
            first = torch.empty(RANK, width)
            nn.init.kaiming_uniform_(first, a=math.sqrt(5))
            self.register_parameter(f"{name}_A", nn.Parameter(first))
            self.register_parameter(f"{name}_B", nn.Parameter(torch.zeros(width, RANK)))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted matrix."""
        q, v = (self.get_parameter(f"{n}_B") @ self.get_parameter(f"{n}_A") for n in "qv")
        return weight + ALPHA / RANK * torch.cat((q, torch.zeros_like(q), v))


def matched_proposals(
    model: InstFormer, data: Batch, seed: int, iteration: int
) -> Iterator[tuple[int, Tensor, Matches]]:
    """For each frame its number, the guidance of its objects [n, P], and their matches.

    Args:
        model: its proposals are made without a gradient.
        data: frames, each a window of one.
        seed, iteration: of the points that are matched at.
    """
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.proposal(model.normalise(data.frames))
    logits = found.mask_logits.float()
    objects = found.class_logits.float()
    draws = generator_of(seed, iteration)
    matches = match_objects(logits[:, :, None], objects, data.targets, draws)
    for number, match in enumerate(matches):
        yield number, model.guidance(logits[number, match.queries]), match


def train_tokens(
    folder: Path, model: InstFormer, *, iterations: int, batch: int, rate: float, seed: int
) -> None:
    """Train the adapter and the tokens.

    Args:
        folder: of the run.
        model: with trained proposals and CLIP; its CLIP is left adapted.
        iterations: in all.
        batch: frames of an iteration.
        rate: learning rate.
        seed: of weights and videos.
    """
    texts = class_embeddings(model.clip_model)[torch.tensor(BASE)]
    adapters = adapted(model, seed)
    tokens = first_tokens(model)
    world = World("train", frames=1, seed=seed)

    def step(iteration: int) -> Losses:
        data = world_batch(world, iteration, batch)
        logits, classes = [], []
        for number, guidance, match in matched_proposals(model, data, seed, iteration):
            if not len(match.queries):
                continue
            frame = model.normalise_for_clip(data.frames[number : number + 1])
            with torch.autocast("cpu", torch.bfloat16):
                seen = model.instance_clip(frame, guidance)
            logits.append(model.instance_clip.logits(seen.float(), texts))
            classes.append(_PLACES[data.targets[number].classes[match.objects]])
        return {"class": F.cross_entropy(torch.cat(logits), torch.cat(classes))}

    trained = nn.ModuleDict({"adapters": adapters, "tokens": tokens})
    Run(folder, trained, rate=rate, decay=0.0).train(step, iterations)


def adapted(model: InstFormer, seed: int) -> nn.ModuleList:
    """Adapters on every block of the model's InstCLIP, as parametrizations; for training."""
    blocks = model.instance_clip.visual.transformer.resblocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = nn.ModuleList(LowRank(block.attn.embed_dim) for block in blocks)
    for block, adapter in zip(blocks, adapters, strict=True):
        parametrize.register_parametrization(block.attn, "in_proj_weight", adapter)
    return adapters


def first_tokens(model: InstFormer) -> nn.ParameterDict:
    """The model's register and instance token, made trainable; they begin as CLIP's class token."""
    model.instance_clip.set_tokens()
    names = {"register": "register_token", "instance": "instance_token"}
    return nn.ParameterDict(
        {
            name: getattr(model.instance_clip, attribute).requires_grad_(requires_grad=True)
            for name, attribute in names.items()
        }
    )


def token_parts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """``adapter`` and ``tokens`` of a checkpoint, from the weights of a run."""
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("adapters."))
    pairs = {
        (block, name): (
            weights[f"adapters.{block}.{name}_A"],
            weights[f"adapters.{block}.{name}_B"],
        )
        for block in range(blocks)
        for name in "qv"
    }
    names = ("register", "instance")
    return {
        "adapter": Adapter(ALPHA, RANK, pairs),
        "tokens": {name: weights[f"tokens.{name}"] for name in names},
    }


@torch.inference_mode()
def token_accuracy(model: InstFormer, world: World, count: int) -> dict[str, float]:
    """How many objects get their own name among all categories, base and novel, in percent.

    Args:
        model: with or without what is trained here.
        world: videos of one frame.
        count: of them.
    """
    texts = class_embeddings(model.clip_model)
    right: dict[bool, list[bool]] = {False: [], True: []}
    for number in range(count):
        data = world_batch(world, number, 1)
        for _, guidance, match in matched_proposals(model, data, 0, number):
            frame = model.normalise_for_clip(data.frames)
            logits = model.instance_clip.logits(model.instance_clip(frame, guidance), texts)
            classes = data.targets[0].classes[match.objects]
            for guess, truth in zip(logits.argmax(1), classes, strict=True):
                right[CATEGORIES[int(truth)].novel].append(bool(guess == truth))
    return {
        name: 100 * sum(right[novel]) / max(1, len(right[novel]))
        for name, novel in (("base", False), ("novel", True))
    }
