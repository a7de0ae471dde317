"""What an evaluation found: figures of the whole, of groups and of classes, as JSON and Markdown.

AP is the mean of the precision over all thresholds, recalls and classes at once, AR the mean of the
recall over thresholds and classes, as ``summarize`` of ``ytvoseval.py`` has it. Where no class has
an annotated track that counts, the official code says -1, and here it is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.evaluation.accumulation import ABSENT, Accumulated
from openvis_rt.evaluation.annotations import Category
from openvis_rt.evaluation.rules import Rules
from openvis_rt.records import json_from_record

__all__ = ["FIGURES", "ClassFigures", "Report", "report_from"]

FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
"""The names of the figures of the whole and of a group, in the official order."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class ClassFigures:
    """One class.

    Attributes:
        id, name: as in the annotations.
        tracks: annotated ones that count.
        predictions: of it.
        ap, ap50, ar: 0..1; None where it has no annotated track. ``ar`` is that of AR100.
    """

    id: int
    name: str
    tracks: int
    predictions: int
    ap: float | None
    ap50: float | None
    ar: float | None


@dataclass(frozen=True)
class Report:
    """What an evaluation found; all figures are 0..1.

    Attributes:
        class_agnostic: whether all classes were taken for one.
        videos, tracks, predictions: how many there were; of tracks those that count.
        overall: the value of each of :data:`FIGURES`.
        groups: name of a group of classes -> its figures.
        classes: those of each class, in the order of the annotations' ids.
        curves: IoU threshold -> precision at recall 0, 0.01, ..., 1, the mean over classes.
        failed: name -> error of videos that could not be run; they count as having no predictions.
    """

    class_agnostic: bool
    videos: int
    tracks: int
    predictions: int
    overall: Figures
    groups: dict[str, Figures]
    classes: tuple[ClassFigures, ...]
    curves: dict[str, tuple[float, ...]]
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return json_from_record(self)

    def to_markdown(self) -> str:
        """Figures in percent, then the classes that are annotated, as tables."""
        lines = [
            f"{self.videos} videos, {self.tracks} annotated tracks, {self.predictions} predictions"
            + (", all classes taken for one" if self.class_agnostic else "")
            + ".",
            "",
            f"| | {' | '.join(FIGURES)} |",
            "|---" * (len(FIGURES) + 1) + "|",
        ]
        for name, figures in {"all": self.overall, **self.groups}.items():
            lines.append(f"| {name} | {' | '.join(percent(figures[f]) for f in FIGURES)} |")
        if self.failed:
            lines += ["", "These videos failed, and count as having no predictions:", ""]
            lines += [f"- {name}: {error}" for name, error in self.failed.items()]
        lines += ["", "| class | tracks | predictions | AP | AP50 | AR100 |", "|---" * 6 + "|"]
        for found in self.classes:
            if found.tracks:
                cells = (percent(found.ap), percent(found.ap50), percent(found.ar))
                name = found.name.replace("|", "\\|")
                counts = f"{found.tracks} | {found.predictions}"
                lines.append(f"| {name} | {counts} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def percent(value: float | None) -> str:
    """``41.3`` of 0.413; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def report_from(
    found: Accumulated,
    rules: Rules,
    categories: Sequence[Category],
    groups: Mapping[str, frozenset[int]],
    *,
    class_agnostic: bool,
    videos: int,
    tracks: Sequence[int],
    predictions: Sequence[int],
    failed: dict[str, str],
) -> Report:
    """All figures of an evaluation; ``tracks`` and ``predictions`` are those of each class."""
    whole = list(range(len(categories)))
    places = {
        name: [index for index in whole if categories[index].id in ids]
        for name, ids in groups.items()
    }
    return Report(
        class_agnostic=class_agnostic,
        videos=videos,
        tracks=sum(tracks),
        predictions=sum(predictions),
        overall=_figures(found, rules, whole),
        groups={name: _figures(found, rules, members) for name, members in places.items()},
        classes=tuple(
            ClassFigures(
                category.id,
                category.name,
                tracks[index],
                predictions[index],
                _mean(found.precision[:, :, index, 0]),
                _mean(found.precision[rules.threshold_at(0.5), :, index, 0]),
                _mean(found.recall[:, index, 0, -1]),
            )
            for index, category in enumerate(categories)
        ),
        curves=_curves(found, rules),
        failed=failed,
    )


def _figures(found: Accumulated, rules: Rules, classes: list[int]) -> Figures:
    """Of some classes, by their places."""
    precision, recall = found.precision[:, :, classes], found.recall[:, classes]
    values: list[float | None] = [_mean(precision[..., 0])]
    values += [_mean(precision[rules.threshold_at(iou), :, :, 0]) for iou in (0.5, 0.75)]
    values += [_mean(precision[..., area]) for area in range(1, len(rules.areas))]
    values += [_mean(recall[..., 0, limit]) for limit in range(len(rules.recall_limits))]
    values += [_mean(recall[..., area, -1]) for area in range(1, len(rules.areas))]
    return dict(zip(FIGURES, values, strict=True))


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    present = values[values > ABSENT]
    return float(np.mean(present)) if present.size else None


def _curves(found: Accumulated, rules: Rules) -> dict[str, tuple[float, ...]]:
    precision = found.precision[..., 0]  # [T, 101, K]
    present = (precision > ABSENT).all((0, 1))
    if not present.any():
        return {}
    means = precision[:, :, present].mean(2)
    return {
        f"{threshold:.2f}": tuple(curve.tolist())
        for threshold, curve in zip(rules.thresholds, means, strict=True)
    }
