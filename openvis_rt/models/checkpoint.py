"""From a checkpoint, or a seed, to a model.

CLIP-VIS has the official format, ``{"model": state_dict, ...}`` as detectron2 writes it. InstFormer
has one of our own, since none is public: :mod:`.instformer_file`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvis_rt.errors import CheckpointError
from openvis_rt.models.crop_clip import MinVisClip
from openvis_rt.models.instformer_file import (
    InstFormerParts,
    describe_parts,
    model_from_parts,
    parts_from_state,
)
from openvis_rt.models.weights import load_strictly, load_weights
from openvis_rt.models.zoo import MODELS, Model
from openvis_rt.variants import Variant, variant_named

__all__ = [
    "decoder_layers",
    "describe_checkpoint",
    "family_of_keys",
    "load_checkpoint",
    "model_from_checkpoint",
    "model_from_seed",
]

RENAMED = {
    r"(.*\.predictor\.)static_query\.weight": r"\1query_feat.weight",  # before version 2
}
_SIGNATURES = {  # family: keys that only its checkpoints have, and keys that they cannot have
    "clip-vis": (r"backbone\.clip_model\.visual\.", r"sem_seg_head\.predictor\.iou_head\."),
    "instformer": (r"proposal\.sem_seg_head\.", r"clip\.visual\."),
    "openvis (its public code)": (r"clip_adapter\.clip_model\.",),
    "ovformer": (r".*\.class_embed\..*multihead_attn|.*\.class_embed\..*cross_attn",),
    "ov2seg": (r".*\.class_embed\.zs_weight",),
    "mask2former or minvis": (r"sem_seg_head\.predictor\.mask_embed\.",),
    "open_clip (CLIP alone)": (r"visual\.", r"token_embedding\."),
    "CLIP under Hugging Face's names": (r"vision_model\.", r"text_model\."),
}


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, under today's key names; see :func:`load_weights`."""
    state = load_weights(path)
    for pattern, target in RENAMED.items():
        state = {re.sub(f"^{pattern}$", target, key): value for key, value in state.items()}
    return state


def family_of_keys(keys: Mapping[str, Any] | set[str]) -> str | None:
    """The system that a state dict with these keys belongs to, in words; None if none is known."""
    for family, patterns in _SIGNATURES.items():
        if all(any(re.match(p, key) for key in keys) for p in patterns):
            return family
    return None


def variant_of_keys(keys: Mapping[str, Any]) -> str | None:
    """The variant that a state dict belongs to, by its image encoder; None if none is known."""
    for part, name in (
        ("backbone.clip_model.visual.trunk.", "clip-vis-convnext-b"),
        ("backbone.clip_model.visual.layer4.", "clip-vis-r50"),
        ("proposal.backbone.res5.", "instformer-r50"),
    ):
        if any(key.startswith(part) for key in keys):
            return name
    return None


def model_from_checkpoint(name: str, path: Path) -> Model:
    """A model with the weights of a checkpoint; its sizes are read from the file.

    Args:
        name: a variant, such as ``clip-vis-r50``.
        path: the checkpoint.

    Returns:
        the model, float32, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, is of another system or variant, or any key is
            missing, unexpected or of another shape; the message lists them.
    """
    variant = variant_named(name)
    state = load_checkpoint(path)
    family = family_of_keys(state)
    wanted = "instformer" if variant.family == "minvis-clip" else variant.family
    if family != wanted:
        advice = "; `openvis assemble` makes it from its parts"
        raise CheckpointError(
            f"{path} looks like a checkpoint of {family or 'no system known here'}, "
            f"but {name} needs one of {wanted} (found keys such as {next(iter(state))!r})"
            + (advice if wanted == "instformer" else "")
        )
    if variant.family == "minvis-clip":
        return _minvis_clip(parts_from_state(state, path), path)
    if family == "instformer":
        return model_from_parts(name, parts_from_state(state, path), path)
    return _clip_vis(variant, state, path)


def _minvis_clip(parts: InstFormerParts, path: Path) -> MinVisClip:
    """The baseline of an InstFormer file: its proposals, and its CLIP as it was before training."""
    trained = [part for part in ("tokens", "adapter", "tracker") if getattr(parts, part)]
    if trained:
        raise CheckpointError(
            f"{path} holds {', '.join(trained)}, and the baseline of plain CLIP has no place for "
            "that; assemble it again from --proposal and --clip alone"
        )
    return MinVisClip.from_instformer(model_from_parts("instformer-r50", parts, path))


def model_from_seed(name: str, seed: int) -> Model:
    """A model with random weights, the same for the same seed, to try things without a file.

    InstFormer's tokens are CLIP's class token, so with guidance 0 its instances are CLIP's image
    embedding, as in an untrained model of the paper.
    """
    variant_named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def _clip_vis(variant: Variant, state: dict[str, Tensor], path: Path) -> Model:
    layers = max(1, decoder_layers(state))
    model = MODELS[variant.name](decoder_layers=layers)
    misfit = f"{path} does not fit {variant.name} (decoder layers: {layers})."
    if (likely := variant_of_keys(state)) not in (None, variant.name):
        misfit = f"{path} looks like a checkpoint of {likely}, not of {variant.name}."
    load_strictly(model, state, path, misfit)
    return model


def decoder_layers(state: Mapping[str, Tensor]) -> int:
    """How many decoder layers a state dict has, wherever its segmentation head is."""
    pattern = re.compile(r"(?:.*\.)?sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.")
    found = [int(m.group(1)) for key in state if (m := pattern.match(key))]
    return max(found, default=-1) + 1


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, for people: system, depth, tensors, numbers, types.

    Raises:
        CheckpointError: it cannot be read.
    """
    state = load_checkpoint(path)
    family = family_of_keys(state)
    facts = {
        "file": str(path),
        "system": family or "none that is known here",
        "model": variant_of_keys(state) or "none of `openvis models`",
        "decoder layers": decoder_layers(state),
        "tensors": len(state),
        "parameters": sum(v.numel() for v in state.values()),
        "types": sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}),
        "first keys": list(state)[:3],
    }
    if family == "instformer":
        facts |= describe_parts(parts_from_state(state, path))
    return facts
