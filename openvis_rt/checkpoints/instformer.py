"""InstFormer's checkpoints: a format of our own, since none is public. See docs/instformer.md.

One safetensors file; everything but ``proposal.`` and ``clip.`` may be absent:

    proposal.*                  Mask2Former under detectron2's keys
    clip.*                      the whole CLIP under open_clip's keys
    tokens.{register,instance}  [768]; absent: CLIP's class token
    adapter.{block}.{q|v}.{A|B} LoRA, A [r, 768], B [768, r]
    tracker.*                   the rollout's recurrence under torch's keys

and in the header's metadata ``format``, ``format_version``, ``config``, ``lora_alpha`` and
``sources``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from openvis_rt.checkpoints.lora import Adapter, adapter_from_tensors, merge_adapter
from openvis_rt.checkpoints.weights import load_strictly, metadata_of, refuse_nan, some_of
from openvis_rt.errors import CheckpointError, InputError, OutputError
from openvis_rt.models.instformer import InstFormer
from openvis_rt.models.zoo import MODELS
from openvis_rt.systems.instformer import InstFormerConfig

__all__ = [
    "FORMAT",
    "PARTS",
    "VERSION",
    "InstFormerParts",
    "describe_parts",
    "model_from_parts",
    "parts_from_state",
    "recurrence_of",
    "write_parts",
]

FORMAT = "openvis-rt instformer"
VERSION = 1
PARTS = ("proposal", "clip", "tokens", "adapter", "tracker")
"""Prefixes of the keys."""

_TOKENS = frozenset({"register", "instance"})
_GATES = {1: "rnn", 3: "gru", 4: "lstm"}


@dataclass(frozen=True)
class InstFormerParts:
    """What a file holds; tensors by their keys without the prefix.

    Attributes:
        config: the choices that the paper leaves open, and sizes.
        proposal, clip, tokens, tracker: see the module.
        adapter: not yet merged into ``clip``.
        sources: for each part where it came from, for people.
        files: of parts that were read from other files than this one, for messages.
    """

    config: InstFormerConfig
    proposal: dict[str, Tensor]
    clip: dict[str, Tensor]
    tokens: dict[str, Tensor] = field(default_factory=dict)
    adapter: Adapter | None = None
    tracker: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def parts_from_state(state: dict[str, Tensor], path: Path) -> InstFormerParts:
    """The parts of a file that was read.

    Args:
        state: all its tensors.
        path: the file, whose header is read.

    Raises:
        CheckpointError: the header is missing, damaged, or of another version of the format; a
            key has an unknown prefix; the adapter is malformed.
    """
    header = metadata_of(path)
    if header.get("format") != FORMAT or header.get("format_version") != str(VERSION):
        raise CheckpointError(
            f"{path} has the format {header.get('format')!r}, version "
            f"{header.get('format_version')}; this openvis-rt reads {FORMAT!r}, version {VERSION}. "
            "`openvis assemble` writes it."
        )
    try:
        config = InstFormerConfig.from_json(json.loads(header["config"]))
        sources = json.loads(header.get("sources", "{}"))
        alpha = float(header.get("lora_alpha", "nan"))
    except (KeyError, ValueError, InputError) as exc:
        raise CheckpointError(f"{path}: its header is malformed: {exc}") from exc
    groups: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in PARTS}
    strange = []
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        if prefix in groups:
            groups[prefix][rest] = value
        else:
            strange.append(key)
    if strange:
        raise CheckpointError(f"{path}: {len(strange)} unexpected keys: {some_of(strange)}")
    adapter = groups["adapter"]
    return InstFormerParts(
        config=config,
        proposal=groups["proposal"],
        clip=groups["clip"],
        tokens=groups["tokens"],
        adapter=adapter_from_tensors(adapter, alpha, path) if adapter else None,
        tracker=groups["tracker"],
        sources=sources,
    )


def write_parts(parts: InstFormerParts, path: Path) -> None:
    """Write a file; the caller sees to it that a half-written one is never found.

    Raises:
        OutputError: the place cannot be written.
    """
    groups = {
        "proposal": parts.proposal,
        "clip": parts.clip,
        "tokens": parts.tokens,
        "adapter": parts.adapter.tensors() if parts.adapter else {},
        "tracker": parts.tracker,
    }
    tensors = {
        f"{prefix}.{key}": value.detach().contiguous()
        for prefix, group in groups.items()
        for key, value in group.items()
    }
    header = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "config": json.dumps(parts.config.to_json()),
        "sources": json.dumps(parts.sources),
    }
    if parts.adapter:
        header["lora_alpha"] = repr(parts.adapter.alpha)
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as exc:  # its own form of OSError
        raise OutputError(f"the checkpoint cannot be written: {exc}") from exc


def model_from_parts(name: str, parts: InstFormerParts, path: Path) -> InstFormer:
    """The model of a file's parts, with the adapter merged and the tokens in place.

    Args:
        name: a variant of the family.
        parts: see its class.
        path: the file, for messages.

    Raises:
        CheckpointError: the parts do not fit the variant or one another; the message says which.
    """
    try:
        model = MODELS[name](parts.config)
    except InputError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    assert isinstance(model, InstFormer)
    files = {prefix: parts.files.get(prefix, path) for prefix in PARTS}
    config = parts.config
    sizes = (
        f"{config.classes} classes, {config.decoder_layers} decoder layers, "
        f"{config.queries} queries"
    )
    for part, module, state, needed in (
        ("proposal", model.proposal, parts.proposal, f"the proposal network, {sizes}"),
        ("clip", model.clip_model, parts.clip, f"the CLIP {model.variant.clip}"),
    ):
        misfit = f"{files[part]} does not fit {name} as {needed}."
        prefix = "" if part in parts.files else f"{part}."
        load_strictly(module, state, files[part], misfit, prefix.__add__)
    _set_tokens(model, parts.tokens, files["tokens"])
    if parts.adapter:
        merge_adapter(model.clip_model.visual, parts.adapter, files["adapter"])
    _set_tracker(model, parts.tracker, files["tracker"])
    return model


def describe_parts(parts: InstFormerParts) -> dict[str, Any]:
    """For people: the configuration and the optional parts."""
    tokens = {name: "trained" if name in parts.tokens else "CLIP's class token" for name in _TOKENS}
    return {
        "format version": VERSION,
        "config": parts.config.to_json(),
        "tokens": dict(sorted(tokens.items())),
        "adapter": str(parts.adapter) if parts.adapter else "none",
        "tracker": "{} of width {}".format(*recurrence_of(parts.tracker))
        if parts.tracker
        else "none; tokens are matched as they are",
        "sources": parts.sources,
    }


def recurrence_of(tracker: dict[str, Tensor]) -> tuple[str, int]:
    """Kind and token width of a rollout's weights, by the matrix that meets the token.

    Raises:
        InputError: there is no such matrix.
    """
    kinds = {"weight_ih_l0": "recurrence", "weight": "linear", "layers.0.weight": "mlp"}
    for key, kind in kinds.items():
        matrix = tracker.get(key)
        if matrix is not None and matrix.ndim == 2 and matrix.numel():
            rows, width = matrix.shape
            return _GATES.get(rows // width, kind) if kind == "recurrence" else kind, int(width)
    raise InputError(
        f"the tracker's weights need one of {', '.join(kinds)} [., width]; found "
        f"{some_of(sorted(tracker)) or 'nothing'}"
    )


def _set_tokens(model: InstFormer, tokens: dict[str, Tensor], path: Path) -> None:
    """Trained tokens, or CLIP's class token where there is none."""
    if unknown := sorted(tokens.keys() - _TOKENS):
        raise CheckpointError(
            f"{path}: tokens are {' and '.join(sorted(_TOKENS))}; found {some_of(unknown)}"
        )
    needed = model.instance_clip.register_token.shape
    for name, token in tokens.items():
        if token.shape != needed:
            raise CheckpointError(
                f"{path}: tokens.{name} is {list(token.shape)}, and the image encoder needs "
                f"{list(needed)}"
            )
    refuse_nan(tokens, path, "tokens.".__add__)
    if "instance" in tokens and model.config.guidance.first_block:
        raise CheckpointError(
            f"{path}: instance tokens that begin at block {model.config.guidance.first_block} are "
            "copies of the register there, so tokens.instance has no use; leave it out, or begin "
            "at block 0"
        )
    model.instance_clip.set_tokens(tokens.get("register"), tokens.get("instance"))


def _set_tracker(model: InstFormer, tracker: dict[str, Tensor], path: Path) -> None:
    """The recurrence's weights, whose token width must be the model's."""
    refuse_nan(tracker, path, "tracker.".__add__)
    if tracker:
        try:
            kind, width = recurrence_of(tracker)
        except InputError as exc:
            raise CheckpointError(f"{path}: {exc}") from exc
        if width != model.tracking_width:
            raise CheckpointError(
                f"{path}: the tracker is a {kind} for tokens of width {width}, and the model's are "
                f"{model.tracking_width} wide"
            )
    model.tracker = {key: value.float() for key, value in tracker.items()}
