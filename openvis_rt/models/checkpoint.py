"""Checkpoints in the official format: ``{"model": state_dict, ...}`` as detectron2 writes them.

A file is never unpickled freely: ``weights_only=True`` for torch's files, or safetensors. Every key
of the model must be in the file with the model's shape, and every key of the file must be in the
model, but for those that :data:`IGNORED` and :data:`OPTIONAL` list with their reasons.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openvis_rt.errors import CheckpointError
from openvis_rt.models.clip_vis import MODELS, ClipVis
from openvis_rt.variants import Variant, variant_named

__all__ = ["family_of_keys", "load_checkpoint", "model_from_checkpoint", "model_from_seed"]

IGNORED = {
    r"criterion\..*": "weights of the training loss",
    r"pixel_(mean|std)": "constants of the variant",
}
OPTIONAL = {
    r".*\.num_batches_tracked": "a counter of training that older detectron2 leaves out",
}
RENAMED = {
    r"(.*\.predictor\.)static_query\.weight": r"\1query_feat.weight",  # before version 2
}
_SIGNATURES = {  # family: keys that only its checkpoints have, and keys that they cannot have
    "clip-vis": (r"backbone\.clip_model\.visual\.", r"sem_seg_head\.predictor\.iou_head\."),
    "openvis (InstFormer)": (r"clip_adapter\.clip_model\.",),
    "ovformer": (r".*\.class_embed\..*multihead_attn|.*\.class_embed\..*cross_attn",),
    "ov2seg": (r".*\.class_embed\.zs_weight",),
    "mask2former or minvis": (r"sem_seg_head\.predictor\.mask_embed\.",),
    "open_clip (CLIP alone)": (r"visual\.", r"token_embedding\."),
}
_SHOWN = 12  # keys of each kind that a message lists before it only counts


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file.

    Args:
        path: ``.pth``/``.pt`` holding ``{"model": state_dict}`` or a bare state dict, or
            ``.safetensors``.

    Returns:
        tensors by key, on the CPU, memory-mapped where the format allows it.

    Raises:
        CheckpointError: there is no such file, it is damaged, it holds no tensors, or it could only
            be read by unpickling objects.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(_damaged(path, exc)) from exc
    content = _load_torch_file(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, not a checkpoint: "
            'a dict {"model": {name: tensor}} is needed'
        )
    strange = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path}: {len(strange)} entries of its state dict are not tensors: {_some(strange)}"
        )
    return {str(k): v for k, v in state.items()}


def _load_torch_file(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        # detectron2 keeps numpy scalars of its metrics beside the weights; these types run no code
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # on other pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as exc:
        if _has_foreign_globals(str(exc)) or _is_plain_pickle(path):
            raise CheckpointError(
                f"{path} holds pickled Python objects beside its tensors ({_first_line(exc)}), "
                "which could run code here; nothing was loaded. If you trust its source, "
                "load it yourself and save the weights alone, as safetensors or with "
                'torch.save({"model": state_dict}, ...).'
            ) from exc
        raise CheckpointError(_damaged(path, exc)) from exc
    except Exception as exc:  # damaged bytes end in almost any error of the unpickler
        raise CheckpointError(_damaged(path, exc)) from exc


_NUMPY_SCALARS: list[Any] = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]  # numpy's own pickles name it
    np.dtype,
    *{type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.bool_)},
]


def _has_foreign_globals(message: str) -> bool:
    return "Unsupported global" in message or "Unsupported class" in message or "GLOBAL" in message


def _is_plain_pickle(path: Path) -> bool:
    """Whether the file is a pickle of a protocol that ``torch.save`` does not write."""
    with path.open("rb") as file:
        return file.read(2) in (b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip()
    if found := re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) ([\w.]+)", text):
        return f"found {found.group(1)}"
    if found := re.search(r"WeightsUnpickler error: (.*)", text):  # torch's advice comes first
        return found.group(1)
    return next((line for line in text.splitlines() if line.strip(". ")), type(exc).__name__)


def _damaged(path: Path, exc: BaseException) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint: {_first_line(exc)}. "
        "It may be cut short or of another format; download it again and compare its size."
    )


def family_of_keys(keys: Mapping[str, Any] | set[str]) -> str | None:
    """The system that a state dict with these keys belongs to, in words; None if none is known."""
    for family, patterns in _SIGNATURES.items():
        if all(any(re.match(p, key) for key in keys) for p in patterns):
            return family
    return None


def variant_of_keys(keys: Mapping[str, Any]) -> str | None:
    """The CLIP-VIS variant that a state dict belongs to, by its image encoder; None if neither."""
    for part, name in (("trunk.", "clip-vis-convnext-b"), ("layer4.", "clip-vis-r50")):
        if any(key.startswith(f"backbone.clip_model.visual.{part}") for key in keys):
            return name
    return None


def model_from_checkpoint(name: str, path: Path) -> ClipVis:
    """A model with the weights of an official checkpoint; its depth is read from the file.

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
    state = _renamed(load_checkpoint(path))
    family = family_of_keys(state)
    if family != variant.family:
        raise CheckpointError(
            f"{path} looks like a checkpoint of {family or 'no system known here'}, "
            f"but {name} needs one of {variant.family} (found keys such as {next(iter(state))!r})"
        )
    model = MODELS[name](decoder_layers=max(1, _decoder_layers(state)))
    _load_strictly(model, state, path, variant)
    return model


def model_from_seed(name: str, seed: int) -> ClipVis:
    """A model with random weights, the same for the same seed, to try things without a file."""
    variant_named(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for pattern, target in RENAMED.items():
        state = {re.sub(f"^{pattern}$", target, key): value for key, value in state.items()}
    return state


def _decoder_layers(state: Mapping[str, Tensor]) -> int:
    pattern = re.compile(r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.")
    found = [int(m.group(1)) for key in state if (m := pattern.match(key))]
    return max(found, default=-1) + 1


def _load_strictly(model: ClipVis, state: dict[str, Tensor], path: Path, variant: Variant) -> None:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not _matches(k, OPTIONAL)]
    unexpected = [k for k in state if k not in own and not _matches(k, IGNORED)]
    shapes = [
        f"{k}: {tuple(state[k].shape)} found, {tuple(own[k].shape)} needed"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        depth = model.sem_seg_head.predictor.layers
        parts = [f"{path} does not fit {variant.name} (decoder layers: {depth})."]
        if (likely := variant_of_keys(state)) not in (None, variant.name):
            parts = [f"{path} looks like a checkpoint of {likely}, not of {variant.name}."]
        for title, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        ):
            if keys:
                parts.append(f"  {len(keys)} {title}: {_some(keys)}")
        raise CheckpointError("\n".join(parts))
    bad = [k for k in own if k in state and not torch.isfinite(state[k].float()).all()]
    if bad:
        raise CheckpointError(f"{path} holds NaN or infinity in {_some(bad)}; it cannot be used")
    model.load_state_dict({k: state[k] for k in own if k in state}, strict=False)


def _matches(key: str, patterns: Mapping[str, str]) -> bool:
    return any(re.fullmatch(p, key) for p in patterns)


def _some(keys: list[str]) -> str:
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + rest


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, for people: system, depth, tensors, numbers, types.

    Raises:
        CheckpointError: it cannot be read.
    """
    state = load_checkpoint(path)
    return {
        "file": str(path),
        "system": family_of_keys(state) or "none that is known here",
        "model": variant_of_keys(state) or "none of `openvis models`",
        "decoder layers": _decoder_layers(state),
        "tensors": len(state),
        "parameters": sum(v.numel() for v in state.values()),
        "types": sorted({str(v.dtype).removeprefix("torch.") for v in state.values()}),
        "first keys": list(state)[:3],
    }
