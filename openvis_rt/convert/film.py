"""The video of a page or a recording, encoded so that it can be stepped frame by frame.

Browsers play H.264. Rerun's viewer decodes AV1 by itself, and H.264 only with a program that users
have to install, so a recording has AV1.

Each frame is shown at its own time in the results, so a variable rate stays what it is. There is a
key frame at least every second, and no frame is stored out of order: a step back decodes a second
of video at the most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from openvis_rt.errors import InputError, UnavailableError, VideoError
from openvis_rt.runtime.video.overlay import open_output
from openvis_rt.runtime.video.reading import VideoSource, open_video

if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = ["check_h264", "write_film"]

_SMALLEST_AV1 = 64  # pixels of a side, for SVT-AV1
_TICKS = 90_000  # a second: that of MPEG's own clock
_BT709 = 1  # FFmpeg's number of the colour space, of its primaries and of its transfer curve
_LIMITED_RANGE = 1

Codec = Literal["h264", "av1"]
Progress = Callable[[str, int, int | None], None]


def check_h264() -> None:
    """Refuse a PyAV that writes nothing a browser plays.

    Raises:
        UnavailableError: it was built without x264.
    """
    if "libx264" not in av.codecs_available:
        raise UnavailableError(
            f"PyAV {av.__version__} was built without x264, and browsers play no other video that "
            "it writes. Install PyAV's own wheel: pip install --force-reinstall av"
        )


def write_film(
    path: Path,
    source: str,
    size: tuple[int, int],
    times: Sequence[float],
    numbers: Sequence[int],
    *,
    codec: Codec,
    longest: int,
    quality: int,
    progress: Progress,
) -> None:
    """Write the frames of a video that the results have.

    Args:
        path: of the file, which ends in ``.mp4``.
        source: a video file or a folder of images: the one that was run.
        size: height and width of the results in pixels.
        times: of every frame in seconds, strictly ascending.
        numbers: of the frames in the source that was run, ascending. A video with just as many
            frames as there are results, such as the run's own overlay, is taken frame by frame.
        codec: ``av1`` becomes ``h264`` where PyAV lacks SVT-AV1, or a side is below 64 pixels.
        longest: side in pixels; a larger video is reduced to it.
        quality: the encoder's CRF, 0 to 51, lower is better and larger.
        progress: told after each frame.

    Raises:
        InputError: the video is of another size.
        VideoError: it cannot be read, or has fewer frames than the results.
    """
    with open_video(source, allow_truncated=True) as video:
        if (video.height, video.width) != size:
            raise InputError(
                f"{source} is {video.width}x{video.height}, and the results are of a video of "
                f"{size[1]}x{size[0]}. Give the video that was run."
            )
        ticks = [round(time * _TICKS) for time in times]
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
        with open_output(path) as container:
            stream = _stream_of(container, _reduced(size, longest), usual, codec, quality)
            frames = _numbered(video, numbers)
            for index, duration in enumerate(_durations(ticks, usual)):
                if (image := next(frames, None)) is None:
                    raise VideoError(
                        f"{source} ends after {index} frames, and the results have {len(times)}. "
                        "Give the video that was run."
                    )
                _encode(container, stream, image, ticks[index], duration)
                progress("encoding the video", index + 1, len(times))
            container.mux(stream.encode())
            container.close()


def _numbered(video: VideoSource, numbers: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """The images of the frames with these numbers, or of all where there are just as many."""
    wanted = iter(range(len(numbers)) if video.frame_count == len(numbers) else numbers)
    number = next(wanted, None)
    for frame in video:
        if frame.index == number:
            yield frame.image
            number = next(wanted, None)


def _durations(ticks: list[int], usual: float) -> Iterator[int]:
    for index in range(1, len(ticks)):
        yield ticks[index] - ticks[index - 1]
    yield max(1, round(usual * _TICKS))


def _reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width, both even, as 4:2:0 needs them."""
    scale = min(1.0, longest / max(size))
    height, width = (max(2, 2 * round(side * scale / 2)) for side in size)
    return height, width


def _stream_of(
    container: OutputContainer, size: tuple[int, int], usual: float, codec: Codec, quality: int
) -> VideoStream:
    rate = max(Fraction(1 / usual).limit_denominator(1001), Fraction(1, 1001))
    options = {"crf": str(quality), "g": str(max(1, round(rate)))}  # g: between key frames
    if codec == "av1" and "libsvtav1" in av.codecs_available and min(size) >= _SMALLEST_AV1:
        os.environ.setdefault("SVT_LOG", "1")  # errors only; the library writes to stderr
        options |= {"preset": "9", "svtav1-params": "pred-struct=1"}  # 1: no frame out of order
        stream = container.add_stream("libsvtav1", rate=rate, options=options)
    else:
        options |= {"preset": "veryfast", "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    stream.time_base = Fraction(1, _TICKS)
    context = stream.codec_context
    context.height, context.width = size
    context.pix_fmt, context.framerate, context.time_base = "yuv420p", rate, stream.time_base
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def _encode(
    container: OutputContainer,
    stream: VideoStream,
    image: npt.NDArray[np.uint8],
    tick: int,
    duration: int,
) -> None:
    context = stream.codec_context
    frame = av.VideoFrame.from_numpy_buffer(image).reformat(
        width=context.width,
        height=context.height,
        format=context.pix_fmt,
        dst_colorspace="ITU709",
        dst_color_range="MPEG",
        threads=1,
    )
    frame.pts, frame.time_base, frame.duration = tick, stream.time_base, duration
    container.mux(stream.encode(frame))
