"""A report as one SVG: where a frame's time goes, the host's part of it larger, and every window.

It stands on a ground of its own, light or dark by the reader's scheme, so that it is legible on any
page; viewers without style queries show the light one. No script, no font file, no dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from xml.sax.saxutils import escape

from openvis_rt.bench.parts import HOST, PARTS
from openvis_rt.bench.report import Measured, Report

__all__ = ["svg_from_report"]

_COLOURS = {
    "decode": "#8c6d1f",
    "place": "#d9a441",
    "propose": "#2f6db3",
    "embed": "#7a5cc7",
    "classify": "#4fa3d9",
    "masks": "#9cc6ec",
    "wait": "#b8c2cc",
    "association": "#d1495b",
    "recurrence": "#8d2f3f",
    "scores": "#f08a5d",
    "run_lengths": "#e6c229",
    "overlay": "#3a9d5d",
    "encode": "#8fd0a4",
    "other": "#8a8a8a",
}
_WIDTH, _LEFT, _RIGHT, _MARGIN = 900, 190, 150, 24
_BARS = _WIDTH - _LEFT - _RIGHT - _MARGIN
_ROW, _BAR = 30, 18
_STYLE = """
text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.head{font-weight:600}.soft{fill:#59636e}
.ground{fill:#ffffff;stroke:#d1d9e0}.axis{stroke:#d1d9e0}.mark{stroke:#1f2328}.dot{fill:#2f6db3}
@media (prefers-color-scheme: dark){
text{fill:#f0f6fc}.soft{fill:#b1bac4}.ground{fill:#0d1117;stroke:#3d444d}
.axis{stroke:#3d444d}.mark{stroke:#f0f6fc}.dot{fill:#79b8ff}}
"""
_Ran = Sequence[tuple[str, Measured]]


def svg_from_report(report: Report) -> str:
    """The chart of all contenders that ran; one file, in UTF-8."""
    ran = [(r.name, r.measured) for r in report.results if r.measured is not None]
    height, width = report.base.network_size
    title = f"{report.base.model}, {height}x{width}: {report.machine.cpu}"
    pieces = [_text(_MARGIN, 34, title, "title"), _text(_MARGIN, 52, _subtitle(report), "soft")]
    y = 66
    for part in (_whole, _host, _windows):
        drawn, y = part(ran, y)
        pieces += drawn
    y += 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" '
        f'height="{y}" role="img" aria-label="{_attribute(title)}"><style>{_STYLE}</style>'
        f'<rect class="ground" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{y - 1}" rx="8"/>'
    )
    return "\n".join([head, *pieces, "</svg>"]) + "\n"


def _subtitle(report: Report) -> str:
    threads = report.settings.get("threads")
    found = report.base.measured
    count = "" if found is None else f", {found.window.count} windows each"
    return f"{threads} threads{count}, {report.made[:10]}"


def _whole(ran: _Ran, y: int) -> tuple[list[str], int]:
    """Bars of all parts, with the seconds and the ratio to the base at their ends."""

    def end(found: Measured) -> str:
        ratio = "" if found.ratio is None else f"  ({found.ratio.value:.2f}x)"
        return f"{_number(found.seconds_a_frame * 1e3)} ms{ratio}"

    return _bars("Milliseconds a frame, end to end", ran, tuple(PARTS), end, y)


def _host(ran: _Ran, y: int) -> tuple[list[str], int]:
    """The same of the host alone, on a scale of its own."""

    def end(found: Measured) -> str:
        return f"{_total(found, HOST) * 1e3:.1f} ms = {found.host_share:.1%}"

    return _bars("Of which the host", ran, HOST, end, y)


def _bars(
    head: str, ran: _Ran, parts: Sequence[str], end: Callable[[Measured], str], y: int
) -> tuple[list[str], int]:
    longest = max((_total(found, parts) for _, found in ran), default=0.0) or 1.0
    pieces = [_text(_MARGIN, y + 18, head, "head")]
    y += 28
    for name, found in ran:
        pieces.append(_text(_LEFT - 8, y + 14, name, anchor="end"))
        x = float(_LEFT)
        for part in parts:
            width = found.parts.get(part, 0.0) / longest * _BARS
            if width > 0:
                label = f"{name}, {_words(part)}: {found.parts[part] * 1e3:.2f} ms"
                pieces.append(
                    f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" '
                    f'fill="{_COLOURS[part]}"><title>{escape(label)}</title></rect>'
                )
            x += width
        pieces.append(_text(x + 6, y + 14, end(found), "soft"))
        y += _ROW
    used = [p for p in parts if any(found.parts.get(p, 0.0) > 0 for _, found in ran)]
    legend, y = _legend(used, y)
    return pieces + legend, y


def _legend(parts: Iterable[str], y: int) -> tuple[list[str], int]:
    pieces, x = [], _LEFT
    for part in parts:
        words = _words(part)
        width = 26 + 7 * len(words)
        if x + width > _WIDTH - _MARGIN:
            x, y = _LEFT, y + 18
        pieces.append(
            f'<rect x="{x}" y="{y + 2}" width="10" height="10" rx="2" fill="{_COLOURS[part]}"/>'
        )
        pieces.append(_text(x + 15, y + 11, words, "soft"))
        x += width
    return pieces, y + 24


def _windows(ran: _Ran, y: int) -> tuple[list[str], int]:
    """A dot for each window, and lines at p50, p90 and p99."""
    slowest = max((found.window.largest for _, found in ran), default=0.0) or 1.0
    pieces = [_text(_MARGIN, y + 18, "Every window: dots; p50, p90 and p99: lines", "head")]
    y += 28
    top, scale = y, _BARS / slowest
    for name, found in ran:
        pieces.append(_text(_LEFT - 8, y + 14, name, anchor="end"))
        seconds = [window.seconds for turn in found.rounds for window in turn]
        for index, value in enumerate(seconds):
            shift = 3 + index * 7 % 13  # up and down, so that dots of one time do not hide
            pieces.append(
                f'<circle class="dot" cx="{_LEFT + value * scale:.2f}" cy="{y + shift}" r="2.5" '
                'fill-opacity="0.6"/>'
            )
        marks = (found.window.p50, 2.5), (found.window.p90, 1.5), (found.window.p99, 1.0)
        for value, width in marks:
            x = _LEFT + value * scale
            pieces.append(
                f'<line class="mark" x1="{x:.2f}" y1="{y - 1}" x2="{x:.2f}" y2="{y + _BAR + 1}" '
                f'stroke-width="{width}"/>'
            )
        median, last = found.window.p50 * 1e3, found.window.p99 * 1e3
        edge = _LEFT + found.window.largest * scale + 8
        pieces.append(_text(edge, y + 14, f"p50 {_number(median)}, p99 {_number(last)}", "soft"))
        y += _ROW
    return pieces + _axis(slowest, scale, top, y), y + 24


def _axis(largest: float, scale: float, top: int, y: int) -> list[str]:
    """Ticks in milliseconds from 0."""
    step = _step(largest * 1e3)
    pieces, tick = [], 0.0
    while tick <= largest * 1e3:
        x = _LEFT + tick / 1e3 * scale
        pieces.append(
            f'<line class="axis" x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{y - 4}" '
            'stroke-dasharray="2 3"/>'
        )
        pieces.append(_text(x, y + 10, f"{tick:g}", "soft", "middle"))
        tick += step
    return [*pieces, _text(_LEFT + _BARS + 20, y + 10, "ms a window", "soft")]


def _step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are four to nine ticks."""
    step = 10.0**-6
    for factor in (2, 2.5, 2) * 12:
        if largest / step <= 8:
            break
        step *= factor
    return step


def _total(found: Measured, parts: Sequence[str]) -> float:
    return sum(found.parts.get(part, 0.0) for part in parts)


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _words(part: str) -> str:
    return part.replace("_", " ")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{of_kind}{at}>{escape(text)}</text>'


def _attribute(text: str) -> str:
    return escape(text, {'"': "&quot;"})
