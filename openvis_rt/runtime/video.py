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
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition, Stream
from PIL import Image, ImageOps

from openvis_rt.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Frame", "VideoSource", "open_video"]

_IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_DEFAULT_FPS = Fraction(25)  # of folders of images, and of streams that declare no rate
_STREAM_TIMEOUT = 15.0  # seconds without data after which a stream counts as broken
# containers whose header tells how much should follow; others guess it from what is there
_DECLARING_FORMATS = frozenset({"avi", "flv", "matroska", "mov"})
_LATE_END = 0.5  # seconds: headers round, and tracks end apart by a packet of sound or two


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


class _DamagedError(VideoError):
    """The data end or break before their declared end; what came before is good."""


class _Reader(Protocol):
    name: str
    fps: Fraction
    frame_count: int | None
    live: bool

    def frames(self) -> Iterator[Frame]:
        """Every frame in order; raises ``_DamagedError`` where the data break."""

    def close(self) -> None:
        """Release the file or device."""


def open_video(source: str, *, allow_truncated: bool = False, queue_size: int = 4) -> VideoSource:
    """Open a video and decode its first frame.

    Args:
        source: a video file; a folder of images, taken in natural order (``frame2`` before
            ``frame10``) at 25 frames a second; the number of a camera (``0``); or the address of a
            stream (``rtsp://...``).
        allow_truncated: end with a warning where the data end early, instead of with an error.
        queue_size: frames decoded ahead of the consumer; at least 1.

    Raises:
        VideoError: there is nothing at ``source`` that can be decoded.
    """
    if queue_size < 1:
        raise ValueError(f"queue_size is {queue_size}; it must be at least 1")
    return VideoSource(_reader_of(source), allow_truncated=allow_truncated, queue_size=queue_size)


class VideoSource:
    """An iterator over the frames of a video; use it in a ``with`` block.

    No frame is dropped: a live source waits while the consumer works.

    Attributes:
        name: what was opened, for messages.
        width, height: of every frame in pixels, after rotation.
        fps: frames a second; 25 for folders of images, and where a source does not say.
        frame_count: frames that the container declares (an edited file may show fewer), or images
            in the folder; None where unknown.
        live: a camera, or a stream without an end.
        warnings: what a user should know; complete when the iteration has ended.

    Raises:
        VideoError: while iterating, when the data break, end early or change their size.
    """

    def __init__(self, reader: _Reader, *, allow_truncated: bool, queue_size: int) -> None:
        self.name, self.fps, self.frame_count = reader.name, reader.fps, reader.frame_count
        self.live = reader.live
        self.warnings: list[str] = []
        self._reader = reader
        self._allow_truncated = allow_truncated
        self._frames = self._checked_frames()
        self._queue: queue.Queue[Frame | None] = queue.Queue(queue_size)
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
            for frame in self._reader.frames():
                shape = shape or frame.image.shape
                if frame.image.shape != shape:
                    raise VideoError(_size_message(self.name, frame, shape))
                count += 1
                yield frame
        except _DamagedError as exc:
            if count == 0:
                raise VideoError(f"no frame of {self.name} can be decoded: {exc}") from exc
            declared = f" of {self.frame_count}" if self.frame_count else ""
            message = (
                f"{self.name} is damaged or cut off: {exc}. {count}{declared} frames were read"
            )
            if not self._allow_truncated:
                raise VideoError(
                    f"{message}. Give a whole copy of the video, or --allow-truncated to keep "
                    "what can be read."
                ) from exc
            self.warnings.append(f"{message}; the rest is left out.")
        if count == 0:
            raise VideoError(
                f"{self.name} holds no frame that can be decoded. Give a video with pictures."
            )


def _size_message(name: str, frame: Frame, shape: tuple[int, ...]) -> str:
    (height, width), (new_height, new_width) = shape[:2], frame.image.shape[:2]
    return (
        f"{name} changes its size at frame {frame.index}: from {width}x{height} to "
        f"{new_width}x{new_height}. All frames must have one size; re-encode it, for example with "
        f"ffmpeg -i INPUT -vf scale={width}:{height} OUTPUT.mp4"
    )


def _reader_of(source: str) -> _Reader:
    if source.isdecimal():
        return _camera(int(source))
    if "://" in source:
        return _ContainerReader(source, source, timeout=_STREAM_TIMEOUT)
    path = Path(source)
    if path.is_dir():
        return _ImageReader(path)
    if not path.exists():
        raise VideoError(
            f"{source} does not exist. Give a video file, a folder of images, the number of a "
            "camera, or the address of a stream."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{source} is empty (0 bytes). Give a video that was written to its end.")
    return _ContainerReader(source, source)


def _camera(number: int) -> _ContainerReader:
    name, system = f"camera {number}", platform.system()
    if system == "Darwin":
        return _ContainerReader(name, str(number), "avfoundation", live=True)
    if system == "Windows":
        from av.device import enumerate_input_devices

        cameras = [d.name for d in enumerate_input_devices("dshow") if "video" in d.media_types]
        if number >= len(cameras):
            raise VideoError(f"there is no camera {number}; found {cameras or 'none'}.")
        return _ContainerReader(name, f"video={cameras[number]}", "dshow", live=True)
    device = Path(f"/dev/video{number}")
    if not device.exists():
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise VideoError(f"there is no camera {number} ({device}); found {found}.")
    return _ContainerReader(name, str(device), "v4l2", live=True)


class _ImageReader:
    """The images of a folder in natural order, upright by their EXIF orientation."""

    live = False
    fps = _DEFAULT_FPS

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._paths = sorted(
            (
                path
                for path in folder.iterdir()
                if path.suffix.lower() in _IMAGE_SUFFIXES
                and path.is_file()
                and not path.name.startswith(".")  # resource forks that macOS leaves
            ),
            key=_natural_key,
        )
        if not self._paths:
            raise VideoError(
                f"{folder} holds no images. Give a folder with files that end in "
                f"{', '.join(sorted(_IMAGE_SUFFIXES))}."
            )
        self.frame_count: int | None = len(self._paths)

    def frames(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            try:
                with Image.open(path) as picture:
                    image = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
                raise _DamagedError(f"{path.name} cannot be read as an image ({exc})") from exc
            yield Frame(index, float(index / self.fps), image)

    def close(self) -> None:
        pass  # each image is closed as soon as it is read


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts runs of digits by their value, and other text without regard to case."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


class _ContainerReader:
    """The first video track of whatever FFmpeg can open; sound and subtitles are passed over."""

    def __init__(
        self,
        name: str,
        url: str,
        device_format: str | None = None,
        *,
        timeout: float | None = None,
        live: bool = False,
    ) -> None:
        self.name = name
        try:
            self._container = av.open(url, format=device_format, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as exc:
            raise VideoError(
                f"{name} cannot be opened as a video: {_reason(exc)}. Give a file or stream that "
                "FFmpeg can decode; an mp4 whose writing or copying was cut off lacks its index "
                "and must be written or copied again."
            ) from exc
        try:
            self._stream = _video_stream(self._container, name)
        except VideoError:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self.fps = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_FPS
        self.frame_count = self._stream.frames or None
        self.live = live or (timeout is not None and self._container.duration is None)
        self._extent = _Extent(self._container, self._stream)

    def frames(self) -> Iterator[Frame]:
        index, start, matrix = 0, None, None
        for packet in self._packets():
            for picture in self._pictures(packet, started=index > 0):
                if index == 0:
                    # The matrix is the track's. Asking each picture would keep it in memory until
                    # the next garbage collection: PyAV's side data and pictures refer to each other
                    start, matrix = picture.time, _matrix_of(picture)
                time = None if picture.time is None or start is None else picture.time - start
                yield Frame(index, time, _upright(picture, matrix))
                index += 1
        self._extent.check()

    def close(self) -> None:
        self._container.close()

    def _packets(self) -> Iterator[Packet[Stream]]:
        """The packets of the video track, and an empty one at the end to flush the decoder."""
        try:
            for packet in self._container.demux(*self._extent.streams):
                self._extent.add(packet)
                if packet.stream is self._stream:
                    yield packet
        except (av.FFmpegError, OSError) as exc:
            raise _DamagedError(f"reading fails ({_reason(exc)})") from exc

    def _pictures(self, packet: Packet[Stream], *, started: bool) -> list[VideoFrame]:
        try:
            return self._stream.decode(packet)
        except av.FFmpegError as exc:
            # A recording may begin between key frames, and a live stream may lose packets: the
            # decoder refuses those and goes on at the next key frame.
            if isinstance(exc, av.InvalidDataError) and (self.live or not started):
                return []
            raise _DamagedError(f"decoding fails ({_reason(exc)})") from exc


class _Extent:
    """How far the data reach by the container's header, and how far they came.

    A cut file mostly looks like a short one to FFmpeg, so its end is compared with what the header
    tells, in seconds, by the most exact rule that the format allows:

    ======================  ================================================  ====================
    mp4, mov with an index  the video track's duration (edit lists applied)   1.5 frames
    avi                     frames / rate (dropped frames have no packets)    0.5 s + 2 frames
    mkv, webm, flv, mp4     the longest track's end: the header has no other  0.5 s + 2 frames
    in fragments
    others, live            nothing is declared, so a cut cannot be seen      -
    ======================  ================================================  ====================

    The last column is the tolerance: the last picture of an edit may lie beyond its end; the other
    headers round, some packets have no duration, and AVI counts one frame more than it holds.
    A file with an index is whole if every packet of the index came, whatever the durations say.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        formats = set(container.format.name.split(","))
        frame = float(1 / (stream.average_rate or _DEFAULT_FPS))
        self.streams: tuple[Stream, ...] = (stream,)  # tracks to read: those that count
        self._stream = stream
        self._indexed = "mov" in formats and bool(stream.frames)
        self._tolerance = _LATE_END + 2 * frame
        self._declared: float | None = None  # seconds
        if self._indexed and stream.duration and stream.time_base:
            self._declared = float(stream.duration * stream.time_base)
            self._tolerance = 1.5 * frame
        elif "avi" in formats and stream.frames:
            self._declared = stream.frames * frame
        elif formats & _DECLARING_FORMATS and container.duration:
            self._declared = container.duration / 1e6  # FFmpeg counts microseconds here
            self.streams = tuple(container.streams)
        self._reached = 0.0  # seconds
        self._packets = 0
        self._cut_packet = False

    def add(self, packet: Packet[Stream]) -> None:
        """Take note of a packet that was read."""
        if packet.dts is None and packet.pts is None:  # the empty packet at the end, for one
            return
        begin = packet.pts if packet.pts is not None else packet.dts
        if begin is not None and packet.time_base is not None:
            end = float((begin + (packet.duration or 0)) * packet.time_base)
            self._reached = max(self._reached, end)
        if packet.stream is self._stream:
            self._packets += 1
            self._cut_packet = packet.is_corrupt  # FFmpeg marks a packet that the file ends in

    def check(self) -> None:
        """Raise ``_DamagedError`` if the data ended before their declared end."""
        if self._declared is None:
            return
        if self._cut_packet:
            raise _DamagedError("the file ends within a frame")
        whole = self._indexed and self._packets >= self._stream.frames
        if not whole and self._reached < self._declared - self._tolerance:
            raise _DamagedError(
                f"the file declares {self._declared:.2f} s and ends after {self._reached:.2f} s"
            )


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first video track that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise VideoError(f"{name} has no video track; found {found}. Give a file with pictures.")


def _matrix_of(picture: VideoFrame) -> tuple[int, int, int, int] | None:
    """The display matrix of a picture, less its shift: a, b, c, d.

    ``[[a, b, u], [c, d, v], [x, y, w]]`` of int32 takes a stored point (p, q) to
    (a p + c q, b p + d q), up to a shift: phones write multiples of a quarter turn, and mirrors.
    """
    side_data: Any = picture.side_data  # PyAV's stubs know one kind only
    matrix = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, "<i4")[:5])
    return a, b, c, d


def _upright(
    picture: VideoFrame, matrix: tuple[int, int, int, int] | None
) -> npt.NDArray[np.uint8]:
    """The picture as RGB, turned and mirrored to the nearest quarter turn of its matrix."""
    image = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
    if matrix is not None:
        a, b, c, d = matrix
        if abs(b) > abs(a):
            image = image.transpose(1, 0, 2)
            a, d = c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
