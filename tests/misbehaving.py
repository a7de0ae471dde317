"""A local server that streams over TCP or HTTP at a pace, and misbehaves as it is told.

with streaming([Plan(pieces, reset=True), Plan(pieces, stall=10)]) as address:
    ...                         # the first connection breaks off, the second one stalls
"""

from __future__ import annotations

import contextlib
import io
import random
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from openvis_rt.runtime.video.generated import sample_frames

__all__ = ["Plan", "garbled", "streaming", "transport_stream"]


def transport_stream(frames: int, *, width: int = 160, height: int = 96, fps: int = 30) -> list:
    """MPEG-TS of generated frames, as the bytes that each frame adds."""
    pictures = [picture for picture, _ in sample_frames(width=width, height=height, seconds=1)]
    buffer, pieces, begin = io.BytesIO(), [], 0
    with av.open(buffer, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": "10", "tune": "zerolatency", "preset": "ultrafast"}
        for index in range(frames):
            picture = np.ascontiguousarray(pictures[index % len(pictures)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            pieces.append(buffer.getvalue()[begin:])
            begin = len(buffer.getvalue())
        container.mux(stream.encode())
    return [piece for piece in [*pieces, buffer.getvalue()[begin:]] if piece]


@dataclass(frozen=True)
class Plan:
    """What happens on one connection.

    Attributes:
        pieces: what is sent.
        pace: pieces a second; 0 for all at once.
        stall: after this many pieces nothing comes any longer; None for never.
        trickle: seconds between single bytes from there on, instead of nothing.
        reset: end with a reset of the connection in place of a proper end.
        head: is sent first, when a request was read: for HTTP.
    """

    pieces: Sequence[bytes]
    pace: float = 0.0
    stall: int | None = None
    trickle: float | None = None
    reset: bool = False
    head: bytes = b""


def garbled(pieces: Sequence[bytes], places: Sequence[int], length: int = 3) -> list[bytes]:
    """The pieces with random bytes in place of ``length`` of them from each place on."""
    noise, out = random.Random(0), list(pieces)
    for place in places:
        for index in range(place, place + length):
            out[index] = noise.randbytes(len(out[index]))
    return out


@contextlib.contextmanager
def streaming(plans: Sequence[Plan], scheme: str = "tcp") -> Iterator[str]:
    """The address of a server that serves one plan a connection, and then refuses."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for plan in plans:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                _send(connection, plan, ended)
        server.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def _send(connection: socket.socket, plan: Plan, ended: threading.Event) -> None:
    if plan.head:
        request = b""
        while b"\r\n\r\n" not in request and (part := connection.recv(4096)):
            request += part
        connection.sendall(plan.head)
    begin = time.monotonic()
    for index, piece in enumerate(plan.pieces[: plan.stall]):
        if plan.pace:
            ended.wait(max(0.0, begin + index / plan.pace - time.monotonic()))
        if ended.is_set():
            return
        connection.sendall(piece)
    if plan.stall is not None:
        for value in plan.pieces[plan.stall] if plan.trickle else ():
            if ended.wait(plan.trickle):
                return
            connection.sendall(bytes([value]))
        while not ended.wait(0.05) and not _has_left(connection):
            pass
    if plan.reset:
        time.sleep(0.2)  # until what was sent is read
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _has_left(connection: socket.socket) -> bool:
    """Whether the other side has closed it; what it says is read and dropped."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and not connection.recv(4096)
