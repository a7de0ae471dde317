"""The two forms of the MOTS challenge (Voigtlaender et al., CVPR 2019): PNG files and text.

A pixel of a PNG file, uint16, is class * 1000 + number of the instance, and 0 where there is none.
A line of the text is ``frame id class height width counts`` with the same ids. Frames count from 1
in both. No two masks of a frame may overlap: a pixel goes to the object with the highest score.

MOTS knows the classes car (1) and pedestrian (2); 10 stands for regions to be ignored. Other
classes take the free numbers from 3 on, in the order of their first frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.convert.finished import FinishedRun, Track
from openvis_rt.errors import InputError
from openvis_rt.files import output_directory
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.video.run_lengths import decode_box, encode_masks

__all__ = ["INSTANCES", "write_mots"]

INSTANCES = 1000
"""A class's number is multiplied by this."""
_KNOWN = {"car": 1, "pedestrian": 2, "person": 2}
_FREE = [number for number in range(3, 65) if number != 10]  # 65 535 is the highest pixel

Picture = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class _Numbers:
    """Of each track its id in MOTS, and of each class its number."""

    ids: dict[int, int]
    classes: dict[str, int]


def write_mots(
    run: FinishedRun, folder: Path, *, overwrite: bool, progress: Callable[[int], None]
) -> dict[str, int]:
    """Write ``instances/000001.png``, ..., ``instances.txt`` and ``classes.json``.

    Args:
        run: the finished run.
        folder: takes them; made when all is whole.
        overwrite: replace a folder that an earlier call made.
        progress: told the frames that are done.

    Returns:
        the number of every class, as ``classes.json`` has it.

    Raises:
        InputError: there are more classes, or more objects of a class, than MOTS can number; or
            the results are damaged.
        OutputError: the folder cannot be written.
    """
    numbers = _numbered(run.summary().tracks)
    with output_directory(folder, overwrite=overwrite, ours=_is_ours) as partial:
        (partial / "instances").mkdir()
        with (partial / "instances.txt").open("w", encoding="ascii") as file:
            for place, frame in enumerate(run.frames(), 1):
                picture = _painted(frame, numbers)
                file.writelines(f"{place} {line}\n" for line in _lines(picture, frame, numbers))
                Image.fromarray(picture).save(partial / "instances" / f"{place:06d}.png")
                progress(place)
        text = json.dumps(numbers.classes, indent=1)
        (partial / "classes.json").write_text(text + "\n", encoding="ascii")
    return numbers.classes


def _numbered(tracks: list[Track]) -> _Numbers:
    classes: dict[str, int] = {}
    free = iter(_FREE)
    counts: dict[int, int] = defaultdict(int)
    ids: dict[int, int] = {}
    for track in tracks:
        number = _KNOWN.get(track.name.lower()) or classes.get(track.name) or next(free, None)
        if number is None:
            raise InputError(
                f"the tracks have more than {len(_FREE)} classes besides car and pedestrian, and "
                "the PNG files of MOTS number no more. Use --to coco, or fewer names."
            )
        classes[track.name] = number
        counts[number] += 1
        if counts[number] == INSTANCES:
            raise InputError(
                f"there are {INSTANCES} tracks or more of {track.name!r}, and MOTS numbers at most "
                f"{INSTANCES - 1} of a class. Use --to coco, or a shorter video."
            )
        ids[track.track_id] = number * INSTANCES + counts[number]
    return _Numbers(ids, classes)


def _painted(frame: FrameResult, numbers: _Numbers) -> Picture:
    """Uint16 [H, W]: the id of the best object of each pixel."""
    picture = np.zeros((frame.height, frame.width), np.uint16)
    for found in sorted(frame.instances, key=lambda instance: instance.score):
        x, y, width, height = found.box
        if width and height:
            part = picture[y : y + height, x : x + width]
            part[decode_box(found.segmentation, found.box) != 0] = numbers.ids[found.track_id]
    return picture


def _lines(picture: Picture, frame: FrameResult, numbers: _Numbers) -> Iterator[str]:
    """The text of one picture, by its ids, without the frame's number."""
    for found in sorted(frame.instances, key=lambda instance: numbers.ids[instance.track_id]):
        number = numbers.ids[found.track_id]
        x, y, width, height = found.box
        part = np.s_[y : y + height, x : x + width]
        if (seen := picture[part] == number).any():
            mask = np.zeros((1, *picture.shape), np.uint8)
            mask[0][part] = seen
            [rle] = encode_masks(mask)
            size = f"{frame.height} {frame.width}"
            yield f"{number} {number // INSTANCES} {size} {rle['counts']}"


def _is_ours(folder: Path) -> bool:
    names = {file.name for file in folder.iterdir()}
    return names <= {"instances", "instances.txt", "classes.json"}
