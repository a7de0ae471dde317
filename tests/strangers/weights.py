"""Good weights of each system's kind to start from, and how a command takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from court import Case, Outcome
from safetensors.torch import save_file
from torch import Tensor

from openvis_rt.checkpoints.instformer import parts_from_weights
from openvis_rt.checkpoints.shipped import FOLDER
from openvis_rt.checkpoints.weights import read_weights
from openvis_rt.errors import OpenVISError

__all__ = ["PARTS", "SYSTEMS", "good", "metadata", "strange_file", "used", "written"]

SYSTEMS = ("clip-vis-mini", "ovformer-mini", "instformer-mini")
PARTS = ("proposal", "clip", "adapter", "tracker", "tokens")
"""What `openvis assemble` takes; the proposal network is Mask2Former's and MinVIS's."""

_LORA = "base_model.model.vision_model.encoder.layers.{}.self_attn.{}_proj.lora_{}.weight"
_QUICK = ("--size", "64x96", "--precision", "fp32", "--no-reference", "--no-verify")
State = dict[str, Tensor]


@cache
def good(kind: str) -> Mapping[str, Tensor]:
    """The tensors of a good file of a system or of a part, float32; not to be changed."""
    if kind in SYSTEMS:
        found = read_weights(FOLDER / f"{kind}.safetensors").tensors
    else:
        parts = parts_from_weights(read_weights(FOLDER / "instformer-mini.safetensors"))
        assert parts.adapter is not None
        adapter = {
            _LORA.format(block, target, name): matrix
            for (block, target), pair in parts.adapter.pairs.items()
            for name, matrix in zip("AB", pair, strict=True)
        }
        found = {**vars(parts), "adapter": adapter}[kind]
    return {key: value.float() for key, value in found.items()}


@cache
def metadata(kind: str) -> Mapping[str, str]:
    """What the header of a good safetensors file says beside its tensors."""
    if kind == "adapter":
        return {"lora_alpha": "16"}
    if kind != "instformer-mini":
        return {}
    return read_weights(FOLDER / "instformer-mini.safetensors").metadata


def written(state: Mapping[Any, Any], path: Path, kind: str = "") -> None:
    """Write a file in the form that its name ends in: ``.safetensors``, ``.pt`` (legacy), ``.pth``.

    Systems' are wrapped as detectron2's are, parts' are bare.
    """
    if path.suffix == ".safetensors":
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, path, metadata=dict(metadata(kind)) or None)
        return
    whole = kind in SYSTEMS or kind == "proposal"
    content = {"model": dict(state), "iteration": 9} if whole else dict(state)
    torch.save(content, path, _use_new_zipfile_serialization=path.suffix != ".pt")


def used(kind: str, path: str | Path, folder: Path) -> list[str | Path]:
    """The command that takes a file of this kind; other parts are written beside it."""
    if kind in SYSTEMS:
        return ["export", kind, "--checkpoint", path, "-o", "out", *_QUICK, "--names", "none"]
    files = {}
    for part in ("proposal", "clip"):
        if part != kind:
            files[part] = folder / f"good-{part}.safetensors"
            save_file({k: v.contiguous() for k, v in good(part).items()}, files[part])
    if kind == "adapter" and Path(path).suffix != ".safetensors":
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16}))
    named = [word for part, file in {**files, kind: path}.items() for word in (f"--{part}", file)]
    return ["assemble", "instformer", *named, "-o", "out.safetensors"]


BESIDE = frozenset({"adapter_config.json", *(f"good-{part}.safetensors" for part in PARTS)})


def strange_file(
    name: str,
    kind: str,
    file: str,
    make: Callable[[Path], object],
    *,
    loads: bool | None = False,
    same: Mapping[str, Tensor] | None = None,
) -> list[Case]:
    """Two cases of one file: it is inspected, and the command that is for it takes it.

    Args:
        name: what is strange.
        kind: a system or a part.
        file: its name.
        make: writes it.
        loads: whether the command must take it, refuse it, or may do either (None). What a
            system's file must load to is compared here, where exporting it would take long.
        same: the tensors that must then be in it; None for the good ones.
    """

    def inspected(folder: Path) -> Sequence[str | Path]:
        make(folder / file)
        return ["inspect", file]

    def taken(folder: Path) -> Sequence[str | Path]:
        make(folder / file)
        return used(kind, file, folder)

    def check(folder: Path, outcome: Outcome) -> str | None:
        return None if outcome.code else _other_numbers(folder / file, same or good(kind))

    title = f"{kind}, {file}: {name}"
    if loads is None:
        return [Case(f"{title}, inspected", inspected), Case(title, taken, _written(kind))]
    if not loads:
        refused = Case(title, taken, _written(kind), codes=frozenset({2}))
        return [Case(f"{title}, inspected", inspected), refused]
    whole = Case(f"{title}, inspected", inspected, codes=frozenset({0}), check=check)
    if kind in SYSTEMS:
        return [whole]
    return [whole, Case(title, taken, _written(kind), codes=frozenset({0}))]


def _written(_kind: str) -> frozenset[str]:
    return frozenset({"out", "out.safetensors"})


def _other_numbers(path: Path, wanted: Mapping[str, Tensor]) -> str | None:
    """What differs in a file that was taken."""
    try:
        found = read_weights(path).tensors
    except OpenVISError as exc:
        return f"inspected, and yet refused: {exc}"
    if other := found.keys() ^ wanted.keys():
        return f"other keys: {sorted(other)[:3]}"
    differ = [k for k, v in wanted.items() if not torch.equal(found[k].float(), v.float())]
    return f"other numbers in {differ[:3]}" if differ else None
