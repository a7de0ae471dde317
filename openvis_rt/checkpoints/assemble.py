"""An InstFormer checkpoint from the files that people have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from openvis_rt.checkpoints.clip import clip_source, clip_weights
from openvis_rt.checkpoints.instformer import (
    InstFormerParts,
    checked_recurrence,
    describe_parts,
    model_from_parts,
    write_parts,
)
from openvis_rt.checkpoints.keys import variant_of
from openvis_rt.checkpoints.load import Checkpoint
from openvis_rt.checkpoints.lora import adapter_from_peft
from openvis_rt.checkpoints.tensors import refuse_twice, some_of
from openvis_rt.checkpoints.weights import read_weights, without_ignored
from openvis_rt.errors import CheckpointError, InputError
from openvis_rt.files import output_file, refuse_existing, sha256_of
from openvis_rt.models.network import sizes_of_checkpoint
from openvis_rt.systems.instformer import INSTFORMER, InstFormerConfig
from openvis_rt.systems.minvis import MINVIS
from openvis_rt.systems.system import Variant

__all__ = ["assemble_instformer"]

_STEPS = 7


def assemble_instformer(
    *,
    proposal: Path,
    clip: str,
    output: Path,
    adapter: Path | None = None,
    lora_alpha: float | None = None,
    tracker: Path | None = None,
    tokens: Path | None = None,
    config: InstFormerConfig | None = None,
    quick_gelu: bool | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Write a checkpoint; all parts are checked against one another before.

    Args:
        proposal: of Mask2Former or MinVIS, ``.pth`` or ``.safetensors``, with any number of
            classes: all but "no object" count as an object.
        clip: the whole CLIP, a file or an open_clip tag such as ``ViT-B-32:openai``.
        output: the file to write, a ``.safetensors``.
        adapter: LoRA of CLIP's image encoder as PEFT saves it; None leaves CLIP as it is.
        lora_alpha: the adapter's; None for what the files say.
        tracker: the rollout's recurrence, see :mod:`openvis_rt.systems.recurrence`; without it
            tokens are matched as they are.
        tokens: trained tokens, ``register`` and ``instance``, one or both; without them CLIP's
            class token.
        config: the choices; its sizes are read from the proposal network, and its activation from
            the tag.
        quick_gelu: CLIP's activation; None for what the tag says, or, of a file, the variant's.
        overwrite: replace the file if there is one.
        progress: told before each step.

    Returns:
        what was written, for people: the file, its bytes, the configuration and the parts.

    Raises:
        CheckpointError: a part is missing, cannot be read, or does not fit.
        InputError: the arguments contradict one another.
        OutputError: the place cannot be written, or is taken.
        UnavailableError: CLIP's download failed.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"the checkpoint is a .safetensors file; got --output {output}")
    if lora_alpha is not None and adapter is None:
        raise InputError("--lora-alpha is of an adapter; give --adapter FILE as well")
    refuse_existing(output, overwrite=overwrite)
    named = {"proposal": proposal, "adapter": adapter, "tracker": tracker, "tokens": tokens}
    files = {part: path for part, path in named.items() if path is not None}
    for part, path in files.items():
        if not path.is_file():
            raise CheckpointError(f"there is no file {path} for --{part}")
    progress("reading the proposal network", 0, _STEPS)
    variant, network, sizes = _proposal(proposal)
    progress("reading CLIP", 1, _STEPS)
    source = clip_source(clip, variant, quick_gelu)
    weights = clip_weights(source.path)
    progress("reading the adapter, the tracker and the tokens", 2, _STEPS)
    try:
        config = replace(config or InstFormerConfig(), quick_gelu=source.quick_gelu, **sizes)
    except InputError as exc:
        raise CheckpointError(f"{proposal}: {exc}") from exc
    parts = InstFormerParts(
        config=config,
        proposal=network,
        clip=weights,
        adapter=adapter_from_peft(adapter, lora_alpha) if adapter else None,
        tracker=checked_recurrence(read_weights(tracker).tensors, tracker) if tracker else {},
        tokens=_tokens(tokens) if tokens else {},
        files={**files, "clip": source.path},
    )
    progress("hashing the parts", 4, _STEPS)
    hashed = {part: {"file": p.name, "sha256": sha256_of(p)} for part, p in files.items()}
    parts = replace(parts, sources={**hashed, "clip": source.facts()})
    progress("checking that the parts fit", 5, _STEPS)
    model_from_parts(variant, parts, output)
    progress("writing", 6, _STEPS)
    with output_file(output) as partial:
        write_parts(parts, partial)
    return {"checkpoint": output, "bytes": output.stat().st_size, **describe_parts(parts)}


def _proposal(path: Path) -> tuple[Variant, dict[str, Tensor], dict[str, Any]]:
    """The variant that has this image encoder, the network's weights, and their sizes.

    Raises:
        CheckpointError: it cannot be read, or is of another system or image encoder.
    """
    checkpoint = Checkpoint.open(path)
    if checkpoint.signature is not MINVIS.signature:
        raise CheckpointError(
            f"{path} looks like a checkpoint of {checkpoint.signature.words}; the proposal network "
            "needs one of Mask2Former or MinVIS, with a class head (keys such as "
            "sem_seg_head.predictor.class_embed.weight; found "
            f"{some_of(list(checkpoint.first_keys))})"
        )
    variant = variant_of(
        INSTFORMER, {f"proposal.{key}": value for key, value in checkpoint.state.items()}
    )
    if variant is None:
        known = ", ".join(v.backbone for v in INSTFORMER.variants)
        raise CheckpointError(f"{path} has an image encoder that no InstFormer has, of {known}")
    sizes = sizes_of_checkpoint(MINVIS.variants[0], checkpoint.state)
    return variant, without_ignored(checkpoint.state), sizes


def _tokens(path: Path) -> dict[str, Tensor]:
    """Trained tokens [768]; keys may begin with ``tokens.``, and leading axes may be of length 1.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else.
    """
    tensors = read_weights(path).tensors
    refuse_twice(((key.removeprefix("tokens."), key) for key in tensors), path)
    state = {key.removeprefix("tokens."): value for key, value in tensors.items()}
    if strange := sorted(state.keys() - {"register", "instance"}):
        raise CheckpointError(
            f"{path}: tokens are `register` and `instance`; found {some_of(strange)}"
        )
    return {k: v.flatten() if v.ndim and v.numel() == v.shape[-1] else v for k, v in state.items()}
