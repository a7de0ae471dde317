"""Results against annotations: AP and AR as the official evaluations define them.

    evaluate(annotations, results) -> Report

The IoU of two tracks is that of the whole video, ``computeIoU`` of ``ytvoseval.py``:

    IoU = sum_t |d_t and g_t| / sum_t |d_t or g_t|      0 where the denominator is 0

with an empty mask in every frame that does not show the object. Crowds have the same IoU, other
than in COCO. Only pairs of one video and class are compared, while the results are read, so memory
holds scores and IoUs but no predicted mask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from openvis_rt.errors import InputError
from openvis_rt.evaluation.accumulation import Accumulated, accumulate
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.annotations import Annotations, Category, Track, Video
from openvis_rt.evaluation.masks import shared_pixels
from openvis_rt.evaluation.matching import Detections, Matches, Truths, match
from openvis_rt.evaluation.report import Report, report_from
from openvis_rt.evaluation.results_files import Prediction, predictions_from, read_entries
from openvis_rt.evaluation.rules import BURST, YTVIS, Rules

if TYPE_CHECKING:
    from openvis_rt.runtime.video.run_lengths import RLE

__all__ = ["Evaluation", "TruthGroup", "evaluate"]

OBJECT = Category(1, "object")
"""The one class of an evaluation without classes."""

Progress = Callable[[str, int, int | None], None]


def evaluate(
    annotations: Annotations | Path,
    results: Path | Iterable[dict[str, Any]],
    *,
    class_agnostic: bool | None = None,
    splits: Mapping[str, frozenset[int]] | None = None,
    rules: Rules | None = None,
    failed: Mapping[str, str] | None = None,
    progress: Progress = lambda *_: None,
) -> Report:
    """Hold results against annotations.

    Args:
        annotations: an annotation file, or what :func:`read_annotations` gave.
        results: a results file in the form of YTVIS or BURST, or entries of YTVIS's form.
        class_agnostic: take all classes for one; None does what the data set's own evaluation does,
            which is so for UVO only.
        splits: name of a group -> category ids, to report beside the whole; None for those that the
            annotations say themselves.
        rules: None for those of the data set's official evaluation.
        failed: name -> error of videos without results, for the report.
        progress: told of the predictions that were read.

    Raises:
        InputError: the annotations have no track, or the results do not fit them.
    """
    if isinstance(annotations, Path):
        annotations = read_annotations(annotations)
    run = Evaluation(annotations, class_agnostic=class_agnostic, rules=rules)
    entries = read_entries(results, annotations) if isinstance(results, Path) else results
    run.add(predictions_from(entries, annotations, class_agnostic=run.class_agnostic), progress)
    progress("matching", 0, None)
    groups = {} if run.class_agnostic else dict(annotations.splits if splits is None else splits)
    return report_from(
        run.accumulated(),
        run.rules,
        run.categories,
        groups,
        class_agnostic=run.class_agnostic,
        videos=len(annotations.videos),
        tracks=run.tracks_of_class(),
        predictions=run.predictions_of_class(),
        failed=dict(failed or {}),
    )


class TruthGroup:
    """The annotated tracks of one video and class, sorted by the frames that show them.

    Attributes:
        tracks: in the order of the file.
    """

    def __init__(self, tracks: Sequence[Track] = ()) -> None:
        self.tracks = tuple(tracks)
        self._pixels = np.array([track.pixels.sum() for track in tracks], np.int64)
        self._frames: dict[int, tuple[list[int], list[RLE], list[int]]] = {}
        for index, track in enumerate(tracks):
            for frame in np.flatnonzero(track.pixels).tolist():
                rle = track.segmentations[frame]
                assert rle is not None  # it has pixels
                seen, others, pixels = self._frames.setdefault(frame, ([], [], []))
                seen.append(index)
                others.append(rle)
                pixels.append(int(track.pixels[frame]))

    def ious(self, prediction: Prediction) -> npt.NDArray[np.float64]:
        """The IoU of a predicted track with each of these, float64 [G]."""
        shared = np.zeros(len(self.tracks), np.int64)
        places: list[int] = []
        ratios, areas = [], []
        for frame in np.flatnonzero(prediction.pixels).tolist() if self._frames else ():
            if frame in self._frames:
                seen, others, pixels = self._frames[frame]
                found = [prediction.segmentations[frame]]
                ratios.append(coco.iou(found, others, [0] * len(others))[0])
                places += seen
                areas += [pixel + int(prediction.pixels[frame]) for pixel in pixels]
        if places:
            np.add.at(shared, places, shared_pixels(np.concatenate(ratios), np.array(areas)))
        union = prediction.pixels.sum() + self._pixels - shared
        return np.where(union > 0, shared / np.maximum(union, 1), 0.0)


@dataclass(slots=True)
class _Cell:
    """What is predicted of one class in one video."""

    scores: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    ious: list[npt.NDArray[np.float64]] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)


_NOTHING = TruthGroup()


class Evaluation:
    """One evaluation: predictions are added one by one, then counted.

    Args:
        annotations: what is true.
        class_agnostic: take all classes for one; None for the data set's own rule.
        rules: None for those of the data set's official evaluation.

    Attributes:
        categories: the classes, in the order of :meth:`accumulated`.

    Raises:
        InputError: the annotations have no track.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        class_agnostic: bool | None = None,
        rules: Rules | None = None,
    ) -> None:
        if not annotations.tracks:
            raise InputError(
                "the annotation file has no annotated track, as the files of test sets: nothing "
                "can be measured with it. Give one with annotations."
            )
        self.class_agnostic = (
            annotations.class_agnostic if class_agnostic is None else class_agnostic
        )
        self.categories = (OBJECT,) if self.class_agnostic else annotations.categories
        self.rules = rules or (BURST if annotations.format == "burst" else YTVIS)
        self._merged = annotations.merged
        videos = annotations.videos
        if annotations.format != "burst":  # the order decides between equal scores
            videos = tuple(sorted(videos, key=lambda video: video.id))
        self._videos = videos
        truths: dict[tuple[int, int], list[Track]] = defaultdict(list)
        tracks = annotations.tracks
        if self.class_agnostic:
            tracks = tuple(sorted(tracks, key=lambda track: track.category_id))
        for track in tracks:
            truths[track.video_id, self._class_of(track.category_id)].append(track)
        self._truths = {key: TruthGroup(of_key) for key, of_key in truths.items()}
        self._cells: dict[tuple[int, int], _Cell] = defaultdict(_Cell)

    def add(self, predictions: Iterable[Prediction], progress: Progress = lambda *_: None) -> None:
        """Compare predictions with the annotated tracks of their video and class."""
        for number, prediction in enumerate(predictions, 1):
            key = prediction.video_id, self._class_of(prediction.category_id)
            cell, truths = self._cells[key], self._truths.get(key, _NOTHING)
            cell.scores.append(prediction.score)
            cell.areas.append(prediction.area)
            cell.ious.append(truths.ious(prediction))
            cell.categories.append(prediction.category_id)
            if number % 100 == 0:
                progress("comparing predictions", number, None)

    def accumulated(self) -> Accumulated:
        """Precision and recall of every class, area range and threshold."""
        return accumulate([self._matches(category) for category in self.categories], self.rules)

    def tracks_of_class(self) -> list[int]:
        """Annotated tracks of each class that count."""
        counts: dict[int, int] = defaultdict(int)
        for (_, category), group in self._truths.items():
            counts[category] += sum(not track.crowd for track in group.tracks)
        return [counts[category.id] for category in self.categories]

    def predictions_of_class(self) -> list[int]:
        """Predictions of each class."""
        counts: dict[int, int] = defaultdict(int)
        for (_, category), cell in self._cells.items():
            counts[category] += len(cell.scores)
        return [counts[category.id] for category in self.categories]

    def _class_of(self, category: int) -> int:
        return OBJECT.id if self.class_agnostic else self._merged.get(category, category)

    def _matches(self, category: Category) -> Iterator[Matches]:
        for video in self._videos:
            key = video.id, category.id
            truths, cell = self._truths.get(key), self._cells.get(key)
            if truths is None and (cell is None or not self._is_judged(video, category.id)):
                continue
            yield self._match(video, category.id, (truths or _NOTHING).tracks, cell or _Cell())

    def _is_judged(self, video: Video, category: int) -> bool:
        """Whether predictions of a class that the video does not show count as wrong."""
        return self.class_agnostic or video.negative is None or category in video.negative

    def _match(
        self, video: Video, category: int, truths: tuple[Track, ...], cell: _Cell
    ) -> Matches:
        order = np.arange(len(cell.scores))
        if self.class_agnostic:  # the official code goes class by class: it decides between ties
            order = np.argsort(np.array(cell.categories, np.int64), kind="stable")
        return match(
            Detections(
                np.array(cell.scores, np.float64)[order],
                np.array(cell.areas, np.float64)[order],
                np.array(cell.ious, np.float64).reshape(len(order), len(truths))[order],
                exhaustive=self.class_agnostic or category not in video.not_exhaustive,
            ),
            Truths(
                np.array([track.area for track in truths]),
                np.array([track.crowd for track in truths], np.bool_),
            ),
            self.rules,
        )
