"""Weights that come with the package: what is in ``checkpoints/shipped``, the miniatures' place.

They are checkpoints like others, FP16 safetensors, but for what training never met of CLIP's text:
of the table of 49,408 tokens and of its 77 positions a small file holds the rows that it did meet:

    token_embedding.rows [n, w], token_embedding.kept [n]    for    token_embedding.weight
    positional_embedding.first [m, w]                        for    positional_embedding

The other rows are 0. Such a file is read wherever a checkpoint is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from openvis_rt.checkpoints.tensors import refuse_twice
from openvis_rt.errors import CheckpointError, InputError
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.system import Variant

__all__ = ["compact", "expanded", "shipped_checkpoint", "shipped_clip"]

FOLDER = Path(__file__).parent / "shipped"
_TOKENS = 49408
_TABLE, _ROWS, _KEPT = "token_embedding.weight", "token_embedding.rows", "token_embedding.kept"
_WIDEST = 1 << 14  # of an embedding
_CONTEXT = 77  # positions of CLIP's text
_POSITIONS, _FIRST = "positional_embedding", "positional_embedding.first"
_SHORT = re.compile(rf"({re.escape(_ROWS)}|{re.escape(_FIRST)})$")
_CLIP_OF = "instformer-mini"  # whose file has the CLIP that other miniatures take beside theirs


def shipped_checkpoint(variant: Variant) -> Path:
    """The file of a variant's shipped weights.

    Raises:
        InputError: none are shipped; the message lists the variants that have them.
    """
    path = FOLDER / f"{variant.name}.safetensors"
    if not path.is_file():
        have = [name for name in VARIANTS if (FOLDER / f"{name}.safetensors").is_file()]
        which = f"those of {', '.join(have)} do" if have else "docs/training.md makes a miniature's"
        raise InputError(
            f"no weights {'of ' + variant.name + ' ' if have else ''}come with this package "
            f"({which}): give --checkpoint FILE, or --random-weights SEED to try things without"
        )
    return path


def shipped_clip(variant: Variant) -> Path | None:
    """The file with the CLIP of a variant's shipped weights, if its checkpoint holds none."""
    return shipped_checkpoint(VARIANTS[_CLIP_OF]) if variant.takes_clip else None


def compact(tensors: Mapping[str, Tensor], tokens: Tensor, longest: int) -> dict[str, Tensor]:
    """FP16, with the rows of some tokens and of the first positions alone.

    Args:
        tensors: a checkpoint's; float.
        tokens: to keep, int64 [n].
        longest: positions of a text to keep, at most 77.
    """
    small: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith(_TABLE):
            stem = key.removesuffix(_TABLE)
            small[stem + _ROWS] = value[tokens].half().contiguous()
            small[stem + _KEPT] = tokens.int().contiguous()
        elif key.endswith(_POSITIONS) and len(value) == _CONTEXT:
            stem = key.removesuffix(_POSITIONS)
            small[stem + _FIRST] = value[:longest].half().contiguous()
        else:
            small[key] = value.half().contiguous() if value.is_floating_point() else value
    return small


def expanded(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The inverse of :func:`compact`, in the file's types; other files' tensors as they are.

    Raises:
        CheckpointError: rows without their tokens, tokens that CLIP has not, one token twice, a
            table beside its rows, or more positions than CLIP has.
    """
    short = {_ROWS: _TABLE, _FIRST: _POSITIONS}
    whole = {key: re.sub(_SHORT, lambda found: short[found[0]], key) for key in tensors}
    refuse_twice(((name, key) for key, name in whole.items()), path)
    found = dict(tensors)
    for key in [key for key in tensors if key.endswith(_FIRST)]:
        found[key.removesuffix(_FIRST) + _POSITIONS] = _all_positions(found.pop(key), key, path)
    for key in [key for key in tensors if key.endswith(_ROWS)]:
        stem = key.removesuffix(_ROWS)
        rows, kept = found.pop(key), found.pop(stem + _KEPT, None)
        if (
            kept is None
            or kept.is_floating_point()
            or rows.ndim != 2
            or rows.shape[1] > _WIDEST
            or kept.shape != rows.shape[:1]
            or bool(((kept < 0) | (kept >= _TOKENS)).any())
            or len(kept.unique()) < len(kept)
        ):
            raise CheckpointError(
                f"{path}: {key} {list(rows.shape)} needs {stem}{_KEPT}, the token of each row, an "
                f"integer of 0 to {_TOKENS - 1} and none twice; found {_told(kept)}. The file was "
                "not written by openvis_rt.training.miniatures, or is damaged"
            )
        table = rows.new_zeros(_TOKENS, rows.shape[1])
        found[stem + _TABLE] = table.index_copy(0, kept.long(), rows)
    return found


def _all_positions(first: Tensor, key: str, path: Path) -> Tensor:
    if first.ndim != 2 or not 0 < len(first) <= _CONTEXT or first.shape[1] > _WIDEST:
        raise CheckpointError(
            f"{path}: {key} {list(first.shape)} is no table of 1 to {_CONTEXT} positions. The "
            "file was not written by openvis_rt.training.miniatures, or is damaged"
        )
    table = first.new_zeros(_CONTEXT, first.shape[1])
    table[: len(first)] = first
    return table


def _told(kept: Tensor | None) -> str:
    """What a file has in the place of its rows' tokens, for a message."""
    if kept is None:
        return "no such key"
    ends = f", {kept.min()} to {kept.max()}" if kept.numel() else ""
    return f"{str(kept.dtype).removeprefix('torch.')} {list(kept.shape)}{ends}"
