"""Boxes as text: a table of everything, and the files of the MOT challenge."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from pycocotools import mask as coco

from openvis_rt.convert.finished import FinishedRun
from openvis_rt.files import output_file
from openvis_rt.printable import printable

__all__ = ["COLUMNS", "write_csv", "write_mot"]

COLUMNS = (
    *("frame", "time", "track_id", "category_id", "name", "score"),
    *("x", "y", "width", "height", "area"),
)
"""Of the table: frames from 0, seconds, pixels; the area is the mask's."""


def write_csv(run: FinishedRun, path: Path, progress: Callable[[int], None]) -> int:
    """Write a row for each object of each frame, as RFC 4180 has it, in UTF-8.

    Letters of a name that a terminal would obey are escaped.

    Args:
        run: the finished run.
        path: of the file.
        progress: told the frames that are done.

    Returns:
        how many rows there are below the head.

    Raises:
        InputError: the results are damaged.
        OutputError: the file cannot be written.
    """
    count = 0
    with (
        output_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for place, frame in enumerate(run.frames(), 1):
            time = "" if frame.time is None else f"{frame.time:.6f}"
            for found in frame.instances:
                name = printable(found.name)  # a table is looked at in a terminal, too
                facts = (found.track_id, found.category_id, name, f"{found.score:.6f}")
                area = int(coco.area(found.segmentation))
                table.writerow((frame.index, time, *facts, *found.box, area))
                count += 1
            progress(place)
    return count


def write_mot(run: FinishedRun, path: Path, progress: Callable[[int], None]) -> int:
    """Write a results file of the MOT challenge: a line for each box, classes left out.

    ``frame, id, left, top, width, height, score, -1, -1, -1``. Frames, ids, left and top count
    from 1 there, so an id is our track id plus 1.

    Args:
        run: the finished run.
        path: of the file.
        progress: told the frames that are done.

    Returns:
        how many boxes there are.

    Raises:
        InputError: the results are damaged.
        OutputError: the file cannot be written.
    """
    count = 0
    with output_file(path) as partial, partial.open("w", encoding="ascii") as file:
        for place, frame in enumerate(run.frames(), 1):
            for found in frame.instances:
                left, top, width, height = found.box
                file.write(
                    f"{place},{found.track_id + 1},{left + 1},{top + 1},{width},{height},"
                    f"{found.score:.6f},-1,-1,-1\n"
                )
                count += 1
            progress(place)
    return count
