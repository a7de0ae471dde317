"""A manifest held against the contract of its graphs, before anything is opened or allocated.

``bundle.json`` comes from whoever made the bundle. Its fields have the right types when they were
read; here their values are checked: that its graphs have the tensors of its system, or, of a system
that is not known here, those of one that is; that one symbol has one size wherever it stands; that
sizes and prompts are such as an export can have written. Rules are checked where they are known:
:mod:`openvis_rt.runtime.tracking.rules`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from openvis_rt.bundle.manifest import Manifest
from openvis_rt.errors import BundleError
from openvis_rt.systems import SYSTEMS
from openvis_rt.systems.graphs import (
    DYNAMIC_AXES,
    HALF_TENSORS,
    PRECISIONS,
    QUANTISED,
    GraphSpec,
    TensorSpec,
)

__all__ = ["LARGEST_SIDE", "LONGEST_WINDOW", "check_contract"]

LARGEST_SIDE = 8192
"""Pixels of a frame's side, the network's or the source's; an 8K frame."""
LONGEST_WINDOW = 64
"""Frames of a window."""

_LARGEST_AXIS = 1 << 20
_LARGEST_TENSOR = 1 << 30  # numbers, the dynamic axes left out
_MOST_DETECTIONS = 10_000
_MOST_PROMPTS, _LONGEST_PROMPT = 1_000, 300
_SHA256 = re.compile("[0-9a-f]{64}")


def check_contract(manifest: Manifest) -> None:
    """Refuse a manifest that no export of its system can have written.

    Args:
        manifest: read, so that every field has its type.

    Raises:
        BundleError: it disagrees with its system or with itself; the message says where, what was
            found and what is needed.
    """
    try:
        _check_contract(manifest)
    except BundleError as exc:
        raise BundleError(f"the bundle's manifest is not what an export writes: {exc}") from exc


def _check_contract(manifest: Manifest) -> None:
    _check_numbers(manifest)
    _check_files(manifest)
    sizes: dict[str, int] = {}
    for precision, graphs in manifest.graphs.items():
        if missing := {"propose", "classify", "masks"} - graphs.keys():
            raise BundleError(f"graphs.{precision} lacks {', '.join(sorted(missing))}")
        for name, file in graphs.items():
            where = f"graphs.{precision}.{name}"
            if file.precision not in (*PRECISIONS, *QUANTISED):
                raise BundleError(f"{where}.precision is {file.precision!r}")
            _check_spec(file.spec, _contract_of(manifest.system, name, file.spec), sizes, where)
    _check_frames(manifest, sizes)


def _check_numbers(manifest: Manifest) -> None:
    rule = manifest.preprocess
    sides = (*rule.network_size, *(rule.source_size or ()))
    _in_range("preprocess: sizes", sides, 1, LARGEST_SIDE)
    _in_range("preprocess: short_side, max_side", (rule.short_side, rule.max_side), 1, LARGEST_SIDE)
    _in_range("preprocess.size_divisor", (rule.size_divisor,), 1, 1024)
    _in_range("preprocess.pixel_mean", rule.pixel_mean, 0, 255)
    _in_range("window_length", (manifest.window_length,), 1, LONGEST_WINDOW)
    _in_range("detections", (manifest.detections,), 1, _MOST_DETECTIONS)
    for precision, gates in manifest.gates.items():
        _in_range(f"gates.{precision}", gates.values(), 0, 1_000)
    if len(manifest.prompts) > _MOST_PROMPTS:
        raise BundleError(f"prompts: {len(manifest.prompts)}, and at most {_MOST_PROMPTS} are used")
    if not manifest.prompts and any("text" in graphs for graphs in manifest.graphs.values()):
        raise BundleError("prompts: a model with a text encoder needs one or more")
    for prompt in manifest.prompts:
        if prompt.count("{}") != 1 or len(prompt) > _LONGEST_PROMPT:
            raise BundleError(
                f"prompts: each has one {{}} for the name and at most {_LONGEST_PROMPT} letters; "
                f"found {prompt[:60]!r}"
            )


def _check_files(manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        if not _SHA256.fullmatch(entry.sha256) or entry.bytes < 0:
            raise BundleError(f"files: {name!r} has no SHA-256 and number of bytes")
    if manifest.text_sha256 and not _SHA256.fullmatch(manifest.text_sha256):
        raise BundleError("text_sha256 is no SHA-256")


def _contract_of(system: str, name: str, spec: GraphSpec) -> GraphSpec:
    """What the graph of that name must be: its system's, or that of any system that fits it."""
    systems = [SYSTEMS[system]] if system in SYSTEMS else list(SYSTEMS.values())
    known = [s.graphs[name] for s in systems if name in s.graphs]
    if not known:
        held = ", ".join(sorted({graph for s in systems for graph in s.graphs}))
        raise BundleError(f"graph {name!r} is not one of {held}")
    return next((contract for contract in known if _names(contract) == _names(spec)), known[0])


def _names(spec: GraphSpec) -> list[list[str]]:
    return [[t.name for t in tensors] for tensors in (spec.inputs, spec.outputs, spec.overridable)]


def _check_frames(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """The frames' size and number, which two parts of the manifest tell."""
    rule = manifest.preprocess
    wanted = rule.source_size or rule.network_size
    if (sizes.get("H"), sizes.get("W")) != wanted:
        raise BundleError(
            f"frames of {sizes.get('H')}x{sizes.get('W')} in the graphs, and of "
            f"{wanted[0]}x{wanted[1]} in preprocess"
        )
    if manifest.window_length > 1 and "T" in sizes:
        raise BundleError(
            f"window_length is {manifest.window_length}, and the graphs take {sizes['T']} frame"
        )


def _check_spec(spec: GraphSpec, contract: GraphSpec, sizes: dict[str, int], where: str) -> None:
    if spec.name != contract.name or _names(spec) != _names(contract):
        raise BundleError(
            f"{where} is {spec.name!r} with inputs, outputs and overridable inputs {_names(spec)}; "
            f"needed is {contract.name!r} with {_names(contract)}"
        )
    for kind in ("inputs", "outputs", "overridable"):
        for tensor, needed in zip(getattr(spec, kind), getattr(contract, kind), strict=True):
            _check_tensor(tensor, needed, sizes, f"{where}: {tensor.name}")
            if kind == "outputs" and tensor.fetched != needed.fetched:
                raise BundleError(f"{where}: {tensor.name}: fetched must be {needed.fetched}")


def _check_tensor(
    tensor: TensorSpec, contract: TensorSpec, sizes: dict[str, int], where: str
) -> None:
    types = {contract.dtype, *(["float16"] if contract.name in HALF_TENSORS else [])}
    if tensor.dtype not in types:
        raise BundleError(f"{where} is {tensor.dtype}, and needs {' or '.join(sorted(types))}")
    if len(tensor.shape) != len(contract.shape):
        raise BundleError(
            f"{where} has shape {list(tensor.shape)}, and needs {list(contract.shape)}"
        )
    for found, needed in zip(tensor.shape, contract.shape, strict=True):
        if not _fits(found, needed, sizes):
            known = f", {needed} = {sizes[needed]}" if needed in sizes else ""
            raise BundleError(
                f"{where} has shape {list(tensor.shape)}, and needs {list(contract.shape)}{known}"
            )
    if math.prod(d for d in tensor.shape if isinstance(d, int)) > _LARGEST_TENSOR:
        raise BundleError(f"{where} has shape {list(tensor.shape)}, which is too large")


def _fits(found: int | str, needed: int | str, sizes: dict[str, int]) -> bool:
    """Whether a size is the contract's; a symbol's number is the same wherever it stands."""
    if isinstance(found, str):
        return found == needed and needed in DYNAMIC_AXES and needed not in sizes
    if isinstance(needed, int):
        return found == needed
    return 1 <= found <= _LARGEST_AXIS and sizes.setdefault(needed, found) == found


def _in_range(where: str, values: Iterable[float], least: float, most: float) -> None:
    for value in values:
        if not least <= value <= most:
            raise BundleError(f"{where}: {value!r} is not between {least} and {most}")
