"""HLS: a live playlist that stops, jumps, or names what it should not."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
from court import Case
from live_sources import PAGE, live_case
from workshop import Workshop

__all__ = ["ROWS"]

NOTHING = "cannot be opened: |has no video track"  # as FFmpeg's versions have it
_HEAD = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n"
_SEGMENTS = 8  # of half a second


@cache
def segments() -> list[bytes]:
    """MPEG-TS of half a second each, one clock for all, each with a key frame first."""
    import io

    from openvis_rt.runtime.video.generated import sample_frames

    pictures = [picture for picture, _ in sample_frames(width=160, height=96, seconds=1)]
    found = []
    for number in range(_SEGMENTS):
        data = io.BytesIO()
        with av.open(data, "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
            stream.options = {"tune": "zerolatency", "preset": "ultrafast"}
            for index in range(15 * number, 15 * number + 15):
                picture = np.ascontiguousarray(pictures[index % len(pictures)])
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        found.append(data.getvalue())
    return found


def _list(begin: int, end: int, *, ends: bool = False, jump: bool = False) -> str:
    lines = [f"#EXT-X-MEDIA-SEQUENCE:{begin}"]
    for number in range(begin, end):
        lines += ["#EXT-X-DISCONTINUITY"] if jump and number == 4 else []
        lines += ["#EXTINF:0.5,", f"{number}.ts"]
    return _HEAD + "\n".join([*lines, *(["#EXT-X-ENDLIST"] if ends else []), ""])


def _growing(seconds: float) -> str:
    """Three segments at once, and one more each half a second, up to the last."""
    end = min(_SEGMENTS, 3 + int(2 * seconds))
    return _list(max(0, end - 4), end)


@contextlib.contextmanager
def _serving(
    playlist: Callable[[float], str | bytes], missing: Sequence[int], _folder: Path
) -> Iterator[Sequence[str]]:
    begun: list[float] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, data = self.path.strip("/"), b""
            if name == "live.m3u8":
                begun.append(time.monotonic())
                found = playlist(begun[-1] - begun[0])
                data = found if isinstance(found, bytes) else found.encode()
            elif name.removesuffix(".ts").isdecimal():
                number = int(name.removesuffix(".ts"))
                data = b"" if number in missing or number >= _SEGMENTS else segments()[number]
            self.send_response(200 if data else 404)
            kind = "application/vnd.apple.mpegurl" if name == "live.m3u8" else "video/mp2t"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing is told."""

    segments()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_address[1]}/live.m3u8"]
    server.shutdown()
    server.server_close()


LOST = r"was lost after \d+ frames: "  # it is not opened again


def hls(workshop: Workshop) -> Iterator[Case]:
    """Playlists over HTTP."""
    some, none = {"frames": (15, 240), "plays": 8, "back": None}, {"code": 2, "plays": 4}
    always = partial(_always, _list(0, 3))
    loop = _HEAD + "#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:0.5,\nlive.m3u8\n"
    file = _HEAD + "#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:0.5,\nfile:///etc/passwd\n"
    nested = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlive.m3u8\n"
    cases: dict[str, tuple[Callable[[float], str | bytes], Sequence[int], str, dict]] = {
        "it stops growing": (_growing, (), LOST, some),
        "it never grows": (always, (), LOST, some),
        "a segment is missing": (_growing, (4,), LOST, some),
        "every segment is missing": (_growing, range(99), "cannot be opened: ", none),
        "it has none": (partial(_always, _HEAD), (), NOTHING, none),
        "it is a page": (partial(_always, PAGE), (), "cannot be opened: ", none),
        "it names itself": (partial(_always, loop), (), "cannot be opened: ", none),
        "it is its own variant": (partial(_always, nested), (), NOTHING, none),
        "it names a file here": (partial(_always, file), (), "cannot be opened: ", none),
        "it is half": (partial(_always, "#EXTM"), (), "cannot be opened: ", none),
    }
    for name, (playlist, missing, words, wanted) in cases.items():
        around = partial(_serving, playlist, missing)
        yield live_case(workshop, f"hls: {name}", around, words, **wanted)


def _always(text: str | bytes, _seconds: float) -> str | bytes:
    return text


FEW = {"hls": 0}  # cases that CI runs: each takes seconds
ROWS = {"hls": hls}
