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

from openvis_rt.errors import OutputError
from openvis_rt.files import output_errors, output_file
from openvis_rt.runtime.video.encoders import Encoder, software_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Canvas", "OverlayWriter", "encode_image", "open_output", "video_stream_of"]

_SUFFIXES = (".mp4", ".mkv", ".mov")

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
    """A video with a constant rate, and with the sound of the video that it was made from.

    4:2:0, BT.709. Frame ``i`` is shown at ``i / fps``. Sound is copied as it is, up to the end of
    the pictures. The file takes its name when the ``with`` block ends well; after an error nothing
    new stands under that name.

    Args:
        path: ends in ``.mp4``, ``.mkv`` or ``.mov``.
        width: of the frames in pixels; one more column is written if it is odd.
        height: of the frames in pixels; one more row is written if it is odd.
        fps: frames a second.
        audio_from: the video file whose first sound track is copied; folders have none.
        encoder: see :func:`~openvis_rt.runtime.video.encoders.choose_encoder`; None for H.264 by
            x264 or, where PyAV was built without it, MPEG-4 part 2.

    Attributes:
        warnings: why sound is missing or ends early, if it does.

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
    ) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise OutputError(
                f"{path} ends in '{path.suffix}', and no video of that kind can be written. "
                f"Give a name that ends in {', '.join(_SUFFIXES)}."
            )
        self.path, self.width, self.height = path, width, height
        self.fps = Fraction(fps).limit_denominator(1001)  # MPEG-4 allows no long fractions
        self.warnings: list[str] = []
        self._audio_from, self._encoder = audio_from, encoder
        self._stack = ExitStack()
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._audio: _AudioCopy | None = None
        self._count = 0

    def __enter__(self) -> OverlayWriter:
        with ExitStack() as stack:
            partial = stack.enter_context(output_file(self.path))
            with self._write_errors():
                self._container = stack.enter_context(open_output(partial))
                self._video = video_stream_of(
                    self._container, self.width, self.height, self.fps, self._encoder
                )
                if self._audio_from is not None:
                    self._audio = self._audio_copy(self._audio_from, self._container, stack)
            self._stack = stack.pop_all()
        return self

    def write(self, image: npt.NDArray[np.uint8]) -> None:
        """Append a frame, uint8 [height, width, 3] RGB."""
        if image.shape != (self.height, self.width, 3):
            raise ValueError(f"got an image {image.shape}, need {(self.height, self.width, 3)}")
        self._append(lambda: _frame_of(image))

    def write_canvas(self, canvas: Canvas) -> None:
        """Append a frame that was drawn into, of the same size."""
        shape = canvas.planes[0].shape
        if shape != (self.height, self.width):
            raise ValueError(f"got a canvas {shape}, need {(self.height, self.width)}")
        self._append(canvas.frame)

    def _append(self, frame: Callable[[], VideoFrame]) -> None:
        if self._container is None or self._video is None:
            raise RuntimeError("OverlayWriter.write outside of its with block")
        with self._write_errors():
            _encode(self._container, self._video, frame(), self._count)
            self._count += 1
            if self._audio is not None:
                self._audio.copy_until(float(self._count / self.fps))

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
                raise error  # so that the stack removes the file
            if container is None or video is None:
                return
            if self._count == 0:
                raise OutputError(f"no frame was written to {self.path}; nothing is left there")
            with self._write_errors():
                container.mux(video.encode())
                container.close()

    def _audio_copy(
        self, source: str, output: OutputContainer, stack: ExitStack
    ) -> _AudioCopy | None:
        """The copy of the source's sound, or None and, if sound is lost by that, a warning."""
        if not Path(source).is_file():
            if "://" in source:
                self.warnings.append("the sound of a stream is not copied")
            return None
        try:
            container = stack.enter_context(av.open(source))
        except (av.FFmpegError, ValueError) as exc:
            self.warnings.append(f"no sound: {source} cannot be read again ({exc})")
            return None
        if not container.streams.audio:
            return None
        audio = container.streams.audio[0]
        try:
            return _AudioCopy(container, audio, output, self.warnings)
        except ValueError:
            self.warnings.append(
                f"no sound: {self.path.suffix} cannot hold {audio.codec_context.name}; .mkv may"
            )
            return None

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
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


class _AudioCopy:
    """Copies packets of sound beside the pictures; one packet is held at a time."""

    def __init__(
        self,
        source: InputContainer,
        stream: AudioStream,
        output: OutputContainer,
        warnings: list[str],
    ) -> None:
        self._output, self._warnings = output, warnings
        self._track = output.add_stream_from_template(stream)
        self._packets = source.demux(stream)
        self._next: Packet[AudioStream] | None = None
        self._begin = 0.0  # seconds at which the source's pictures begin
        if source.streams.video:
            video = source.streams.video[0]
            if video.start_time is not None and video.time_base is not None:
                self._begin = float(video.start_time * video.time_base)

    def copy_until(self, time: float) -> None:
        """Write the packets that begin before ``time`` in seconds of the output."""
        while (packet := self._next or self._read(time)) is not None:
            self._next = None
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue  # the empty packet at the end
            if float(packet.pts * packet.time_base) - self._begin >= time:
                self._next = packet
                return
            shift = round(self._begin / packet.time_base)
            packet.pts -= shift
            packet.dts -= shift
            if packet.pts + (packet.duration or 0) >= 0:  # sound before the first picture is cut
                packet.stream = self._track
                try:
                    self._output.mux(packet)
                except av.InvalidDataError as exc:  # the packet is damaged; a full disk is OSError
                    self._stop(time, exc)

    def _read(self, time: float) -> Packet[AudioStream] | None:
        """The next packet; None at the end, and where the source breaks."""
        try:
            return next(self._packets, None)
        except av.FFmpegError as exc:
            self._stop(time, exc)
            return None

    def _stop(self, time: float, error: av.FFmpegError) -> None:
        self._packets = iter(())
        self._warnings.append(f"the sound ends at {time:.1f} s: it is damaged ({error.strerror})")


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[OutputContainer]:
    """A container to write; it is closed at the end, also after an error."""
    options = {} if path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
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
    _encode(container, stream, _frame_of(image), index)


def _frame_of(image: npt.NDArray[np.uint8]) -> VideoFrame:
    """The image's own memory as a frame or, where a side is odd, a larger copy."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image))


def _encode(
    container: OutputContainer, stream: VideoStream, picture: VideoFrame, index: int
) -> None:
    # one thread: a frame takes a millisecond, and FFmpeg's threads wait for a free core longer
    frame = picture.reformat(
        format=stream.codec_context.pix_fmt,
        dst_colorspace="ITU709",
        dst_color_range="MPEG",
        threads=1,
    )
    frame.pts, frame.time_base = index, stream.codec_context.time_base
    container.mux(stream.encode(frame))
