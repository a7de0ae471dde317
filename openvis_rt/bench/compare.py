"""Two reports beside each other: what got slower, with a confidence interval.

A ratio is of new to old; its interval is unpaired (:mod:`.statistics`), over the rounds of each
file. The machine may have been busier in one of them. So where both files have a contender beside
the base, their ratios to the base are compared as well, in which that cancels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openvis_rt.bench.machine import Machine
from openvis_rt.bench.parts import GRAPHS, PARTS, network_seconds
from openvis_rt.bench.player import Window
from openvis_rt.bench.report import Measured, Report
from openvis_rt.bench.statistics import Interval, ratio_of_groups
from openvis_rt.errors import InputError, ParityError

__all__ = [
    "Change",
    "check_comparable",
    "check_slowdown",
    "compare_reports",
    "markdown_from_changes",
]

_LONGEST = 100  # letters of a setting in a message
_SMALL = 1e-4  # seconds a frame: parts below it are noise on both sides
_MACHINE = ("CPU", "cores", "GPU")
_SETTINGS = ("mode", "selection", "classes", "overlay", "threads", "precision")


@dataclass(frozen=True)
class Change:
    """One figure of one contender in both files.

    Attributes:
        contender: by name.
        what: ``end to end``, ``network``, a part, or ``ratio to`` the base.
        old, new: seconds a frame, or ratios.
        ratio: new over old.
    """

    contender: str
    what: str
    old: float
    new: float
    ratio: Interval

    @property
    def verdict(self) -> str:
        """``slower`` or ``faster`` where the interval leaves 1 out, else ``the same``."""
        if self.ratio.low > 1:
            return "slower"
        return "faster" if self.ratio.high < 1 else "the same"


def compare_reports(new: Report, old: Report, *, different: bool = False) -> list[Change]:
    """What changed, for contenders of the same name that ran in both.

    Args:
        new, old: the reports.
        different: compare them also where model, sizes, settings or machine differ.

    Raises:
        InputError: they differ in one of these, or no contender is in both.
    """
    if not different:
        _refuse(list(_differences(new, old)))
    held = {r.name: r.measured for r in old.results if r.measured is not None}
    pairs = [
        (r.name, r.measured, held[r.name]) for r in new.results if r.measured and r.name in held
    ]
    if not pairs:
        raise InputError(
            "no contender ran in both reports: "
            f"{', '.join(r.name for r in new.results)} here and {', '.join(held)} there"
        )
    changes = [change for name, ours, theirs in pairs for change in _changes(name, ours, theirs)]
    return changes + [
        _relative(name, ours, theirs, new, old)
        for name, ours, theirs in pairs
        if name != new.base.name and new.base.name in held and new.base.name == old.base.name
    ]


def check_slowdown(changes: list[Change], limit: float) -> None:
    """Refuse a slowdown end to end, for a gate in continuous integration.

    Args:
        changes: of :func:`compare_reports`.
        limit: the largest ratio of new to old, such as 1.05.

    Raises:
        ParityError: a contender's ratio is above the limit, and its interval leaves 1 out.
        InputError: the limit is below 1.
    """
    if not 1 <= limit < math.inf:
        raise InputError(f"the largest slowdown is 1 or more, such as 1.05; got {limit:g}")
    over = [
        change
        for change in changes
        if change.what == "end to end" and change.ratio.value > limit and change.verdict == "slower"
    ]
    if over:
        listed = "; ".join(f"{change.contender}: {change.ratio}" for change in over)
        raise ParityError(f"slower than {limit:g} times the earlier report, end to end: {listed}")


def markdown_from_changes(changes: list[Change]) -> str:
    """A table, what got slower first."""
    lines = ["| contender | what | old | new | new / old | |", "|---|---|---|---|---|---|"]
    for change in sorted(changes, key=lambda c: (c.verdict != "slower", -c.ratio.value)):
        ratio = change.what.startswith("ratio")
        shown = [f"{v:.3f}" if ratio else f"{v * 1e3:.2f} ms" for v in (change.old, change.new)]
        cells = (change.contender, change.what, *shown, str(change.ratio), change.verdict)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def check_comparable(settings: Mapping[str, Any], machine: Machine, old: Report) -> None:
    """Refuse what :func:`compare_reports` would refuse, before it is measured.

    Args:
        settings: resolved ones of the new measurement.
        machine: this one.
        old: the earlier report.

    Raises:
        InputError: settings or machine differ.
    """
    _refuse([*_of_machine(machine, old.machine), *_of_settings(settings, old.settings)])


def _refuse(differences: list[str]) -> None:
    if differences:
        raise InputError(
            f"the reports are not of the same measurement: {'; '.join(differences)}. Give "
            "--allow-different to compare them all the same"
        )


def _of_machine(new: Machine, old: Machine) -> list[str]:
    return _unequal((n, getattr(new, n.lower()), getattr(old, n.lower())) for n in _MACHINE)


def _of_settings(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    return _unequal((name, new.get(name), old.get(name)) for name in _SETTINGS)


def _unequal(facts: Iterable[tuple[str, Any, Any]]) -> list[str]:
    return [f"{n} {_shown(a)} here, {_shown(b)} there" for n, a, b in facts if a != b]


def _differences(new: Report, old: Report) -> Iterator[str]:
    for what in ("model", "network_size", "source_size", "window_length"):
        ours, theirs = (getattr(report.base, what) for report in (new, old))
        yield from _unequal([(what.replace("_", " "), ours, theirs)])
    yield from _of_machine(new.machine, old.machine)
    yield from _of_settings(new.settings, old.settings)


def _shown(value: object) -> str:
    """For a message; what a file says may be as long as it likes."""
    if value is None or value == "":
        return "none"
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _changes(name: str, new: Measured, old: Measured) -> Iterator[Change]:
    yield _change(name, "end to end", new, old, _seconds)
    yield _change(name, "network", new, old, lambda window: network_seconds(window.parts))
    for part in PARTS:
        if min(new.parts.get(part, 0.0), old.parts.get(part, 0.0)) > _SMALL:
            what = f"graph {part}" if part in GRAPHS else part.replace("_", " ")
            yield _change(name, what, new, old, functools.partial(_in_part, part))


def _change(
    name: str, what: str, new: Measured, old: Measured, seconds: Callable[[Window], float]
) -> Change:
    ours, theirs = ([*_by_round(found, seconds)] for found in (new, old))
    ratio = ratio_of_groups(ours, theirs)
    return Change(name, what, sum(theirs) / len(theirs), sum(ours) / len(ours), ratio)


def _relative(name: str, ours: Measured, theirs: Measured, new: Report, old: Report) -> Change:
    def ratios(found: Measured, report: Report) -> list[float]:
        base = report.base.measured
        assert base is not None
        pairs = zip(_by_round(found, _seconds), _by_round(base, _seconds), strict=True)
        return [a / b for a, b in pairs]

    now, then = ratios(ours, new), ratios(theirs, old)
    what = f"ratio to {new.base.name}"
    return Change(
        name, what, sum(then) / len(then), sum(now) / len(now), ratio_of_groups(now, then)
    )


def _seconds(window: Window) -> float:
    return window.seconds


def _in_part(part: str, window: Window) -> float:
    return window.parts.get(part, 0.0)


def _by_round(found: Measured, seconds: Callable[[Window], float]) -> Iterator[float]:
    """Seconds a frame in each round; a nanosecond at least, as logarithms need."""
    for turn in found.rounds:
        frames = sum(window.frames for window in turn)
        yield max(1e-9, sum(seconds(window) for window in turn) / frames)
