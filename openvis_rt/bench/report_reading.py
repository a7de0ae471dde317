"""Reading the report of an earlier benchmark, whose figures are held against its own windows."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator
from pathlib import Path

from openvis_rt.bench.player import Window
from openvis_rt.bench.report import SCHEMA, Measured, Report, Result
from openvis_rt.errors import InputError
from openvis_rt.given_files import given_json
from openvis_rt.records import record_from_json

__all__ = ["read_report"]

_LARGEST = 256 << 20  # bytes of a report
_LONGEST = 86_400.0  # seconds of a window
_ROUNDING = 1e-6  # relative, of sums of what the report has in full


def read_report(path: Path) -> Report:
    """Read the JSON of an earlier benchmark.

    Raises:
        InputError: the file cannot be read, is no report of this version, or is one that no
            benchmark writes: without a contender, with two of one name, with a base that has no
            figures, with other rounds than the base has, or with figures that do not follow from
            its windows.
    """
    try:
        data = given_json(path, _LARGEST)
    except InputError as exc:
        raise InputError(
            f"this is no report of `openvis bench`: {exc}. Give the JSON that it wrote"
        ) from exc
    schema = str(data.get("schema", "")) if isinstance(data, dict) else ""
    if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise InputError(
            f"{path} has schema {reprlib.repr(schema or 'none')}, and this version reads {SCHEMA}; "
            "measure again with this version"
        )
    try:
        report = record_from_json(Report, data, strict=False)
        _check(report)
    except InputError as exc:
        raise InputError(
            f"{path} is no whole report of `openvis bench`: {exc}. Give the JSON as it was written"
        ) from exc
    return report


def _check(report: Report) -> None:
    """InputError for a report that no benchmark writes."""
    if not report.results:
        raise InputError("results: there are none; the base at least is needed")
    names = [result.name for result in report.results]
    if len(set(names)) < len(names):
        raise InputError("results: two contenders have the same name")
    base = report.base.measured
    if base is None:
        raise InputError("results[0].measured: the base, which comes first, has no figures")
    for number, result in enumerate(report.results):
        for wrong in _wrong(result, len(base.rounds)):
            raise InputError(f"results[{number}].{wrong}")


def _wrong(result: Result, rounds: int) -> Iterator[str]:
    measured = result.measured
    if (measured is None) != bool(result.not_run):
        yield "not_run: a contender has either figures or a reason why there are none"
    if measured is None:
        return
    if len(measured.rounds) != rounds or rounds < 2:
        yield (
            f"measured.rounds: {len(measured.rounds)}, where the base has {rounds}; each contender "
            "has the same number, at least 2"
        )
    for number, turn in enumerate(measured.rounds):
        if not turn:
            yield f"measured.rounds[{number}]: it has no window"
        for place, window in enumerate(turn):
            if words := _wrong_window(window):
                yield f"measured.rounds[{number}][{place}].{words}"
    yield from _wrong_sums(measured)


def _wrong_window(window: Window) -> str:
    if window.frames < 1:
        return f"frames: a window has 1 or more; found {window.frames}"
    if not 0 < window.seconds <= _LONGEST:
        return f"seconds: above 0 and up to {_LONGEST:.0f} are needed; found {window.seconds:g}"
    for part, seconds in window.parts.items():
        if not -_ROUNDING <= seconds <= window.seconds * (1 + _ROUNDING):
            return f"parts: {part} has {seconds:g} s of the window's {window.seconds:g}"
    return ""


def _wrong_sums(measured: Measured) -> Iterator[str]:
    windows = [window for turn in measured.rounds for window in turn]
    frames, seconds = sum(w.frames for w in windows), sum(w.seconds for w in windows)
    pairs = [("seconds_a_frame", measured.seconds_a_frame, seconds / frames)]
    pairs.append(("fps", measured.fps, frames / seconds))
    for part, told in measured.parts.items():
        pairs.append((f"parts.{part}", told, sum(w.parts.get(part, 0.0) for w in windows) / frames))
    for name, told, found in pairs:
        if not math.isclose(told, found, rel_tol=_ROUNDING, abs_tol=1e-12):
            yield f"measured.{name}: {told:g}, and its windows have {found:g}"
