"""Videos that end early, change in the middle, hold other tracks, or name other files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from court import Case
from films import audio_of, film, grey_of, seen
from videos import case_of
from workshop import Workshop

__all__ = ["ROWS"]

CONTAINERS: dict[str, dict[str, Any]] = {
    "moov.mp4": {},
    "fast.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_every_frame+empty_moov"}},
    "a.mkv": {},
    "a.avi": {"codec": "mpeg4"},
    "a.ts": {},
    "a.flv": {},
    "a.gif": {"codec": "gif", "pixels": "rgb8", "rate": 10},
    "a.y4m": {"codec": "wrapped_avframe"},
    "a.mjpeg": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "a.h264": {},
    "a.ivf": {"codec": "libvpx"},
}


def _ends_at(share: float, how: dict[str, Any], path: Path) -> None:
    film(path, **how)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])


def _overwritten(share: float, how: dict[str, Any], path: Path) -> None:
    film(path, **how)
    data = bytearray(path.read_bytes())
    begin = round(share * len(data))
    data[begin : begin + 200] = bytes(200)
    path.write_bytes(data)


def ends(workshop: Workshop) -> Iterator[Case]:
    """Each container cut at every tenth of its bytes, and with 200 bytes of zeros in it."""
    for name, how in CONTAINERS.items():
        for tenth in range(1, 10, 1 if name in ("fast.mp4", "a.mkv", "a.avi", "a.ts") else 4):
            make = partial(_ends_at, tenth / 10, how)
            yield case_of(workshop, f"{name} cut at {tenth} tenths", name, make)
        for share in (0.2, 0.7):
            make = partial(_overwritten, share, how)
            yield case_of(workshop, f"{name} with zeros at {share:.0%}", name, make)
        make = partial(_ends_at, 0.8, how)
        yield case_of(
            workshop, f"{name} cut, --allow-truncated", name, make, None, "--allow-truncated"
        )


def _joined(path: Path, *parts: dict[str, Any]) -> None:
    """Raw films one after the other, which is how such files come about."""
    data = b""
    for part in parts:
        data += film(path, **part).read_bytes()
    path.write_bytes(data)


def _muxed(path: Path, *parts: dict[str, Any]) -> None:
    """A raw joined film put into a container."""
    raw = path.with_suffix(".h264")
    _joined(raw, *parts)
    with av.open(str(raw)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, 8), stream
                target.mux(packet)
    raw.unlink()


_PLAIN = {"options": {"bf": "0"}}
_OTHER_SIZE = {"size": (80, 64), **_PLAIN}
_REFUSED = "changes its size at frame 8: from 64x48 to 80x64"
_TWICE = [grey_of(k) for k in range(8)] * 2


def changes(workshop: Workshop) -> Iterator[Case]:
    """Pictures that change in the middle."""
    for name in ("a.h264", "a.ts", "a.mkv"):
        how = _joined if name.endswith(("h264", "ts")) else _muxed

        def make(path: Path, how: Callable[..., None] = how) -> None:
            how(path, _PLAIN, _OTHER_SIZE)

        yield case_of(workshop, f"another size in {name}", name, make, said=_REFUSED)
    pairs = {
        "mjpeg of 4:2:0 and 4:4:4": ({"pixels": "yuvj420p"}, {"pixels": "yuvj444p"}),
        "mjpeg of 4:4:4 and 4:2:2": ({"pixels": "yuvj444p"}, {"pixels": "yuvj422p"}),
    }
    for title, parts in pairs.items():

        def mixed(path: Path, parts: Any = parts) -> None:
            _joined(path, *({"codec": "mjpeg", **part} for part in parts))

        yield case_of(workshop, title, "a.mjpeg", mixed, seen("a.mjpeg", 16, greys=_TWICE))
    depths = {
        "h264 of 8 and 10 bits": {"pixels": "yuv420p10le"},
        "h264 of 4:2:0 and 4:4:4": {"pixels": "yuv444p"},
        "h264 with and without B-frames": {"options": {"bf": "3"}},
    }
    for title, part in depths.items():

        def deeper(path: Path, part: Any = part) -> None:
            _joined(path, _PLAIN, part)

        yield case_of(workshop, title, "a.h264", deeper, seen("a.h264", 16, greys=_TWICE))

    def growing(path: Path) -> None:
        _joined(path, *({"size": (side, side), "count": 1, **_PLAIN} for side in (64, 66, 68)))

    said = "changes its size at frame 1"
    yield case_of(workshop, "another size in each frame", "a.h264", growing, said=said)


def _track(kind: str, path: Path) -> None:
    """A film with something beside its pictures."""

    def more(container: Any) -> Callable[[], None]:
        if kind == "sound":
            return audio_of(container)
        if kind == "a second film":
            return _second(container)
        stream = container.add_stream("srt" if kind == "subtitles" else "ass")
        return lambda: _text(container, stream)

    film(path, more=more)


def _second(container: Any) -> Callable[[], None]:
    stream = container.add_stream("libx264", rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"

    def write() -> None:
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    return write


def _text(container: Any, stream: Any) -> None:
    packet = av.Packet(b"words")
    packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 1000
    packet.time_base = Fraction(1, 1000)
    container.mux(packet)


def _sound_alone(path: Path) -> None:
    with av.open(str(path), "w") as container:
        audio_of(container, "libmp3lame" if path.suffix == ".mp3" else "aac")()


def _attached(path: Path) -> None:
    """Sound with a cover picture."""
    with av.open(str(path), "w") as container:
        write = audio_of(container)
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode(None))
        write()


def tracks(workshop: Workshop) -> Iterator[Case]:
    """Files with other tracks, or without pictures."""
    for kind in ("sound", "a second film"):
        for name in ("a.mp4", "a.mkv", "a.ts", "a.mov"):
            make = partial(_track, kind)
            yield case_of(workshop, f"{kind} in {name}", name, make, seen(name))
    for name in ("a.m4a", "a.mkv", "a.mp3", "a.aac", "a.mp4"):
        said = "has no video track; found audio"
        yield case_of(workshop, f"sound alone in {name}", name, _sound_alone, said=said)
    yield case_of(workshop, "a cover picture", "a.mp4", _attached, said="has no video track")
    texts = {
        "a.srt": "1\n00:00:00,000 --> 00:00:01,000\nwords\n",
        "a.vtt": "WEBVTT\n\n00:00.000 --> 00:01.000\nwords\n",
        "a.ass": "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Text\nDialogue: words\n",
        "a.lrc": "[00:01.00]words\n",
        "a.sub": "{0}{25}words\n",
    }
    for name, text in texts.items():

        def written(path: Path, text: str = text) -> None:
            path.write_text(text)

        yield case_of(workshop, f"subtitles alone, {name}", name, written, said="Give a")


LISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
    "master.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
    "key.m3u8": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:1,\n{target}\n',
    "a.mp4": "ffconcat version 1.0\nfile {target}\n",
    "a.ffconcat": "ffconcat version 1.0\nfile {target}\noption safe 0\n",
    "a.txt": "file {target}\n",
    "a.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
    '<AdaptationSet><Representation id="0" bandwidth="1"><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "a.ffmetadata": ";FFMETADATA1\ntitle={target}\n",
    "a.asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>\n',
    "a.pls": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "a.avs": 'FFmpegSource2("{target}")\n',
    "a.vpy": 'import os; os.system("touch {target}.ran")\n',
    "a.idx": "# VobSub index file, v7\nid: en, index: 0\n",
    "a.ans": "words " * 300,
    "a.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>\n',
}
TARGETS = ("inner.ts", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.ts", "../a.ts")


def lists(workshop: Workshop) -> Iterator[Case]:
    """Files that name others, which are not followed; not even good ones in the same folder."""
    for name, text in LISTS.items():
        for target in TARGETS if name in ("a.m3u8", "a.mp4", "a.ffconcat") else TARGETS[:1]:

            def make(path: Path, text: str = text, target: str = target) -> None:
                film(path.parent / "inner.ts")
                path.write_text(text.format(target=target))

            yield case_of(
                workshop, f"{name} that names {target}", name, make, said="Give", seconds=5.0
            )
    names = ("concat:inner.ts|inner.ts", "subfile,,start,0,end,9,,:inner.ts", "data:inner.ts")
    for name in (*names, "pipe:0", "-", "http:inner.ts", "file:a.ts", "tee:a.ts", "crypto:a.ts"):

        def good(path: Path) -> None:
            film(path, kind="mpegts")

        yield case_of(workshop, f"a film of the name {name}", f"./{name}", good, seen(name))
    yield case_of(
        workshop,
        "a film of the name %03d.png",
        "%03d.png",
        partial(film, kind="mpegts"),
        said="Give it another name",
    )


def _no_file(kind: str, path: Path) -> None:
    import os
    import socket

    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a device without end":
        path.symlink_to("/dev/urandom")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a link to nothing":
        path.symlink_to("nothing")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.write_bytes(kind.encode())


def others(workshop: Workshop) -> Iterator[Case]:
    """What is no file, or a file of something else."""
    for kind in ("a pipe", "a device", "a device without end", "a link to itself", "a socket"):
        make = partial(_no_file, kind)
        yield case_of(workshop, kind, "a.mp4", make, said="a.mp4", seconds=5.0)
    for text in ("", "\0", "a link to nothing", "words " * 1000, "\0" * 9999, "%PDF-1.4\n", "PK"):
        make = partial(_no_file, text)
        yield case_of(workshop, f"{text[:20]!r} of {len(text)}", "a.mp4", make, said="Give")


def _bomb(head: bytes, path: Path) -> None:
    path.write_bytes(head)


BOMBS = {
    "a.gif": b"GIF89a\xff\xff\xff\xff\xf0\0\0"
    + bytes(6)
    + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
    "a.y4m": b"YUV4MPEG2 W60000 H60000 F25:1 C420jpeg\nFRAME\n" + bytes(5000),
    "b.y4m": b"YUV4MPEG2 W16000 H16000 F25:1 C444p16\nFRAME\n" + bytes(5000),
    "c.y4m": b"YUV4MPEG2 W64 H48 F0:0 C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "d.y4m": b"YUV4MPEG2 W64 H48 F1:0 C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "e.y4m": b"YUV4MPEG2 W64 H48 F-25:1 C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "f.y4m": b"YUV4MPEG2 W64 H48 F1000000000:1 C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "g.y4m": b"YUV4MPEG2 W64 H48 F1:2147483647 C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "h.y4m": b"YUV4MPEG2 W-64 H-48 F25:1 C420jpeg\nFRAME\n" + bytes(5000),
    "i.y4m": b"YUV4MPEG2 W0 H0 F25:1 C420jpeg\nFRAME\n" + bytes(5000),
    "j.y4m": b"YUV4MPEG2 W64 H48 F25:1 A0:0 Cmono16\nFRAME\n" + bytes(64 * 48 * 2),
    "k.y4m": b"YUV4MPEG2 W64 H48 F25:1 It C420jpeg\nFRAME\n" + bytes(64 * 48 * 3 // 2),
    "l.ivf": b"DKIF\0\0\x20\0VP80\xff\xff\xff\xff\0\0\0\0\0\0\0\0" + bytes(400),
    "m.bmp": b"BM" + bytes(12) + b"\x28\0\0\0\0\0\1\0\0\0\1\0\1\0\x18\0" + bytes(24),
}


def bombs(workshop: Workshop) -> Iterator[Case]:
    """Short files whose headers claim very large pictures, or rates that cannot be."""
    for name, head in BOMBS.items():
        yield case_of(workshop, f"{name}: {head[:44]!r}", name, partial(_bomb, head))


ROWS = {
    "videos, ends": ends,
    "videos, changes": changes,
    "videos, tracks": tracks,
    "videos, lists": lists,
    "videos, no files": others,
    "videos, bombs": bombs,
}
