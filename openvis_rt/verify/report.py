"""A verification for people: a table, Markdown, and a picture of how far each output is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from openvis_rt.verify.checks import Check, Measure
from openvis_rt.verify.verify import STAGES, VerifyReport

__all__ = [
    "COLUMNS",
    "Row",
    "markdown_from_report",
    "rows_from_report",
    "svg_from_report",
    "tightest_of",
    "verdict",
]

COLUMNS = ("stage", "output", "points", "worst", "gate", "")

_WIDTH, _LEFT, _RIGHT, _ROW = 900, 250, 40, 22
_SCALE = 140.0  # dB at the right end; equality is drawn there
_COLOURS = ("#2f6db3", "#d9822b", "#3a9d5d", "#7a5cc7", "#8c6d1f", "#4fa3d9")
_STYLE = """
text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.soft{fill:#59636e}
.ground{fill:#ffffff;stroke:#d1d9e0}.axis{stroke:#d1d9e0}.gate{stroke:#b42318;stroke-width:2}
@media (prefers-color-scheme: dark){
text{fill:#f0f6fc}.soft{fill:#b1bac4}.ground{fill:#0d1117;stroke:#3d444d}
.axis{stroke:#3d444d}.gate{stroke:#ff7b72}}
"""


@dataclass(frozen=True)
class Row:
    """The worst of an output's checks over all points, and how many there are."""

    worst: Check
    points: int

    def texts(self) -> tuple[str, ...]:
        """A text for each of :data:`COLUMNS`."""
        check = self.worst
        word = "ok" if check.passed else f"DEPARTS {check.point}".strip()
        names = check.stage, check.output, str(self.points)
        return (*names, _words(check.measure, check.value), _words(check.measure, check.gate), word)


def rows_from_report(report: VerifyReport) -> dict[str, list[Row]]:
    """For each contender a row for each stage, output and measure, in the order of the stages."""
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in report.checks:
        key = check.contender, check.stage, check.output, check.measure
        groups.setdefault(key, []).append(check)
    rows = [Row(min(checks, key=lambda c: c.margin), len(checks)) for checks in groups.values()]
    rows.sort(key=lambda row: STAGES.index(row.worst.stage))
    names = dict.fromkeys(("host", *report.contenders))
    return {name: [row for row in rows if row.worst.contender == name] for name in names}


def tightest_of(rows: Sequence[Row]) -> list[Row]:
    """Of each stage and measure the row with the least room, and every row that departs."""
    tightest: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.worst.stage, row.worst.measure
        if key not in tightest or row.worst.margin < tightest[key].worst.margin:
            tightest[key] = row
    return [row for row in rows if row in tightest.values() or not row.worst.passed]


def markdown_from_report(report: VerifyReport) -> str:
    """The table in Markdown, with what was compared with what above it."""
    lines = [f"# {report.model}: {verdict(report)}", "", f"Reference: {report.reference}.", ""]
    lines += [f"- not tried: {name}: {why}" for name, why in report.passed_over.items()]
    for contender, rows in rows_from_report(report).items():
        lines += ["", f"## {contender}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
        lines += [_row(row.texts()) for row in rows]
    return "\n".join(lines) + "\n"


def verdict(report: VerifyReport) -> str:
    """One sentence: all is within its gates, or what departs first."""
    first = report.first_departure
    if first is None:
        return f"all {len(report.checks)} checks are within their gates"
    where = f"{first.stage} {first.point}".strip()
    value = f"{_words(first.measure, first.value)}, gate {_words(first.measure, first.gate)}"
    note = f"; {first.note}" if first.note else ""
    return (
        f"{len(report.failed)} of {len(report.checks)} checks are outside their gates. The first "
        f"stage that departs, fed with the reference's own inputs, is {where}: {first.output} of "
        f"{first.contender} ({value}{note})"
    )


def svg_from_report(report: VerifyReport) -> str:
    """Signal-to-noise ratios of every output as dots, a colour for each contender, with the gates.

    One file without scripts, legible on light and dark pages.
    """
    found = (row for rows in rows_from_report(report).values() for row in rows)
    rows = [row for row in found if row.worst.measure == "SQNR dB"]
    named = dict.fromkeys((row.worst.stage, row.worst.output) for row in rows)
    outputs = sorted(named, key=lambda pair: STAGES.index(pair[0]))
    top = 96 + 18 * len(report.contenders)
    height = top + _ROW * len(outputs) + 40
    pieces = [
        _text(24, 34, f"{report.model}: how close each output is to PyTorch's", "title"),
        _text(24, 54, "signal-to-noise ratio in dB, worst of all points; more is closer", "soft"),
        *_legend(report.contenders),
        *_axis(top, top + _ROW * len(outputs)),
    ]
    for number, (stage, output) in enumerate(outputs):
        y = top + _ROW * number + 15
        pieces.append(_text(_LEFT - 12, y, f"{stage}: {output}", anchor="end"))
        here = [r.worst for r in rows if (r.worst.stage, r.worst.output) == (stage, output)]
        pieces += _marks(here, report.contenders, y - 4)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img"><style>{_STYLE}</style>'
        f'<rect class="ground" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>'
    )
    return "\n".join([head, *pieces, "</svg>"]) + "\n"


def _marks(checks: Sequence[Check], contenders: Sequence[str], y: float) -> Iterator[str]:
    for gate in {check.gate for check in checks}:
        x = _at(gate)
        yield f'<line class="gate" x1="{x}" x2="{x}" y1="{y - 7}" y2="{y + 7}"/>'
    for check in checks:
        colour = _COLOURS[contenders.index(check.contender) % len(_COLOURS)]
        title = escape(f"{check.contender}: {check.value:.1f} dB, gate {check.gate:.0f}")
        ring = "" if check.passed else ' stroke="#b42318" stroke-width="3"'
        yield (
            f'<circle cx="{_at(check.value)}" cy="{y}" r="5" fill="{colour}"{ring}>'
            f"<title>{title}</title></circle>"
        )


def _legend(contenders: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(contenders):
        y = 78 + 18 * number
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<circle cx="30" cy="{y - 4}" r="5" fill="{colour}"/>'
        yield _text(42, y, name)
    yield f'<line class="gate" x1="{_WIDTH - 220}" x2="{_WIDTH - 220}" y1="67" y2="81"/>'
    yield _text(_WIDTH - 210, 78, "gate: the least that passes", "soft")


def _axis(top: float, bottom: float) -> Iterator[str]:
    for ratio in range(0, int(_SCALE) + 1, 20):
        x = _at(ratio)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
        label = "equal" if ratio == _SCALE else str(ratio)
        yield _text(x, bottom + 18, label, "soft", anchor="middle")


def _at(ratio: float) -> float:
    """Pixels from the left."""
    share = 0.0 if math.isnan(ratio) else min(max(ratio, 0.0), _SCALE) / _SCALE
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def _words(measure: Measure, value: float) -> str:
    """A measure's value, or its gate, in a few letters."""
    if measure == "values that differ":
        return f"{value:.0f} differ"
    if measure == "SQNR dB":
        return "equal" if value == math.inf else f"{value:.1f} dB"
    if measure == "median IoU":
        return f"IoU {value:.3f}"
    noun = "bits" if measure == "bits that differ" else "ids"
    return f"{100 * value:.3g} % of {noun}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
