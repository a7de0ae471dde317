"""Live sources that misbehave, over every transport that can be had without another program."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path

from court import Case, Outcome
from misbehaving import Plan, garbled, streaming, transport_stream
from workshop import Workshop

__all__ = ["MJPEG", "PAGE", "ROWS", "TS", "live_case", "pictures", "pieces", "whole_log", "written"]

TIMEOUT, RECONNECT = 0.8, 1.6  # seconds
FRAMES = 60
Around = Callable[[Path], AbstractContextManager[Sequence[str]]]

_OK = b"HTTP/1.1 200 OK\r\nContent-Type: "
TS = _OK + b"video/mp2t\r\n\r\n"
MJPEG = _OK + b"multipart/x-mixed-replace; boundary=frame\r\n\r\n"
PAGE = b"<!doctype html><html><body><h1>Sign in</h1>" + b"<p>camera</p>" * 200 + b"</body></html>"


@cache
def pieces(width: int = 160) -> list[bytes]:
    """A stream of two seconds."""
    return transport_stream(FRAMES, width=width)


@cache
def pictures(width: int = 160) -> list[bytes]:
    """The parts of an IP camera's MJPEG."""
    import io

    from PIL import Image

    from openvis_rt.runtime.video.generated import sample_frames

    parts = []
    for picture, _ in sample_frames(width=width, height=96, seconds=1):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG")
        parts.append(_part(data.getvalue()))
    return (parts * FRAMES)[:FRAMES]


def _part(picture: bytes) -> bytes:
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture + b"\r\n"


def whole_log(folder: Path, outcome: Outcome) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The report, and the lines of the log."""
    log = (folder / "out" / "frames.jsonl").read_text().splitlines()
    return json.loads(outcome.stdout), [json.loads(line) for line in log]


def _judged(
    words: str, back: int | None, frames: tuple[int, int], folder: Path, outcome: Outcome
) -> str | None:
    """What is wrong with a clean outcome."""
    if not re.search(words, " ".join(outcome.stderr.split())):
        return f"not said: {words!r}; but {outcome.stderr!r}"
    if outcome.code:
        return None
    report, lines = whole_log(folder, outcome)
    indices = [line["frame"] for line in lines]
    times = [line["time"] for line in lines if line["time"] is not None]
    least, most = frames
    faults = {
        "the log is marked unfinished": (folder / "out" / "unfinished.json").exists(),
        f"{len(lines)} lines of {report['frames']} frames": len(lines) != report["frames"],
        f"{len(lines)} frames, not {least} to {most}": not least <= len(lines) <= most,
        "numbers do not rise": indices != sorted(set(indices)),
        "times do not rise": times != sorted(times),
        f"came back {report['reconnections']} times, not {back}": (
            back is not None and report["reconnections"] != back
        ),
        "frames were dropped though each was asked for": report["dropped"] != 0,
        "what was said is not in the report": not re.search(words, " ".join(report["warnings"])),  # type: ignore[arg-type]
    }
    return "; ".join(fault for fault, found in faults.items() if found) or None


def live_case(
    workshop: Workshop,
    name: str,
    around: Around,
    words: str,
    *,
    back: int | None = 0,
    frames: tuple[int, int] = (30, FRAMES),
    code: int = 0,
    stdin: str | None = None,
    plays: float = 0.0,
    options: Sequence[str] = (),
) -> Case:
    """A run of a live source, which must end within the time that it was promised.

    Args:
        workshop: has the bundle.
        name: of the case.
        around: serves, and gives the source as the command takes it.
        words: a pattern that must be on stderr and, after a good end, in the report.
        back: reconnections; None for any number.
        frames: least and most in the log.
        code: the exit code.
        stdin: what the command reads as its stdin.
        plays: seconds for which the source sends.
        options: further ones of the command.
    """
    told = ["--timeout", str(TIMEOUT), "--reconnect", str(RECONNECT), "--every-frame", "--json"]
    words_of = ["-c", "ring", "-c", "star", "--only", "--no-overlay", "-o", "out", *told, *options]
    return Case(
        name,
        lambda _: ["run", workshop.bundle, *words_of],
        codes=frozenset({code}),
        seconds=6 + 2 * TIMEOUT + RECONNECT + plays,
        check=partial(_judged, words, back, frames),
        around=around,
        stdin=stdin,
    )


LOST = r"was lost after \d+ frames: .*attempts in 1.6 s did not bring it back"
SILENT = r"no whole frame came within 0.8 s"
NEVER = r"cannot be opened: nothing came from 127.0.0.1 within 0.8 s. Check the address"
DAMAGED = r"arrived damaged: \d+ stretch"
SIZE = r"from 160x96 to 192x96. The results end there; start again for the new size"
BACK = r"is back after \d"
NO_VIDEO = r"(no frame of .* can be decoded|cannot be opened: .* FFmpeg can decode)"


def _streams(plain: list[bytes], wider: list[bytes]) -> dict[str, tuple[list[Plan], dict]]:
    """What a peer may do on each connection, and what is to come of it."""
    noise = random.Random(1).randbytes(40_000)
    garbage, deep = garbled(plain, [12, 33]), garbled(plain, [20], 3)
    stall = partial(Plan, plain)
    none = {"code": 2, "words": NEVER}
    gone = {"words": LOST}
    twice = {"words": BACK, "back": 1, "frames": (90, 2 * FRAMES)}
    return {
        "a stall before the first byte": ([stall(stall=0), stall(stall=0)], none),
        "a stall in the middle": ([stall(stall=40)], gone),
        "a stall in the middle, and a stall when asked again": (
            [stall(stall=40), stall(stall=0), stall(stall=0)],
            gone,
        ),
        "a stall, and then it comes back": (
            [stall(stall=40), stall()],
            twice | {"frames": (70, 100)},
        ),
        "a reset in the middle": ([Plan(plain[:40], reset=True)], gone),
        "a reset, and back": ([stall(reset=True), stall()], twice),
        "a reset after each half second": (
            [*[Plan(plain[:40], reset=True)] * 4],
            {"words": LOST, "back": 3, "frames": (120, 4 * FRAMES)},
        ),
        "garbage of 3 frames, twice": ([Plan(garbage)], {"words": DAMAGED}),
        "garbage of 3 frames, and back": (
            [Plan(deep, reset=True), stall()],
            {"words": DAMAGED, "back": 1, "frames": (80, 2 * FRAMES)},
        ),
        "a slow trickle from the middle on": ([stall(stall=40, trickle=0.05)], gone),
        "a slow trickle from the begin on": ([stall(stall=0, trickle=0.05)] * 2, none),
        "an end": ([stall(pace=60)], gone | {"plays": 1.0}),
        "an end and a new begin": ([stall(), stall()], twice),
        "an end and another clock": ([stall(), Plan(plain[20:])], twice | {"frames": (80, 120)}),
        "an end and another size": ([stall(), Plan(wider)], {"words": SIZE, "back": None}),
        "an end within a frame": ([Plan([*plain[:40], plain[40][:90]])], gone),
        "random bytes": ([Plan([noise])] * 2, {"code": 2, "words": NO_VIDEO}),
        "good, then random bytes for ever": (
            [Plan([*plain, *[noise] * 20])],
            {"words": rf"{DAMAGED}|{LOST}", "back": None},
        ),
        "a page of HTML": ([Plan([PAGE])] * 2, {"code": 2, "words": NO_VIDEO}),
        "nothing at all": ([Plan([])] * 2, {"code": 2, "words": "cannot be opened: "}),
        "one byte": ([Plan([b"\x47"])] * 2, {"code": 2, "words": "cannot be opened: "}),
    }


@contextlib.contextmanager
def _served(
    plans: Sequence[Plan], scheme: str, path: str, _folder: Path
) -> Iterator[Sequence[str]]:
    with streaming(plans, scheme) as address:
        yield [address + path]


def tcp(workshop: Workshop) -> Iterator[Case]:
    """MPEG-TS over TCP."""
    for name, (plans, wanted) in _streams(pieces(), pieces(192)).items():
        yield live_case(workshop, f"tcp: {name}", partial(_served, plans, "tcp", ""), **wanted)
    for name, address, words in (
        ("nobody listens", "tcp://127.0.0.1:9", "127.0.0.1 refused the connection. Check the port"),
        ("no such host", "tcp://camera.invalid:80", "no host camera.invalid is known"),
        ("no port", "tcp://127.0.0.1", "cannot be opened: "),
        ("a port that is none", "tcp://127.0.0.1:99999", "cannot be opened: "),
        (
            "no such protocol",
            "tpc://127.0.0.1:80",
            "FFmpeg knows no tpc:// here. Check the address",
        ),
    ):
        yield live_case(workshop, f"tcp: {name}", partial(_plain, address), words, code=2)


@contextlib.contextmanager
def _plain(address: str, _folder: Path) -> Iterator[Sequence[str]]:
    yield [address]


def _answer(status: str, *heads: str, body: bytes = b"") -> Plan:
    told = [f"HTTP/1.1 {status}", *heads, f"Content-Length: {len(body)}", "Connection: close"]
    return Plan([body] if body else [], head="\r\n".join([*told, "", ""]).encode())


ANSWERS: dict[str, tuple[Plan, str]] = {
    "a password is wanted": (
        _answer("401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'),
        "Check user and password; they go into the address",
    ),
    "a digest is wanted": (
        _answer("401 Unauthorized", 'WWW-Authenticate: Digest realm="x", nonce="y", qop="auth"'),
        "Check user and password",
    ),
    "forbidden": (_answer("403 Forbidden"), "Check user and password"),
    "not found": (_answer("404 Not Found", body=PAGE), "Check the path, which is /live here"),
    "too many requests": (_answer("429 Too Many Requests"), "Check the path"),
    "a fault of the server's": (
        _answer("500 Internal Server Error"),
        "The fault is 127.0.0.1's own; its log should say more",
    ),
    "busy": (_answer("503 Service Unavailable"), "The fault is 127.0.0.1's own"),
    "a page to sign in": (
        _answer("200 OK", "Content-Type: text/html", body=PAGE),
        r"cannot be opened: .* FFmpeg can decode",
    ),
    "a redirect to itself": (_answer("302 Found", "Location: /live"), "cannot be opened: "),
    "a redirect to nobody": (
        _answer("302 Found", "Location: http://127.0.0.1:9/"),
        "refused the connection",
    ),
    "a redirect to a file here": (
        _answer("302 Found", "Location: file:///etc/passwd"),
        "cannot be opened: ",
    ),
    "a redirect to nowhere": (_answer("302 Found"), "cannot be opened: "),
    "no content": (_answer("204 No Content"), "cannot be opened: "),
    "an answer that is no HTTP": (Plan([b"SSH-2.0-OpenSSH_9.2\r\n"], head=b"\r\n"), "cannot be"),
    "half of a header": (Plan([], head=b"HTTP/1.1 200 OK\r\nContent-Ty"), "cannot be opened: "),
    "a header that does not end": (
        Plan([b"X-A: b\r\n"] * 40, head=b"HTTP/1.1 200 OK\r\n", stall=20, trickle=0.2),
        "nothing came from",
    ),
}


def http(workshop: Workshop) -> Iterator[Case]:
    """MPEG-TS as the endless answer to a request, and answers that hold no video."""
    for name, (plans, wanted) in _streams(pieces(), pieces(192)).items():
        asked = [Plan(p.pieces, p.pace, p.stall, p.trickle, p.reset, TS) for p in plans]
        yield live_case(
            workshop, f"http: {name}", partial(_served, asked, "http", "/live"), **wanted
        )
    for name, (plan, words) in ANSWERS.items():
        around = partial(_served, [plan] * 40, "http", "/live")
        yield live_case(workshop, f"http: {name}", around, words, code=2)
        if name in ("not found", "a page to sign in", "busy", "a redirect to itself"):
            begun = [Plan(pieces(), head=TS, reset=True), *[plan] * 40]
            yield live_case(
                workshop, f"http: a reset, then {name}", partial(_served, begun, "http", "/x"), LOST
            )


def mjpeg(workshop: Workshop) -> Iterator[Case]:
    """Pictures one after the other, as IP cameras send them."""
    good = pictures()
    broken = [
        part[: len(part) // 2] + b"\r\n" if i % 9 == 4 else part for i, part in enumerate(good)
    ]
    flipped = garbled(good, [12, 33])
    halves = [
        _part(part[part.index(b"\r\n\r\n") + 4 : len(part) // 2]) if i % 9 == 4 else part
        for i, part in enumerate(good)
    ]
    bare = [part[part.index(b"\r\n\r\n") + 4 :] for part in good]
    cases: dict[str, tuple[list[list[bytes]], dict]] = {
        "an end": ([good], {"words": LOST}),
        "an end and a new begin": ([good, good], {"words": BACK, "back": 1, "frames": (90, 120)}),
        "another size after an end": ([good, pictures(192)], {"words": SIZE, "back": None}),
        "another size in the middle": (
            [good[:30] + pictures(192)[:30]],
            {"words": SIZE, "frames": (20, 30)},
        ),
        "parts shorter than they say": (
            [broken, good],
            {"words": BACK, "back": 1, "frames": (60, 120)},
        ),
        "halves of pictures": ([halves], {"words": DAMAGED, "frames": (40, 60)}),
        "garbage of 3 pictures": ([flipped], {"words": rf"{DAMAGED}|{LOST}", "frames": (10, 60)}),
        "no parts, only pictures": ([bare] * 2, {"words": NO_VIDEO, "code": 2}),
    }
    for name, (streams, wanted) in cases.items():
        plans = [Plan(stream, head=MJPEG) for stream in streams]
        around = partial(_served, plans, "http", "/video.mjpg")
        yield live_case(workshop, f"mjpeg: {name}", around, **wanted)
    for name, stall, wanted in (
        ("a stall", 40, {"words": LOST, "frames": (30, 40)}),
        ("a stall at the begin", 0, {"words": NEVER, "code": 2}),
    ):
        plans = [Plan(good, head=MJPEG, stall=stall)] * 1
        yield live_case(workshop, f"mjpeg: {name}", partial(_served, plans, "http", "/v"), **wanted)


@contextlib.contextmanager
def written(plans: Sequence[Plan], gap: float, name: str, folder: Path) -> Iterator[Sequence[str]]:
    """A named pipe with one writer after the other."""
    os.mkfifo(folder / name)
    ended = threading.Event()

    def write() -> None:
        for plan in plans:
            with contextlib.suppress(OSError), (folder / name).open("wb", buffering=0) as file:
                for piece in plan.pieces[: plan.stall]:
                    file.write(piece)
                while plan.stall is not None and not plan.trickle and not ended.wait(0.05):
                    if _unread(file.fileno()):
                        break
                for value in plan.pieces[plan.stall] if plan.trickle else b"":
                    if ended.wait(plan.trickle):
                        break
                    file.write(bytes([value]))
            if ended.wait(gap):
                return

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield ["-" if name == "stdin" else name]
    ended.set()
    with contextlib.suppress(OSError):  # a writer that waits for a reader
        os.close(os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK))
    thread.join(5)
    (folder / name).unlink()


def _unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


def pipes(workshop: Workshop) -> Iterator[Case]:
    """A named pipe, and stdin, which cannot come back."""
    skipped = {"nothing at all", "one byte"}
    for name, (plans, wanted) in _streams(pieces(), pieces(192)).items():
        if name in skipped or any(plan.reset for plan in plans):
            continue
        told = dict(wanted)
        if told["words"] is NEVER:
            told["words"] = r"(nothing came through pipe|no whole picture came) within 0.8 s"
        if told["words"] is NO_VIDEO:
            told["words"] = "pipe cannot be opened: .* can be read from its begin"
        yield live_case(workshop, f"pipe: {name}", partial(written, plans, 0.9, "pipe"), **told)
    plain, silent = pieces(), r"stdin was lost after \d+ frames: no whole frame came"
    for name, plan, wanted in (
        ("an end", Plan(plain), {"words": r"^", "frames": (55, 60)}),
        ("a stall", Plan(plain, stall=40), {"words": silent}),
        ("a trickle", Plan(plain, stall=40, trickle=0.05), {"words": silent}),
        ("garbage", Plan(garbled(plain, [12])), {"words": DAMAGED}),
        ("nothing", Plan([]), {"words": "stdin", "code": 2}),
        ("a page", Plan([PAGE]), {"words": "stdin", "code": 2}),
        ("silence", Plan(plain, stall=0), {"words": r"nothing came through stdin", "code": 2}),
    ):
        around = partial(written, [plan], 0.3, "stdin")
        yield live_case(workshop, f"stdin: {name}", around, stdin="stdin", **wanted)


@contextlib.contextmanager
def _thrown(packets: Sequence[tuple[float, bytes]], _folder: Path) -> Iterator[Sequence[str]]:
    """Datagrams at their moments, again and again from the begin on until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ended = threading.Event()

    def throw() -> None:
        begin = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for moment, data in packets:
                if ended.wait(max(0.0, begin + moment - time.monotonic())):
                    return
                with contextlib.suppress(OSError):
                    sender.sendto(data, ("127.0.0.1", port))

    thread = threading.Thread(target=throw, daemon=True)
    thread.start()
    yield [f"udp://127.0.0.1:{port}"]
    ended.set()
    thread.join(5)


def _datagrams(streams: Sequence[Sequence[bytes]], gap: float = 0.0) -> list[tuple[float, bytes]]:
    """Packets of seven of MPEG-TS's, at 30 frames a second, and pauses between the streams."""
    found, begin = [], 0.0
    for stream in streams:
        for index, piece in enumerate(stream):
            for place in range(0, len(piece), 1316):
                found.append((begin + index / 30, piece[place : place + 1316]))
        begin += len(stream) / 30 + gap
    return found


def udp(workshop: Workshop) -> Iterator[Case]:
    """Datagrams that are lost, doubled, in disorder, or stop."""
    long, noise = transport_stream(180), random.Random(3)
    whole = _datagrams([long])
    shuffled = list(whole)
    for place in range(0, len(shuffled) - 4, 9):
        first, second = shuffled[place], shuffled[place + 2]
        shuffled[place], shuffled[place + 2] = (first[0], second[1]), (second[0], first[1])
    thrown = {
        "none comes": ([], NEVER, 2),
        "they stop": (_datagrams([long[:120]]), LOST, 0),
        "one in twenty is lost": ([p for p in whole if noise.random() > 0.05], DAMAGED, 0),
        "one in three is lost": ([p for p in whole if noise.random() > 0.33], DAMAGED, 0),
        "each comes twice": ([p for p in whole for _ in range(2)], LOST, 0),
        "in disorder": (shuffled, DAMAGED, 0),
        "garbage between them": (
            [q for p in whole for q in (p, *([(p[0], noise.randbytes(1316))] * (p[0] % 1 > 0.9)))],
            rf"{DAMAGED}|{LOST}",
            0,
        ),
        "they stop and come back": (_datagrams([long[:120], long[:90]], 1.4), BACK, 0),
        "they come back in another size": (
            _datagrams([long[:120], transport_stream(90, width=192)], 1.4),
            SIZE,
            0,
        ),
        "only garbage": (
            [(t, noise.randbytes(1316)) for t, _ in whole],
            "can be decoded|within",
            2,
        ),
        "empty ones": ([(t, b"") for t, _ in whole], "within 0.8 s|cannot be opened", 2),
    }
    for name, (packets, words, code) in thrown.items():
        around = partial(_thrown, packets)
        yield live_case(
            workshop, f"udp: {name}", around, words, code=code, back=None, frames=(5, 400), plays=8
        )


FEW = {"tcp": 1, "http": 1, "mjpeg": 1, "pipes": 1, "udp": 0}  # in CI: each takes seconds
ROWS = {"tcp": tcp, "http": http, "mjpeg": mjpeg, "pipes": pipes, "udp": udp}
