"""Which encoder writes an overlay, and with which options.

Presets and quality have the names and numbers of x264; they are translated for the other encoders.
PyAV lists encoders of hardware that is not there, so one of those counts as present only when it
has encoded a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from openvis_rt.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from av.container import OutputContainer

__all__ = [
    "ENCODERS",
    "PRESETS",
    "Encoder",
    "EncoderOptions",
    "check_encoder",
    "choose_encoder",
    "software_encoder",
    "time_base_of",
]

PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
_PRESET, _QUALITY = "veryfast", 20
_HUGE = 4096 * 2304  # pixels of a frame
_TICKS = 60_000  # units of time a second, about
_BT709 = 1  # FFmpeg's number of the colour space, of its primaries and of its transfer curve
_LIMITED_RANGE = 1

Options = dict[str, str]  # as FFmpeg names them


@dataclass(frozen=True)
class EncoderOptions:
    """How an overlay is encoded.

    Attributes:
        encoder: one of :data:`ENCODERS`, or ``auto``: the first one of hardware that encodes a
            frame of this size here, else x264 or, where PyAV lacks it, MPEG-4.
        preset: one of :data:`PRESETS`, from the fastest to the smallest files; None for veryfast.
        quality: x264's CRF, 0 to 51, lower is better; None for 20.
    """

    encoder: str = "auto"
    preset: str | None = None
    quality: int | None = None


@dataclass(frozen=True)
class _Kind:
    """What an encoder of FFmpeg takes.

    Attributes:
        hardware: it needs a device.
        presets: its options for each of PRESETS; empty if it has none.
        quality: its options for a CRF; None if it goes by bits a second.
        pixels: the format of its pictures.
        always: options that it gets in any case.
        huge: options that it gets besides for frames beyond 4K.
    """

    hardware: bool = True
    presets: tuple[Options, ...] = ()
    quality: Callable[[int], Options] | None = None
    pixels: str = "yuv420p"
    always: Options = field(default_factory=dict)
    huge: Options = field(default_factory=dict)


def _each(option: str, values: str) -> tuple[Options, ...]:
    return tuple({option: value} for value in values.split())


_QSV = "veryfast veryfast veryfast faster fast medium slow slower veryslow"
_AMF = "speed speed speed speed balanced balanced quality quality quality"
_KINDS = {  # those of hardware in the order in which `auto` tries them
    "h264_nvenc": _Kind(
        presets=_each("preset", "p1 p1 p2 p3 p4 p4 p5 p6 p7"),
        quality=lambda crf: {"rc": "vbr", "cq": str(crf), "b": "0"},
    ),
    "h264_videotoolbox": _Kind(),
    "h264_qsv": _Kind(
        presets=_each("preset", _QSV),
        quality=lambda crf: {"global_quality": str(max(1, crf))},
        pixels="nv12",
    ),
    "h264_amf": _Kind(
        presets=_each("quality", _AMF),
        quality=lambda crf: {"rc": "cqp", "qp_i": str(crf), "qp_p": str(crf)},
    ),
    "h264_v4l2m2m": _Kind(),
    "libx264": _Kind(
        hardware=False,
        presets=_each("preset", " ".join(PRESETS)),
        quality=lambda crf: {"crf": str(crf)},
        # writes the rate into the pictures' own headers, where players without the container's
        # look for it, in place of the unit of time; frames keep their times
        always={"x264-params": "force-cfr=1"},
        # of 8K it would hold back 30 frames and more: 2.3 GB on two cores, and so 0.8 GB
        huge={"rc-lookahead": "0", "bf": "0", "threads": "4"},
    ),
    "mpeg4": _Kind(hardware=False),
}

ENCODERS = tuple(_KINDS)
"""Names of FFmpeg's encoders that can be asked for. VA-API's is not among them: it takes only
pictures that are in its device's memory already."""


@dataclass(frozen=True)
class Encoder:
    """An encoder with everything that it is told.

    Attributes:
        name: FFmpeg's.
        options: FFmpeg's, by name.
        pixels: the format of its pictures.
        by_rate: it is given bits a second in place of a quality.
        huge: further options for frames beyond 4K, which keep memory small.
    """

    name: str
    options: Options = field(default_factory=dict)
    pixels: str = "yuv420p"
    by_rate: bool = False
    huge: Options = field(default_factory=dict)

    def add_to(
        self, container: OutputContainer, width: int, height: int, fps: Fraction
    ) -> VideoStream:
        """A new video track, 4:2:0 in BT.709; odd sizes are rounded up.

        Its frames' times count in :func:`time_base_of` the rate.
        """
        options = self._options_for(width, height)
        stream = container.add_stream(self.name, rate=fps, options=options)
        assert isinstance(stream, VideoStream)  # every name in _KINDS is a video encoder's
        self._set(stream.codec_context, width, height, fps)
        return stream

    def why_not(self, width: int, height: int, fps: Fraction) -> str | None:
        """Encode a grey frame of a size: None if packets come of it, else why not."""
        try:
            context = av.CodecContext.create(self.name, "w")
            assert isinstance(context, VideoCodecContext)
            context.options = self._options_for(width, height)
            self._set(context, width, height, fps)
            frame = av.VideoFrame(context.width, context.height, "rgb24")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame = frame.reformat(format=self.pixels, threads=1)
            frame.pts, frame.time_base = 0, context.time_base
            packets = [*context.encode(frame), *context.encode(None)]
        except (av.FFmpegError, OSError, ValueError) as exc:
            return getattr(exc, "strerror", None) or str(exc)
        return None if any(packet.size for packet in packets) else "nothing came of a frame"

    def _options_for(self, width: int, height: int) -> Options:
        return {**self.options, **(self.huge if width * height > _HUGE else {})}

    def _set(self, context: VideoCodecContext, width: int, height: int, fps: Fraction) -> None:
        context.width, context.height = width + width % 2, height + height % 2
        context.pix_fmt, context.framerate, context.time_base = self.pixels, fps, time_base_of(fps)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        if self.by_rate:
            context.bit_rate = max(1_000_000, round(0.2 * width * height * fps))


def time_base_of(fps: Fraction) -> Fraction:
    """The unit of a track's times in seconds: 17 to 33 microseconds, a whole part of a frame.

    MPEG-4 part 2 takes no denominator beyond 65535; at rates above that a frame is no whole number
    of units.
    """
    return Fraction(1, fps.numerator * (_TICKS // fps.numerator) or _TICKS)


def software_encoder(options: EncoderOptions | None = None) -> Encoder:
    """x264 or, where PyAV lacks it, MPEG-4, without trying it."""
    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    return _encoder(name, options or EncoderOptions())


def choose_encoder(options: EncoderOptions, width: int, height: int, fps: Fraction) -> Encoder:
    """The encoder that is asked for, after it has encoded a frame of this size.

    Args:
        options: what is asked for.
        width, height: of the frames in pixels.
        fps: frames a second.

    Raises:
        InputError: there is no such encoder, preset or quality, or the encoder has none.
        UnavailableError: PyAV lacks the encoder, or it does not work here.
    """
    check_encoder(options)
    if options.encoder != "auto":
        encoder = _encoder(options.encoder, options)
        if (why := _why_not(encoder, width, height, fps)) is not None:
            raise UnavailableError(
                f"{encoder.name} encodes no {width}x{height} video here: {why}. Leave --encoder "
                "out, or take libx264, which runs on every CPU."
            )
        return encoder
    for name, kind in _KINDS.items():
        if kind.hardware and _takes(kind, options) is None:
            encoder = _encoder(name, options)
            if _why_not(encoder, width, height, fps) is None:
                return encoder
    return software_encoder(options)


def check_encoder(options: EncoderOptions) -> None:
    """Refuse what no machine has, before anything else is done.

    Raises:
        InputError: there is no such encoder, preset or quality, or the encoder has none.
    """
    name, preset, quality = options.encoder, options.preset, options.quality
    if name != "auto" and name not in _KINDS:
        raise InputError(f"no encoder {name!r} is known; there are auto, {', '.join(ENCODERS)}")
    if preset is not None and preset not in PRESETS:
        raise InputError(f"no preset {preset!r} is known; there are {', '.join(PRESETS)}")
    if quality is not None and not 0 <= quality <= 51:
        raise InputError(f"the encoder's quality is 0 to 51, lower is better; got {quality}")
    if name != "auto" and (lacks := _takes(_KINDS[name], options)) is not None:
        raise InputError(f"{name} takes no {lacks}; leave that out, or take libx264")


def _takes(kind: _Kind, options: EncoderOptions) -> str | None:
    """What the kind of encoder lacks of the options; None if it takes them all."""
    if options.preset is not None and not kind.presets:
        return "preset"
    if options.quality is not None and kind.quality is None:
        return "quality"
    return None


def _why_not(encoder: Encoder, width: int, height: int, fps: Fraction) -> str | None:
    if encoder.name not in av.codecs_available:
        return f"PyAV {av.__version__} was built without it"
    return encoder.why_not(width, height, fps)


def _encoder(name: str, options: EncoderOptions) -> Encoder:
    """With its own defaults, as far as it has any of them."""
    kind = _KINDS[name]
    told = dict(kind.always)
    if kind.presets:
        told |= kind.presets[PRESETS.index(options.preset or _PRESET)]
    if kind.quality is not None:
        told |= kind.quality(_QUALITY if options.quality is None else options.quality)
    return Encoder(name, told, kind.pixels, by_rate=kind.quality is None, huge=kind.huge)
