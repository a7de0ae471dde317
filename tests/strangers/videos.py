"""Videos: each kind that FFmpeg writes here, and headers, clocks and pictures that cannot be."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from court import Case, Outcome
from films import Check, film, patched, seen, trial
from workshop import Workshop

__all__ = ["ROWS", "case_of"]

Make = Callable[[Path], object]


def case_of(
    workshop: Workshop,
    title: str,
    name: str,
    make: Make,
    check: Check | None = None,
    *more: str,
    said: str | None = None,
    either: Check | None = None,
    **judged: Any,
) -> Case:
    """A file of a name in the folder, run whole; ``said`` if it must be refused in such words."""

    def prepared(folder: Path) -> Sequence[str | Path]:
        make(folder / name)
        return trial(workshop.bundle, name, *more)

    def refused(_folder: Path, outcome: Outcome) -> str | None:
        return None if said in outcome.stderr else f"said {outcome.stderr[-300:]!r}"

    if said is not None:
        judged |= {"codes": frozenset({2}), "check": refused}
    elif either is not None:
        judged |= {"check": either}
    elif check is not None:
        judged |= {"codes": frozenset({0}), "check": check}
    return Case(title, prepared, **judged)


YUV422 = {"pixels": "yuv422p"}
KINDS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("a.mp4", "libx264", {}, {}),
    ("b.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}, {}),
    ("c.mp4", "mpeg4", {}, {}),
    ("d.mp4", "libsvtav1", {"size": (64, 64)}, {}),
    ("e.mp4", "mjpeg", {"pixels": "yuvj420p"}, {}),
    ("f.mov", "prores_ks", {"pixels": "yuv422p10le"}, {}),
    ("g.mov", "qtrle", {"pixels": "rgb24"}, {}),
    ("h.mov", "png", {"pixels": "rgb24"}, {}),
    ("i.mov", "rawvideo", {"pixels": "uyvy422"}, {}),
    ("j.mkv", "ffv1", {"pixels": "yuv420p"}, {}),
    ("k.mkv", "rawvideo", {}, {}),
    ("l.avi", "utvideo", {"pixels": "gbrp"}, {}),
    ("m.webm", "libvpx", {}, {}),
    ("n.webm", "libvpx-vp9", {}, {}),
    ("o.webm", "libsvtav1", {"size": (64, 64)}, {}),
    ("p.avi", "mpeg4", {}, {}),
    ("q.avi", "mjpeg", {"pixels": "yuvj420p"}, {}),
    ("r.avi", "rawvideo", {"pixels": "bgr24"}, {}),
    ("s.avi", "huffyuv", {"pixels": "yuv422p"}, {}),
    ("t.avi", "msmpeg4", {}, {}),
    ("u.avi", "cinepak", {"pixels": "rgb24"}, {"tolerance": 8}),
    ("v.ts", "libx264", {}, {}),
    ("w.ts", "libx265", {"options": {"x265-params": "log-level=none"}}, {}),
    ("x.ts", "mpeg2video", {"rate": 25}, {}),
    ("y.flv", "flv", {}, {}),
    ("z.flv", "libx264", {}, {}),
    ("ab.gif", "gif", {"pixels": "gray", "rate": 10}, {}),
    ("ac.apng", "apng", {"pixels": "rgb24"}, {}),
    ("ae.mjpeg", "mjpeg", {"pixels": "yuvj420p"}, {}),
    ("af.y4m", "wrapped_avframe", {}, {}),
    ("ag.h264", "libx264", {}, {}),
    ("ah.hevc", "libx265", {"options": {"x265-params": "log-level=none"}}, {}),
    ("ai.mpg", "mpeg1video", {"rate": 25}, {}),
    ("aj.vob", "mpeg2video", {"rate": 25}, {}),
    ("ak.m4v", "mpeg4", {}, {}),
    ("al.ivf", "libvpx", {}, {}),
    ("am.nut", "mpeg4", {}, {}),
    ("an.asf", "wmv2", {}, {}),
    ("ao.3gp", "h263", {"size": (176, 144)}, {}),
    ("ap.dv", "dvvideo", {"size": (720, 576), "rate": 25}, {}),
    ("aq.mxf", "mpeg2video", {"rate": 25}, {}),
    ("ar.obu", "libsvtav1", {"size": (64, 64)}, {}),
    ("as.f4v", "libx264", {}, {}),
    ("at.mkv", "snow", {}, {}),
    (
        "av.mov",
        "dnxhd",
        {"options": {"profile": "dnxhr_hq"}, "size": (256, 144), "pixels": "yuv422p"},
        {},
    ),
]


def kinds(workshop: Workshop) -> Iterator[Case]:
    """Every container and codec, whole: each frame comes, in order and of its grey."""
    for name, codec, how, judged in KINDS:
        size = how.get("size", (64, 48))
        make = partial(film, codec=codec, **how)
        yield case_of(workshop, f"{codec} in {name}", name, make, seen(name, size=size, **judged))


PIXELS: list[tuple[str, str, str, float]] = [
    ("a.mkv", "ffv1", "yuv420p10le", 2),
    ("b.mkv", "ffv1", "yuv422p12le", 2),
    ("c.mkv", "ffv1", "yuv444p16le", 2),
    ("d.mkv", "ffv1", "gray", 2),
    ("e.mkv", "ffv1", "gray10le", 2),
    ("f.mkv", "ffv1", "gray16le", 2),
    ("g.mkv", "ffv1", "yuva420p", 2),
    ("h.mkv", "ffv1", "yuv410p", 2),
    ("i.mkv", "ffv1", "gbrp14le", 2),
    ("j.mkv", "ffv1", "gbrap16le", 2),
    ("k.mov", "png", "rgba", 2),
    ("l.mov", "png", "rgb48be", 2),
    ("m.mov", "png", "ya8", 2),
    ("n.mov", "png", "gray16be", 2),
    ("o.mov", "qtrle", "argb", 2),
    ("p.mp4", "libx264", "yuv420p10le", 3),
    ("q.mp4", "libx264", "yuvj444p", 3),
    ("r.mp4", "libx264", "nv12", 3),
    ("t.webm", "libvpx-vp9", "yuva420p", 3),
    ("u.webm", "libvpx-vp9", "gbrp", 3),
    ("v.mov", "prores_ks", "yuva444p10le", 3),
    ("w.gif", "gif", "rgb8", 20),
    ("ww.gif", "gif", "bgr4_byte", 60),
    ("x.avi", "rawvideo", "rgb555le", 9),
    ("y.mov", "v210", "yuv422p10le", 3),
    ("z.mkv", "jpeg2000", "rgb24", 4),
]
SIZES = [(1, 1), (1, 2), (3, 5), (1, 500), (500, 1), (16384, 1), (1, 16384), (17, 9), (4097, 2)]


def pixels(workshop: Workshop) -> Iterator[Case]:
    """Formats of pictures: depth, range, alpha and palette do not change what is seen."""
    for name, codec, kind, tolerance in PIXELS:
        yield case_of(
            workshop,
            f"{kind} by {codec}",
            name,
            partial(film, codec=codec, pixels=kind),
            seen(name, tolerance=tolerance),
        )
    for size in SIZES:
        make = partial(film, codec="png", pixels="rgb24", size=size, count=3)
        yield case_of(workshop, f"{size} pixels", "a.mov", make, seen("a.mov", 3, size))


def _header(*edits: tuple[bytes, int, bytes], **how: Any) -> Callable[[Path], None]:
    """A film whose header is patched after it is written."""

    def make(path: Path) -> None:
        film(path, **how)
        for tag, offset, data in edits:
            patched(path, tag, offset, data)

    return make


def _u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _l32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


HUGE = 0xFFFFFFFF
_QUICK = {"container_options": {"movflags": "faststart"}}
MP4 = {  # what cannot be in the header of an mp4: box, bytes after its name, other bytes
    "time scale 0": (b"mdhd", 12, _u32(0)),
    "time scale 1": (b"mdhd", 12, _u32(1)),
    "time scale 2^32 - 1": (b"mdhd", 12, _u32(HUGE)),
    "time scale 2^31": (b"mdhd", 12, _u32(1 << 31)),
    "duration of the track 0": (b"mdhd", 16, _u32(0)),
    "duration of the track unknown": (b"mdhd", 16, _u32(HUGE)),
    "time scale of the film 0": (b"mvhd", 12, _u32(0)),
    "duration of the film 2^32 - 2": (b"mvhd", 16, _u32(HUGE - 1)),
    "duration of the film 0": (b"mvhd", 16, _u32(0)),
    "frames of no duration": (b"stts", 12, _u32(0)),
    "frames of 2^31 units": (b"stts", 12, _u32(1 << 31)),
    "frames of 2^32 - 1 units": (b"stts", 12, _u32(HUGE)),
    "2^32 - 1 frames of one duration": (b"stts", 8, _u32(HUGE)),
    "no frames of any duration": (b"stts", 8, _u32(0)),
    "2^32 - 1 rows of durations": (b"stts", 4, _u32(HUGE)),
    "2^32 - 1 frames claimed": (b"stsz", 8, _u32(HUGE)),
    "2^20 frames claimed of 2^30 bytes each": (b"stsz", 4, _u32(1 << 30, 1 << 20)),
    "no frames claimed": (b"stsz", 8, _u32(0)),
    "frame of 2^32 - 1 bytes": (b"stsz", 12, _u32(HUGE)),
    "chunk at 2^32 - 1": (b"stco", 8, _u32(HUGE)),
    "chunk at 0": (b"stco", 8, _u32(0)),
    "2^32 - 1 frames in a chunk": (b"stsc", 12, _u32(HUGE)),
    "no frames in a chunk": (b"stsc", 12, _u32(0)),
    "chunk without a description": (b"stsc", 16, _u32(9)),
    "65535 x 65535 pixels in the description": (b"avc1", 24, b"\xff" * 4),
    "0 x 0 pixels in the description": (b"avc1", 24, bytes(4)),
    "1 x 1 pixels in the track": (b"tkhd", 76, _u32(1 << 16, 1 << 16)),
    "0 x 0 pixels in the track": (b"tkhd", 76, _u32(0, 0)),
    "matrix of zeros": (b"tkhd", 40, bytes(36)),
    "matrix of ones": (b"tkhd", 40, b"\xff" * 36),
    "unknown codec": (b"stsd", 12, b"zzzz"),
    "encrypted": (b"stsd", 12, b"encv"),
    "another codec's name": (b"stsd", 12, b"hvc1"),
    "settings of zeros": (b"avcC", 0, bytes(12)),
    "settings of ones": (b"avcC", 0, b"\xff" * 12),
    "no such handler": (b"hdlr", 8, b"zzzz"),
    "box of 2^32 - 1 bytes": (b"stbl", -8, _u32(HUGE)),
    "box of 0 bytes": (b"trak", -8, _u32(0)),
    "box of 1 byte": (b"minf", -8, _u32(1)),
    "edit of no duration": (b"elst", 8, _u32(0)),
    "edit that begins after the end": (b"elst", 12, _u32(1 << 30)),
    "edit that is empty": (b"elst", 12, _u32(HUGE)),
    "edit that begins before the begin": (b"elst", 12, _u32(0xFFFFFF00)),
    "edit at rate 0": (b"elst", 16, _u32(0)),
    "edit backwards": (b"elst", 16, _u32(0xFFFF0000)),
    "2^32 - 1 edits": (b"elst", 4, _u32(HUGE)),
    "edit of 2^32 - 1": (b"elst", 8, _u32(HUGE)),
}
AVI = {
    "0 us a frame": (b"avih", 4, _l32(0)),
    "2^32 - 1 us a frame": (b"avih", 4, _l32(HUGE)),
    "2^32 - 1 frames": (b"avih", 20, _l32(HUGE)),
    "0 x 0 pixels": (b"avih", 36, _l32(0, 0)),
    "2^32 - 1 streams": (b"avih", 28, _l32(HUGE)),
    "scale 0": (b"strh", 24, _l32(0)),
    "rate 0": (b"strh", 28, _l32(0)),
    "rate 2^32 - 1": (b"strh", 28, _l32(HUGE)),
    "1e9 frames a second": (b"strh", 24, _l32(1, 10**9)),
    "one frame in 136 years": (b"strh", 24, _l32(HUGE, 1)),
    "begin at 2^32 - 1": (b"strh", 32, _l32(HUGE)),
    "2^32 - 1 frames in the stream": (b"strh", 36, _l32(HUGE)),
    "samples of 1 byte": (b"strh", 48, _l32(1)),
    "65535 x 65535 pixels": (b"strf", 8, _l32(65535, 65535)),
    "height turned over": (b"strf", 12, _l32(HUGE - 47)),
    "unknown codec": (b"strf", 20, b"zzzz"),
    "index elsewhere": (b"idx1", 12, _l32(HUGE)),
    "list of 2^32 - 1 bytes": (b"movi", -8, _l32(HUGE)),
}


def _ebml(identity: bytes, payload: bytes) -> tuple[bytes, int, bytes]:
    """An element's bytes after its identity and its one byte of size."""
    return identity, 1, payload


DURATION, PIECE = b"\x44\x89", b"\x23\xe3\x83"
MKV = {
    "duration not a number": _ebml(DURATION, struct.pack(">d", float("nan"))),
    "duration without end": _ebml(DURATION, struct.pack(">d", float("inf"))),
    "duration 1e300": _ebml(DURATION, struct.pack(">d", 1e300)),
    "duration -1": _ebml(DURATION, struct.pack(">d", -1.0)),
    "duration 0": _ebml(DURATION, struct.pack(">d", 0.0)),
    "time scale 0": _ebml(b"\x2a\xd7\xb1", bytes(3)),
    "time scale 16777215": _ebml(b"\x2a\xd7\xb1", b"\xff" * 3),
    "frames of no duration": _ebml(PIECE, bytes(4)),
    "frames of 4 s": _ebml(PIECE, b"\xff" * 4),
    "frames of 1 ns": _ebml(PIECE, bytes(3) + b"\x01"),
}


def _either(name: str) -> Check:
    """Refused, or every frame is seen, or it is said that an edit list hides most of them."""
    whole = seen(name, size=None)

    def check(folder: Path, outcome: Outcome) -> str | None:
        if outcome.code or "of its 8 frames: its edit list leaves out" in outcome.stderr:
            return None
        return whole(folder, outcome)

    return check


def headers(workshop: Workshop) -> Iterator[Case]:
    """Headers of mp4, avi and mkv that say what cannot be."""
    for title, edit in MP4.items():
        make = _header(edit, options={"bf": "0" if edit[0] == b"stts" else "2"}, **_QUICK)
        either = None if "edit" in title else _either("a.mp4")  # an edit may leave frames out
        yield case_of(workshop, f"mp4: {title}", "a.mp4", make, either=either)
    for title, edit in AVI.items():
        yield case_of(
            workshop,
            f"avi: {title}",
            "a.avi",
            _header(edit, codec="mpeg4"),
            either=_either("a.avi"),
        )
    for title, edit in MKV.items():
        yield case_of(workshop, f"mkv: {title}", "a.mkv", _header(edit), either=_either("a.mkv"))


ROWS = {"videos, kinds": kinds, "videos, pixels": pixels, "videos, headers": headers}
