"""Files of weights: read without running what is in them, and put into a model strictly.

Torch's files are read with ``weights_only=True``, which unpickles tensors and nothing else. Every
key of a model must be in the file with the model's shape, and every key of the file must be in the
model, but for those that :data:`IGNORED` and :data:`OPTIONAL` list with their reasons.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from openvis_rt.checkpoints.archives import check_archive, names_in_archive
from openvis_rt.checkpoints.formats import form_of
from openvis_rt.checkpoints.pickles import check_pickles
from openvis_rt.checkpoints.shipped import expanded
from openvis_rt.checkpoints.tensors import checked_tensors, refuse_many, some_of
from openvis_rt.errors import CheckpointError

__all__ = [
    "IGNORED",
    "Weights",
    "check_numbers",
    "load_strictly",
    "read_torch_file",
    "read_weights",
    "without_ignored",
]

IGNORED = {
    r"criterion\..*": "weights of the training loss",
    r"pixel_(mean|std)": "constants of the variant",
    r".*\.num_batches_tracked": "a counter of training, which frozen norms do not have",
    r".*\.class_embed\.zs_weight": "the vocabulary of the training; a user's is given at run time",
    r".*\.relative_position_index": "Swin's table of offsets, which follows from its window",
}
OPTIONAL = {
    r".*\.num_batches_tracked": "a counter of training that older detectron2 leaves out",
}
_ENTRIES = ("model", "state_dict")  # of detectron2, and of open_clip's training
_LEGACY_PICKLES = 5  # a magic number, a version, the writer's machine, the content, storages' keys
_LONGEST_METADATA = 1 << 20  # letters
_LONGEST_REASON = 200  # letters of a foreign error
_LARGEST_WEIGHT = 1e10  # a normalisation's variance may have 1e6
_SCRIPTS = (
    'python -c "import torch; '
    "torch.save(torch.jit.load('FILE.pt', map_location='cpu').state_dict(), 'weights.pt')\""
)


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
        path: the file.
        tensors: its state dict, on the CPU, memory-mapped where the format allows it.
        metadata: of a safetensors file's header; empty for other formats.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> Weights:
    """Read a file.

    Args:
        path: in a format of torch's, holding ``{"model": state_dict}``, ``{"state_dict": ...}`` or
            a bare state dict; or a safetensors file. Its bytes tell which, not its name.

    Raises:
        CheckpointError: there is no such file, it is damaged, it holds no tensors, or it could only
            be read by running what is in it.
    """
    if form_of(path) == "safetensors":
        tensors, metadata = _safetensors(path)
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors, so it is no checkpoint")
        return Weights(path, expanded(checked_tensors(tensors, path), path), metadata)
    content = read_torch_file(path)
    state = None
    if isinstance(content, dict):
        state = next((content[key] for key in _ENTRIES if key in content), content)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, not a checkpoint: "
            'a dict {"model": {name: tensor}} is needed'
        )
    return Weights(path, expanded(checked_tensors(state, path), path))


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            refuse_many(len(names), path)
            tensors = {key: file.get_tensor(key) for key in names}
    except CheckpointError:
        raise
    except Exception as exc:  # the library's error, OSError, or KeyError of an unknown type
        raise CheckpointError(_damaged(path, exc)) from exc
    if (letters := sum(map(len, metadata.values()))) > _LONGEST_METADATA:
        raise CheckpointError(
            f"{path} has {letters} letters of metadata in its header, and a checkpoint has at most "
            f"{_LONGEST_METADATA}; save its weights again without"
        )
    return tensors, metadata


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    misfit: str,
    shown: Callable[[str], str] = str,
) -> None:
    """Copy a state dict into a module, in the module's types.

    Args:
        module: takes the weights.
        state: by the module's own keys.
        path: where the weights are from, for messages.
        misfit: the message's first line if it does not fit.
        shown: a key's name in the file, for messages.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape, or hold NaN or infinity;
            the message lists them.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not _matches(k, OPTIONAL)]
    unexpected = [k for k in state if k not in own and not _matches(k, IGNORED)]
    shapes = [
        f"{shown(k)}: {tuple(state[k].shape)} found, {tuple(own[k].shape)} needed"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    types = [
        f"{shown(k)}: {_type(state[k])} found, {_type(own[k])} needed"
        for k in own
        if k in state and own[k].is_floating_point() and not state[k].is_floating_point()
    ]
    parts = [
        f"  {len(listed)} {title}: {some_of(listed)}"
        for title, listed in (
            ("missing", [shown(key) for key in missing]),
            ("unexpected", [shown(key) for key in unexpected]),
            ("of another shape", shapes),
            ("of another type, as quantised weights have it", types),
        )
        if listed
    ]
    if parts:
        raise CheckpointError("\n".join([misfit, *parts]))
    used = {key: state[key] for key in own if key in state}
    floating = {key: value for key, value in used.items() if own[key].is_floating_point()}
    check_numbers(floating, path, shown)
    module.load_state_dict(used, strict=False)


def check_numbers(
    state: Mapping[str, Tensor], path: Path, shown: Callable[[str], str] = str
) -> None:
    """Refuse what no trained weights are.

    Args:
        state: tensors that are used as they are.
        path: where they are from, for messages.
        shown: a key's name in the file, for messages.

    Raises:
        CheckpointError: a tensor holds integers, NaN, infinity, or numbers beyond 1e10.
    """
    integers = [f"{shown(k)} ({_type(v)})" for k, v in state.items() if not v.is_floating_point()]
    if integers:
        raise CheckpointError(
            f"{path} holds integers where weights are needed: {some_of(integers)}; quantised "
            "weights are not read. Give those before their quantisation"
        )
    largest = {key: float(value.float().abs().max()) for key, value in state.items()}
    bad = [shown(key) for key, value in largest.items() if not math.isfinite(value)]
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinity in {some_of(bad)}; it cannot be used. Where its "
            "training diverged, give an earlier checkpoint; else download it again"
        )
    absurd = [f"{shown(k)} (up to {v:.1e})" for k, v in largest.items() if v > _LARGEST_WEIGHT]
    if absurd:
        raise CheckpointError(
            f"{path} holds numbers beyond {_LARGEST_WEIGHT:.0e}, as no trained weights are, in "
            f"{some_of(absurd)}; its bytes were damaged, or its training diverged. Download it "
            "again, or give an earlier checkpoint"
        )


def without_ignored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the keys that :data:`IGNORED` lists."""
    return {key: value for key, value in state.items() if not _matches(key, IGNORED)}


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote into a file, if it is plain: dicts, lists, numbers, text, tensors.

    Its tensors are on the CPU, memory-mapped where the format allows it. Numbers of numpy's beside
    them are not read.

    Raises:
        CheckpointError: there is no such file, it is damaged, of another format, or could only be
            read by running what is in it.
    """
    if (form := form_of(path)) == "safetensors":
        raise CheckpointError(
            f"{path} is a safetensors file, and one that torch.save wrote is needed"
        )
    zipped = form == "zip"
    if zipped and _is_script(path):
        raise CheckpointError(
            f"{path} is a TorchScript program (OpenAI's own CLIP files are), not weights alone; "
            "nothing was loaded. If you trust its source, take its weights with:\n  "
            + _SCRIPTS.replace("FILE.pt", str(path))
        )
    if zipped:
        check_archive(path)
    else:
        with path.open("rb") as file:
            check_pickles(file, path, _LEGACY_PICKLES)
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_NUMPY),
        ):
            warnings.simplefilter("ignore")  # on other pickle protocols; what matters is raised
            # torch believes this name, and a file without its name cannot be mapped
            source, mapped = (file, False) if path.suffix == ".safetensors" else (path, zipped)
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as exc:
        if _has_foreign_globals(str(exc)):
            raise CheckpointError(_unsafe(path, exc)) from exc
        raise CheckpointError(_damaged(path, exc)) from exc
    except Exception as exc:  # damaged bytes end in almost any error of the unpickler
        raise CheckpointError(_damaged(path, exc)) from exc


class NumpyNumber:
    """What stands for numpy's numbers and their types, which detectron2 keeps of its metrics.

    Numpy's own functions would take any memory that a file asks them for.
    """

    def __init__(self, *_of: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, _state: object) -> None:
        """Nothing is kept."""


_NUMPY: list[Any] = [
    (NumpyNumber, name)
    for name in ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
]


def _is_script(path: Path) -> bool:
    """Whether a zip file is a TorchScript archive: it has code beside its constants."""
    names = ["/" + name.partition("/")[2] for name in names_in_archive(path)]
    return "/constants.pkl" in names and any(name.startswith("/code/") for name in names)


def _has_foreign_globals(message: str) -> bool:
    """Whether torch refused to unpickle something by its name."""
    return "Unsupported class" in message or "GLOBAL" in message


def _unsafe(path: Path, exc: BaseException) -> str:
    return (
        f"{path} holds pickled Python objects beside its tensors ({_first_line(exc)}), which could "
        "run code here; nothing was loaded. If you trust its source, load it yourself and save the "
        'weights alone, as safetensors or with torch.save({"model": state_dict}, ...).'
    )


def _damaged(path: Path, exc: BaseException) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is not a readable checkpoint: {_first_line(exc)}. "
        "It may be cut short or of another format; download it again and compare its size."
    )


def _first_line(exc: BaseException) -> str:
    """The part of an error that says something; its type if nothing does."""
    text = str(exc).strip()
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"found {found.group(1)[:_LONGEST_REASON]}"
    if found := re.search(r"WeightsUnpickler error:\s+(\S.*)", text):  # torch's advice comes first
        return found.group(1)[:_LONGEST_REASON]
    line = next((line for line in text.splitlines() if line.strip(". ")), type(exc).__name__)
    return line[:_LONGEST_REASON]


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _matches(key: str, patterns: Mapping[str, str]) -> bool:
    return any(re.fullmatch(p, key) for p in patterns)
