"""RTSP: a true server that stalls, dies and comes back, and peers that only say they are one."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from court import Case
from live_sources import BACK, LOST, NEVER, PAGE, SIZE, live_case
from misbehaving import Plan, streaming
from workshop import Workshop

__all__ = ["ROWS", "has_server", "served"]

_PYTHON = "/usr/bin/python3"
_PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0'); "
    "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
)


@cache
def has_server() -> bool:
    """Whether GStreamer's RTSP server can be had here."""
    try:
        done = subprocess.run([_PYTHON, "-c", _PROBE], capture_output=True, timeout=30)
    except OSError:
        return False
    return done.returncode == 0


class Server:
    """GStreamer's server at one port, which can be ended and begun again."""

    def __init__(self, *words: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.begin(*words)

    def begin(self, width: str = "160", frames: str = "-1", *more: str) -> None:
        """Serve, from the moment on at which this returns."""
        script = str(Path(__file__).with_name("rtsp_server.py"))
        words = [_PYTHON, script, str(self.port), width, frames, *more]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)

    def end(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _stall(server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)


def _again(server: Server, width: str = "160") -> None:
    server.end()
    server.begin(width)


@contextlib.contextmanager
def served(
    words: Sequence[str],
    deed: Callable[[Server], None] | None,
    address: str,
    folder: Path,
) -> Iterator[Sequence[str]]:
    """A server that does something a second after the run's first frame.

    Args:
        words: of its command line: width, frames, USER:PASSWORD, udp.
        deed: what it does.
        address: with PORT in place of the port.
        folder: of the case.
    """
    server, ended = Server(*words), threading.Event()

    def act() -> None:
        log = folder / "out" / "frames.jsonl"
        while not (log.is_file() and log.stat().st_size):
            if ended.wait(0.05):
                return
        if deed is not None and not ended.wait(1.0):
            deed(server)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield [address.replace("PORT", str(server.port))]
    finally:
        ended.set()
        thread.join(30)
        server.end()


def rtsp(workshop: Workshop) -> Iterator[Case]:
    """A true server, where there is one, and peers that say that they are one."""
    yield from _peers(workshop)
    if not has_server():
        return
    plain, some = "rtsp://127.0.0.1:PORT/live", ("--max-frames", "30")
    signed, user = ("160", "-1", "user:se@cret"), "rtsp://user:{}@127.0.0.1:PORT/live"
    refused = {"words": "Check user and password; they go into the address", "code": 2}
    nothing = {"words": "", "frames": (30, 30), "options": some}
    slow = {"frames": (10, 400), "plays": 6, "back": None}
    good = ("160", "-1")
    cases: dict[str, tuple[Sequence[str], Callable[[Server], None] | None, str, dict]] = {
        "a good one": (good, None, plain, nothing),
        "by UDP only": (("160", "-1", "udp"), None, plain, nothing),
        "it stalls": (good, _stall, plain, slow | {"words": LOST}),
        "it dies": (good, Server.end, plain, slow | {"words": LOST}),
        "it dies and comes back": (
            good,
            _again,
            plain,
            slow | {"words": BACK, "options": ("--reconnect", "8", "--max-frames", "90")},
        ),
        "it comes back in another size": (
            good,
            partial(_again, width="192"),
            plain,
            slow | {"words": SIZE, "options": ("--reconnect", "8")},
        ),
        "it ends its stream": (
            ("160", "90"),
            None,
            plain,
            slow | {"words": LOST + "|" + BACK, "options": ("--max-frames", "200")},
        ),
        "the right password": (signed, None, user.format("se%40cret"), nothing),
        "the wrong password": (signed, None, user.format("wrong"), refused),
        "no password": (signed, None, plain, refused),
        "no such path": (
            good,
            None,
            plain + "/nowhere",
            {"words": "Check the path, which is /live/nowhere here", "code": 2},
        ),
    }
    for name, (words, deed, address, wanted) in cases.items():
        yield live_case(workshop, f"rtsp: {name}", partial(served, words, deed, address), **wanted)


def _say(status: str, *heads: str, body: bytes = b"") -> Plan:
    told = [f"RTSP/1.0 {status}", "CSeq: 1", *heads, f"Content-Length: {len(body)}", "", ""]
    return Plan([body] if body else [], head="\r\n".join(told).encode())


def _twice(plan: Plan) -> Plan:
    return Plan([plan.head], head=plan.head)


_AUTH = 'WWW-Authenticate: Basic realm="camera"'
_ANSWERS: dict[str, tuple[Plan, str]] = {
    "silence": (Plan([b"x"], stall=0), NEVER),
    "it hangs up": (Plan([]), "cannot be opened: "),
    "a password is wanted": (_twice(_say("401 Unauthorized", _AUTH)), "Check user and password"),
    "forbidden": (_say("403 Forbidden"), "Check user and password"),
    "not found": (_say("404 Not Found"), "Check the path, which is /live here"),
    "a redirect to itself": (_say("302 Moved", "Location: /live"), "cannot be opened: "),
    "a fault of the server's": (_say("500 Internal Server Error"), "The fault is 127.0.0.1's own"),
    "full": (_say("453 Not Enough Bandwidth"), "cannot be opened: "),
    "yes and nothing more": (_say("200 OK"), "cannot be opened: "),
    "a page": (Plan([PAGE], head=b"HTTP/1.1 200 OK\r\n\r\n"), "cannot be opened: "),
    "zeros": (Plan([bytes(20_000)], head=b"\0"), "cannot be opened: "),
    "a header that does not end": (
        Plan([b"X-A: b\r\n"] * 40, head=b"RTSP/1.0 200 OK\r\n", stall=20, trickle=0.2),
        "nothing came from",
    ),
    "a body that does not come": (
        Plan(
            [b"x"], head=b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nContent-Length: 99999999\r\n\r\n", stall=1
        ),
        "cannot be opened: ",
    ),
}


@contextlib.contextmanager
def _pretended(plan: Plan, _folder: Path) -> Iterator[Sequence[str]]:
    with streaming([plan] * 20, "rtsp") as address:
        yield [f"{address}/live"]


def _peers(workshop: Workshop) -> Iterator[Case]:
    for name, (plan, words) in _ANSWERS.items():
        yield live_case(workshop, f"rtsp: {name}", partial(_pretended, plan), words, code=2)
    for name, address, words in (
        ("nobody listens", "rtsp://127.0.0.1:9/live", "127.0.0.1 refused the connection"),
        ("no such host", "rtsp://camera.invalid/live", "no host camera.invalid is known"),
    ):
        yield live_case(workshop, f"rtsp: {name}", partial(_plain, address), words, code=2)


@contextlib.contextmanager
def _plain(address: str, _folder: Path) -> Iterator[Sequence[str]]:
    yield [address]


ROWS = {"rtsp": rtsp}
FEW = {"rtsp": 0}  # cases that CI runs: each takes seconds
