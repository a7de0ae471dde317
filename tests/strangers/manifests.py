"""Manifests with a valid digest in which one field is not what an export writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from court import Case, Outcome
from sealing import sealed
from workshop import Workshop

from openvis_rt.bundle.manifest import Manifest
from openvis_rt.records import record_from_json

__all__ = ["ROWS"]

SYSTEMS = ("clip-vis-mini", "instformer-mini", "ovformer-mini")
REMOVED, ADDED = object(), object()
STRANGE: tuple[Any, ...] = (
    *(REMOVED, ADDED, None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1e308),
    *(float("nan"), float("inf"), "", "\ud800", "\x1b[31mred\x07", "\u202edlrow", "\0", "x" * 5000),
    *("../up", "/etc/passwd", "/dev/zero", "a/../b", "C:\\x", "fp16", "float16", "queries", "text"),
    *("momentum", "K", "{}", "%s{0}", [], {}, [[]], [0] * 1000, {"a": {"b": 1}}, {"\x1b": 1}),
    *({"../x": None}, [float("nan")], "nan", "clip-vis", "instformer", "ovformer", 64, 8193),
)
FREE = (
    *("checkpoint", "doc", "tools", "gates", "variant", "detections", "prompts", "text_sha256"),
    "system",  # one that is not known here may have graphs that fit
)
"""Names in a place where an export may have written any value of the right type."""
RULES = ("tracker", "score", "preprocess", "window_length")
"""Parts whose numbers have ranges, and any number in the range is a rule that somebody may want."""


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a tree of lists and dicts; of a list its first and last item."""
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if value else []
    for key in keys:
        yield (*above, key)
        yield from _places(value[key], (*above, key))


def _changed(manifest: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    out = copy.deepcopy(manifest)
    holder: Any = out
    for key in place[:-1]:
        holder = holder[key]
    if value is REMOVED:
        del holder[place[-1]]
    elif value is not ADDED:
        holder[place[-1]] = value
    elif isinstance(holder, dict):
        holder[f"{place[-1]}\x1b[2J\u202e"] = copy.deepcopy(holder[place[-1]])
    else:
        holder.append(copy.deepcopy(holder[place[-1]]))
    return out


def _fields(
    workshop: Workshop, verb: str, a_place: int, shift: int = 0, every: int = 1
) -> Iterator[Case]:
    """``a_place`` strange values at every place of three manifests, each place others."""
    number = shift
    for system in SYSTEMS:
        bundle = workshop.exported(system)
        manifest = json.loads((bundle / "bundle.json").read_text())
        del manifest["manifest_sha256"]
        for index, place in enumerate(_places(manifest)):
            if index % every:
                continue
            for _ in range(a_place):
                number += 1
                value = STRANGE[number * 7 % len(STRANGE)]  # 7 divides not: all of them in turn
                yield _field(workshop, bundle, manifest, place, value, verb)


def _field(
    workshop: Workshop,
    bundle: Path,
    manifest: dict[str, Any],
    place: tuple[Any, ...],
    value: Any,
    verb: str,
) -> Case:
    shown = {id(REMOVED): "removed", id(ADDED): "twice"}.get(id(value), repr(value)[:40])
    changed = _changed(manifest, place, value)

    def make(folder: Path) -> Sequence[str | Path]:
        sealed(workshop.linked(folder, bundle), changed)
        return _arguments(workshop, verb)

    def check(_folder: Path, outcome: Outcome) -> str | None:
        free = set(place) & {*FREE, *RULES} or place[0] == "files"
        # a bundle may lack `text`; FP16's tensors are told from FP32's where the graph is opened
        free = free or (value is REMOVED and place[-1] == "text")
        free = free or (verb == "inspect" and value == "float16" and place[-1] == "dtype")
        free = free or (place[-1] == "fetched" and "inputs" in place)  # says nothing of an input
        if outcome.code == 0 and not free and not _same(changed, manifest):
            return "taken, though the graphs or the system say otherwise"
        return None

    name = f"{manifest['variant']}: {'.'.join(map(str, place))} {shown}"
    return Case(name, make, check=check)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two manifests mean the same: what was removed had its usual value."""
    return record_from_json(Manifest, one) == record_from_json(Manifest, other)


def _arguments(workshop: Workshop, verb: str) -> Sequence[str | Path]:
    more = [workshop.video, "-c", "disc", "--only", "-o", "out"] if verb == "run" else []
    return [verb, "bundle", *more]


def inspected(workshop: Workshop) -> Iterator[Case]:
    """Every field of three manifests, read by `inspect`."""
    return _fields(workshop, "inspect", 2)


def run(workshop: Workshop) -> Iterator[Case]:
    """Every second field of three manifests, with other values, and a whole run."""
    return _fields(workshop, "run", 1, shift=3, every=2)


ROWS = {"manifest, inspect": inspected, "manifest, run": run}
