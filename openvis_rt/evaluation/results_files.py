"""Results files: read one entry at a time, checked against the annotations, and written.

    YTVIS, OVIS, LV-VIS, UVO   [{"video_id", "category_id", "score", "segmentations"}]
    BURST                      {"sequences": [...]}: burst.py

A results file of a thousand videos has some hundred megabytes, so a list is decoded entry by entry.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotations import Annotations, Video
from openvis_rt.evaluation.burst import entries_from_burst, write_burst_results
from openvis_rt.evaluation.fields import mean_area, whole_number
from openvis_rt.evaluation.masks import areas_of, rle_from_json
from openvis_rt.given_files import given_file
from openvis_rt.runtime.video.results import write_results

if TYPE_CHECKING:
    from openvis_rt.runtime.video.run_lengths import RLE

__all__ = ["Prediction", "predictions_from", "read_entries", "write_official_results"]

_BLOCK = 1 << 24  # characters read at a time
_LARGEST_SCORE = 1e300
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One entry of a results file.

    Attributes:
        video_id, category_id: as in the annotations.
        score: any finite number; only its order counts.
        segmentations: one for each annotated frame, None where the object is not seen.
        pixels: of each segmentation, int64 [frames].
        area: the mean over the frames that show it, in pixels.
    """

    video_id: int
    category_id: int
    score: float
    segmentations: tuple[RLE | None, ...]
    pixels: npt.NDArray[np.int64]
    area: float


def predictions_from(
    entries: Iterable[dict[str, Any]], annotations: Annotations, *, class_agnostic: bool = False
) -> Iterator[Prediction]:
    """Entries of a results file, checked; those of videos that are left out are passed over.

    Args:
        entries: as :func:`read_entries` gives them, or a pipeline.
        annotations: what they are results of.
        class_agnostic: accept any category id.

    Raises:
        InputError: an entry has boxes only, names a video or category that the annotations do not
            have, or does not fit the frames of its video.
    """
    videos = {video.id: video for video in annotations.videos}
    known = {category.id for category in annotations.categories}
    ids = None if class_agnostic else known | annotations.unused | set(annotations.merged)
    for number, entry in enumerate(entries, 1):
        try:
            found = _prediction(entry, videos, annotations.left_out, ids)
        except InputError as exc:
            raise InputError(f"entry {number} of the results: {exc}") from exc
        if found is not None:
            yield found


def _prediction(
    entry: Any, videos: dict[int, Video], left_out: frozenset[int], categories: set[int] | None
) -> Prediction | None:
    if not isinstance(entry, dict):
        raise InputError(f"an object is needed, found {str(entry)[:60]}")
    missing = [name for name in ("video_id", "category_id", "score") if name not in entry]
    if missing:
        raise InputError(f"it has no {missing[0]!r}, as entries of YTVIS / LV-VIS results have")
    if not isinstance(entry.get("segmentations"), list):
        boxes = " It has boxes, which do not suffice." if {"bboxes", "bbox"} & set(entry) else ""
        raise InputError(
            f"it has no 'segmentations'.{boxes} Give results with a mask for every frame."
        )
    number, category = whole_number(entry, "video_id"), whole_number(entry, "category_id")
    score = entry["score"]
    if number in left_out:
        return None
    if number not in videos:
        raise InputError(
            f"the annotations have no video {number!r}; their ids are such as "
            f"{', '.join(map(str, sorted(videos)[:3]))}. Give the results of this data set."
        )
    if categories is not None and category not in categories:
        raise InputError(
            f"the annotations have no category {category!r}; their ids are such as "
            f"{', '.join(map(str, sorted(categories)[:3]))}. Give the results of this data set."
        )
    if type(score) not in (int, float) or not abs(score) <= _LARGEST_SCORE:
        raise InputError(f"the score is a finite number; found {score!r:.60}")
    video = videos[number]
    if len(entry["segmentations"]) != len(video.frames):
        raise InputError(
            f"it has {len(entry['segmentations'])} segmentations, and video {number} has "
            f"{len(video.frames)} annotated frames"
        )
    masks = tuple(rle_from_json(s, video.height, video.width) for s in entry["segmentations"])
    pixels = areas_of(masks, video.height, video.width)
    return Prediction(number, category, float(score), masks, pixels, mean_area(pixels.tolist()))


def read_entries(path: Path, annotations: Annotations) -> Iterator[dict[str, Any]]:
    """The entries of a results file, in YTVIS's form and in the order of the file.

    Args:
        path: a list as YTVIS has it, or an object with ``sequences`` as BURST has it.
        annotations: what they are results of.

    Raises:
        InputError: it cannot be read, or has neither form.
    """
    try:
        with io.TextIOWrapper(given_file(path), encoding="utf-8-sig") as file:
            begin = file.read(1)
            while begin and begin in _SPACE:
                begin = file.read(1)
            if begin == "[":
                yield from _array_entries(file)
                return
            if begin != "{":
                raise InputError("it is neither a list nor an object")
            data = json.loads(begin + file.read())
        if not isinstance(data.get("sequences"), list):
            keys = ", ".join(sorted(map(str, data))[:8])
            raise InputError(
                f"it is an object with {keys}; a list of entries is needed, or BURST's 'sequences'"
            )
        yield from entries_from_burst(data, annotations)
    except OSError as exc:
        raise InputError(f"cannot read the results {path}: {exc.strerror or exc}") from exc
    except (InputError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        what = f"the field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise InputError(f"{path} is no results file: {what}") from exc


def _array_entries(file: TextIO) -> Iterator[Any]:
    """The values of a JSON array whose bracket was read.

    Raises:
        InputError: it is no JSON.
    """
    decoder, buffer, place, first = json.JSONDecoder(), "", 0, True
    while True:
        block = file.read(_BLOCK)
        buffer, place = buffer[place:] + block, 0
        while True:
            begin = _after_space(buffer, place)
            if buffer[begin : begin + 1] == "]":
                if _after_space(buffer, begin + 1) < len(buffer) or file.read().strip():
                    raise InputError("there is something after the end of the list")
                return
            if not first:
                if buffer[begin : begin + 1] not in {",", ""}:
                    raise InputError("there is no comma between two entries")
                begin += 1
            try:
                entry, end = decoder.raw_decode(buffer, _after_space(buffer, begin))
            except RecursionError as exc:
                raise InputError("an entry nests too many brackets") from exc
            except ValueError as exc:
                if not block:
                    raise InputError(f"the list is cut off or damaged: {exc}") from exc
                break  # the entry goes on in the next block
            yield entry
            place, first = end, False


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def write_official_results(
    path: Path, annotations: Annotations, entries: Iterable[dict[str, Any]]
) -> None:
    """Write a results file in the form that the data set's own evaluation takes.

    Args:
        path: to write.
        annotations: of the data set.
        entries: in YTVIS's form.

    Raises:
        OutputError: the place cannot be written.
    """
    if annotations.format == "burst":
        write_burst_results(path, annotations, entries)
    else:
        write_results(path, entries)
