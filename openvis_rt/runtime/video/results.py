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
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import output_errors, output_file
from openvis_rt.geometry import LARGEST_FRAME_SIDE, LARGEST_PICTURE
from openvis_rt.given_files import given_file
from openvis_rt.printable import printable_json
from openvis_rt.runtime.video.run_lengths import RLE, box_of, check_runs, decode_mask
from openvis_rt.runtime.video.timeline import LATEST_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "RLE",
    "FrameLog",
    "FrameResult",
    "Instance",
    "VideoInstance",
    "VideoResult",
    "frames_of_log",
    "line_of",
    "read_frame_log",
    "result_from_line",
    "write_categories",
    "write_results",
]

_LAST_FRAME = 10**10  # of a camera of 60 frames a second it comes after five years
_LARGEST_LINE = 256 << 20  # bytes; 100 masks of 4K have some 10 MB


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
        self._file: BinaryIO | None = None

    def __enter__(self) -> FrameLog:
        with ExitStack() as stack:
            partial = stack.enter_context(output_file(self.path))
            self._file = stack.enter_context(partial.open("wb"))
            self._stack = stack.pop_all()
        return self

    def write(self, result: FrameResult) -> None:
        """Append the line of one frame."""
        if self._file is None:
            raise RuntimeError("FrameLog.write outside of its with block")
        with output_errors(self.path):
            self._file.write(line_of(result))
            self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file = None
        self._stack.__exit__(kind, error, trace)


def line_of(result: FrameResult) -> bytes:
    """The line of one frame in a :class:`FrameLog`, with its end, UTF-8."""
    line = {
        "frame": result.index,
        "time": result.time,
        "size": [result.height, result.width],
        "instances": [_instance_entry(instance) for instance in result.instances],
    }
    return (printable_json(json.dumps(line, ensure_ascii=False)) + "\n").encode()


def write_results(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a results file: a JSON array of ``entries``, one on each line, taken one at a time.

    Raises:
        OutputError: the place cannot be written.
    """
    with output_file(path) as partial, _open_text(partial) as file:
        file.write("[")
        for index, entry in enumerate(entries):
            text = printable_json(json.dumps(entry, ensure_ascii=False))
            file.write((",\n" if index else "\n") + text)
        file.write("\n]\n")


def write_categories(path: Path, names: Sequence[str]) -> None:
    """Write what category ids mean: a JSON array of ``{"id", "name"}``, ids from 1.

    Raises:
        OutputError: the place cannot be written.
    """
    entries = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    with output_file(path) as partial, _open_text(partial) as file:
        file.write(printable_json(json.dumps(entries, ensure_ascii=False, indent=1)) + "\n")


def _open_text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")


def result_from_line(line: str | bytes) -> FrameResult:
    """Inverse of :func:`line_of`.

    Raises:
        ValueError, KeyError, TypeError: it is no such line.
    """
    entry = json.loads(line)
    height, width = (_whole(side, 1, LARGEST_FRAME_SIDE) for side in entry["size"])
    if height * width > LARGEST_PICTURE:
        raise ValueError(f"a frame has at most {LARGEST_PICTURE} pixels, found {width}x{height}")
    instances = tuple(_instance_of(found, height, width) for found in entry["instances"])
    if len({instance.track_id for instance in instances}) < len(instances):
        raise ValueError("a track is there twice")
    time = None if entry["time"] is None else _number(entry["time"], 0, LATEST_TIME)
    return FrameResult(_whole(entry["frame"], 0, _LAST_FRAME), time, height, width, instances)


def read_frame_log(path: Path) -> list[FrameResult]:
    """Inverse of :class:`FrameLog`: the results of every frame in a file.

    Raises:
        InputError: a line is not what :class:`FrameLog` writes; the message says which.
    """
    return list(frames_of_log(path))


def frames_of_log(path: Path) -> Iterator[FrameResult]:
    """As :func:`read_frame_log`, one frame at a time: an hour's file needs no memory.

    Raises:
        InputError: there is no such file; or a line is not what :class:`FrameLog` writes, where
            the message says which.
    """
    try:
        file = given_file(path)
    except InputError as exc:
        raise InputError(f"{exc}. Give a run's file.") from exc
    last = -1
    with file:
        # lines end at \n only; names may hold other ends of lines
        for number, line in enumerate(iter(lambda: file.readline(_LARGEST_LINE + 1), b""), 1):
            try:
                if len(line) > _LARGEST_LINE:
                    raise ValueError(f"it has more than {_LARGEST_LINE >> 20} MiB")
                result = result_from_line(line)
                if result.index <= last:
                    raise ValueError(f"frame {result.index} comes after frame {last}")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                raise InputError(f"{path}, line {number} is no frame's result: {exc!r}") from exc
            last = result.index
            yield result


def _instance_of(entry: dict[str, Any], height: int, width: int) -> Instance:
    x, y, box_width, box_height = (_whole(side, 0, LARGEST_FRAME_SIDE) for side in entry["box"])
    box = (x, y, box_width, box_height)
    mask = entry["segmentation"]
    segmentation = RLE(size=mask["size"], counts=mask["counts"])
    check_runs(segmentation, height, width)
    # both: of runs without a pixel, which others may write, pycocotools gives a box that is outside
    if box != box_of(segmentation) or x + box_width > width or y + box_height > height:
        raise ValueError(f"the box {list(box)} is not that of its mask, {box_of(segmentation)}")
    if not isinstance(entry["name"], str):
        raise ValueError("a name is no string")
    return Instance(
        _whole(entry["id"]),
        _whole(entry["category_id"]),
        entry["name"],
        float(_number(entry["score"], -1e300, 1e300)),
        box,
        segmentation,
    )


def _whole(value: object, least: int = 0, most: int = 2**53) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a whole number of {least} to {most} is needed, found {value!r:.60}")
    return value


def _number(value: object, least: float, most: float) -> Any:
    """A number as it is, so that whole ones are written as whole ones again."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"a number of {least:g} to {most:g} is needed, found {value!r:.60}")
    return value


def _instance_entry(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.track_id,
        "name": instance.name,
        "category_id": instance.category_id,
        "score": instance.score,
        "box": list(instance.box),
        "segmentation": instance.segmentation,
    }
