"""Writing drawn frames as a video, with the sound of the video that they are from (PyAV)."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

from openvis_rt.errors import OutputError, VideoError
from openvis_rt.files import output_errors, output_file
from openvis_rt.runtime.video.encoders import Encoder, software_encoder, time_base_of
from openvis_rt.runtime.video.opening import open_media
from openvis_rt.runtime.video.sound import SoundCopy
from openvis_rt.runtime.video.timeline import LONGEST_GAP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Canvas", "OverlayWriter", "encode_image", "open_output", "video_stream_of"]

_SUFFIXES = (".mp4", ".mkv", ".mov")
_HYBRID = (62, 0, 0)  # FFmpeg 8: fragments that become a usual mp4 at the end

Plane = npt.NDArray[np.uint8]


class Canvas:
    """A frame as planes, to be drawn into and then written by an :class:`OverlayWriter`.

    Args:
        image: uint8 [H, W, 3] RGB; it is copied.

    Attributes:
        planes: red, green and blue, uint8 [H, W] each, views of the frame's own memory.
    """

    def __init__(self, image: Plane) -> None:
        height, width = image.shape[:2]
        self._frame = _frame_of(image).reformat(format="gbrp", threads=1)
        green, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                : self._frame.height
            ]
            for plane in self._frame.planes
        )
        self._whole = (red, green, blue)  # with the row and the column that fill an odd size
        self.planes = (red[:height, :width], green[:height, :width], blue[:height, :width])

    def frame(self) -> VideoFrame:
        """The frame with what was drawn, of even size: its last row and column stand twice."""
        height, width = self.planes[0].shape
        for plane in self._whole:
            if width % 2:
                plane[:height, width] = plane[:height, width - 1]
            if height % 2:
                plane[height] = plane[height - 1]
        return self._frame


class OverlayWriter:
    """A video whose frames have times of their own, with the sound of the video that it is from.

    4:2:0, BT.709. A frame without a time is shown ``1 / fps`` after the one before. A pause of
    more than an hour between two frames becomes one of ``1 / fps``. Sound is copied as it is, up to
    the end of the pictures. The file takes its name when the ``with`` block ends well; after an
    error nothing new stands under that name.

    Args:
        path: ends in ``.mp4``, ``.mkv`` or ``.mov``.
        width: of the frames in pixels; one more column is written if it is odd.
        height: of the frames in pixels; one more row is written if it is odd.
        fps: frames a second; the usual ones where they have times of their own.
        audio_from: the video file whose first sound track is copied; folders have none.
        audio_begin: of the first frame by that file's clock, in seconds; None for the begin of its
            pictures.
        encoder: see :func:`~openvis_rt.runtime.video.encoders.choose_encoder`; None for H.264 by
            x264 or, where PyAV was built without it, MPEG-4 part 2.
        growing: the file has its name from the start and stays after an error; what was written
            plays, up to a second or two before the end. That is for recordings of live sources.

    Attributes:
        warnings: why sound is missing or ends early, and what times could not be kept.

    Raises:
        OutputError: the suffix is unknown, or the place cannot be written.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction | float,
        audio_from: str | None = None,
        encoder: Encoder | None = None,
        *,
        audio_begin: float | None = None,
        growing: bool = False,
    ) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise OutputError(
                f"{path} ends in '{path.suffix}', and no video of that kind can be written. "
                f"Give a name that ends in {', '.join(_SUFFIXES)}."
            )
        self.path, self.width, self.height = path, width, height
        # MPEG-4 allows no long fractions, and the limit makes 0 of a frame an hour
        self.fps = Fraction(fps).limit_denominator(1001) or Fraction(1, 1001)
        self.warnings: list[str] = []
        self._audio_from, self._encoder = audio_from, encoder
        self._audio_begin, self._growing = audio_begin, growing
        self._stack = ExitStack()
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._audio: SoundCopy | None = None
        self._unit = time_base_of(self.fps)
        self._shift = 0.0  # seconds that pauses were shortened by
        self._last: int | None = None  # when the last frame is shown, in units
        self._time = 0.0  # that the last frame was given
        self._told: set[str] = set()

    def __enter__(self) -> OverlayWriter:
        with ExitStack() as stack:
            partial = self.path
            if not self._growing:
                partial = stack.enter_context(output_file(self.path))
            with self._write_errors():
                self._container = stack.enter_context(open_output(partial, growing=self._growing))
                self._video = video_stream_of(
                    self._container, self.width, self.height, self.fps, self._encoder
                )
                if self._growing and self._video.codec_context.name == "libx264":
                    # else dozens of frames wait in the encoder, which is long at a frame a second
                    self._video.options = {**self._video.options, "tune": "zerolatency"}
                if self._audio_from is not None:
                    self._audio = self._audio_copy(self._audio_from, self._container, stack)
            self._stack = stack.pop_all()
        return self

    def write(self, image: npt.NDArray[np.uint8], time: float | None = None) -> None:
        """Append a frame.

        Args:
            image: uint8 [height, width, 3] RGB.
            time: when it is shown, in seconds since the first frame; None for ``1 / fps`` after the
                one before. One that is not later than the one before comes right after it.
        """
        if image.shape != (self.height, self.width, 3):
            raise ValueError(f"got an image {image.shape}, need {(self.height, self.width, 3)}")
        self._append(lambda: _frame_of(image), time)

    def write_canvas(self, canvas: Canvas, time: float | None = None) -> None:
        """Append a frame that was drawn into, of the same size; ``time`` as for :meth:`write`."""
        shape = canvas.planes[0].shape
        if shape != (self.height, self.width):
            raise ValueError(f"got a canvas {shape}, need {(self.height, self.width)}")
        self._append(canvas.frame, time)

    def _append(self, frame: Callable[[], VideoFrame], time: float | None) -> None:
        if self._container is None or self._video is None:
            raise RuntimeError("OverlayWriter.write outside of its with block")
        with self._write_errors():
            place = self._place(time)
            _encode(self._container, self._video, frame(), place)
            self._last = place
            if self._audio is not None:
                self._audio.copy_until(float(place * self._unit + 1 / self.fps))

    def _place(self, time: float | None) -> int:
        """When a frame is shown, in units."""
        step = max(1, round(1 / self.fps / self._unit))
        if self._last is None:
            self._time = time or 0.0
            return max(0, round(self._time / self._unit))
        if time is None:
            return self._last + step
        place = round((time - self._shift) / self._unit)
        if float((place - self._last) * self._unit) > max(LONGEST_GAP, float(10 / self.fps)):
            self._tell(
                "pause",
                f"the overlay leaves out a pause of {time - self._time:.0f} s, at "
                f"{float(self._last * self._unit):.1f} s of it: more than an hour is taken for an "
                "error of the clock",
            )
            place = self._last + step
            self._shift = time - float(place * self._unit)
        elif time <= self._time:
            self._tell(
                "times",
                f"frames have no times of their own, first at {time:.2f} s: in the overlay each "
                "comes right after the one before",
            )
        self._time = time
        return max(place, self._last + 1)

    def _tell(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self.warnings.append(message)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        container, video = self._container, self._video
        self._container = self._video = None
        with self._stack:
            if error is not None:
                if self._growing and container is not None and video is not None:
                    with contextlib.suppress(av.FFmpegError, OSError):
                        container.mux(video.encode())
                raise error  # so that the stack removes the file
            if container is None or video is None:
                return
            if self._last is None:
                raise OutputError(f"no frame was written to {self.path}; nothing is left there")
            with self._write_errors():
                container.mux(video.encode())
                container.close()

    def _audio_copy(
        self, source: str, output: OutputContainer, stack: ExitStack
    ) -> SoundCopy | None:
        """The copy of the source's sound, or None and, if sound is lost by that, a warning."""
        if not Path(source).is_file():
            if "://" in source:
                self.warnings.append("the sound of a stream is not copied")
            return None
        try:
            container = stack.enter_context(open_media(source))
        except (av.FFmpegError, OSError, ValueError, VideoError) as exc:
            self.warnings.append(f"no sound: {source} cannot be read again ({exc})")
            return None
        if not container.streams.audio:
            return None
        audio = container.streams.audio[0]
        try:
            return SoundCopy(container, audio, output, self._audio_begin, self.warnings)
        except ValueError:
            self.warnings.append(
                f"no sound: {self.path.suffix} cannot hold {audio.codec_context.name}; .mkv may"
            )
            return None

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        if self._growing:
            with self._growing_errors():
                yield
            return
        with output_errors(self.path):
            try:
                yield
            except OSError:
                raise
            except av.FFmpegError as exc:
                raise OutputError(
                    f"cannot write {self.path}: {exc.strerror}. Nothing was left there; "
                    "try another size, or a name that ends in .mkv."
                ) from exc

    @contextlib.contextmanager
    def _growing_errors(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as exc:
            raise OutputError(
                f"cannot write {self.path}: {exc.strerror or exc}. What it holds is kept there. "
                "Free space if the disk is full, or give another place with --output."
            ) from exc


@contextlib.contextmanager
def open_output(path: Path, *, growing: bool = False) -> Iterator[OutputContainer]:
    """A container to write; it is closed at the end, also after an error.

    Args:
        path: of the file.
        growing: an mp4 is written in fragments of a second, so that it plays whatever ends it. A
            new FFmpeg makes a usual one of it when it is closed.
    """
    options = {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
    if growing and options:
        whole = av.library_versions["libavformat"] >= _HYBRID
        kind = "hybrid_fragmented" if whole else "empty_moov+default_base_moof"
        options = {"movflags": f"{kind}+frag_keyframe", "frag_duration": "1000000"}
        options["flush_packets"] = "1"
    container = av.open(str(path), "w", options=options)
    try:
        yield container
    finally:
        # After success it is closed already. After an error the file is removed anyway, and what
        # closing it half-written would report hides the cause.
        with contextlib.suppress(av.FFmpegError, OSError):
            container.close()


def video_stream_of(
    container: OutputContainer,
    width: int,
    height: int,
    fps: Fraction,
    encoder: Encoder | None = None,
) -> VideoStream:
    """A new video track; odd sizes are rounded up; see :class:`OverlayWriter` for the encoder."""
    return (encoder or software_encoder()).add_to(container, width, height, fps)


def encode_image(
    container: OutputContainer, stream: VideoStream, image: npt.NDArray[np.uint8], index: int
) -> None:
    """Encode uint8 [H, W, 3] RGB as frame ``index``; the last row and column fill odd sizes."""
    context = stream.codec_context
    assert context.framerate is not None  # Encoder.add_to has set both
    assert context.time_base is not None
    place = round(index / context.framerate / context.time_base)
    _encode(container, stream, _frame_of(image), place)


def _frame_of(image: npt.NDArray[np.uint8]) -> VideoFrame:
    """The image's own memory as a frame or, where a side is odd, a larger copy."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image))


def _encode(
    container: OutputContainer, stream: VideoStream, picture: VideoFrame, place: int
) -> None:
    # one thread: a frame takes a millisecond, and FFmpeg's threads wait for a free core longer
    frame = picture.reformat(
        format=stream.codec_context.pix_fmt,
        dst_colorspace="ITU709",
        dst_color_range="MPEG",
        threads=1,
    )
    frame.pts, frame.time_base = place, stream.codec_context.time_base
    container.mux(stream.encode(frame))
