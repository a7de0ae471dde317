"""Earlier reports of `openvis bench`, which a new measurement is compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from contents import Put, changed_bytes
from court import Case, Outcome
from int8_bundle import write_video_bundle
from smallfiles import Arguments, every_change
from workshop import Workshop

from openvis_rt.bench.compare import compare_reports, markdown_from_changes
from openvis_rt.bench.report_reading import read_report

__all__ = ["FEW", "ROWS"]

SHORT = ("--frames", "2", "--rounds", "2", "--warm-up", "1", "--no-overlay", "--threads", "1")
REFUSED = "not of the same measurement"
MEASURED = 40  # one change in so many is measured against, which takes seconds


def _order(workshop: Workshop) -> list[str | Path]:
    bundle = workshop.place / "tiny-benchmark"
    if not bundle.exists():
        write_video_bundle(bundle)
    return ["bench", bundle, "--video", workshop.video, *SHORT]


def _report(workshop: Workshop) -> Path:
    """A report of two contenders: the bundle's graphs in FP32, and the same in FP16."""
    path = workshop.place / "before.json"
    if not path.exists():
        order = [*_order(workshop), "--against", "onnxruntime:fp16", "-o", path]
        made = workshop.bench.run(order, workshop.place, seconds=60)
        assert made.code == 0, made.stderr
    return path


def reports(workshop: Workshop) -> Iterator[Case]:
    """The report in other kinds of file, with other fields, and cut off.

    Most are compared with a measurement that would have other settings, so that a report that is
    read is refused before anything is measured; then it is compared with the good one here.
    """
    good = _report(workshop)
    text = good.read_bytes()
    strange = chain(every_change(json.loads(text), 300), changed_bytes(text, 40))
    for number, (what, put) in enumerate(strange):
        yield _case(workshop, good, what, put, number)


def _case(workshop: Workshop, good: Path, what: str, put: Put, number: int) -> Case:
    measured = number % MEASURED == MEASURED // 2

    def make(folder: Path) -> Arguments:
        put(folder / "old.json")
        settings = ["--json"] if measured else ["--classes", "7", "-o", "out.json"]
        return [*_order(workshop), "--compare", "old.json", *settings]

    def check(folder: Path, outcome: Outcome) -> str | None:
        if outcome.code == 0:
            return _improbable(json.loads(outcome.stdout)["changes"])
        return _compared(folder / "old.json", good) if REFUSED in outcome.stderr else None

    # ONNX Runtime leaves .ses
    writes = frozenset({"old.json", ".ses"} if measured else {"old.json"})
    return Case(what, make, writes, seconds=60 if measured else 20, check=check)


def _compared(old: Path, good: Path) -> str | None:
    """What is wrong with the comparison of a report that was read with the one it was made of."""
    changes = compare_reports(read_report(good), read_report(old), different=True)
    markdown_from_changes(changes)
    return _improbable([{"old": c.old, "new": c.new, "ratio": vars(c.ratio)} for c in changes])


def _improbable(changes: list[dict[str, Any]]) -> str | None:
    for change in changes:
        numbers = (change["old"], change["new"], *change["ratio"].values())
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return f"a comparison that cannot be: {change}"
    return None


ROWS = {"bench --compare": reports}
FEW = {"bench --compare": 0}  # tests/unit/test_bench_figures.py has a few in no time
