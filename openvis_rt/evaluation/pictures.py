"""Pictures of a report as SVG: curves of precision over recall, and the classes' AP as bars.

matplotlib draws them, through its Figure and without pyplot, so that no window and no global state
is touched. It comes with the extra ``eval``; all figures are in the report without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openvis_rt.errors import DependencyError
from openvis_rt.evaluation.report import Report, percent
from openvis_rt.evaluation.rules import RECALLS
from openvis_rt.files import output_errors, output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_pictures"]

_MOST_BARS = 40  # classes that can be read on one picture
_GREEN = "#2a9d8f"
_RED = "#c1121f"


def write_pictures(report: Report, folder: Path) -> list[Path]:
    """Write ``precision_recall.svg`` and, if there are several classes, ``classes.svg``.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the place cannot be written.
    """
    paths = [folder / "precision_recall.svg"]
    _save(_curves(report), paths[0])
    if sum(found.ap is not None for found in report.classes) > 1:
        paths.append(folder / "classes.svg")
        _save(_bars(report), paths[1])
    return paths


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise DependencyError(exc.name or "matplotlib", "eval") from exc
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    with (
        output_file(path) as partial,
        output_errors(path),
        rc_context({"svg.hashsalt": "openvis", "svg.fonttype": "path"}),
    ):
        figure.savefig(partial, format="svg", metadata={"Date": None})


def _curves(report: Report) -> Figure:
    """Precision over recall at every IoU threshold, from yellow (0.50) to violet (0.95)."""
    figure, axes = _figure(7.2, 4.8)
    from matplotlib import colormaps

    shades = colormaps["viridis_r"](np.linspace(0.08, 1.0, max(1, len(report.curves))))
    for (threshold, precision), shade in zip(report.curves.items(), shades, strict=False):
        axes.plot(RECALLS, precision, color=shade, lw=1.6, label=threshold)
    if report.curves:
        axes.legend(title="IoU", frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, mean over classes")
    axes.grid(color="#dddddd", lw=0.6)
    figures = (f"{name} {percent(report.overall[name])}" for name in ("AP", "AP50", "AP75"))
    axes.set_title(", ".join(figures), fontsize=11)
    return figure


def _bars(report: Report) -> Figure:
    """AP of each annotated class, best first; of many classes the best and the worst."""
    found = sorted(
        ((c.ap, f"{c.name} ({c.tracks})") for c in report.classes if c.ap is not None),
        key=lambda pair: -pair[0],
    )
    shown, note, gap = found, "", 0
    if len(found) > _MOST_BARS:
        half = _MOST_BARS // 2
        shown, gap = found[:half] + found[-half:], half
        note = f", the best and the worst {half} of {len(found)} classes"
    figure, axes = _figure(7.2, 1.4 + 0.22 * len(shown))
    values = np.array([100 * value for value, _ in shown])
    rows = np.arange(len(shown), dtype=np.float64)
    if gap:
        rows[gap:] += 1
        axes.text(1, gap, "...", va="center")
    axes.barh(rows, values, color=_GREEN, height=0.72)
    mean = report.overall["AP"]
    if mean is not None:
        axes.axvline(100 * mean, color=_RED, lw=1, ls="--", zorder=2)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        axes.text(value + 0.8, row, f"{value:.1f}", va="center", fontsize=7, bbox=behind, zorder=3)
    axes.set_yticks(rows, [name[:40] for _, name in shown], fontsize=8)
    axes.set_ylim(rows[-1] + 0.6, -0.6)
    axes.set(xlim=(0, 108), xlabel="AP in percent; dashed: the mean over classes")
    axes.set_title(f"classes and their annotated tracks{note}", fontsize=10, loc="left")
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    return figure
