"""CLIP's weights from a file, or by an open_clip tag."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from openvis_rt.checkpoints.keys import family_of_keys
from openvis_rt.checkpoints.weights import load_weights, some_of
from openvis_rt.errors import CheckpointError, UnavailableError
from openvis_rt.systems.variants import Variant

__all__ = ["ClipSource", "clip_source", "clip_weights"]

_CLIP = "open_clip (CLIP alone)"
_OPENAI_SIZES = {"input_resolution", "context_length", "vocab_size"}  # scalars in OpenAI's files


@dataclass(frozen=True)
class ClipSource:
    """Where CLIP's weights are.

    Attributes:
        path: the file.
        quick_gelu: they were trained with QuickGELU in place of GELU.
        tag: of open_clip, if the file came by one.
    """

    path: Path
    quick_gelu: bool
    tag: str | None = None


def clip_source(clip: str, variant: Variant, quick_gelu: bool | None = None) -> ClipSource:
    """What ``--clip`` names.

    Args:
        clip: a file, or an open_clip tag ``ARCHITECTURE:PRETRAINED``, such as ``ViT-B-32:openai``,
            whose file is taken from open_clip's cache or downloaded.
        variant: whose CLIP it is to be.
        quick_gelu: the activation; None for what the tag says, or, of a file, the variant's.

    Raises:
        CheckpointError: there is no such file or tag, or it is of another architecture.
        UnavailableError: the download failed.
    """
    if (path := Path(clip)).is_file():
        return ClipSource(path, variant.quick_gelu if quick_gelu is None else quick_gelu)
    if not re.fullmatch(r"[\w.-]+:[\w.-]+", clip):
        raise CheckpointError(
            f"--clip is a file or a tag such as {variant.clip}:openai; there is no file {clip}"
        )
    path, trained = _downloaded(clip, variant)
    return ClipSource(path, trained if quick_gelu is None else quick_gelu, clip)


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


def _downloaded(tag: str, variant: Variant) -> tuple[Path, bool]:
    """The file of an open_clip tag, and whether its weights were trained with QuickGELU."""
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of a download library; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
