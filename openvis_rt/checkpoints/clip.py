"""CLIP's weights from a file under open_clip's or Hugging Face's names, or by an open_clip tag.

Hugging Face's ``CLIPModel`` has the same layers as open_clip's ``CLIP`` under other names, with
three differences: query, key and value are three matrices and not the rows of one, the two
projections are matrices of linear layers and so transposed, and position embeddings are layers.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from openvis_rt.checkpoints.instformer import FORMAT, parts_from_weights
from openvis_rt.checkpoints.keys import CLIP, HUGGING_FACE_CLIP, signature_of
from openvis_rt.checkpoints.tensors import refuse_twice, some_of
from openvis_rt.checkpoints.weights import read_weights
from openvis_rt.errors import CheckpointError, UnavailableError
from openvis_rt.files import sha256_of
from openvis_rt.systems.system import Variant

__all__ = ["ClipSource", "clip_source", "clip_weights"]

_OPENAI_SIZES = {"input_resolution", "context_length", "vocab_size"}  # scalars in OpenAI's files
_HUGGING_FACE = {  # parts of its names, and of open_clip's
    "vision_model.": "visual.",
    "text_model.": "",
    "embeddings.": "",
    "patch_embedding.": "conv1.",
    "position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",  # their spelling
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.": "attn.",
    "qkv_proj.": "in_proj_",  # of three
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}


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

    def facts(self) -> dict[str, str]:
        """The file's name and digest, and the tag, as manifests have them."""
        tag = {"tag": self.tag} if self.tag else {}
        return {"file": self.path.name, "sha256": sha256_of(self.path), **tag}


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
        path: ``.safetensors``, ``.pt`` or ``.bin``: a state dict of open_clip's or of Hugging
            Face's ``CLIPModel``, or open_clip's training checkpoint. The three scalars of OpenAI's
            state dicts are left out. Of InstFormer's checkpoints it is the CLIP before training.

    Raises:
        CheckpointError: it cannot be read, or its keys are others.
    """
    weights = read_weights(path)
    is_instformer = weights.metadata.get("format") == FORMAT
    state = parts_from_weights(weights).clip if is_instformer else weights.tensors
    if all(key.startswith("module.") for key in state):  # of distributed training
        state = {key.removeprefix("module."): value for key, value in state.items()}
    signature = signature_of(state)
    if signature is HUGGING_FACE_CLIP:
        return _from_hugging_face(state, path)
    if signature is CLIP:
        return {key: value for key, value in state.items() if key not in _OPENAI_SIZES}
    raise CheckpointError(
        f"{path} looks like {signature.words}; --clip needs the whole CLIP under open_clip's names "
        "(keys such as visual.conv1.weight and token_embedding.weight) or under Hugging Face's "
        f"(vision_model.*, visual_projection.weight ...); found {some_of(list(state)[:3])}"
    )


def _from_hugging_face(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same weights under open_clip's names; keys that it has not keep theirs.

    Raises:
        CheckpointError: query, key and value of a layer are not all there, or differ in shape.
    """
    joined: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if part := re.fullmatch(r"(.*\.self_attn\.)([qkv])(_proj\.\w+)", key):
            thirds.setdefault(f"{part[1]}qkv{part[3]}", {})[part[2]] = value
        elif not key.endswith(".position_ids"):  # 0, 1, 2 ..., in older files
            projection = key.endswith("_projection.weight") and value.ndim == 2
            joined[key] = value.T if projection else value
    for key, parts in thirds.items():
        shapes = {name: list(part.shape) for name, part in sorted(parts.items())}
        if len(parts) < 3 or not shapes["q"] == shapes["k"] == shapes["v"] != []:
            raise CheckpointError(f"{path}: {key} is q, k and v of one shape; found {shapes}")
    refuse_twice(((_open_clip_key(key), key) for key in [*joined, *thirds]), path)
    joined |= {key: torch.cat([parts[name] for name in "qkv"]) for key, parts in thirds.items()}
    return {_open_clip_key(key): value.contiguous() for key, value in joined.items()}


def _open_clip_key(key: str) -> str:
    for theirs, ours in _HUGGING_FACE.items():
        key = key.replace(theirs, ours)
    return key


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
