"""The parts of an InstFormer from what people have: files of Mask2Former, CLIP, tokens."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from openvis_rt.errors import CheckpointError, UnavailableError
from openvis_rt.models.checkpoint import decoder_layers, family_of_keys, load_checkpoint
from openvis_rt.models.weights import load_weights, some_of, without_ignored
from openvis_rt.variants import Variant

__all__ = ["ProposalSizes", "clip_weights", "downloaded_clip", "proposal_weights", "token_weights"]

_MASK2FORMER = "mask2former or minvis"
_CLIP = "open_clip (CLIP alone)"
_OPENAI_SIZES = {"input_resolution", "context_length", "vocab_size"}  # scalars in OpenAI's files
_PREDICTOR = "sem_seg_head.predictor."


@dataclass(frozen=True)
class ProposalSizes:
    """What a Mask2Former's weights are for; fields as in InstFormerConfig."""

    classes: int
    decoder_layers: int
    queries: int


def proposal_weights(path: Path) -> tuple[dict[str, Tensor], ProposalSizes]:
    """A Mask2Former checkpoint.

    Args:
        path: of Mask2Former or MinVIS, ``.pth`` or ``.safetensors``.

    Returns:
        its weights under detectron2's keys, and how many classes, decoder layers and queries they
        are for.

    Raises:
        CheckpointError: it cannot be read or is of another system.
    """
    state = without_ignored(load_checkpoint(path))
    family = family_of_keys(state)
    head, queries = (state.get(f"{_PREDICTOR}{k}.weight") for k in ("class_embed", "query_feat"))
    if family != _MASK2FORMER or head is None or queries is None or head.ndim != 2:
        raise CheckpointError(
            f"{path} looks like a checkpoint of {family or 'no system known here'}; the proposal "
            "network needs one of Mask2Former or MinVIS, with a class head (keys such as "
            f"{_PREDICTOR}class_embed.weight; found {some_of(list(state)[:3])})"
        )
    sizes = ProposalSizes(len(head) - 1, decoder_layers(state), len(queries))
    if min(astuple(sizes)) < 1:
        raise CheckpointError(f"{path}: every size is at least 1; found {sizes}")
    return state, sizes


def clip_weights(path: Path) -> dict[str, Tensor]:
    """A whole CLIP under open_clip's key names.

    Args:
        path: ``.safetensors``, ``.pt`` or ``.bin``: a state dict, or open_clip's training
            checkpoint. The three scalars of OpenAI's state dicts are left out.

    Raises:
        CheckpointError: it cannot be read, or its keys are others.
    """
    state = load_weights(path)
    if all(key.startswith("module.") for key in state):  # of distributed training
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if (family := family_of_keys(state)) != _CLIP:
        raise CheckpointError(
            f"{path} looks like {family or 'no model known here'}; --clip needs the whole CLIP "
            "under open_clip's names (keys such as visual.conv1.weight and "
            f"token_embedding.weight; found {some_of(list(state)[:3])})"
        )
    return {key: value for key, value in state.items() if key not in _OPENAI_SIZES}


def downloaded_clip(tag: str, variant: Variant) -> tuple[Path, bool]:
    """The file of an open_clip tag, from open_clip's cache or its download.

    Args:
        tag: ``ARCHITECTURE:PRETRAINED``, such as ``ViT-B-32:openai``.
        variant: whose CLIP it is to be.

    Returns:
        the file, and whether these weights were trained with QuickGELU.

    Raises:
        CheckpointError: open_clip knows no such tag, or it is of another architecture.
        UnavailableError: the download failed.
    """
    name, _, pretrained = tag.partition(":")
    if name not in (variant.clip, f"{variant.clip}-quickgelu"):
        raise CheckpointError(f"{variant.name} has the CLIP {variant.clip}; got the tag {tag}")
    known = open_clip.list_pretrained_tags_by_model(variant.clip)
    entry: dict[str, Any] = open_clip.get_pretrained_cfg(variant.clip, pretrained) or {}
    if not entry:
        raise CheckpointError(
            f"open_clip has no weights {pretrained!r} of {variant.clip}; it has {', '.join(known)}"
        )
    try:
        with _quiet():
            file = open_clip.download_pretrained(entry)
    except Exception as exc:  # whatever the network and two download libraries raise
        raise UnavailableError(
            f"the download of {tag} failed: {str(exc).splitlines()[0] if str(exc) else exc!r}. "
            "Fetch the file on a machine with a network and give it as --clip FILE."
        ) from exc
    return Path(file), bool(entry.get("quick_gelu", False))


def token_weights(path: Path) -> dict[str, Tensor]:
    """Trained tokens, ``register`` and ``instance`` [768], one or both.

    Args:
        path: keys may begin with ``tokens.``; leading axes of length 1 are dropped.

    Raises:
        CheckpointError: it cannot be read, or holds anything else.
    """
    state = {re.sub(r"^tokens\.", "", k): v for k, v in load_weights(path).items()}
    strange = sorted(state.keys() - {"register", "instance"})
    if strange or not state:
        raise CheckpointError(
            f"{path}: tokens are `register` and `instance`; found {some_of(strange) or 'nothing'}"
        )
    return {k: v.flatten() if v.ndim and v.numel() == v.shape[-1] else v for k, v in state.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of a download library; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
