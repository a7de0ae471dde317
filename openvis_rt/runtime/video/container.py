"""Reading the pictures of one container, stream or device (PyAV), and seeing where it was cut."""

from __future__ import annotations

import socket
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition, Stream
from av.video.reformatter import VideoReformatter

from openvis_rt.errors import VideoError
from openvis_rt.geometry import LARGEST_PICTURE
from openvis_rt.runtime.video.damage import Damage
from openvis_rt.runtime.video.opening import open_media
from openvis_rt.runtime.video.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["DEFAULT_FPS", "ContainerReader", "DamagedError"]

DEFAULT_FPS = Fraction(25)  # of folders of images, and of streams that declare no rate
# frames a second that a video may have, by its header: a frame a day, and fast cameras
_RATES = (Fraction(1, 86400), Fraction(1000))
_HUGE = 4096 * 2304  # pixels of a frame
# containers whose header tells how much should follow; others guess it from what is there
_DECLARING_FORMATS = frozenset({"avi", "flv", "matroska", "mov"})
_LATE_END = 0.5  # seconds: headers round, and tracks end apart by a packet of sound or two
_JPEG_END, _JPEG_PADDING = b"\xff\xd9", 64
_NOT_A_VIDEO = (
    "{}. Give a video that FFmpeg can decode; an mp4 whose writing or copying was cut off lacks "
    "its index and must be written or copied again."
)
_WHY_NO_PIPE = (
    "{}. Send a video that can be read from its begin without going back in it, such as MPEG-TS, "
    "Matroska or fragmented MP4."
)
_SIGN_IN = (
    "{reason}. Check user and password; they go into the address, as in "
    "{scheme}://user:password@{host}/..."
)
_NOT_REACHED: tuple[tuple[type[Exception], str], ...] = (
    (
        av.ProtocolNotFoundError,
        "FFmpeg knows no {scheme}:// here. Check the address: it begins with rtsp://, http://, "
        "https://, rtmp://, udp:// or tcp://. What another program reads can come by a pipe: "
        "ffmpeg -i ADDRESS -c copy -f mpegts - | openvis run BUNDLE - ...",
    ),
    (
        ConnectionRefusedError,
        "{host} refused the connection. Check the port, and that the camera or server is running.",
    ),
    (av.HTTPUnauthorizedError, _SIGN_IN),
    (av.HTTPForbiddenError, _SIGN_IN),
    (av.HTTPClientError, "{reason}. Check the path, which is {path} here."),
    (av.HTTPServerError, "{reason}. The fault is {host}'s own; its log should say more."),
)


class DamagedError(VideoError):
    """The data end or break before their declared end; what came before is good."""


class ContainerReader:
    """The first video track of whatever FFmpeg can open; sound and subtitles are passed over.

    Args:
        name: of the source, for messages.
        url: for FFmpeg.
        device_format: FFmpeg's name of a kind of device, or None.
        timeout: seconds without data after which a stream counts as broken; None for a file.
        patience: seconds in which it must open; None for ``timeout``.
        live: the source is known to have no end.

    Attributes:
        start: of the first frame by the container's clock, in seconds, when that was read; None
            before, and where the source has no clock.
        warnings: what a user should know, when it was seen.
        repeats: opened once more it would give its last seconds again: a playlist of HLS.
        damage: of a live source; a file that is damaged is refused, or cut there.

    Raises:
        VideoError: it cannot be opened, or has no pictures.
    """

    def __init__(
        self,
        name: str,
        url: str,
        device_format: str | None = None,
        *,
        timeout: float | None = None,
        patience: float | None = None,
        live: bool = False,
    ) -> None:
        patience = timeout if patience is None else patience
        self.name = name
        self.start: float | None = None
        self.warnings: list[str] = []
        begin = time.monotonic()
        try:
            if device_format is None and "://" not in url and not live:
                self._container = open_media(url)
            else:
                self._container = av.open(
                    url, format=device_format, timeout=(patience, timeout), options=_options(url)
                )
        except (av.FFmpegError, OSError, ValueError) as exc:
            why = _NOT_A_VIDEO.format(_reason(exc))
            if "://" in url:
                why = _why_not_reached(url, exc, patience, time.monotonic() - begin)
            elif url.startswith("pipe:"):
                why = _WHY_NO_PIPE.format(_reason(exc))
                if isinstance(exc, av.ExitError):
                    why = f"no whole picture came within {patience:g} s. Check what writes into it."
            elif device_format is not None:
                why = f"{_reason(exc)}. Check that it is plugged in and that nothing else uses it."
            raise VideoError(f"{name} cannot be opened: {why}") from exc
        try:
            self._stream = _video_stream(self._container, name)
        except VideoError:
            self._container.close()
            raise
        rates = [rate for rate in (self._stream.average_rate, self._stream.guessed_rate) if rate]
        self.fps = _rate_of(self._stream)
        # else times, too, are by a rate in error; one that is only guessed says nothing of them
        self._clocked = self.fps in rates or not self._stream.average_rate
        if not self._clocked:
            self.warnings.append(
                f"{name} declares {float(rates[0]):g} frames a second, which is taken for an "
                f"error: {float(self.fps):g} are assumed"
            )
        self.frame_count = self._stream.frames or None
        self.live = live or (timeout is not None and self._container.duration is None)
        self._stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE)}
        # threads that take a frame each give a live picture some frames late
        self._stream.thread_type = "SLICE" if self.live else "AUTO"
        if self._stream.width * self._stream.height > _HUGE:  # each thread holds some frames
            self._stream.codec_context.thread_count = 4
        self._timeout = timeout
        self.repeats = "hls" in self._container.format.name.split(",")
        self.damage = Damage(float(self.fps))
        self._jpegs_end = False  # some picture had its end
        self._extent = _Extent(self._container, self._stream)

    def frames(self, stride: int = 1) -> Iterator[tuple[int, float | None, npt.NDArray[np.uint8]]]:
        """Index, time and image of every frame, as :class:`.reading.Frame` has them.

        Args:
            stride: frames whose index it does not divide are decoded and left out.

        Raises:
            DamagedError: the data end or break early.
        """
        started, matrix, timeline, index = False, None, Timeline(), -1
        # one for all: a picture's own has threads, which live as long as that picture does
        reformatter = VideoReformatter()
        for packet in self._packets():
            for picture in self._pictures(packet, started=started):
                if not started:
                    # The matrix is the track's. Asking each picture would keep it in memory until
                    # the next garbage collection: PyAV's side data and pictures refer to each other
                    self.start, matrix = picture.time, _matrix_of(picture)
                    started = True
                time, index = self._time(picture, timeline), index + 1
                self._note(picture, time)
                if index % stride == 0:
                    yield index, time, _upright(picture, matrix, reformatter)
        self._extent.check()
        if self._extent.indexed and 2 * (index + 1) < self._stream.frames:
            self.warnings.append(
                f"{self.name} shows {index + 1} of its {self._stream.frames} frames: its edit list "
                "leaves out the others. To have them: ffmpeg -ignore_editlist 1 -i INPUT OUTPUT.mp4"
            )

    def close(self) -> None:
        """Release the file, stream or device."""
        self._container.close()

    def _time(self, picture: VideoFrame, timeline: Timeline) -> float | None:
        """When a picture is shown, in seconds since the first one."""
        if picture.time is None or self.start is None or not self._clocked:
            return None
        before = timeline.restarts
        time = timeline.place(picture.time - self.start, float(1 / self.fps))
        if timeline.restarts > before == 0:
            self.warnings.append(
                f"the clock of {self.name} goes back, or far ahead, first at {time:.2f} s: what "
                "follows is taken to come one frame later"
            )
        return time

    def _note(self, picture: VideoFrame, time: float | None) -> None:
        if self.live and picture.is_corrupt:
            self.damage.sign()
        self.damage.frame(time)

    def _packets(self) -> Iterator[Packet[Stream]]:
        """The packets of the video track, and an empty one at the end to flush the decoder."""
        try:
            for packet in self._container.demux(*self._extent.streams):
                self._extent.add(packet)
                if packet.stream is self._stream:
                    if self.live and (packet.is_corrupt or self._is_cut(packet)):
                        self.damage.sign()
                    yield packet
        except av.ExitError as exc:
            waited = "" if self._timeout is None else f" within {self._timeout:g} s"
            raise DamagedError(f"no whole frame came{waited}") from exc
        except (av.FFmpegError, OSError) as exc:
            raise DamagedError(f"reading fails ({_reason(exc)})") from exc

    def _is_cut(self, packet: Packet[Stream]) -> bool:
        """Whether it is a JPEG without its end, which decodes to a picture that is partly grey.

        Some cameras never write that end, so it counts only where another picture had it.
        """
        if self._stream.codec_context.name != "mjpeg" or not packet.size:
            return False
        ends = _JPEG_END in bytes(memoryview(packet)[-_JPEG_PADDING:])
        self._jpegs_end |= ends
        return self._jpegs_end and not ends

    def _pictures(self, packet: Packet[Stream], *, started: bool) -> list[VideoFrame]:
        try:
            return self._stream.decode(packet)
        except av.FFmpegError as exc:
            # A recording may begin between key frames, and a live stream may lose packets: the
            # decoder refuses those and goes on at the next key frame.
            if isinstance(exc, av.InvalidDataError) and (self.live or not started):
                if started:
                    self.damage.sign()
                return []
            raise DamagedError(f"decoding fails ({_reason(exc)})") from exc


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
    A file with an index (``indexed``) is whole if every packet of it came, whatever the durations
    say.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        formats = set(container.format.name.split(","))
        frame = float(1 / _rate_of(stream))
        self.streams: tuple[Stream, ...] = (stream,)  # tracks to read: those that count
        self._stream = stream
        self.indexed = "mov" in formats and bool(stream.frames)
        self._tolerance = _LATE_END + 2 * frame
        self._declared: float | None = None  # seconds
        if self.indexed and stream.duration and stream.time_base:
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
        """Raise ``DamagedError`` if the data ended before their declared end."""
        if self._declared is None:
            return
        if self._cut_packet:
            raise DamagedError("the file ends within a frame")
        whole = self.indexed and self._packets >= self._stream.frames
        if not whole and self._reached < self._declared - self._tolerance:
            raise DamagedError(
                f"the file declares {self._declared:.2f} s and ends after {self._reached:.2f} s"
            )


def _options(url: str) -> dict[str, str]:
    """How FFmpeg opens it: cameras' own RTSP by TCP if they can, as UDP is lost in firewalls."""
    return {"rtsp_flags": "prefer_tcp"} if url.startswith(("rtsp://", "rtsps://")) else {}


def _rate_of(stream: VideoStream) -> Fraction:
    """Frames a second as the header has them, or 25 where it has none that can be."""
    least, most = _RATES
    rates = (stream.average_rate, stream.guessed_rate)
    return next((rate for rate in rates if rate and least <= rate <= most), DEFAULT_FPS)


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first video track that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:  # whatever PyAV's stubs say
                raise VideoError(
                    f"the pictures of {name} are of a kind ({container.format.name}) that this "
                    "FFmpeg cannot decode. Write them anew as H.264, AV1 or MJPEG."
                )
            return stream
    found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise VideoError(f"{name} has no video track; found {found}. Give a file with pictures.")


def _matrix_of(picture: VideoFrame) -> tuple[int, int, int, int] | None:
    """The display matrix of a picture, less its shift: a, b, c, d.

    ``[[a, b, u], [c, d, v], [x, y, w]]`` of int32 takes a stored point (p, q) to
    (a p + c q, b p + d q), up to a shift: phones write multiples of a quarter turn, and mirrors.
    """
    try:
        side_data: Any = picture.side_data  # PyAV's stubs know one kind only
        matrix = side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows no name of some kinds that come with it, such as EXIF
        return None
    if matrix is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, "<i4")[:5])
    return a, b, c, d


def _upright(
    picture: VideoFrame,
    matrix: tuple[int, int, int, int] | None,
    reformatter: VideoReformatter,
) -> npt.NDArray[np.uint8]:
    """The picture as RGB, turned and mirrored to the nearest quarter turn of its matrix."""
    image = np.asarray(reformatter.reformat(picture, format="rgb24").to_ndarray(), np.uint8)
    if matrix is not None:
        a, b, c, d = matrix
        if abs(b) > abs(a):
            image = image.transpose(1, 0, 2)
            a, d = c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _why_not_reached(address: str, error: Exception, timeout: float | None, waited: float) -> str:
    """Why no video comes from an address, and what to check; FFmpeg's own words are few."""
    try:
        parts = urlsplit(address)
    except ValueError as exc:
        return (
            f"the address cannot be taken apart ({exc}). Write a sign such as [ ] @ / in a user or "
            "a password by its number: %5B %5D %40 %2F."
        )
    why = next((words for kind, words in _NOT_REACHED if isinstance(error, kind)), None)
    if why is None and timeout is not None and waited >= timeout:  # FFmpeg's errors for it differ
        why = (
            f"nothing came from {{host}} within {timeout:g} s. Check the address and the port, and "
            "that no firewall stands between."
        )
    if why is None and parts.hostname and not _is_known(parts.hostname):
        why = "no host {host} is known. Check its spelling and this machine's network."
    if why is None:
        why = "{reason}. Check that the address gives a video that FFmpeg can decode."
    host = parts.hostname or "the host"
    return why.format(host=host, path=parts.path or "/", scheme=parts.scheme, reason=_reason(error))


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True
