"""COCO's annotation file, with a track id in each annotation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openvis_rt.convert.finished import FinishedRun
from openvis_rt.files import output_file
from openvis_rt.runtime.video.results import FrameResult

__all__ = ["write_coco"]


def write_coco(run: FinishedRun, path: Path, progress: Callable[[int], None]) -> int:
    """Write one JSON object of ``images``, ``categories`` and ``annotations``.

    An image is a frame: its id counts from 1, ``file_name`` is the one that
    ``ffmpeg -i VIDEO %06d.jpg`` gives it, ``frame_index`` counts from 0 and ``time`` is in seconds.
    An annotation has ``score`` and ``track_id`` beside COCO's own fields. Annotations are written
    as they are read; memory does not grow with the video.

    Args:
        run: the finished run.
        path: of the file.
        progress: told the frames that are done.

    Returns:
        how many annotations there are.

    Raises:
        InputError: the results are damaged.
        OutputError: the file cannot be written.
    """
    count = 0
    with output_file(path) as partial, partial.open("w", encoding="ascii") as file:
        categories = [{"id": number, "name": name} for number, name in run.categories.items()]
        file.write('{"info": {"description": "written by openvis convert"},\n"licenses": [],\n')
        file.write(f'"categories": {json.dumps(categories)},\n"images": [')
        for entry in _separated(_image(place, f) for place, f in enumerate(run.frames(), 1)):
            file.write(entry)
        file.write('\n],\n"annotations": [')
        first = True
        for place, frame in enumerate(run.frames(), 1):
            for annotation in frame.to_coco(place, count + 1):
                file.write(("\n" if first else ",\n") + json.dumps(annotation))
                first, count = False, count + 1
            progress(place)
        file.write("\n]}\n")
    return count


def _separated(entries: Iterator[dict[str, Any]]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        yield (",\n" if number else "\n") + json.dumps(entry)


def _image(place: int, frame: FrameResult) -> dict[str, Any]:
    return {
        "id": place,
        "file_name": f"{place:06d}.jpg",
        "height": frame.height,
        "width": frame.width,
        "frame_index": frame.index,
        "time": frame.time,
    }
