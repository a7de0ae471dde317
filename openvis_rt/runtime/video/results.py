"""What the runtime reports: instances of a frame and of a video, and the files that hold them.

Categories count from 1 everywhere, as in the results files of YouTube-VIS and LV-VIS; their names
stand in ``categories.json`` beside them.

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

from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import output_errors, output_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
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
    "decode_box",
    "decode_mask",
    "empty_rle",
    "encode_masks",
    "read_frame_log",
    "write_categories",
    "write_results",
]


class RLE(TypedDict):
    """A mask as COCO compressed run lengths."""

    size: list[int]  # [H, W] in pixels
    counts: str


@dataclass(frozen=True, slots=True)
class Instance:
    """One object in one frame.

    Attributes:
        track_id: the same object has the same number in every frame.
        category_id: the place of its class in the vocabulary, from 1.
        name: of the class, as it was given.
        score: 0..1.
        box: x, y, width, height in pixels; zeros if the mask is empty.
        segmentation: its mask.
    """

    track_id: int
    category_id: int
    name: str
    score: float
    box: tuple[int, int, int, int]
    segmentation: RLE

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Its pixels, bool [H, W]; decoded anew at each call."""
        return decode_mask(self.segmentation).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class FrameResult:
    """All objects of one frame, best first.

    Attributes:
        index: of the frame, from 0.
        time: seconds since the first frame; None where the source has no clock.
        height, width: of the frame in pixels.
        instances: the objects. The arrays below have one row for each, in this order.
    """

    index: int
    time: float | None
    height: int
    width: int
    instances: tuple[Instance, ...]

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Bool [n, height, width]; decoded anew at each call."""
        out = np.zeros((len(self.instances), self.height, self.width), np.bool_)
        for row, instance in zip(out, self.instances, strict=True):
            row[:] = decode_mask(instance.segmentation)
        return out

    @property
    def boxes(self) -> npt.NDArray[np.int64]:
        """Int64 [n, 4]: x, y, width, height in pixels."""
        return np.array([i.box for i in self.instances], np.int64).reshape(-1, 4)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Float64 [n], 0..1."""
        return np.array([i.score for i in self.instances], np.float64)

    @property
    def track_ids(self) -> npt.NDArray[np.int64]:
        """Int64 [n]."""
        return np.array([i.track_id for i in self.instances], np.int64)

    @property
    def class_ids(self) -> npt.NDArray[np.int64]:
        """Int64 [n]: the classes' places in the vocabulary, from 1."""
        return np.array([i.category_id for i in self.instances], np.int64)

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations of the frame, with ``score`` and ``track_id`` beside COCO's own fields.

        Args:
            image_id: of the frame in the data set.
            first_id: of the first annotation; the others follow.
        """
        return [
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": instance.category_id,
                "bbox": list(instance.box),
                "area": int(coco.area(instance.segmentation)),
                "segmentation": instance.segmentation,
                "iscrowd": 0,
                "score": instance.score,
                "track_id": instance.track_id,
            }
            for number, instance in enumerate(self.instances)
        ]

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``, with the names in ``data["class_name"]``.

        Raises:
            DependencyError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as exc:
            raise DependencyError("supervision", "supervision") from exc
        corners = self.boxes.astype(np.float32)
        corners[:, 2:] += corners[:, :2]  # right and bottom, excluded
        return Detections(
            xyxy=corners,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.class_ids,
            tracker_id=self.track_ids,
            data={"class_name": np.array([i.name for i in self.instances], dtype=np.str_)},
        )


@dataclass(frozen=True, slots=True)
class VideoInstance:
    """One object under one class through a whole video.

    Attributes:
        track_id, category_id, name, score: as those of :class:`Instance`; the score is the video's.
        segmentations: one for each frame, empty where the object is not seen.
    """

    track_id: int
    category_id: int
    name: str
    score: float
    segmentations: tuple[RLE, ...]

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Its pixels in every frame, bool [frames, H, W]; decoded anew at each call."""
        return np.stack([decode_mask(rle) for rle in self.segmentations]).astype(np.bool_)


@dataclass(frozen=True, slots=True)
class VideoResult:
    """All objects of a video, best first; a track may stand under several classes.

    Attributes:
        height, width: of its frames in pixels.
        frame_count: how many.
        instances: the objects.
    """

    height: int
    width: int
    frame_count: int
    instances: tuple[VideoInstance, ...]

    def frame(
        self, index: int, time: float | None = None, *, threshold: float = 0.0, limit: int = 1000
    ) -> FrameResult:
        """One frame: each track that it shows once, under its best class.

        Args:
            index: of the frame, from 0.
            time: of the frame, for the result.
            threshold: the lowest score that is shown.
            limit: the most instances.
        """
        instances: dict[int, Instance] = {}
        for found in self.instances:
            rle = found.segmentations[index]
            known = instances.get(found.track_id)
            if found.score < threshold or (known and known.score >= found.score):
                continue
            box = box_of(rle)
            if box[2] > 0:
                instances[found.track_id] = Instance(
                    found.track_id, found.category_id, found.name, found.score, box, rle
                )
        best = sorted(instances.values(), key=lambda i: -i.score)[:limit]
        return FrameResult(index, time, self.height, self.width, tuple(best))

    def to_results(self, video_id: int) -> list[dict[str, Any]]:
        """Entries of a YouTube-VIS / LV-VIS results file."""
        return [
            {
                "video_id": video_id,
                "score": instance.score,
                "category_id": instance.category_id,
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


def decode_box(rle: RLE, box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """The part of :func:`decode_mask` within a box, without making the rest.

    Args:
        rle: of the whole frame.
        box: x, y, width, height in pixels, within the frame.

    Returns:
        uint8 [height, width] of 0 and 1, C-contiguous.
    """
    (left, top, width, height), rows = box, rle["size"][0]
    ends = _counts(rle["counts"]).cumsum().clip(left * rows, (left + width) * rows)
    values = (np.arange(len(ends)) % 2).astype(np.uint8)
    columns = np.repeat(values, np.diff(ends, prepend=left * rows)).reshape(width, rows)
    return np.ascontiguousarray(columns[:, top : top + height].T)


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
    "box", "segmentation"}]}``.

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


def write_categories(path: Path, names: Sequence[str]) -> None:
    """Write what category ids mean: a JSON array of ``{"id", "name"}``, ids from 1.

    Raises:
        OutputError: the place cannot be written.
    """
    entries = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    with output_file(path) as partial, _open_text(partial) as file:
        file.write(json.dumps(entries, ensure_ascii=False, indent=1) + "\n")


def _open_text(path: Path) -> TextIO:
    # a name from the command line may hold bytes that are no text: \\udc80 is valid JSON, too
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def read_frame_log(path: Path) -> list[FrameResult]:
    """Inverse of :class:`FrameLog`: the results of every frame in a file.

    Raises:
        InputError: a line is not what :class:`FrameLog` writes; the message says which.
    """
    results = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            height, width = entry["size"]
            instances = tuple(_instance_of(found) for found in entry["instances"])
            results.append(FrameResult(entry["frame"], entry["time"], height, width, instances))
        except (ValueError, KeyError, TypeError) as exc:
            raise InputError(f"{path}, line {number} is no frame's result: {exc!r}") from exc
    return results


def _instance_of(entry: dict[str, Any]) -> Instance:
    x, y, width, height = entry["box"]
    size, counts = entry["segmentation"]["size"], entry["segmentation"]["counts"]
    return Instance(
        int(entry["id"]),
        int(entry["category_id"]),
        str(entry["name"]),
        float(entry["score"]),
        (x, y, width, height),
        RLE(size=size, counts=counts),
    )


def _instance_entry(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.track_id,
        "name": instance.name,
        "category_id": instance.category_id,
        "score": instance.score,
        "box": list(instance.box),
        "segmentation": instance.segmentation,
    }
