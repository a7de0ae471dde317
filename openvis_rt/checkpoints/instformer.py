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
from openvis_rt.checkpoints.tensors import some_of
from openvis_rt.checkpoints.weights import Weights, check_numbers, load_strictly
from openvis_rt.errors import CheckpointError, InputError, OutputError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.models.instformer import InstFormer
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.models.network import build_network
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.systems.instformer import InstFormerConfig
from openvis_rt.systems.recurrence import recurrence_of
from openvis_rt.systems.system import Variant

__all__ = [
    "FORMAT",
    "PARTS",
    "VERSION",
    "InstFormerParts",
    "checked_recurrence",
    "describe_parts",
    "model_from_parts",
    "parts_from_weights",
    "write_parts",
]

FORMAT = "openvis-rt instformer"
VERSION = 1
PARTS = ("proposal", "clip", "tokens", "adapter", "tracker")
"""Prefixes of the keys."""

_LONGEST_REASON = 500  # letters; an error of a number quotes the whole text
_TOKENS = ("instance", "register")


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

    @property
    def trained(self) -> list[str]:
        """The parts that were trained on top of the two networks."""
        return [part for part in ("tokens", "adapter", "tracker") if getattr(self, part)]


def parts_from_weights(weights: Weights) -> InstFormerParts:
    """The parts of a file that was read.

    Raises:
        CheckpointError: the header is missing, damaged, or of another version of the format; a
            key has an unknown prefix; the adapter or the recurrence is malformed.
    """
    path, header = weights.path, weights.metadata
    if header.get("format") != FORMAT or header.get("format_version") != str(VERSION):
        raise CheckpointError(
            f"{path} has the format {str(header.get('format'))[:40]!r}, version "
            f"{str(header.get('format_version'))[:40]}; this openvis-rt reads {FORMAT!r}, version "
            f"{VERSION}. `openvis assemble` writes it."
        )
    try:
        config = record_from_json(InstFormerConfig, _json(header["config"], path))
        sources = _json(header.get("sources", "{}"), path)
        alpha = float(header.get("lora_alpha", "nan"))
    except (KeyError, ValueError, InputError) as exc:
        said = str(exc)[:_LONGEST_REASON]
        raise CheckpointError(
            f"{path}: its header is malformed: {said}. `openvis assemble` writes it anew"
        ) from exc
    groups: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in PARTS}
    strange = []
    for key, value in weights.tensors.items():
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
        tracker=checked_recurrence(groups["tracker"], path),
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
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for prefix, group in groups.items():
        for key, value in group.items():
            tensor = value.detach().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            # the format has no tensors that share their numbers
            tensors[f"{prefix}.{key}"] = tensor.clone() if storage in storages else tensor
            storages.add(storage)
    header = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "config": json.dumps(json_from_record(parts.config)),
        "sources": json.dumps(parts.sources),
    }
    if parts.adapter:
        header["lora_alpha"] = repr(parts.adapter.alpha)
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as exc:  # its own form of OSError
        raise OutputError(f"the checkpoint cannot be written: {exc}") from exc


def checked_recurrence(tracker: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights of a rollout as they are, or none.

    Raises:
        CheckpointError: they are those of no recurrence that the runtime knows.
    """
    try:
        if tracker:
            recurrence_of(_shapes(tracker))
    except InputError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return tracker


def model_from_parts(
    variant: Variant, parts: InstFormerParts, path: Path
) -> InstFormer | MinVisClip:
    """The model of a file's parts, with the adapter merged and the tokens in place.

    Args:
        variant: of InstFormer; or of the baseline, which is its proposals, and its CLIP as it was
            before training.
        parts: see its class.
        path: the file, for messages.

    Raises:
        CheckpointError: the parts do not fit the variant or one another; the message says which.
    """
    try:
        model = build_network(variant, parts.config)
    except InputError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    assert isinstance(model, InstFormer | MinVisClip)
    files = {prefix: parts.files.get(prefix, path) for prefix in PARTS}
    config = parts.config
    sizes = (
        f"{config.classes} classes, {config.decoder_layers} decoder layers, "
        f"{config.queries} queries"
    )
    for part, module, state, needed in (
        ("proposal", model.proposal, parts.proposal, f"the proposal network, {sizes}"),
        ("clip", model.clip_model, parts.clip, f"the CLIP {variant.clip}"),
    ):
        misfit = f"{files[part]} does not fit {variant.name} as {needed}."
        prefix = "" if part in parts.files else f"{part}."
        load_strictly(module, state, files[part], misfit, prefix.__add__)
    if isinstance(model, InstFormer):
        _set_tokens(model, parts.tokens, files["tokens"])
        if parts.adapter:
            merge_adapter(model.clip_model.visual, parts.adapter, files["adapter"])
        _set_recurrence(model, parts.tracker, files["tracker"])
    elif parts.trained:
        raise CheckpointError(
            f"{path} holds {', '.join(parts.trained)}, and the baseline of plain CLIP has no place "
            "for that; assemble it again from --proposal and --clip alone"
        )
    return model


def describe_parts(parts: InstFormerParts) -> dict[str, Any]:
    """For people: the configuration and the optional parts."""
    return {
        "format version": VERSION,
        "decoder layers": parts.config.decoder_layers,
        "config": json_from_record(parts.config),
        "tokens": {
            name: "trained" if name in parts.tokens else "CLIP's class token" for name in _TOKENS
        },
        "adapter": str(parts.adapter) if parts.adapter else "none",
        "tracker": "{} of width {}".format(*recurrence_of(_shapes(parts.tracker)))
        if parts.tracker
        else "none; tokens are matched as they are",
        "sources": parts.sources,
    }


def _json(text: str, path: Path) -> Any:
    return json_from_bytes(text.encode("utf-8", "surrogatepass"), f"{path}: its header")


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _set_tokens(model: InstFormer, tokens: dict[str, Tensor], path: Path) -> None:
    """Trained tokens, or CLIP's class token where there is none."""
    if unknown := sorted(tokens.keys() - set(_TOKENS)):
        raise CheckpointError(
            f"{path}: tokens are {' and '.join(_TOKENS)}; found {some_of(unknown)}"
        )
    needed = model.instance_clip.register_token.shape
    for name, token in tokens.items():
        if token.shape != needed:
            raise CheckpointError(
                f"{path}: tokens.{name} is {list(token.shape)}, and the image encoder needs "
                f"{list(needed)}"
            )
    check_numbers(tokens, path, "tokens.".__add__)
    if "instance" in tokens and model.config.guidance.first_block:
        raise CheckpointError(
            f"{path}: instance tokens that begin at block {model.config.guidance.first_block} are "
            "copies of the register there, so tokens.instance has no use; leave it out, or begin "
            "at block 0"
        )
    model.instance_clip.set_tokens(tokens.get("register"), tokens.get("instance"))


def _set_recurrence(model: InstFormer, tracker: dict[str, Tensor], path: Path) -> None:
    """The recurrence's weights, whose token width must be the model's."""
    check_numbers(tracker, path, "tracker.".__add__)
    if tracker:
        kind, width = recurrence_of(_shapes(tracker))
        if width != model.tracking_width:
            raise CheckpointError(
                f"{path}: the tracker is a {kind} for tokens of width {width}, and the model's are "
                f"{model.tracking_width} wide"
            )
    model.recurrence = {key: value.float() for key, value in tracker.items()}
