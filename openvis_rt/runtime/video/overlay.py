"""Drawing results on frames (numpy and Pillow) and writing them as a video (PyAV)."""

from __future__ import annotations

import colorsys
import contextlib
import functools
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from openvis_rt.errors import OutputError
from openvis_rt.files import output_errors, output_file
from openvis_rt.runtime.video.results import FrameResult, Instance, decode_mask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["OverlayWriter", "color_of", "draw", "video_stream_of"]

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded

_FILL = 110  # opacity of a mask's inside, of 255
_CONTOUR = 240
_GOLDEN = 0.618033988749895  # the fractions of its multiples keep the widest gaps
_NAME_LENGTH = 40  # characters; longer names are cut
# Tried in order for the letters that Pillow's own font lacks; searched in the system's font folders
_FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "arial.ttf",
)
_SUFFIXES = (".mp4", ".mkv", ".mov")
_BT709 = 1  # FFmpeg's number of the colour space, of its primaries and of its transfer curve
_LIMITED_RANGE = 1


def color_of(track_id: int) -> tuple[int, int, int]:
    """The colour of a track as RGB, 0..255; the same in every run, and far from its neighbours'."""
    saturation, value = ((0.78, 1.0), (0.60, 0.95), (0.90, 0.85))[track_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(0.58 + track_id * _GOLDEN, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: npt.NDArray[np.uint8], result: FrameResult) -> npt.NDArray[np.uint8]:
    """Draw masks, contours and labels.

    Args:
        image: uint8 [H, W, 3] RGB; not changed.
        result: the objects of this frame; those with an empty mask are left out.

    Returns:
        A new array of the same shape, C-contiguous.
    """
    height, width = image.shape[:2]
    if (result.height, result.width) != (height, width):
        raise ValueError(
            f"the image has {width}x{height} pixels, its result {result.width}x{result.height}"
        )
    canvas = Image.fromarray(image)  # paste() copies before it writes
    seen = [instance for instance in result.instances if instance.box[2] and instance.box[3]]
    seen.sort(key=lambda instance: -instance.box[2] * instance.box[3])  # small ones on top
    if seen:
        canvas = canvas.copy()
    thickness = max(1, round(height / 400))
    for instance in seen:
        _draw_mask(canvas, instance, thickness)
    size = max(11, round(height / 42))
    taken: list[Box] = []
    for instance in seen:
        taken.append(_draw_label(canvas, instance, size, taken))
    return np.array(canvas)


def _draw_mask(canvas: Image.Image, instance: Instance, thickness: int) -> None:
    left, top, width, height = instance.box
    mask = decode_mask(instance.segmentation)[top : top + height, left : left + width]
    inside = _eroded(mask, thickness)
    opacity = np.where(inside, _FILL, _CONTOUR).astype(np.uint8) * mask
    canvas.paste(color_of(instance.track_id), (left, top), Image.fromarray(opacity))


def _eroded(mask: npt.NDArray[np.uint8], steps: int) -> npt.NDArray[np.uint8]:
    """The mask less its border of ``steps`` pixels; what lies outside of the array is not set."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _draw_label(canvas: Image.Image, instance: Instance, size: int, taken: list[Box]) -> Box:
    """Draw the tag of an instance where it hides no other tag, if shifting helps; its place."""
    name = " ".join(instance.name.split())
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1] + "…"
    text = f"{name} #{instance.track_id} {instance.score:.2f}"
    font = _font_for(text, size)
    pad = max(2, size // 4)
    extent = (round(font.getlength(text)) + 2 * pad, round(size * 1.25) + pad)
    place = _label_place(canvas.size, instance.box, extent, taken)
    color = color_of(instance.track_id)
    pen = ImageDraw.Draw(canvas)
    pen.rounded_rectangle((place[0], place[1], place[2] - 1, place[3] - 1), pad, fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    middle = ((place[0] + pad), (place[1] + place[3]) / 2)
    pen.text(middle, text, fill=ink, font=font, anchor="lm")
    return place


def _label_place(
    canvas: tuple[int, int],
    box: tuple[int, int, int, int],
    extent: tuple[int, int],
    taken: list[Box],
) -> Box:
    """Above the box if that is free, else the nearest free place up or down; in the picture."""
    left = max(0, min(box[0], canvas[0] - extent[0]))
    lowest = max(0, canvas[1] - extent[1])
    above = box[1] - extent[1]
    step = max(1, extent[1] // 4)
    tops = sorted(range(above % step, canvas[1], step), key=lambda top: abs(top - above))
    places = [
        (left, top, left + extent[0], top + extent[1])
        for top in (max(0, min(top, lowest)) for top in (above, *tops))
    ]
    return next((place for place in places if not _overlaps(place, taken)), places[0])


def _overlaps(place: Box, taken: list[Box]) -> bool:
    left, top, right, bottom = place
    return any(left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in taken)


@functools.lru_cache(maxsize=4096)
def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or the first of the system that has more of the text's letters."""
    own = ImageFont.load_default(size)
    if text.isascii() or not isinstance(own, ImageFont.FreeTypeFont):
        return own
    fonts = [own, *(font for name in _FALLBACK_FONTS if (font := _system_font(name, size)))]
    return min(fonts, key=lambda font: sum(_is_missing(font, letter) for letter in set(text)))


@functools.lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _is_missing(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws ``letter`` as it draws a code that no font has."""
    return bytes(font.getmask(letter)) == bytes(font.getmask("\U0010fffe"))


class OverlayWriter:
    """A video with a constant rate, and with the sound of the video that it was made from.

    H.264 (MPEG-4 part 2 where PyAV was built without x264), 4:2:0, BT.709. Frame ``i`` is shown at
    ``i / fps``. Sound is copied as it is, up to the end of the pictures. The file takes its name
    when the ``with`` block ends well; after an error nothing new stands under that name.

    Args:
        path: ends in ``.mp4``, ``.mkv`` or ``.mov``.
        width: of the frames in pixels; one more column is written if it is odd.
        height: of the frames in pixels; one more row is written if it is odd.
        fps: frames a second.
        audio_from: the video file whose first sound track is copied; folders have none.

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
    ) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise OutputError(
                f"{path} ends in '{path.suffix}', and no video of that kind can be written. "
                f"Give a name that ends in {', '.join(_SUFFIXES)}."
            )
        self.path, self.width, self.height = path, width, height
        self.fps = Fraction(fps).limit_denominator(1001)  # MPEG-4 allows no long fractions
        self.warnings: list[str] = []
        self._audio_from = audio_from
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
                self._video = video_stream_of(self._container, self.width, self.height, self.fps)
                if self._audio_from is not None:
                    self._audio = self._audio_copy(self._audio_from, self._container, stack)
            self._stack = stack.pop_all()
        return self

    def write(self, image: npt.NDArray[np.uint8]) -> None:
        """Append a frame, uint8 [height, width, 3] RGB."""
        if self._container is None or self._video is None:
            raise RuntimeError("OverlayWriter.write outside of its with block")
        if image.shape != (self.height, self.width, 3):
            raise ValueError(f"got an image {image.shape}, need {(self.height, self.width, 3)}")
        with self._write_errors():
            encode_frame(self._container, self._video, image, self._count)
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
    container: OutputContainer, width: int, height: int, fps: Fraction
) -> VideoStream:
    """A new video track of H.264 or, where PyAV lacks it, MPEG-4; odd sizes are rounded up."""
    if "libx264" in av.codecs_available:
        stream = container.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "crf": "20"}
        )
    else:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.bit_rate = max(1_000_000, round(0.2 * width * height * fps))
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    context.time_base = 1 / fps
    return stream


def encode_frame(
    container: OutputContainer, stream: VideoStream, image: npt.NDArray[np.uint8], index: int
) -> None:
    """Encode uint8 [H, W, 3] RGB as frame ``index``; the last row and column fill odd sizes."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(image).reformat(
        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
    )
    frame.pts, frame.time_base = index, stream.codec_context.time_base
    container.mux(stream.encode(frame))
