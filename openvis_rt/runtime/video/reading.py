"""Reading frames from video files, folders of images, cameras and streams, with flat memory.

open_video(source) -> VideoSource: Frame 0, Frame 1, ...

a reader (file, stream, camera: PyAV; folder: Pillow) makes frames in a thread of its own
and hands them through a queue of a few frames. What goes wrong there is raised in the consumer.
"""

from __future__ import annotations

import contextlib
import platform
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import VideoError
from openvis_rt.geometry import frames_at_once
from openvis_rt.runtime.video.container import ContainerReader, DamagedError
from openvis_rt.runtime.video.pictures import ImageReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from fractions import Fraction
    from types import TracebackType

__all__ = ["IMAGE_SUFFIXES", "Frame", "VideoSource", "is_live", "open_images", "open_video"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_STREAM_TIMEOUT = 15.0  # seconds without data after which a stream counts as broken


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: from 0.
        time: seconds since the first frame; None where the source has no clock.
        image: uint8 [H, W, 3] RGB, upright, C-contiguous. It belongs to the receiver.
    """

    index: int
    time: float | None
    image: npt.NDArray[np.uint8]


Prepare = Callable[[Frame], Frame]


class _Reader(Protocol):
    name: str
    fps: Fraction
    frame_count: int | None
    live: bool
    start: float | None
    warnings: list[str]

    def frames(self) -> Iterator[tuple[float | None, npt.NDArray[np.uint8]]]:
        """Time and image of every frame; raises ``DamagedError`` where the data break."""

    def close(self) -> None:
        """Release the file or device."""


def is_live(source: str) -> bool:
    """Whether ``source`` names a camera or a stream, which can be read only once."""
    return source.isdecimal() or "://" in source


def open_video(
    source: str,
    *,
    allow_truncated: bool = False,
    queue_size: int = 4,
    ahead: bool = True,
    prepare: Prepare = lambda frame: frame,
) -> VideoSource:
    """Open a video and decode its first frame.

    Args:
        source: a video file; a folder of images, taken in natural order (``frame2`` before
            ``frame10``) at 25 frames a second; the number of a camera (``0``); or the address of a
            stream (``rtsp://...``).
        allow_truncated: end with a warning where the data end early, instead of with an error.
        queue_size: frames decoded ahead of the consumer, at least 1; fewer where so many would
            take more than 256 MiB.
        ahead: decode in a thread of its own. Else each frame is decoded when it is asked for, in
            the caller's thread, whose time it takes: for measuring.
        prepare: is called with each frame in the thread that decodes it, and gives the frame that
            is handed out; such as :meth:`Pipeline.prepared`.

    Raises:
        VideoError: there is nothing at ``source`` that can be decoded.
    """
    if queue_size < 1:
        raise ValueError(f"queue_size is {queue_size}; it must be at least 1")
    try:
        reader = _reader_of(source)
    except OSError as exc:
        raise VideoError(
            f"{source} cannot be read: {exc.strerror or exc}. Give a source that you may read."
        ) from exc
    return VideoSource(
        reader,
        allow_truncated=allow_truncated,
        queue_size=queue_size,
        ahead=ahead,
        prepare=prepare,
    )


def open_images(name: str, paths: list[Path]) -> VideoSource:
    """The images at some paths, in their order, as a video of 25 frames a second.

    Args:
        name: of the video, for messages.
        paths: of the images, at least one.

    Raises:
        VideoError: one is missing, or the first cannot be decoded.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise VideoError(
            f"{len(missing)} of the {len(paths)} frames of {name} are missing, such as "
            f"{missing[0]}. Give the folder that holds the videos as the annotations name them."
        )
    return VideoSource(ImageReader(name, paths), allow_truncated=False, queue_size=4)


class VideoSource:
    """An iterator over the frames of a video; use it in a ``with`` block.

    No frame is dropped: a live source waits while the consumer works.

    Attributes:
        name: what was opened, for messages.
        width, height: of every frame in pixels, after rotation.
        fps: frames a second; 25 for folders of images, and where a source does not say.
        frame_count: frames that the container declares (an edited file may show fewer), or images
            in the folder; None where unknown.
        live: a camera, or a stream without an end. Its breaking off is an end like any other.
        start: of the first frame by the source's own clock, in seconds, for what else was recorded
            by that clock; None where it has none.
        warnings: what a user should know; complete when the iteration has ended.

    Raises:
        VideoError: while iterating, when the data break, end early or change their size.
    """

    def __init__(
        self,
        reader: _Reader,
        *,
        allow_truncated: bool,
        queue_size: int,
        ahead: bool = True,
        prepare: Prepare = lambda frame: frame,
    ) -> None:
        self.name, self.fps, self.frame_count = reader.name, reader.fps, reader.frame_count
        self.live = reader.live
        self.warnings: list[str] = reader.warnings
        self._reader = reader
        self._allow_truncated, self._ahead, self._prepare = allow_truncated, ahead, prepare
        self._frames = self._checked_frames()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        try:
            self._first: Frame | None = next(self._frames)
        except BaseException:
            reader.close()
            raise
        self.height, self.width = self._first.image.shape[:2]
        self.start = reader.start
        waiting = frames_at_once(self.height, self.width, queue_size)
        self._queue: queue.Queue[Frame | None] = queue.Queue(waiting)

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = self._next_frame()
        if frame is None:
            self.close()
            if self._error is not None:
                raise self._error
            raise StopIteration
        return frame

    def close(self) -> None:
        """Stop decoding and release the source. Frames that were handed out stay good."""
        self._ended = True
        self._stopped.set()
        if self._thread is not None:
            # one place in the queue is enough: the thread looks at _stopped after each frame
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            self._thread.join()
            self._thread = None
        self._frames.close()
        self._reader.close()

    def _next_frame(self) -> Frame | None:
        if self._ended:
            return None
        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        if not self._ahead:
            return next(self._frames, None)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._decode, name=f"decode {self.name}", daemon=True
            )
            self._thread.start()
        return self._queue.get()

    def _decode(self) -> None:
        """The thread's body: queue the frames, then None."""
        try:
            for frame in self._frames:
                self._queue.put(frame)
                if self._stopped.is_set():
                    return
        except BaseException as exc:  # handed to the consumer, whatever it is
            self._error = exc
        self._queue.put(None)

    def _checked_frames(self) -> Generator[Frame, None, None]:
        """The reader's frames, all of one size; damage becomes an error or a warning."""
        count, shape = 0, None
        try:
            for time, image in self._reader.frames():
                shape = shape or image.shape
                if image.shape != shape:
                    raise VideoError(_size_message(self.name, count, image.shape, shape))
                yield self._prepare(Frame(count, time, image))
                count += 1
        except DamagedError as exc:
            if count == 0:
                raise VideoError(f"no frame of {self.name} can be decoded: {exc}") from exc
            if self.live:  # which has no other end
                self.warnings.append(f"{self.name} was lost after {count} frames: {exc}")
                return
            declared = f" of {self.frame_count}" if self.frame_count else ""
            message = (
                f"{self.name} is damaged or cut off: {exc}. {count}{declared} frames were read"
            )
            if not self._allow_truncated:
                raise VideoError(
                    f"{message}. Give a whole copy of the video; `openvis run --allow-truncated` "
                    "keeps what can be read."
                ) from exc
            self.warnings.append(f"{message}; the rest is left out.")
        if count == 0:
            raise VideoError(
                f"{self.name} holds no frame that can be decoded. Give a video with pictures."
            )


def _size_message(name: str, index: int, new: tuple[int, ...], old: tuple[int, ...]) -> str:
    (height, width), (new_height, new_width) = old[:2], new[:2]
    return (
        f"{name} changes its size at frame {index}: from {width}x{height} to "
        f"{new_width}x{new_height}. All frames must have one size; re-encode it, for example with "
        f"ffmpeg -i INPUT -vf scale={width}:{height} OUTPUT.mp4"
    )


def _reader_of(source: str) -> _Reader:
    if source.isdecimal():
        return _camera(int(source))
    if "://" in source:
        return ContainerReader(source, source, timeout=_STREAM_TIMEOUT)
    path = Path(source)
    if path.is_dir():
        return ImageReader(str(path), _images_in(path))
    if not path.exists():
        raise VideoError(
            f"{source} does not exist. Give a video file, a folder of images, the number of a "
            "camera, or the address of a stream."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{source} is empty (0 bytes). Give a video that was written to its end.")
    return ContainerReader(source, source)


def _camera(number: int) -> ContainerReader:
    name = f"camera {number}"
    if platform.system() == "Darwin":
        return ContainerReader(name, str(number), "avfoundation", live=True)
    device = Path(f"/dev/video{number}")
    if not device.exists():
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise VideoError(f"there is no camera {number} ({device}); found {found}.")
    return ContainerReader(name, str(device), "v4l2", live=True)


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order."""
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not path.name.startswith(".")  # resource forks that macOS leaves
    ]
    if not paths:
        raise VideoError(
            f"{folder} holds no images. Give a folder with files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts runs of digits by their value, and other text without regard to case."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name
