"""Where an export's weights come from: a checkpoint, or a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openvis_rt.checkpoints.clip import clip_source
from openvis_rt.checkpoints.load import (
    describe_checkpoint,
    doubt_about,
    model_from_checkpoint,
    model_from_seed,
    refuse_needless_clip,
)
from openvis_rt.errors import InputError
from openvis_rt.files import output_file, sha256_of
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.zoo import Model
from openvis_rt.systems.variants import variant_named

__all__ = ["describe_checkpoint", "doubt_about", "model_from_source", "save_checkpoint"]


def model_from_source(
    name: str,
    checkpoint: Path | None,
    seed: int | None,
    clip: str | None = None,
    quick_gelu: bool | None = None,
) -> tuple[Model, dict[str, Any]]:
    """A model and the manifest's word on its weights.

    Args:
        name: a variant.
        checkpoint: a checkpoint of the model's format, or None.
        seed: of random weights, or None; exactly one of the two is given.
        clip: a file or tag of CLIP's weights, for models whose checkpoints hold none.
        quick_gelu: CLIP's activation; None for what the tag says, or, of a file, OpenAI's.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: both or neither are given, or there is no such variant.
    """
    if checkpoint is not None and seed is None:
        variant = variant_named(name)
        if clip is not None:
            refuse_needless_clip(variant)  # before a download
        source = None if clip is None else clip_source(clip, variant, quick_gelu)
        model = model_from_checkpoint(name, checkpoint, source)
        facts: dict[str, Any] = {"file": checkpoint.name, "sha256": sha256_of(checkpoint)}
        if source is not None:
            tag = {"tag": source.tag} if source.tag else {}
            facts["clip"] = {"file": source.path.name, "sha256": sha256_of(source.path), **tag}
        return model, facts
    if seed is not None and checkpoint is None:
        return model_from_seed(name, seed), {"random_weights": seed}
    raise InputError("weights come either from a checkpoint or from a seed; give one of them")


def save_checkpoint(model: ClipVis, path: Path) -> None:
    """Write a model's weights in the official format, ``{"model": state_dict}``."""
    with output_file(path) as partial:
        torch.save({"model": model.state_dict()}, partial)
