"""Reading frames from video files, folders of images, cameras and streams, with flat memory.

open_video(source) -> VideoSource: Frame 0, Frame 1, ...

a reader (file, stream, camera: PyAV; folder: Pillow) makes frames in a thread of its own
and hands them over. Of a file a few frames wait for the consumer, and then the reader does; of a
live source the newest frame waits, and the ones before it are dropped. What goes wrong in the
thread is raised in the consumer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import VideoError
from openvis_rt.geometry import frames_at_once
from openvis_rt.runtime.options import LiveOptions
from openvis_rt.runtime.video.container import ContainerReader, DamagedError
from openvis_rt.runtime.video.handover import Handover
from openvis_rt.runtime.video.live import LiveReader
from openvis_rt.runtime.video.pictures import ImageReader
from openvis_rt.runtime.video.sources import (
    IMAGE_SUFFIXES,
    STDIN,
    is_live,
    open_reader,
    shown_name,
)
from openvis_rt.runtime.video.watched import opened_aside

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from fractions import Fraction
    from types import TracebackType

    from openvis_rt.runtime.video.watched import WatchedReader

__all__ = ["IMAGE_SUFFIXES", "Frame", "VideoSource", "is_live", "open_images", "open_video"]

_PATIENCE = 1.0  # seconds that closing waits for a thread that may wait for a peer


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: from 0, by the source: frames that were left out or dropped count.
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
    warnings: list[str]

    @property
    def start(self) -> float | None:
        """Of the first frame by the source's clock, in seconds, when that was read."""

    def frames(self, stride: int = 1) -> Iterator[tuple[int, float | None, npt.NDArray[np.uint8]]]:
        """Index, time and image of every ``stride``-th frame, from the first one on.

        Raises ``DamagedError`` where the data break.
        """

    def close(self) -> None:
        """Release the file or device."""


def open_video(
    source: str,
    *,
    allow_truncated: bool = False,
    queue_size: int = 4,
    ahead: bool = True,
    prepare: Prepare = lambda frame: frame,
    stride: int = 1,
    live: LiveOptions | None = None,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] | None = None,
) -> VideoSource:
    """Open a video and decode its first frame.

    Args:
        source: a video file; an image, or a folder of images, taken in natural order (``frame2``
            before ``frame10``) at 25 frames a second; the number of a camera (``0``); the address
            of a stream (``rtsp://...``); a named pipe; or ``-`` for stdin.
        allow_truncated: end with a warning where the data end early, instead of with an error.
        queue_size: frames decoded ahead of the consumer, at least 1; fewer where so many would
            take more than 256 MiB. Of a live source it is one.
        ahead: decode in a thread of its own. Else each frame is decoded when it is asked for, in
            the caller's thread, whose time it takes: for measuring. Live sources have their thread.
        prepare: is called with each frame in the thread that decodes it, and gives the frame that
            is handed out; such as :meth:`Pipeline.prepared`. Where frames may be dropped it is
            called in the consumer's thread, with those that are not.
        stride: hand out every so many frames.
        live: how a camera or a stream is read; None for the newest frame and reconnection.
        stop: ends the iteration, soon, when it is set; also while nothing comes.
        tell: is told of a live source's breaks when they happen, in another thread; None to have
            them in ``warnings``.

    Raises:
        VideoError: there is nothing at ``source`` that can be decoded.
        KeyboardInterrupt: ``stop`` was set before the first frame came.
    """
    if queue_size < 1:
        raise ValueError(f"queue_size is {queue_size}; it must be at least 1")
    if stride < 1:
        raise ValueError(f"stride is {stride}; it must be at least 1")
    how, ended = live or LiveOptions(), threading.Event()

    name = shown_name(source)

    def opened() -> _Reader:
        reader = open_reader(source, how.timeout)
        if not reader.live or isinstance(reader, ImageReader):
            return reader

        def again(seconds: float) -> ContainerReader | WatchedReader:
            reader = open_reader(source, how.timeout, seconds)
            assert not isinstance(reader, ImageReader)  # as the first time
            return reader

        repeats = isinstance(reader, ContainerReader) and reader.repeats
        seconds = 0.0 if repeats else how.reconnect
        return LiveReader(reader, None if source == STDIN else again, seconds, tell, ended)

    try:
        if is_live(source):
            reader = opened_aside(name, opened, lambda late: late.close(), stop)
        else:
            reader = opened()
    except OSError as exc:
        raise VideoError(
            f"{name} cannot be read: {exc.strerror or exc}. Give a source that you may read."
        ) from exc
    return VideoSource(
        reader,
        allow_truncated=allow_truncated,
        queue_size=queue_size,
        ahead=ahead,
        prepare=prepare,
        stride=stride,
        every_frame=how.every_frame or not reader.live,
        stop=stop,
        ended=ended,
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

    Of a file every frame is given. Of a live source the newest is, unless ``every_frame`` was asked
    for: what comes while the consumer works is dropped but for the last.

    Attributes:
        name: what was opened, for messages.
        width, height: of every frame in pixels, after rotation.
        fps: frames a second, of those that ``stride`` leaves; 25 for folders of images, and where a
            source does not say.
        frame_count: frames that the container declares (an edited file may show fewer), or images
            in the folder, of those that ``stride`` leaves; None where unknown.
        live: a camera, or a stream without an end. Its breaking off is an end like any other.
        start: of the first frame by the source's own clock, in seconds, for what else was recorded
            by that clock; None where it has none.
        arrived: when the frame that was handed out last was decoded, by ``time.monotonic``; None
            before the first one.
        warnings: what a user should know; complete when the iteration has ended.

    Raises:
        VideoError: while iterating, when the data break, end early or change their size. A live
            source ends there, with a warning.
    """

    def __init__(
        self,
        reader: _Reader,
        *,
        allow_truncated: bool,
        queue_size: int,
        ahead: bool = True,
        prepare: Prepare = lambda frame: frame,
        stride: int = 1,
        every_frame: bool = True,
        stop: threading.Event | None = None,
        ended: threading.Event | None = None,
    ) -> None:
        self.name, self.live = reader.name, reader.live
        self.fps = reader.fps / stride
        count = reader.frame_count
        self.frame_count = None if count is None else math.ceil(count / stride)
        self.warnings: list[str] = reader.warnings
        self.arrived: float | None = None
        self._reader, self._stride, self._stop = reader, stride, stop
        self._allow_truncated, self._prepare = allow_truncated, prepare
        self._late = not every_frame  # frames are prepared when they are taken
        self._ahead = ahead or self.live
        self._waits = is_live(reader.name) or self.live  # for a peer, perhaps
        self._frames = self._checked_frames()
        self._handover: Handover[_Arrival] = Handover(
            1 if self._late else queue_size, newest=self._late
        )
        self._ended = ended or threading.Event()
        self._thread: threading.Thread | None = None
        self._first: _Arrival | None = None
        try:
            if self.live:
                self._start()
            self._first = self._handover.get(stop) if self.live else next(self._frames, None)
            if self._first is None:
                raise self._handover.error or KeyboardInterrupt
        except BaseException:
            self.close()
            raise
        self.height, self.width = self._first.frame.image.shape[:2]
        self.start = reader.start
        if not self._late:
            self._handover.size = frames_at_once(self.height, self.width, queue_size)

    @property
    def dropped(self) -> int:
        """Frames of a live source so far that a newer one took the place of."""
        return self._handover.dropped

    @property
    def reconnections(self) -> int:
        """How often a live source broke off and came back so far."""
        return self._reader.reconnections if isinstance(self._reader, LiveReader) else 0

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
        arrival, self._first = self._first, None
        if arrival is not None and self._late and self._handover.waiting:
            self._handover.dropped += 1  # the first one is no longer the newest
            arrival = None
        arrival = arrival or self._next_arrival()
        if arrival is None:
            self.close()
            if self._handover.error is not None:
                raise self._handover.error
            raise StopIteration
        self.arrived = arrival.moment
        return self._prepare(arrival.frame) if self._late else arrival.frame

    def close(self) -> None:
        """Stop decoding and release the source. Frames that were handed out stay good.

        A thread that waits for a camera or a host is left behind after a second; it releases the
        source when the source's timeout is over.
        """
        first = not self._ended.is_set()
        self._ended.set()
        self._handover.close()
        if self._thread is None:
            self._release()
        elif not self._waits:
            self._thread.join()
        elif first:
            self._thread.join(_PATIENCE)

    def _release(self) -> None:
        self._frames.close()
        self._reader.close()

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self._decode, name=f"decode {self.name}", daemon=True
        )
        self._thread.start()

    def _next_arrival(self) -> _Arrival | None:
        if self._ended.is_set():
            return None
        if self._thread is None:
            if not self._ahead:
                return next(self._frames, None)
            self._start()
        return self._handover.get(self._stop)

    def _decode(self) -> None:
        """The thread's body: hand over the frames and the end, then release the source."""
        error: BaseException | None = None
        try:
            for arrival in self._frames:
                if not self._handover.put(arrival):
                    break
        except BaseException as exc:  # handed to the consumer, whatever it is
            error = exc
        self._handover.end(error)
        self._release()

    def _checked_frames(self) -> Generator[_Arrival, None, None]:
        """The reader's frames, all of one size; damage becomes an error or a warning."""
        count, shape = 0, None
        try:
            for index, moment, image in self._reader.frames(self._stride):
                arrived, shape = time.monotonic(), shape or image.shape
                if image.shape != shape:
                    self._resized(index, image.shape, shape)
                    return
                frame = Frame(index, moment, image)
                yield _Arrival(frame if self._late else self._prepare(frame), arrived)
                count = index + 1
        except DamagedError as exc:
            self._broken(count, exc)
        if count == 0:
            raise VideoError(
                f"{self.name} holds no frame that can be decoded. Give a video with pictures."
            )

    def _resized(self, index: int, new: tuple[int, ...], old: tuple[int, ...]) -> None:
        (height, width), (new_height, new_width) = old[:2], new[:2]
        message = (
            f"{self.name} changes its size at frame {index}: from {width}x{height} to "
            f"{new_width}x{new_height}."
        )
        if not self.live:
            raise VideoError(
                f"{message} All frames must have one size; re-encode it, for example with "
                f"ffmpeg -i INPUT -vf scale={width}:{height} OUTPUT.mp4"
            )
        self.warnings.append(f"{message} The results end there; start again for the new size")

    def _broken(self, count: int, error: DamagedError) -> None:
        """The data broke off after ``count`` frames: the end of a live source, damage of others."""
        if count == 0:
            raise VideoError(f"no frame of {self.name} can be decoded: {error}") from error
        if self.live:  # which has no other end
            self.warnings.append(f"{self.name} was lost after {count} frames: {error}")
            return
        declared = f" of {self.frame_count}" if self.frame_count else ""
        message = f"{self.name} is damaged or cut off: {error}. {count}{declared} frames were read"
        if not self._allow_truncated:
            raise VideoError(
                f"{message}. Give a whole copy of the video; `openvis run --allow-truncated` "
                "keeps what can be read."
            ) from error
        self.warnings.append(f"{message}; the rest is left out.")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A frame, and when it was decoded, in seconds of ``time.monotonic``."""

    frame: Frame
    moment: float
