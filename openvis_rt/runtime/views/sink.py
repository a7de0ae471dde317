"""Where an overlay can be sent to while the run goes on: addresses, and what each one needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from openvis_rt.errors import InputError

__all__ = ["SCHEMES", "Sink", "is_sink", "sink_of"]

_MPEGTS = {"mpegts_flags": "resend_headers", "flush_packets": "1"}
_FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "rtmp": ("flv", {"flvflags": "no_duration_filesize"}),
    "rtmps": ("flv", {"flvflags": "no_duration_filesize"}),
    "rtsp": ("rtsp", {"rtsp_transport": "tcp"}),
    "rtsps": ("rtsp", {"rtsp_transport": "tcp"}),
    "srt": ("mpegts", _MPEGTS),
    "tcp": ("mpegts", _MPEGTS),
    "udp": ("mpegts", _MPEGTS),
    "rtp": ("rtp_mpegts", {}),
}
_DEVICE = re.compile(r"/dev/video[0-9]+")

SCHEMES = tuple(_FORMATS)
"""Of addresses that an overlay can be sent to."""


@dataclass(frozen=True)
class Sink:
    """A place that takes an overlay.

    Attributes:
        address: as FFmpeg takes it.
        format: FFmpeg's name of the container.
        options: of the container.
        waits: it waits for somebody who connects, instead of connecting.
        raw: it takes pictures as they are (a camera-like device).
    """

    address: str
    format: str
    options: dict[str, str] = field(default_factory=dict)
    waits: bool = False
    raw: bool = False


def is_sink(text: str) -> bool:
    """Whether the text names a place to send to, rather than a file or a folder.

    One slash is enough, which paths leave of two.
    """
    return re.match(r"[A-Za-z][\w+.-]+:/", text) is not None or bool(_DEVICE.fullmatch(text))


def sink_of(address: str) -> Sink:
    """What an address needs.

    Raises:
        InputError: nothing can be sent to it.
    """
    if _DEVICE.fullmatch(address):
        return Sink(address, "v4l2", raw=True)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InputError(f"{address} is no address: {exc}") from exc
    if parts.scheme not in _FORMATS or not host:
        raise InputError(
            f"an overlay cannot be sent to {address!r}; give an address that begins with "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}, or a device such as /dev/video9"
        )
    if parts.scheme in ("udp", "tcp", "rtp", "srt") and port is None:
        raise InputError(f"{address} names no port; {parts.scheme}://{host}:5000 would")
    container, options = _FORMATS[parts.scheme]
    listening = re.search(r"(?:^|&)(?:listen(?:=[12]|&|$)|mode=listener)", parts.query)
    if parts.scheme == "udp" and "pkt_size" not in parts.query:
        address += ("&" if parts.query else "?") + "pkt_size=1316"  # whole MPEG-TS packets
    return Sink(address, container, options, waits=listening is not None)
