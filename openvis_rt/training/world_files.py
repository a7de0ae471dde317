"""Writing videos of the generated world as a data set in YTVIS's form.

    FOLDER/annotations.json     videos, categories, annotations
    FOLDER/JPEGImages/          NAME/00000.jpg, ...
    FOLDER/split.json           {"base": [ids], "novel": [ids]}, for `openvis eval --split`

Category ids are places in ``CATEGORIES``, from 1. All categories are listed, whichever the videos
show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openvis_rt.errors import InputError
from openvis_rt.files import output_directory
from openvis_rt.runtime.video.run_lengths import box_of, encode_masks
from openvis_rt.training.world_categories import BASE, CATEGORIES, NOVEL

if TYPE_CHECKING:
    from openvis_rt.training.world import Split, WorldVideo

__all__ = ["ANNOTATIONS", "IMAGES", "SPLIT", "track_entries", "write_dataset"]

ANNOTATIONS, IMAGES, SPLIT = "annotations.json", "JPEGImages", "split.json"
_QUALITY = 95  # of JPEG


def write_dataset(
    folder: Path,
    split: Split,
    videos: Iterable[WorldVideo],
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write videos as a data set that ``openvis eval`` reads as it stands.

    Args:
        folder: to make; it takes its name when everything is written.
        split: noted in the annotation file.
        videos: are taken one at a time; their ids count from 1.
        overwrite: replace a folder that an earlier call made.
        progress: told after each video how many are written.

    Raises:
        InputError: there is no video.
        OutputError: the folder exists, or cannot be written.
    """
    data: dict[str, Any] = {
        "info": {"description": "generated world", "split": split},
        "videos": [],
        "categories": [{"id": i, "name": c.phrase} for i, c in enumerate(CATEGORIES, 1)],
        "annotations": [],
    }
    with output_directory(folder, overwrite=overwrite, ours=_is_ours) as partial:
        for number, video in enumerate(videos, 1):
            data["videos"].append(_written_video(video, number, partial / IMAGES))
            first = len(data["annotations"]) + 1
            ids = [int(index) + 1 for index in video.categories]
            data["annotations"] += track_entries(video, number, ids, first)
            progress(number)
        if not data["videos"]:
            raise InputError("a data set has at least one video; none was given")
        groups = {"base": [i + 1 for i in BASE], "novel": [i + 1 for i in NOVEL]}
        for name, content in ((ANNOTATIONS, data), (SPLIT, groups)):
            (partial / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


def _is_ours(folder: Path) -> bool:
    return {p.name for p in folder.iterdir()} == {ANNOTATIONS, IMAGES, SPLIT}


def _written_video(video: WorldVideo, number: int, folder: Path) -> dict[str, Any]:
    """Write the frames; the video's entry in ``videos``."""
    count, height, width, _ = video.images.shape
    names = [f"{video.name}/{frame:05}.jpg" for frame in range(count)]
    (folder / video.name).mkdir(parents=True)
    for name, image in zip(names, video.images, strict=True):
        Image.fromarray(image).save(folder / name, quality=_QUALITY)
    sizes = {"height": height, "width": width, "length": count}
    return {"id": number, **sizes, "file_names": names}


def track_entries(
    video: WorldVideo, video_id: int, category_ids: Sequence[int | None], first: int = 1
) -> list[dict[str, Any]]:
    """The annotations of a video in YTVIS's form.

    Args:
        video: what is annotated.
        video_id: of the entries.
        category_ids: of each object; None leaves it out.
        first: the id of the first entry; the others follow.

    Returns:
        an entry for each track; its masks are null where nothing of it is seen.
    """
    entries: list[dict[str, Any]] = []
    height, width = video.masks.shape[2:]
    for masks, category in zip(video.masks, category_ids, strict=True):
        if category is None:
            continue
        areas = [int(area) for area in np.count_nonzero(masks, (1, 2))]
        runs = encode_masks(masks.astype(np.uint8))
        seen = [rle if area else None for rle, area in zip(runs, areas, strict=True)]
        entries.append(
            {
                "id": first + len(entries),
                "video_id": video_id,
                "category_id": category,
                "iscrowd": 0,
                "height": height,
                "width": width,
                "length": len(masks),
                "segmentations": seen,
                "bboxes": [None if rle is None else list(box_of(rle)) for rle in seen],
                "areas": [area or None for area in areas],
            }
        )
    return entries
