"""The process that sends an overlay to one address, until that fails: encode, mux, send.

One argument, the frames a second to expect; the address is the first line of stdin. See
:mod:`.child`.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType
from av.video.stream import VideoStream

from openvis_rt.runtime.video.encoders import Encoder, software_encoder
from openvis_rt.runtime.views.child import pictures_from, say_event, told_to_live
from openvis_rt.runtime.views.sink import Sink, sink_of

if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = ["main"]

_CLOCK = 90_000  # units of a second; MPEG-TS's
_KEY = 2.0  # seconds between pictures that stand alone, where a viewer can begin
_NO_PROTOCOL = (
    "this FFmpeg has no {0}://. Send to udp://127.0.0.1:5000, and forward that with "
    "ffmpeg -i udp://127.0.0.1:5000 -c copy -f mpegts {0}://..."
)
_SILENCE = 10.0  # seconds that the other side may take for one picture


def main() -> None:
    """Send until stdin ends or the address fails; then say why."""
    address, source, events = told_to_live()
    sink, rate, sender = sink_of(address), Fraction(sys.argv[1]), None
    try:
        for image in pictures_from(source):
            with _watchdog(endless=sender is None and sink.waits):
                if sender is None:
                    sender = _Sender(sink, image.shape[1], image.shape[0], rate)
                    say_event(events, {"connected": True})
                sender.send(image)
        if sender is not None:
            with _watchdog():
                sender.close()
    except av.ProtocolNotFoundError:
        say_event(events, {"lost": _NO_PROTOCOL.format(address.split("://")[0]), "never": True})
        os._exit(1)
    except (av.FFmpegError, OSError, ValueError) as exc:
        say_event(events, {"lost": getattr(exc, "strerror", None) or str(exc)})
        os._exit(1)  # PyAV would write a trailer to what is broken
    except Exception as exc:
        say_event(events, {"lost": f"{type(exc).__name__}: {exc}"})
        os._exit(1)


class _watchdog:  # noqa: N801 - reads as a verb
    """Ends the process where the block takes too long, also in a call that keeps Python's lock."""

    def __init__(self, *, endless: bool = False) -> None:
        self._endless = endless

    def __enter__(self) -> None:
        if not self._endless:
            faulthandler.dump_traceback_later(_SILENCE, exit=True)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


class _Sender:
    """A connection. A picture's time is that of its sending."""

    def __init__(self, sink: Sink, width: int, height: int, rate: Fraction) -> None:
        self._container: OutputContainer = av.open(
            sink.address, "w", format=sink.format, container_options=sink.options
        )
        encoder = Encoder("rawvideo") if sink.raw else _low_latency(width, height, rate)
        self._stream: VideoStream = encoder.add_to(self._container, width, height, rate)
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        self._container.start_encoding()
        self._begin, self._last, self._key = time.monotonic(), -_CLOCK, -_KEY

    def send(self, image: npt.NDArray[np.uint8]) -> None:
        """Encode and send uint8 [H, W, 3] RGB."""
        context = self._stream.codec_context
        frame = av.VideoFrame.from_numpy_buffer(image).reformat(
            format=context.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG", threads=1
        )
        now = time.monotonic() - self._begin
        self._last = max(round(now * _CLOCK), self._last + _CLOCK // 1000)
        frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK)
        if now - self._key >= _KEY:
            frame.pict_type, self._key = PictureType.I, now
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Send what is left."""
        self._container.mux(self._stream.encode())
        self._container.close()


def _low_latency(width: int, height: int, rate: Fraction) -> Encoder:
    """H.264 without frames that wait for later ones, at a bounded rate."""
    encoder = software_encoder()
    if encoder.name != "libx264":
        return encoder
    most = max(1_000_000, round(0.15 * width * height * min(rate, Fraction(60))))
    told = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "forced-idr": "1"}
    return Encoder("libx264", told | {"maxrate": str(most), "bufsize": str(most), "bf": "0"})


if __name__ == "__main__":
    main()
