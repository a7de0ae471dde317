"""From a checkpoint, or a seed, to a model.

Most checkpoints have the official format, ``{"model": state_dict, ...}`` as detectron2 writes it;
CLIP comes beside it where the checkpoint holds none. InstFormer and its baseline have a format of
our own, since none is public: :mod:`openvis_rt.checkpoints.instformer`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvis_rt.checkpoints.clip import ClipSource, clip_source, clip_weights
from openvis_rt.checkpoints.instformer import describe_parts, model_from_parts, parts_from_weights
from openvis_rt.checkpoints.keys import (
    has_sizes_of,
    renamed,
    signature_of,
    systems_of,
    timm_key,
    variant_of,
)
from openvis_rt.checkpoints.shipped import shipped_checkpoint, shipped_clip
from openvis_rt.checkpoints.tensors import refuse_twice
from openvis_rt.checkpoints.weights import Weights, load_strictly, read_weights
from openvis_rt.errors import CheckpointError, InputError
from openvis_rt.files import output_file, sha256_of
from openvis_rt.models.network import Network, build_network, sizes_of_checkpoint
from openvis_rt.systems import system_of, variant_named
from openvis_rt.systems.instformer import INSTFORMER
from openvis_rt.systems.ovformer import CLASSIFIER, LOSS_WEIGHTS, OVFORMERS
from openvis_rt.systems.system import Signature, System, Variant

__all__ = ["Checkpoint", "Loaded", "load_model", "save_checkpoint"]

_TRAINED_ON = {"ovformer-frame": "LVIS's images", "ovformer-video": "LV-VIS's videos"}


@dataclass(frozen=True)
class Loaded:
    """A model with its weights.

    Attributes:
        model: float32, in evaluation mode.
        facts: where the weights are from, for a bundle's manifest.
        warnings: what should be checked before its results are believed.
    """

    model: Network
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, read once.

    Attributes:
        weights: under today's key names.
        signature: what kind of file it is.
        systems: those whose checkpoint it can be.
        first_keys: some keys as the file has them.
        has_timm_names: the file has timm's names where ``weights`` has detectron2's.
    """

    weights: Weights
    signature: Signature
    systems: tuple[System, ...]
    first_keys: tuple[str, ...]
    has_timm_names: bool

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read a file.

        Raises:
            CheckpointError: it cannot be read.
        """
        weights = read_weights(path)
        refuse_twice(((renamed(key), key) for key in weights.tensors), path)
        state = {renamed(key): value for key, value in weights.tensors.items()}
        return cls(
            replace(weights, tensors=state),
            signature_of(state),
            tuple(systems_of(state)),
            tuple(weights.tensors)[:3],
            any(timm_key(renamed(key)) == key != renamed(key) for key in weights.tensors),
        )

    @property
    def path(self) -> Path:
        """The file."""
        return self.weights.path

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors under today's key names."""
        return self.weights.tensors

    def describe(self) -> dict[str, Any]:
        """What the file holds, for people: system, model, sizes, tensors, numbers, types.

        Raises:
            CheckpointError: its header is malformed.
        """
        systems, details = self.systems, dict[str, Any]()
        if self.signature is INSTFORMER.signature:
            parts = parts_from_weights(self.weights)
            systems = (INSTFORMER,) if parts.trained else systems
            details = describe_parts(parts)
        elif systems:
            sizes = sizes_of_checkpoint(systems[0].variants[0], self.state)
            details = {name.replace("_", " "): size for name, size in sizes.items()}
        models = [found for s in systems if (found := variant_of(s, self.state))]
        models = [v for v in models if has_sizes_of(v, self.state)] or models
        return {
            "file": str(self.path),
            "system": self.signature.words,
            "model": " or ".join(v.name for v in models) or "none of `openvis models`",
            "tensors": len(self.state),
            "parameters": sum(v.numel() for v in self.state.values()),
            "types": sorted({str(v.dtype).removeprefix("torch.") for v in self.state.values()}),
            "first keys": list(self.first_keys),
            **details,
        }


def load_model(
    name: str,
    weights: Path | int | None = None,
    clip: str | None = None,
    quick_gelu: bool | None = None,
) -> Loaded:
    """A model with weights; its sizes are read from the file.

    Args:
        name: a variant, such as ``clip-vis-r50``.
        weights: a checkpoint; or a seed of random weights, the same for the same seed, to try
            things without a file. InstFormer's tokens are then CLIP's class token, so with guidance
            0 its instances are CLIP's image embedding. None is the weights that come with the
            package, CLIP's with them, where a miniature has such.
        clip: a file or an open_clip tag of CLIP's weights, for OVFormer and OV2Seg, whose
            checkpoints hold none; None is to do without.
        quick_gelu: CLIP's activation; None for what the tag says, or, of a file, the variant's.

    Raises:
        CheckpointError: a file cannot be read, is of another system or variant, or any key is
            missing, unexpected or of another shape; the message lists them.
        InputError: there is no such variant, or a CLIP is given for one that has its own, or none;
            or no weights are given, and none come with the package.
        UnavailableError: CLIP's download failed.
    """
    variant = variant_named(name)
    if isinstance(weights, int):
        if clip is not None:
            raise InputError("random weights include CLIP's; a CLIP goes with a checkpoint")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(weights)
            return Loaded(build_network(variant), {"random_weights": weights})
    if weights is None:
        weights = shipped_checkpoint(variant)
        clip = clip or (str(beside) if (beside := shipped_clip(variant)) else None)
    if clip is not None and not variant.takes_clip:
        why = "its checkpoint holds CLIP" if variant.clip else "it has a closed vocabulary"
        raise InputError(f"{name} takes no --clip: {why}")
    checkpoint = Checkpoint.open(weights)
    _refuse_others(checkpoint, variant)
    source = None if clip is None else clip_source(clip, variant, quick_gelu)
    model: Network
    if checkpoint.signature is INSTFORMER.signature:
        model = model_from_parts(variant, parts_from_weights(checkpoint.weights), weights)
    else:
        model = _official(checkpoint, variant, source)
    facts: dict[str, Any] = {"file": weights.name, "sha256": sha256_of(weights)}
    facts |= {"clip": source.facts()} if source else {}
    return Loaded(model, facts, _doubts(checkpoint, variant))


def save_checkpoint(model: Network, path: Path) -> None:
    """Write a model's weights in the official format, ``{"model": state_dict}``."""
    with output_file(path) as partial:
        torch.save({"model": model.checkpoint_module.state_dict()}, partial)


def _official(checkpoint: Checkpoint, variant: Variant, clip: ClipSource | None) -> Network:
    """A model whose checkpoint is a state dict of its public code, its sizes as the file has them.

    Raises:
        CheckpointError: the checkpoint or CLIP does not fit.
    """
    path, state = checkpoint.path, checkpoint.state
    sizes = sizes_of_checkpoint(variant, state)
    listed = ", ".join(f"{name.replace('_', ' ')}: {size}" for name, size in sizes.items())
    if variant.takes_clip:
        quick_gelu = variant.quick_gelu if clip is None else clip.quick_gelu
        sizes |= {"with_clip": clip is not None, "quick_gelu": quick_gelu}
    model = build_network(variant, **sizes)
    misfit = f"{path} does not fit {variant.name} ({listed})."
    if (likely := variant_of(system_of(variant), state)) not in (None, variant):
        misfit = f"{path} looks like a checkpoint of {likely.name}, not of {variant.name}."
    shown = timm_key if checkpoint.has_timm_names else str
    load_strictly(model.checkpoint_module, state, path, misfit, shown)
    if clip is not None:
        fits = f"{clip.path} does not fit the CLIP of {variant.name} ({variant.clip})."
        load_strictly(model.clip_model, clip_weights(clip.path), clip.path, fits)
    return model


def _refuse_others(checkpoint: Checkpoint, variant: Variant) -> None:
    """CheckpointError if a file is of another system than the variant's."""
    path, system, signature = checkpoint.path, system_of(variant), checkpoint.signature
    if signature != system.signature:
        makes_it = system.signature is INSTFORMER.signature
        raise CheckpointError(
            f"{path} looks like a checkpoint of {signature.words}, but {variant.name} needs one of "
            f"{system.signature.words} (found keys such as {checkpoint.first_keys[0]!r})"
            + ("; `openvis assemble` makes it from its parts" if makes_it else "")
        )
    if system not in checkpoint.systems:  # of two with the same keys, the file says the other
        other = checkpoint.systems[0]
        raise CheckpointError(
            f"{path} is a checkpoint of {other.title}, trained on {_TRAINED_ON[other.name]}, and "
            f"{variant.name} is {system.title}, trained on {_TRAINED_ON[system.name]}. Their keys "
            "are the same, but the queries of one mean nothing to the other: export it as "
            f"{_sibling(variant, other)}. (The number of classes in {LOSS_WEIGHTS} and "
            f"{CLASSIFIER} tells; a file without the two loads in either.)"
        )


def _doubts(checkpoint: Checkpoint, variant: Variant) -> tuple[str, ...]:
    """What a checkpoint that loads does not say."""
    system, state = system_of(variant), checkpoint.state
    others = [
        s
        for s in checkpoint.systems
        if s is not system
        and s in OVFORMERS
        and (likely := variant_of(s, state))
        and (has_sizes_of(likely, state) or not has_sizes_of(variant, state))
    ]
    return tuple(
        f"{checkpoint.path} does not tell whether it was trained as {variant.name} or as "
        f"{_sibling(variant, other)}, whose checkpoints have the same keys; results of the wrong "
        "one mean nothing"
        for other in others
    )


def _sibling(variant: Variant, system: System) -> str:
    """The name of another system's variant with the same image encoder, or of that system."""
    same = (v.name for v in system.variants if v.encoder_key == variant.encoder_key)
    return next(same, system.title)
