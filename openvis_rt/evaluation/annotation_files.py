"""Annotation files to :class:`~openvis_rt.evaluation.annotations.Annotations`.

YTVIS 2019 / 2021, OVIS, LV-VIS, UVO    {"videos", "categories", "annotations"}
BURST                                   {"sequences", "categories", "split"}: burst.py
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotations import Annotations, Format, Track, Video
from openvis_rt.evaluation.burst import annotations_from_burst
from openvis_rt.evaluation.fields import (
    categories_from,
    frame_side,
    mean_area,
    read_json,
    whole_number,
)
from openvis_rt.evaluation.masks import areas_of, rle_from_json

__all__ = ["read_annotations"]


def read_annotations(path: Path, format: Format | None = None) -> Annotations:  # noqa: A002
    """Read an annotation file.

    Args:
        path: a JSON file of YTVIS 2019 or 2021, OVIS, LV-VIS, UVO or BURST.
        format: of the file; None to see it from what is in the file. YTVIS, OVIS and LV-VIS have
            one format; UVO's is the same, but for being evaluated without classes.

    Raises:
        InputError: it is missing, damaged, or of another kind of data set.
    """
    data = read_json(path, "annotation file")
    found = format or _format_of(data, path)
    try:
        if found == "burst":
            return annotations_from_burst(data)
        return annotations_from_ytvis(data, found)
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as exc:
        what = f"the field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
        raise InputError(
            f"{path} is no annotation file of the format {found}: {what}. Give the file as its "
            "data set has it."
        ) from exc


def _format_of(data: Any, path: Path) -> Format:
    """The format by what the file has.

    Raises:
        InputError: it is none of ours; the message says which other one it seems to be.
    """
    needed = "YTVIS, OVIS, LV-VIS, UVO or BURST annotations are needed"
    if isinstance(data, list):
        raise InputError(f"{path} is a list, such as a results file is; {needed}")
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {type(data).__name__}; {needed}")
    if "sequences" in data:
        return "burst"
    if "videos" not in data and "images" in data:
        raise InputError(f"{path} annotates single images, as COCO and LVIS do; {needed}")
    if "images" in data and "tracks" in data:
        raise InputError(f"{path} has the format of TAO, which has boxes and no masks; {needed}")
    if not isinstance(data.get("videos"), list) or not isinstance(data.get("categories"), list):
        keys = ", ".join(sorted(map(str, data))[:8]) or "nothing"
        raise InputError(f"{path} has {keys}, but not both 'videos' and 'categories'; {needed}")
    first = data["videos"][0] if data["videos"] else {}
    is_uvo = isinstance(first, dict) and "ytid" in first
    return "uvo" if is_uvo or len(data["categories"]) == 1 else "ytvis"


def annotations_from_ytvis(data: dict[str, Any], found: Format) -> Annotations:
    """YTVIS's format; ``annotations`` may be missing or null, as in test sets.

    Raises:
        InputError, KeyError, TypeError, ValueError: it is not of this format.
    """
    videos = tuple(_video(entry) for entry in data["videos"])
    by_id = {video.id: video for video in videos}
    tracks = []
    for number, entry in enumerate(data.get("annotations") or ()):
        video = by_id.get(entry["video_id"])
        if video is None:
            raise InputError(
                f"annotation {entry.get('id', number)} is of video {entry['video_id']}, which "
                "'videos' does not list. Give the file as its data set has it."
            )
        try:
            tracks.append(_track(entry, video))
        except InputError as exc:
            raise InputError(
                f"annotation {entry.get('id', number)} of video {video.name}: {exc}"
            ) from exc
    return Annotations(
        format=found,
        videos=videos,
        categories=categories_from(data["categories"]),
        tracks=tuple(tracks),
        class_agnostic=found == "uvo",
        splits=splits_from(data["categories"]),
    )


def _video(entry: dict[str, Any]) -> Video:
    frames = entry["file_names"]
    if not isinstance(frames, list) or not frames or not all(isinstance(f, str) for f in frames):
        raise InputError(f"video {entry['id']} has no list of 'file_names'")
    name = entry.get("ytid") or entry.get("name") or Path(frames[0]).parent.as_posix()
    return Video(
        whole_number(entry, "id"),
        str(name),
        frame_side(entry, "height"),
        frame_side(entry, "width"),
        tuple(frames),
    )


def _track(entry: dict[str, Any], video: Video) -> Track:
    if not isinstance(entry.get("segmentations"), list):
        raise InputError(
            "it has no 'segmentations'. Files with boxes only cannot be used: masks are needed."
        )
    if len(entry["segmentations"]) != len(video.frames):
        raise InputError(
            f"it has {len(entry['segmentations'])} segmentations, and the video has "
            f"{len(video.frames)} frames"
        )
    masks = tuple(rle_from_json(s, video.height, video.width) for s in entry["segmentations"])
    pixels = areas_of(masks, video.height, video.width)
    given = entry.get("areas")
    return Track(
        video.id,
        whole_number(entry, "category_id"),
        bool(entry.get("iscrowd", 0)),
        masks,
        pixels,
        mean_area(given if isinstance(given, list) else pixels.tolist()),
    )


def splits_from(entries: list[dict[str, Any]]) -> dict[str, frozenset[int]]:
    """Groups that the categories themselves name, empty where they name none.

    These fields are read: ``partition``, ``split`` or ``group`` as the group's name, such as
    ``base`` or ``novel``, and ``frequency`` as LVIS has it: f and c are base, r is novel.
    """
    groups: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        for name in ("partition", "split", "group"):
            if isinstance(entry.get(name), str):
                groups[entry[name]].add(entry["id"])
                break
        else:
            if entry.get("frequency") in ("f", "c", "r"):
                groups["novel" if entry["frequency"] == "r" else "base"].add(entry["id"])
    return {name: frozenset(ids) for name, ids in groups.items()}
