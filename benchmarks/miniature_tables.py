"""Rows and tables of benchmarks/miniatures.py, from the figures that it found."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from miniature_claims import CROPS, Claim
from miniature_runs import GROUPS, MEASURES, ONE_CLASS, Figures

from openvis_rt.bench.markdown import table
from openvis_rt.errors import ParityError

TORCH = "PyTorch fp32"
GATE = 0.5  # points of AP

Line = dict[str, Any]


def accuracy_rows(model: str, found: dict[str, Figures]) -> list[Line]:
    """For each backend and group its figures, and their differences to PyTorch's."""
    return [
        {
            "model": model,
            "runs_on": runs_on,
            "classes": group,
            "figures": figures[group],
            "differences": {m: minus(figures[group][m], found[TORCH][group][m]) for m in MEASURES},
        }
        for runs_on, figures in found.items()
        for group in GROUPS
    ]


def accuracy_table(rows: Sequence[Line]) -> list[str]:
    """In percent, and points."""
    header = ["model", "runs on", "categories", *MEASURES]
    header += ["AP less PyTorch's", "largest difference"]
    lines = []
    for row in rows:
        cells = [row["model"], row["runs_on"], row["classes"]]
        cells += [number(row["figures"][m]) for m in MEASURES]
        of = row["differences"]
        largest = max((abs(d) for d in of.values() if d is not None), default=None)
        both = (number(of["AP"], "+.2f"), number(largest, ".2f"))
        lines.append([*cells, *(("", "") if row["runs_on"] == TORCH else both)])
    return table(header, lines)


def check_gate(rows: Sequence[Line]) -> None:
    """Refuse an AP that is too far from PyTorch's.

    Raises:
        ParityError: the message lists them.
    """
    far = [
        f"{row['model']} on {row['runs_on']}, {row['classes']}: {row['differences']['AP']:+.2f}"
        for row in rows
        if abs(row["differences"]["AP"] or 0.0) > GATE
    ]
    if far:
        raise ParityError(f"AP is more than {GATE} points from PyTorch's: {'; '.join(far)}")


def claim_rows(claim: Claim, known: dict[str, list[Figures]]) -> list[Line]:
    """The winner's figures, then each loser's with the winner's advantage.

    Args:
        claim: see its class.
        known: the figures of each setting, a seed each; a setting without any gets no row.
    """
    best = [figures[claim.group]["AP"] for figures in known[claim.best]]
    rows = [{"claim": claim.says, "source": claim.source, "setting": claim.best}]
    rows += [
        {"claim": claim.says, "source": claim.source, "setting": setting, "paper": paper}
        for setting, paper in claim.others.items()
        if setting in known
    ]
    if len(rows) == 1:  # nothing to compare with
        return []
    for row in rows:
        found = known[row["setting"]]
        row["model"], row["compared"] = claim.model, claim.group
        row["AP"] = {g: spread([f[g]["AP"] for f in found]) for g in (*GROUPS, ONE_CLASS)}
        if row["setting"] != claim.best:
            ap = [figures[claim.group]["AP"] for figures in found]
            advantage = [minus(a, b) for a, b in zip(best, ap, strict=True)]
            row["advantage"], row["reproduces"] = spread(advantage), verdict(advantage)
    return rows


def spread(values: Sequence[float | None]) -> Line | None:
    """Mean, least and most of the seeds; nothing if one has no value."""
    given = [value for value in values if value is not None]
    if not given or len(given) < len(values):
        return None
    return {"mean": mean(given), "least": min(given), "most": max(given), "seeds": len(given)}


def verdict(advantage: Sequence[float | None]) -> str:
    """Whether the winner wins: in every world, on average only, or not."""
    found = spread(advantage)
    if found is None:
        return "not measured"
    if found["least"] == found["most"] == 0:
        return "no difference"
    if found["least"] > 0:
        return "yes"
    return "on average" if found["mean"] > 0 else "no"


def minus(a: float | None, b: float | None) -> float | None:
    """Their difference, if there are two."""
    return None if a is None or b is None else a - b


def claims_table(rows: Sequence[Line]) -> list[str]:
    """A heading and a table for each claim."""
    lines: list[str] = []
    header = ["setting", *(f"AP, {g}" for g in (*GROUPS, ONE_CLASS))]
    header += ["advantage of the first", "the paper's AP", "reproduces"]
    for says in dict.fromkeys(row["claim"] for row in rows):
        of_claim = [row for row in rows if row["claim"] == says]
        first = of_claim[0]
        compared = "" if first["compared"] == "all" else f"; compared is AP, {first['compared']}"
        lines += ["", f"**{says}** ({first['source']}; {first['model']}{compared})", ""]
        lines += table(
            header,
            (
                [
                    row["setting"],
                    *(ranged(row["AP"][g]) for g in (*GROUPS, ONE_CLASS)),
                    ranged(row["advantage"], "+.1f") if "advantage" in row else "",
                    row.get("paper", ""),
                    row.get("reproduces", ""),
                ]
                for row in of_claim
            ),
        )
    return lines[1:]


def times_table(times: Line | None) -> list[str]:
    """InstFormer's one pass and the crops, where they were timed."""
    if not times:
        return []
    names = {"as released": "one pass", CROPS: CROPS}
    rows = [
        [title, *(f"{times[name][part]:.2f}" for part in ("frame", "classify"))]
        for name, title in names.items()
    ]
    ratios = ["{:.2f} [{:.2f}, {:.2f}]".format(*times["ratio"][p]) for p in ("frame", "classify")]
    rows.append([f"{CROPS} over one pass", *ratios])
    title = "Milliseconds of a frame, of both in one run on ONNX Runtime, with 95 % intervals:"
    return ["", title, "", *table(["", "whole frame", "`classify`"], rows)]


def ranged(found: Line | None, form: str = ".1f") -> str:
    """``31.2 (29.8 to 33.0)``."""
    if found is None:
        return "-"
    ends = f" ({found['least']:{form}} to {found['most']:{form}})" if found["seeds"] > 1 else ""
    return f"{found['mean']:{form}}{ends}"


def number(value: float | None, form: str = ".1f") -> str:
    """A dash for none."""
    return "-" if value is None else f"{value:{form}}"
