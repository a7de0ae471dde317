"""What a state dict may hold: tensors that are there, under names that can be printed and matched.

A file of torch's may describe tensors that it does not hold (sparse, quantised or on the `meta`
device), or one number as a tensor of a billion, and a name of megabytes costs minutes in a regular
expression. What passes here has no more numbers than the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvis_rt.errors import CheckpointError

__all__ = ["checked_tensors", "refuse_many", "refuse_twice", "some_of"]

_LONGEST = 300  # letters of a name; those of the systems known here have at most 120
_MOST = 100_000  # tensors
_MOST_AXES = 8  # of a tensor; a convolution's weight has 4
_SHOWN = 12  # keys of each kind that a message lists before it only counts
_TYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    }
)


def checked_tensors(state: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """A state dict as it is, if everything in it can be used.

    Args:
        state: what a file holds under names.
        path: the file, for messages.

    Raises:
        CheckpointError: a name is no short text, or a value is no dense tensor of numbers on the
            CPU that the file holds as a whole.
    """
    state = dict(dict.items(state))  # an OrderedDict's own `items` may be anything
    refuse_many(len(state), path)
    strange = [_shown(key) for key in state if not _is_name(key)]
    if strange:
        raise CheckpointError(
            f"{path}: {len(strange)} keys of its state dict are no names of up to {_LONGEST} "
            f"letters: {some_of(strange)}"
        )
    reasons = [f"{key} ({why})" for key, value in state.items() if (why := _fault(value))]
    if reasons:
        raise CheckpointError(
            f"{path}: {len(reasons)} entries of its state dict are not tensors that can be used: "
            f"{some_of(reasons)}"
        )
    _refuse_more_than_the_file(state, path)
    return {key: value.detach() for key, value in state.items()}


def refuse_many(count: int, path: Path) -> None:
    """CheckpointError if a file holds more entries than a state dict may have."""
    if count > _MOST:
        raise CheckpointError(
            f"{path} holds {count} entries, and a checkpoint has at most {_MOST}; give the state "
            "dict of one model alone"
        )


def _refuse_more_than_the_file(state: dict[str, Tensor], path: Path) -> None:
    """CheckpointError if a file describes storages that it cannot hold."""
    storages = [value.untyped_storage() for value in state.values()]
    claimed = sum({each.data_ptr(): each.nbytes() for each in storages}.values())
    size = path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"{path} has {size} bytes, and its tensors would have {claimed}; it was not written by "
            "torch.save"
        )


def refuse_twice(meant: Iterable[tuple[str, str]], path: Path) -> None:
    """CheckpointError if two keys of a file mean the same; of pairs: what is meant, and the key."""
    first: dict[str, str] = {}
    for name, key in meant:
        if first.setdefault(name, key) != key:
            raise CheckpointError(
                f"{path} has {first[name]} and {key}, which are two names of the same weights; "
                "remove the one that is not meant"
            )


def some_of(keys: list[str]) -> str:
    """The first keys of a list, and how many more there are."""
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + rest


def _is_name(key: object) -> bool:
    return isinstance(key, str) and len(key) <= _LONGEST and key.isascii() and key.isprintable()


def _shown(key: object) -> str:
    text = ascii(key) if isinstance(key, str) else f"a {type(key).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _fault(value: object) -> str:
    """Why a value is no weight; empty if it is one."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return "sparse, quantised or nested"
    if value.device.type != "cpu":
        return f"on the device {value.device.type}"
    if value.dtype not in _TYPES:
        return str(value.dtype).removeprefix("torch.")
    return _fault_of_size(value)


def _fault_of_size(value: Tensor) -> str:
    if value.ndim > _MOST_AXES:
        return f"with {value.ndim} axes"
    if not value.numel():
        return f"of shape {list(value.shape)}, without a number"
    if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {list(value.shape)}, more than the file holds"
    return ""
