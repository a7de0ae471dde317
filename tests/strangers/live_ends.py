"""How a live run ends and what it tells: signals, passwords, and viewers that go away."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from court import Case, Interrupt, Outcome
from live_rtsp import has_server
from live_rtsp import served as rtsp_served
from live_sources import MJPEG, PAGE, TS, pictures, pieces, whole_log
from live_sources import written as pipe_written
from misbehaving import Plan, streaming, transport_stream
from workshop import Workshop

__all__ = ["ROWS"]

Around = Callable[[Path], AbstractContextManager[Sequence[str]]]
_NAMES = ("-c", "ring", "-c", "star", "--only")
_PROMISED = 2.0  # seconds from a signal to the end


@contextlib.contextmanager
def _at(plans: Sequence[Plan], scheme: str, form: str, _folder: Path) -> Iterator[Sequence[str]]:
    """A server, and its address in a form that has HOST in it."""
    with streaming(plans or [Plan([])], scheme) as address:
        yield [form.replace("HOST", address.split("://")[1])]


@contextlib.contextmanager
def _plain(address: str, _folder: Path) -> Iterator[Sequence[str]]:
    yield [address]


def _ended(begun: bool, folder: Path, outcome: Outcome) -> str | None:
    """What is wrong with the end of a run that was told to end."""
    if outcome.heard is None:
        return "it had ended before the signal"
    if outcome.heard > _PROMISED:
        return f"it took {outcome.heard:.1f} s to end"
    if not begun:
        said = "interrupted" in outcome.stderr
        return None if said and not (folder / "out").exists() else "no word, or a folder"
    report, lines = whole_log(folder, outcome)
    faults = {
        "not said to be stopped": not report["stopped"],
        f"{len(lines)} lines of {report['frames']} frames": len(lines) != report["frames"],
        "marked unfinished": (folder / "out" / "unfinished.json").exists(),
        "no overlay": not (folder / "out" / "overlay.mp4").stat().st_size,
    }
    return "; ".join(fault for fault, found in faults.items() if found) or None


def interrupts(workshop: Workshop) -> Iterator[Case]:
    """Ctrl-C and SIGTERM while nothing comes, before the first frame and after it."""
    plain = pieces()
    web = partial(Plan, plain, head=TS)
    before: dict[str, tuple[Around, str | None]] = {
        "tcp": (partial(_at, [Plan(plain, stall=0)], "tcp", "tcp://HOST"), None),
        "tcp, a trickle": (
            partial(_at, [Plan(plain, stall=0, trickle=0.1)], "tcp", "tcp://HOST"),
            None,
        ),
        "http, no answer": (partial(_at, [Plan(plain, stall=0)], "tcp", "http://HOST/"), None),
        "http": (partial(_at, [web(stall=0)], "http", "http://HOST/"), None),
        "mjpeg": (
            partial(_at, [Plan(pictures(), head=MJPEG, stall=0)], "http", "http://HOST/"),
            None,
        ),
        "rtsp": (partial(_at, [Plan([b"x"], stall=0)], "tcp", "rtsp://HOST/"), None),
        "rtmp": (partial(_at, [Plan([b"x"], stall=0)], "tcp", "rtmp://HOST/a/b"), None),
        "udp": (partial(_plain, "udp://127.0.0.1:23456"), None),
        "a host that drops all": (partial(_plain, "tcp://10.255.255.1:80"), None),
        "a pipe without a writer": (partial(pipe_written, [], 0.0, "pipe"), None),
        "a pipe": (partial(pipe_written, [Plan(plain, stall=0)], 0.0, "pipe"), None),
        "stdin": (partial(pipe_written, [Plan(plain, stall=0)], 0.0, "stdin"), "stdin"),
    }
    after: dict[str, tuple[Around, str | None]] = {
        "tcp": (partial(_at, [Plan(plain, stall=40)], "tcp", "tcp://HOST"), None),
        "tcp, a trickle": (
            partial(_at, [Plan(plain, stall=40, trickle=0.1)], "tcp", "tcp://HOST"),
            None,
        ),
        "tcp, it is gone": (partial(_at, [Plan(plain)], "tcp", "tcp://HOST"), None),
        "tcp, it comes back silent": (
            partial(_at, [Plan(plain), *[Plan(plain, stall=0)] * 9], "tcp", "tcp://HOST"),
            None,
        ),
        "http": (partial(_at, [web(stall=40)], "http", "http://HOST/"), None),
        "mjpeg": (
            partial(_at, [Plan(pictures(), head=MJPEG, stall=40)], "http", "http://HOST/"),
            None,
        ),
        "a pipe": (partial(pipe_written, [Plan(plain, stall=40)], 0.0, "pipe"), None),
        "a pipe whose writer is gone": (partial(pipe_written, [Plan(plain)], 9.0, "pipe"), None),
        "stdin": (partial(pipe_written, [Plan(plain, stall=40)], 0.0, "stdin"), "stdin"),
    }
    if has_server():
        address = "rtsp://127.0.0.1:PORT/live"
        after["rtsp"] = (partial(rtsp_served, ("160", "30"), None, address), None)
    for begun, found in ((False, before), (True, after)):
        for number, (name, (around, stdin)) in enumerate(found.items()):
            sent = (signal.SIGINT, signal.SIGTERM)[number % 2]
            when = "after the first frame" if begun else "before the first frame"
            yield Case(
                f"{sent.name} {when}: {name}",
                lambda _: [
                    *("run", workshop.bundle, *_NAMES, "-o", "out", "--json"),
                    *("--timeout", "15", "--reconnect", "60"),
                ],
                codes=frozenset({130}),
                check=partial(_ended, begun),
                around=around,
                interrupt=Interrupt(sent, 6.0, "out/frames.jsonl" if begun else None),
                stdin=stdin,
                keeps=True,
            )


SECRET = "s3cret"
_HIDDEN = ("s3cret", "s3%63ret", "w0rd")  # nothing of these may be seen anywhere


def _kept(folder: Path, outcome: Outcome) -> str | None:
    """Where a password can be seen, if anywhere."""
    places = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:  # a bundle's files are links
            places[str(path.relative_to(folder))] = path.read_bytes().decode("latin-1")
    found = [place for place, text in places.items() if any(word in text for word in _HIDDEN)]
    return f"the password is in {', '.join(found)}" if found else None


@contextlib.contextmanager
def _looked_at(plan: Plan, form: str, folder: Path) -> Iterator[Sequence[str]]:
    """A run whose page, state and live stream are read while it runs, into files."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            for place in ("", "state.json"):
                with contextlib.suppress(OSError):
                    address = f"http://127.0.0.1:{port}/{place}"
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        text = answer.read()
                    if b"camera" in text or not place:
                        (folder / f"seen-{place or 'page'}").write_bytes(text)

    with streaming([plan], "http") as address:
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        yield [form.replace("HOST", address.split("://")[1]), "--serve", str(port)]
        ended.set()
        thread.join(10)


def _kept_on_page(folder: Path, outcome: Outcome) -> str | None:
    state = folder / "seen-state.json"
    if not state.exists() or "***@" not in state.read_text():
        return "the page was not seen"
    return _kept(folder, outcome)


def passwords(workshop: Workshop) -> Iterator[Case]:
    """The password of an address is nowhere in what is printed or written."""
    user = {
        "usual": f"user:{SECRET}@",
        "with a percent": "user:s3%63ret@",
        "with an at": f"user:{SECRET}@w0rd@",
        "without a user": f":{SECRET}@",
        "with a colon": f"user:{SECRET}:w0rd@",
        "with a letter that a terminal obeys": f"user:{SECRET}\x1b[31mw0rd@",
        "with signs": f"user:{SECRET}!$&'()*+,;=w0rd@",
    }
    good, lost = Plan(pieces(), head=TS), Plan(pieces(), head=TS, stall=40)
    page = Plan([PAGE], head=b"HTTP/1.1 200 OK\r\n\r\n")
    wanted = Plan([], head=b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n')
    run: list[tuple[str, Around, tuple[str, ...]]] = []
    for kind, sign in user.items():
        form = f"http://{sign}HOST/camera"
        run += [
            (f"{kind}: a loss", partial(_at, [good], "http", form), ("-o", "out")),
            (f"{kind}: no video", partial(_at, [page] * 9, "http", form), ("-o", "out")),
        ]
    form = f"http://user:{SECRET}@HOST/camera"
    shapes = {
        "in the report": (form, [lost], ("-o", "out", "--json")),
        "in lines": (form, [lost], ("--jsonl", "-")),
        "refused": (form, [wanted] * 9, ("-o", "out")),
        "in a query": (f"http://HOST/camera?user=a&pwd={SECRET}", [lost], ("-o", "out", "--json")),
        "in a path": (f"http://HOST/user=a_password={SECRET}_x=1", [page] * 9, ("-o", "out")),
        "in a token": (f"http://HOST/camera?access_token={SECRET}", [page] * 9, ("-o", "out")),
        "of RTSP": (f"rtsp://user:{SECRET}@HOST/camera", [page] * 9, ("-o", "out", "--json")),
        "of RTMP": (f"rtmp://user:{SECRET}@HOST/a/b", [page] * 9, ("-o", "out")),
        "with a slash": (f"rtsp://user:{SECRET}/w0rd@HOST/camera", [page], ("-o", "out")),
        "of TCP": (
            f"tcp://user:{SECRET}@HOST",
            [Plan(pieces(), stall=40)],
            ("-o", "out", "--json"),
        ),
        "of no protocol": (f"foo://user:{SECRET}@HOST/x", [], ("-o", "out")),
        "in video mode": (form, [], ("-o", "out", "--mode", "video")),
        "for a page of results": (form, [], ("-o", "out", "--html", "page.html")),
        "as the folder": (form, [], ("-o", f"rtmp://user:{SECRET}@127.0.0.1:9/a")),
        "of a viewer": (
            form,
            [lost],
            ("-o", "out", "--json", "--overlay-to", f"rtmp://user:{SECRET}@127.0.0.1:9/a/b"),
        ),
        "of a viewer that cannot be": (
            form,
            [],
            ("-o", "out", "--overlay-to", f"http://user:{SECRET}@127.0.0.1:9/a"),
        ),
    }
    for name, (address, plans, options) in shapes.items():
        run.append((name, partial(_at, plans, "http", address), options))
    nowhere = f"rtsp://user:{SECRET}@camera.invalid/x"
    run.append(("no such host", partial(_plain, nowhere), ("-o", "out")))
    run.append(("no port", partial(_plain, f"rtsp://user:{SECRET}@h:99999/x"), ("-o", "out")))
    waits = ("--timeout", "0.8", "--reconnect", "0.5")
    for name, around, options in run:
        yield Case(
            f"a password {name}",
            lambda _, o=options: ["run", workshop.bundle, *_NAMES, "--no-overlay", *waits, *o],
            check=_kept,
            around=around,
        )
    yield Case(
        "a password on the page",
        lambda _: ["run", workshop.bundle, *_NAMES, *waits, "-o", "out", "--json"],
        writes=frozenset({"out", "seen-page", "seen-state.json"}),
        check=_kept_on_page,
        around=partial(_looked_at, Plan(pieces(), head=TS, pace=20), form),
    )
    yield Case(
        "a password in a calibration's record",
        lambda folder: [
            *("calibrate", workshop.linked(folder), "--into", "--precision", "int8-fp32"),
            *("--frames", "8"),
        ],
        check=_kept,
        around=partial(_source_option, [Plan(transport_stream(90), head=TS)], form),
        seconds=60,
    )
    for verb, words in {
        "eval": ["--annotations", "x.json", "--videos"],
        "batch": ["-c", "ring", "--workers", "0", "-o", "out"],
        "bench": ["--video"],
    }.items():
        yield Case(
            f"a password given to {verb}",
            lambda _, v=verb, w=words: [v, workshop.bundle, *w],
            writes=frozenset({"out", ".ses"}),  # the last is ONNX Runtime's own
            keeps=True,
            check=_kept,
            around=partial(_plain, form.replace("HOST", "127.0.0.1:9")),
        )


@contextlib.contextmanager
def _source_option(plans: Sequence[Plan], form: str, folder: Path) -> Iterator[Sequence[str]]:
    with _at(plans, "http", form, folder) as [address]:
        yield [address]


class _Viewer:
    """The other side of ``--overlay-to``: takes connections and does one thing with each."""

    def __init__(self, *deeds: Callable[[socket.socket, threading.Event], None]) -> None:
        self.taken, self._deeds, self._ended = 0, deeds, threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for deed in self._deeds:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.taken += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(0.2)
                deed(connection, self._ended)
        self._server.close()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


def _stalls(_connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(60)


def _reads(most: int | None, connection: socket.socket, ended: threading.Event) -> None:
    """Take so many bytes and go away; None for all."""
    read = 0
    while not ended.is_set() and (most is None or read < most):
        with contextlib.suppress(TimeoutError):
            part = connection.recv(65536)
            if not part:
                return
            read += len(part)


def _resets(connection: socket.socket, ended: threading.Event) -> None:
    _reads(2000, connection, ended)
    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _hangs_up(text: bytes, connection: socket.socket, _ended: threading.Event) -> None:
    """As a web server does that gets no request of its own."""
    connection.sendall(text)
    connection.shutdown(socket.SHUT_WR)
    _reads(None, connection, threading.Event())


def _says(text: bytes, connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(text)
    _reads(None, connection, ended)


@contextlib.contextmanager
def _sent(
    plan: Plan, sinks: Sequence[tuple[str, Sequence[Callable]]], _folder: Path
) -> Iterator[Sequence[str]]:
    """A source, and viewers whose addresses have HOST in them."""
    with ExitStack() as stack:
        words = [stack.enter_context(streaming([plan]))]
        for form, deeds in sinks:
            viewer = _Viewer(*deeds)
            stack.callback(viewer.close)
            words += ["--overlay-to", form.replace("HOST", viewer.place)]
        yield words


def _recorded(told: str, frames: int, folder: Path, outcome: Outcome) -> str | None:
    """What is wrong with a recording whose viewers misbehaved."""
    import av

    if outcome.code:
        return None if told in outcome.stderr else f"not said: {told!r}; but {outcome.stderr!r}"
    report, lines = whole_log(folder, outcome)
    with av.open(str(folder / "out" / "overlay.mp4")) as film:
        drawn = sum(1 for _ in film.decode(video=0))
    faults = {
        f"{len(lines)} lines": not frames - 2 <= len(lines) <= frames,
        f"{drawn} frames in the overlay": drawn != len(lines),
        f"the report does not say {told!r}": told not in " ".join(report["warnings"]),  # type: ignore[arg-type]
    }
    return "; ".join(fault for fault, found in faults.items() if found) or None


def sinks(workshop: Workshop) -> Iterator[Case]:
    """Viewers that stall, refuse, vanish or come back: the recording is whole."""
    frames = 120
    plan = Plan(transport_stream(frames), pace=30)
    read, lost, unheard = partial(_reads, None), "nothing reaches ", "nothing reached "
    gone = partial(_reads, 3000)
    cases: dict[str, tuple[Sequence[tuple[str, Sequence[Callable]]], str]] = {
        "takes all": ([("tcp://HOST", [read])], ""),
        "refuses": ([("tcp://127.0.0.1:9", [])], lost + "tcp://127.0.0.1:9"),
        "no such host": ([("tcp://viewer.invalid:5000", [])], lost),
        "takes nothing": ([("tcp://HOST", [_stalls])], ""),
        "vanishes": ([("tcp://HOST", [gone])], lost),
        "resets": ([("tcp://HOST", [_resets])], lost),
        "vanishes and comes back": ([("tcp://HOST", [gone, read])], lost),
        "vanishes again and again": ([("tcp://HOST", [gone] * 9)], lost),
        "rtmp that is silent": ([("rtmp://HOST/a/b", [_stalls])], unheard),
        "rtmp that hangs up": ([("rtmp://HOST/a/b", [partial(_hangs_up, PAGE)] * 9)], lost),
        "rtsp that hangs up": ([("rtsp://HOST/a", [partial(_reads, 1)] * 9)], lost),
        "rtsp that is full": (
            [("rtsp://HOST/a", [partial(_says, b"RTSP/1.0 453 Full\r\nCSeq: 1\r\n\r\n")] * 9)],
            lost,
        ),
        "rtsp that is silent": ([("rtsp://HOST/a", [_stalls])], unheard),
        "udp that nobody hears": ([("udp://127.0.0.1:23457", [])], ""),
        "rtp that nobody hears": ([("rtp://127.0.0.1:23458", [])], ""),
        "srt, which is not in this FFmpeg, or that nobody hears": (
            [("srt://127.0.0.1:9", [])],
            lost,
        ),
        "nobody connects": ([("tcp://127.0.0.1:23459?listen", [])], unheard),
        "no such device": ([("/dev/video99", [])], lost + "/dev/video99"),
        "one good and one that stalls": ([("tcp://HOST", [read]), ("tcp://HOST", [_stalls])], ""),
        "three that vanish": ([("tcp://HOST", [gone] * 9)] * 3, lost),
    }
    for name, (viewers, told) in cases.items():
        yield Case(
            f"a viewer: {name}",
            lambda _: [
                *("run", workshop.bundle, *_NAMES, "-o", "out", "--json", "--every-frame"),
                *("--reconnect", "0", "--timeout", "1"),
            ],
            codes=frozenset({0}),
            check=partial(_recorded, told, frames),
            around=partial(_sent, plan, viewers),
        )


FEW = {"interrupts": 0, "passwords": 1, "sinks": 0}  # cases that CI runs: each takes seconds
ROWS = {"interrupts": interrupts, "passwords": passwords, "sinks": sinks}
