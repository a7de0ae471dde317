"""What the runtime reports: instances of a frame and of a video, and the files that hold them.

Masks travel as COCO compressed run lengths, ``{"size": [H, W], "counts": str}``: column-major run
lengths that begin with a run of zeros, in the text form of ``pycocotools``.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from openvis_rt.files import output_errors, output_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "RLE",
    "FrameLog",
    "FrameResult",
    "Instance",
    "VideoInstance",
    "VideoResult",
    "box_of",
    "decode_mask",
    "empty_rle",
    "encode_masks",
    "write_results",
]


class RLE(TypedDict):
    """A mask as COCO compressed run lengths."""

    size: list[int]  # [H, W] in pixels
    counts: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One object in one frame."""

    track_id: int  # the same object has the same number in every frame
    category_id: int  # index into the vocabulary, from 0
    name: str
    score: float  # 0..1
    box: tuple[int, int, int, int]  # x, y, width, height in pixels; zeros if the mask is empty
    segmentation: RLE


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All objects of one frame."""

    index: int  # from 0
    time: float | None  # seconds since the first frame
    height: int
    width: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class VideoInstance:
    """One object through a whole video."""

    track_id: int
    category_id: int  # index into the vocabulary, from 0
    name: str
    score: float  # 0..1
    segmentations: tuple[RLE, ...]  # one for each frame, empty where the object is not seen


@dataclass(frozen=True, slots=True)
class VideoResult:
    """All objects of a video."""

    height: int
    width: int
    frame_count: int
    instances: tuple[VideoInstance, ...]

    def to_results(self, video_id: int) -> list[dict[str, Any]]:
        """Entries of a YouTube-VIS / LV-VIS results file; categories count from 1 there."""
        return [
            {
                "video_id": video_id,
                "score": instance.score,
                "category_id": instance.category_id + 1,
                "segmentations": list(instance.segmentations),
            }
            for instance in self.instances
        ]


def encode_masks(masks: npt.NDArray[np.uint8]) -> list[RLE]:
    """Run lengths of ``masks`` (uint8 [n, H, W] of 0 and 1), equal to ``pycocotools.mask.encode``.

    ``pycocotools`` wants column-major arrays, and turning whole frames costs most of its time. Here
    only the columns that an object covers are turned, and numpy finds the ends of their runs.
    """
    return [_encode(mask) for mask in masks]


def decode_mask(rle: RLE) -> npt.NDArray[np.uint8]:
    """The mask as uint8 [H, W] of 0 and 1, C-contiguous; equal to ``pycocotools.mask.decode``.

    That function warns on each call under numpy 2, and takes twice the time.
    """
    height, width = rle["size"]
    counts = _counts(rle["counts"])  # of zeros, ones, zeros, ...
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    columns = np.repeat(values, counts).reshape(width, height)
    left = int(counts[0]) // height
    right = width - (int(counts[-1]) // height if len(counts) % 2 else 0)
    mask = np.zeros((height, width), np.uint8)
    mask[:, left:right] = columns[left:right].T  # turning the empty columns, too, takes longer
    return mask


def empty_rle(height: int, width: int) -> RLE:
    """Run lengths of a mask without a pixel."""
    return _compress([height * width], height, width)


def box_of(rle: RLE) -> tuple[int, int, int, int]:
    """The tight box x, y, width, height of a mask in pixels; zeros if it is empty."""
    x, y, width, height = (int(value) for value in coco.toBbox(rle))
    return x, y, width, height


def _encode(mask: npt.NDArray[np.uint8]) -> RLE:
    height, width = mask.shape
    columns = np.flatnonzero(np.bitwise_or.reduce(mask, axis=0))
    if columns.size == 0:
        return empty_rle(height, width)
    left, right = int(columns[0]), int(columns[-1]) + 1
    # a zero on either side makes each run have a beginning and an end
    pixels = np.zeros((right - left) * height + 2, np.bool_)
    pixels[1:-1].reshape(right - left, height)[:] = mask[:, left:right].T
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + left * height
    ends = edges if edges[-1] == height * width else np.append(edges, height * width)
    return _compress(np.diff(ends, prepend=0).tolist(), height, width)


def _counts(text: str) -> npt.NDArray[np.int64]:
    """The run lengths in COCO's text: ``rleFrString`` of cocoapi's ``common/maskApi.c``.

    Each letter less 48 holds five bits of a number, low ones first, and the bit 32 if more follow;
    the bit 16 of a number's last letter is its sign. From the fourth number on, a number is the
    difference to the one two before.
    """
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = (letters & 32) == 0
    first = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    place = np.arange(len(letters)) - np.repeat(first, np.diff(np.append(first, len(letters))))
    numbers = np.add.reduceat((letters & 31) << 5 * place, first)
    negative = (letters[last] & 16) != 0
    numbers[negative] -= 32 << 5 * place[last][negative]
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _compress(counts: list[int], height: int, width: int) -> RLE:
    [rle] = coco.frPyObjects([{"size": [height, width], "counts": counts}], height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


class FrameLog:
    """A file of JSON lines, one line for each frame, UTF-8.

    ``{"frame": 0, "time": 0.0, "size": [H, W], "instances": [{"id", "name", "category_id", "score",
    "box", "segmentation"}]}`` where ``category_id`` counts from 1, as in a results file.

    Each line leaves the process as it is written. The file takes its name when the ``with`` block
    ends well; after an error nothing stands under that name that was not there before.

    Raises:
        OutputError: the place cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._file: TextIO | None = None

    def __enter__(self) -> FrameLog:
        with ExitStack() as stack:
            partial = stack.enter_context(output_file(self.path))
            self._file = stack.enter_context(_open_text(partial))
            self._stack = stack.pop_all()
        return self

    def write(self, result: FrameResult) -> None:
        """Append the line of one frame."""
        if self._file is None:
            raise RuntimeError("FrameLog.write outside of its with block")
        line = {
            "frame": result.index,
            "time": result.time,
            "size": [result.height, result.width],
            "instances": [_instance_entry(instance) for instance in result.instances],
        }
        with output_errors(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file = None
        self._stack.__exit__(kind, error, trace)


def write_results(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a results file: a JSON array of ``entries``, one on each line, taken one at a time.

    Raises:
        OutputError: the place cannot be written.
    """
    with output_file(path) as partial, _open_text(partial) as file:
        file.write("[")
        for index, entry in enumerate(entries):
            file.write((",\n" if index else "\n") + json.dumps(entry, ensure_ascii=False))
        file.write("\n]\n")


def _open_text(path: Path) -> TextIO:
    # a name from the command line may hold bytes that are no text: \\udc80 is valid JSON, too
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def _instance_entry(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.track_id,
        "name": instance.name,
        "category_id": instance.category_id + 1,
        "score": instance.score,
        "box": list(instance.box),
        "segmentation": instance.segmentation,
    }
