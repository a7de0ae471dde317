"""From a checkpoint, or a seed, to a model.

All but InstFormer have the official format, ``{"model": state_dict, ...}`` as detectron2 writes it;
CLIP comes beside it where the checkpoint holds none. InstFormer has a format of our own, since none
is public: :mod:`.instformer_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvis_rt.checkpoints.clip import ClipSource, clip_weights
from openvis_rt.checkpoints.instformer import (
    InstFormerParts,
    describe_parts,
    model_from_parts,
    parts_from_state,
)
from openvis_rt.checkpoints.keys import (
    CLASSIFIER,
    LOSS_WEIGHTS,
    decoder_layers,
    family_of_keys,
    load_checkpoint,
    query_count,
    timm_key,
    trained_family,
    variant_of_keys,
)
from openvis_rt.checkpoints.weights import load_strictly, load_weights
from openvis_rt.errors import CheckpointError, InputError
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.minvis import MinVis
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.models.ovformer import OVFormer
from openvis_rt.models.zoo import MODELS, Model
from openvis_rt.systems.variants import Variant, variant_named

__all__ = [
    "describe_checkpoint",
    "doubt_about",
    "model_from_checkpoint",
    "model_from_seed",
    "refuse_needless_clip",
]

_SYSTEMS = {  # of families whose checkpoints are those of a system
    "minvis-clip": "instformer",
    "minvis": "mask2former or minvis",
    "ovformer-frame": "ovformer",
    "ovformer-video": "ovformer",
}

_OVFORMERS = {  # two families with the same keys
    "ovformer-frame": "the per-frame model (OVFormerVideo), trained on LVIS's images",
    "ovformer-video": "the video model (VideoOVFormer), trained on LV-VIS's clips",
}
_CLASS_HEAD = "sem_seg_head.predictor.class_embed.weight"  # of a closed vocabulary


def model_from_checkpoint(name: str, path: Path, clip: ClipSource | None = None) -> Model:
    """A model with the weights of a checkpoint; its sizes are read from the file.

    Args:
        name: a variant, such as ``clip-vis-r50``.
        path: the checkpoint.
        clip: of OVFormer and OV2Seg, whose checkpoints hold no CLIP; None is to do without.

    Returns:
        the model, float32, in evaluation mode.

    Raises:
        CheckpointError: a file cannot be read, is of another system or variant, or any key is
            missing, unexpected or of another shape; the message lists them.
        InputError: a CLIP for a model that has its own, or none.
    """
    variant = variant_named(name)
    if clip is not None:
        refuse_needless_clip(variant)
    state = load_checkpoint(path)
    family, wanted = family_of_keys(state), _SYSTEMS.get(variant.family, variant.family)
    if family != wanted:
        advice = "; `openvis assemble` makes it from its parts"
        first = next(iter(load_weights(path)))
        raise CheckpointError(
            f"{path} looks like a checkpoint of {family or 'no system known here'}, "
            f"but {name} needs one of {wanted} (found keys such as {first!r})"
            + (advice if wanted == "instformer" else "")
        )
    if variant.family == "minvis-clip":
        return _minvis_clip(parts_from_state(state, path), path)
    if family == "instformer":
        return model_from_parts(name, parts_from_state(state, path), path)
    if family == "ovformer":
        _refuse_other_ovformer(variant, state, path)
    return _official(variant, state, path, clip)


def refuse_needless_clip(variant: Variant) -> None:
    """InputError if a CLIP has no place beside the variant's checkpoint."""
    if not variant.takes_clip:
        why = "its checkpoint holds CLIP" if variant.clip else "it has a closed vocabulary"
        raise InputError(f"{variant.name} takes no --clip: {why}")


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


def _refuse_other_ovformer(variant: Variant, state: dict[str, Tensor], path: Path) -> None:
    trained = trained_family(state)
    if trained in (None, variant.family):
        return
    fits = variant.name.replace(variant.family, str(trained))
    raise CheckpointError(
        f"{path} is a checkpoint of {_OVFORMERS[str(trained)]}, and {variant.name} is "
        f"{_OVFORMERS[variant.family]}. Their keys are the same, but the queries of one mean "
        f"nothing to the other: export it as {fits}. (The number of classes in {LOSS_WEIGHTS} and "
        f"{CLASSIFIER} tells; a file without the two loads in either.)"
    )


def doubt_about(name: str, path: Path) -> str:
    """What should be checked of a checkpoint that loads; empty if nothing.

    Args:
        name: the variant that it is loaded as.
        path: the checkpoint.
    """
    family = variant_named(name).family
    if family not in _OVFORMERS or trained_family(load_checkpoint(path)) is not None:
        return ""
    other = name.replace(family, next(f for f in _OVFORMERS if f != family))
    return (
        f"{path} does not tell whether it was trained as {name} or as {other}, whose checkpoints "
        "have the same keys; results of the wrong one mean nothing"
    )


def _official(
    variant: Variant, state: dict[str, Tensor], path: Path, clip: ClipSource | None
) -> Model:
    """A model whose checkpoint is a state dict of detectron2, its sizes as the file has them."""
    sizes: dict[str, Any] = {
        "decoder_layers": max(1, decoder_layers(state)),
        "queries": max(1, query_count(state)),
    }
    if variant.takes_clip:
        quick_gelu = variant.quick_gelu if clip is None else clip.quick_gelu
        sizes |= {"with_clip": clip is not None, "quick_gelu": quick_gelu}
    if variant.family == "minvis":
        sizes["classes"] = len(state.get(_CLASS_HEAD, ())) - 1
    model = MODELS[variant.name](**sizes)
    misfit = (
        f"{path} does not fit {variant.name} (decoder layers: {sizes['decoder_layers']}, queries: "
        f"{sizes['queries']})."
    )
    if (likely := variant_of_keys(state)) not in (None, variant.name):
        misfit = f"{path} looks like a checkpoint of {likely}, not of {variant.name}."
    assert isinstance(model, ClipVis | OVFormer | MinVis)
    network = model if isinstance(model, ClipVis) else model.network
    load_strictly(network, state, path, misfit, timm_key if variant.takes_clip else str)
    if clip is not None:
        assert isinstance(model, OVFormer)
        fits = f"{clip.path} does not fit the CLIP of {variant.name} ({variant.clip})."
        load_strictly(model.clip_model, clip_weights(clip.path), clip.path, fits)
    return model


def _model_in_words(state: dict[str, Tensor]) -> str:
    if family_of_keys(state) == "ovformer" and trained_family(state) is None:
        return "ovformer-frame or ovformer-video; the file does not tell"
    return variant_of_keys(state) or "none of `openvis models`"


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
        "model": _model_in_words(state),
        "decoder layers": decoder_layers(state),
        "tensors": len(state),
        "parameters": sum(v.numel() for v in state.values()),
        "types": sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}),
        "first keys": list(load_weights(path))[:3],
    }
    if family == "instformer":
        facts |= describe_parts(parts_from_state(state, path))
    return facts
