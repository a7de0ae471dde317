"""BURST's files: annotations, and results in the same form.

A sequence has ``annotated_image_paths``, and of each of these frames an object
``{track id: {"rle": text}}``; ``track_category_ids`` says what each track is. Not every class is
annotated in every video: ``neg_category_ids`` lists classes that a video does not show, and
``not_exhaustive_category_ids`` those of which more may be seen than is annotated. As in TrackEval's
``burst_base.py``, results of other classes than the annotated and the negative ones are left out,
and so are the classes that TAO calls distractors; those that TAO merges are taken together.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotations import Annotations, Category, Track, Video
from openvis_rt.evaluation.fields import categories_from, frame_side, mean_area, whole_number
from openvis_rt.evaluation.masks import areas_of, rle_from_json
from openvis_rt.evaluation.splits import BURST_COMMON, BURST_DISTRACTORS, BURST_MERGED
from openvis_rt.files import output_file

__all__ = ["annotations_from_burst", "entries_from_burst", "write_burst_results"]

_FRAME_LIMIT = 300  # detections of a frame that the official evaluation takes, best first


def annotations_from_burst(data: dict[str, Any]) -> Annotations:
    """BURST's annotations.

    Raises:
        InputError, KeyError, TypeError, ValueError: they are not of this format.
    """
    videos: list[Video] = []
    tracks: list[Track] = []
    for sequence in data["sequences"]:
        video = _video(sequence)
        videos.append(video)
        try:
            tracks += _tracks(sequence, video)
        except InputError as exc:
            raise InputError(f"sequence {video.name}: {exc}") from exc
    categories = tuple(
        category
        for category in categories_from(data["categories"])
        if category.id not in {*BURST_DISTRACTORS, *BURST_MERGED}
    )
    return Annotations(
        format="burst",
        videos=tuple(videos),
        categories=categories,
        tracks=tuple(tracks),
        splits=_common_and_uncommon(data["categories"], categories),
        split=str(data.get("split", "")),
        merged=BURST_MERGED,
        unused=BURST_DISTRACTORS,
    )


def _common_and_uncommon(
    entries: list[dict[str, Any]], categories: tuple[Category, ...]
) -> dict[str, frozenset[int]]:
    """By the file's own ``split`` field of each category, else by TAO's ids."""
    named = {entry["id"]: entry.get("split") for entry in entries}
    if set(named.values()) <= {"common", "uncommon"}:
        common = {number for number, split in named.items() if split == "common"}
    else:
        common = set(BURST_COMMON)
    ids = {category.id for category in categories}
    return {"common": frozenset(ids & common), "uncommon": frozenset(ids - common)}


def _video(sequence: dict[str, Any]) -> Video:
    name = f"{sequence['dataset']}/{sequence['seq_name']}"
    return Video(
        whole_number(sequence, "id"),
        name,
        frame_side(sequence, "height"),
        frame_side(sequence, "width"),
        tuple(f"{name}/{path}" for path in sequence["annotated_image_paths"]),
        negative=frozenset(sequence.get("neg_category_ids", ())),
        not_exhaustive=frozenset(sequence.get("not_exhaustive_category_ids", ())),
    )


def _tracks(sequence: dict[str, Any], video: Video) -> Iterator[Track]:
    frames = sequence.get("segmentations") or []  # a test set has none
    if frames and len(frames) != len(video.frames):
        raise InputError(
            f"it has segmentations of {len(frames)} frames and lists {len(video.frames)}"
        )
    for number in dict.fromkeys(number for frame in frames for number in frame):
        category = sequence["track_category_ids"][number]
        if int(category) in BURST_DISTRACTORS:
            continue
        masks = tuple(_mask(frame.get(number), video) for frame in frames)
        pixels = areas_of(masks, video.height, video.width)
        yield Track(
            video.id,
            BURST_MERGED.get(int(category), int(category)),
            crowd=False,
            segmentations=masks,
            pixels=pixels,
            area=mean_area(pixels.tolist()),
        )


def _mask(entry: dict[str, Any] | None, video: Video) -> Any:
    if entry is None:
        return None
    rle = entry.get("rle")
    if rle is None:
        raise InputError("a segmentation has no 'rle'. Files with boxes only cannot be used")
    size = [video.height, video.width]
    return rle_from_json({"size": size, "counts": rle}, video.height, video.width)


def entries_from_burst(data: dict[str, Any], annotations: Annotations) -> Iterator[dict[str, Any]]:
    """Results in BURST's form as entries of YTVIS's form.

    A track's score is the mean over its frames (1 where a frame has none), as in TrackEval; of each
    frame the best 300 are taken. Frames that are not annotated are passed over.

    Raises:
        InputError, KeyError, TypeError, ValueError: they are not of this form, or of other videos.
    """
    by_name = {video.name: video for video in annotations.videos}
    left_out = {*annotations.left_out}
    for sequence in data["sequences"]:
        name = f"{sequence['dataset']}/{sequence['seq_name']}"
        video = by_name.get(name)
        if video is None:
            if sequence.get("id") in left_out:
                continue
            raise InputError(
                f"the results have the sequence {name}, which the annotations do not have. Give "
                "the results of this data set."
            )
        yield from _entries(sequence, video)


def _entries(sequence: dict[str, Any], video: Video) -> Iterator[dict[str, Any]]:
    place = {frame: index for index, frame in enumerate(video.frames)}
    masks: dict[str, list[Any]] = {}  # of each track, in the order of their first frames
    categories: dict[str, int] = {}
    scores: dict[str, list[float]] = defaultdict(list)
    paths = sequence["annotated_image_paths"]
    for path, frame in zip(paths, sequence["segmentations"], strict=True):
        index = place.get(f"{video.name}/{path}")
        if index is None:
            continue
        found = list(frame.items())
        if len(found) > _FRAME_LIMIT:
            found.sort(key=lambda item: -float(item[1].get("score", 1.0)))
        for number, entry in found[:_FRAME_LIMIT]:
            if number not in masks:
                category = entry.get("category_id", sequence["track_category_ids"].get(number))
                masks[number], categories[number] = [None] * len(video.frames), int(category)
            masks[number][index] = _mask(entry, video)
            scores[number].append(float(entry.get("score", 1.0)))
    for number, segmentations in masks.items():
        yield {
            "video_id": video.id,
            "category_id": categories[number],
            "score": float(np.mean(scores[number])),
            "segmentations": segmentations,
        }


def write_burst_results(
    path: Path, annotations: Annotations, entries: Iterable[dict[str, Any]]
) -> None:
    """Write entries of YTVIS's form as BURST wants results, one sequence on each line.

    A track under several classes becomes several tracks, since a track has one class there. Track
    ids count through the whole file.

    Raises:
        OutputError: the place cannot be written.
    """
    by_video: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_video[entry["video_id"]].append(entry)
    number = 0
    with output_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"split": {json.dumps(annotations.split)}, "sequences": [')
        for index, video in enumerate(annotations.videos):
            dataset, _, name = video.name.partition("/")
            frames: list[dict[str, Any]] = [{} for _ in video.frames]
            classes = {}
            for entry in by_video[video.id]:
                number += 1
                classes[str(number)] = entry["category_id"]
                for frame, rle in zip(frames, entry["segmentations"], strict=True):
                    if rle is not None:
                        frame[str(number)] = {
                            "rle": rle["counts"],
                            "score": entry["score"],
                            "category_id": entry["category_id"],
                            "is_gt": False,
                        }
            sequence = {
                "id": video.id,
                "dataset": dataset,
                "seq_name": name,
                "height": video.height,
                "width": video.width,
                "annotated_image_paths": [f.removeprefix(f"{video.name}/") for f in video.frames],
                "track_category_ids": classes,
                "segmentations": frames,
            }
            file.write((",\n" if index else "\n") + json.dumps(sequence))
        file.write("\n]}\n")
