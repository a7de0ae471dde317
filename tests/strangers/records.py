"""Records of calibrations: what `openvis calibrate` put into a bundle, and what it keeps beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from contents import Put, changed_bytes
from court import Case, Outcome
from int8_bundle import write_video_bundle
from sealing import replaced
from smallfiles import Arguments, every_change
from workshop import Workshop

__all__ = ["ROWS"]

RANGES, COSTS = "calibration/ranges.json", "calibration/sensitivity.json"
FRAMES = ("--frames", "4", "--stride", "1", "--allow-few")
INSPECTIONS = (
    ("inspect", "bundle"),
    ("inspect", "bundle", "--json"),
    ("inspect", "bundle/propose.int8.onnx"),
)
REBUILDS = (
    ("calibrate", "bundle", "--rebuild", "-o", "out"),
    ("calibrate", "bundle", "--rebuild", "--into", "--overwrite"),
    ("calibrate", "bundle", "--rebuild", "--method", "max", "-o", "out"),
)


def calibrated(workshop: Workshop) -> Path:
    """A bundle of a tiny network in every precision, with the costs of its four blocks."""
    plain, done = workshop.place / "tiny", workshop.place / "calibrated"
    if not done.exists():
        write_video_bundle(plain)
        order = ["calibrate", plain, workshop.video, "-o", done, *FRAMES]
        made = workshop.bench.run([*order, "--sensitivity", "--min-sqnr", "5"], workshop.place)
        assert made.code == 0, made.stderr
    return done


def in_bundles(workshop: Workshop) -> Iterator[Case]:
    """The two records in a bundle; each change is looked at, and made graphs of."""
    good = calibrated(workshop)
    for name, fields, flips in ((RANGES, 150, 50), (COSTS, 80, 25)):
        text = (good / name).read_bytes()
        strange = chain(every_change(json.loads(text), fields), changed_bytes(text, flips))
        for number, (what, put) in enumerate(strange):
            inspections = INSPECTIONS if name == RANGES else INSPECTIONS[:2]
            for reader in (inspections[number % len(inspections)], REBUILDS[number % 3]):
                yield _case(workshop, good, name, what, put, reader)


def _case(
    workshop: Workshop, good: Path, name: str, what: str, put: Put, reader: tuple[str, ...]
) -> Case:
    def make(folder: Path) -> Arguments:
        bundle = workshop.linked(folder, good)
        (bundle / name).unlink()
        put(bundle / name)
        if (bundle / name).is_file() and not (bundle / name).is_symlink():
            replaced(bundle, name, (bundle / name).read_bytes())
        return list(reader)

    def check(folder: Path, outcome: Outcome) -> str | None:
        """Graphs are the same as before, but where ranges or their method are others."""
        made = folder / ("out" if (folder / "out").exists() else "bundle")
        if outcome.code or reader[0] != "calibrate" or "--method" in reader:
            return None
        if _ranges(made) == _ranges(good):
            return _unlike(good, made)
        return None

    label = f"{' '.join(reader)}: {name}: {what}"
    return Case(label, make, frozenset({"out", "bundle"}), check=check)


def _ranges(bundle: Path) -> Any:
    held = json.loads(_held(bundle, "calibration/ranges").read_bytes())
    graphs = held["graphs"].items()
    return held["method"], {name: (g["products"], g["tensors"]) for name, g in graphs}


def _unlike(good: Path, made: Path) -> str | None:
    for precision in ("int8", "int8-fp32"):
        files = [_held(bundle, f"propose.{precision}") for bundle in (good, made)]
        if files[0].read_bytes() != files[1].read_bytes():
            return f"the graphs in {precision} are others than before"
    return None


def _held(bundle: Path, begin: str) -> Path:
    """The listed file of that name, which may have a number before its suffix."""
    listed = json.loads((bundle / "bundle.json").read_text())["files"]
    return bundle / max(name for name in listed if name.startswith(f"{begin}."))


ROWS = {"calibration records": in_bundles}
