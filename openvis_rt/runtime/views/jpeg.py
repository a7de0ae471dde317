"""JPEGs of drawn frames (PyAV, whose encoder leaves Python's lock free while it works)."""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

__all__ = ["JpegEncoder"]

_QUALITY = 4  # FFmpeg's, 1 to 31, lower is better


class JpegEncoder:
    """Encodes frames of one size after the other.

    Args:
        widest: pixels; wider frames are made smaller, in their own proportions.
    """

    def __init__(self, widest: int) -> None:
        self._widest = widest
        self._context: VideoCodecContext | None = None
        self._count = 0
        # its own: that of a frame serves one thread at a time, and the overlay's encoder uses it
        self._reformatter = VideoReformatter()

    def encode(self, frame: VideoFrame) -> bytes:
        """A JPEG of the frame, which is not changed."""
        width, height = frame.width, frame.height
        if width > self._widest:
            width, height = self._widest, max(2, round(height * self._widest / width / 2) * 2)
        small = self._reformatter.reformat(
            frame,
            width,
            height,
            "yuvj420p",
            dst_colorspace=Colorspace.ITU601,  # JFIF's
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        if self._context is None or (self._context.width, self._context.height) != (width, height):
            self._context = _context_of(width, height)
        small.pts, small.time_base = self._count, Fraction(1, 25)
        self._count += 1
        return b"".join(bytes(packet) for packet in self._context.encode(small))


def _context_of(width: int, height: int) -> VideoCodecContext:
    context = av.CodecContext.create("mjpeg", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuvj420p"
    context.time_base, context.thread_count = Fraction(1, 25), 1
    context.options = {"qmin": str(_QUALITY), "qmax": str(_QUALITY), "huffman": "default"}
    return context
