"""The page's HTTP server: four paths, GET only, a bounded number of connections.

What is shown may be private (a camera), and other pages in the same browser are strangers: the
``Host`` of each request is checked, other sites may not embed anything, and the page itself may
load nothing from elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import TracebackType
from typing import Any, Protocol

from openvis_rt.errors import InputError
from openvis_rt.runtime.views.address import is_allowed_host

__all__ = ["PageServer", "Served"]

_CONNECTIONS = 32  # at once, viewers and others
_SILENCE = 10.0  # seconds that a peer may take to ask, or to take data
_SEND_BUFFER = 256 * 1024  # bytes: what waits in it is old when a slow viewer sees it
_PATIENCE = 1.0  # seconds in which viewers take the last picture
_BOUNDARY = "frame"


class Served(Protocol):
    """What the server gives out; see :class:`~openvis_rt.runtime.views.page.Page`."""

    def state(self) -> bytes:
        """The state as JSON."""

    def viewer(self) -> AbstractContextManager[bool]:
        """A viewer's time; False where there are too many."""

    def shots(self) -> Iterator[bytes]:
        """JPEGs for one viewer; empty ones where none is new."""


class PageServer:
    """Serves a page until its ``with`` block ends, in threads of its own.

    Args:
        host, port: where it listens; port 0 takes a free one.
        served: what it gives out.

    Raises:
        InputError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, served: Served) -> None:
        self._server = _listening(host, port, served)
        name = f"[{host}]" if ":" in host else host
        self.address = f"http://{name}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=lambda: self._server.serve_forever(0.1), name="serve page", daemon=True
        )

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.let_viewers_go()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listening(host: str, port: int, served: Served) -> _Server:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return _Server(family, host, port, served)
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise InputError(
            f"no page can be served at {host}:{port}: {why}. Give a port that is free and that "
            "you may use (above 1023), such as --serve 8000, or 0 for any free one"
        ) from exc


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _CONNECTIONS

    def __init__(self, family: int, host: str, port: int, served: Served) -> None:
        self.address_family = family
        self.host, self.served, self.page = host, served, _page()
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """As the library's, without asking the network for this machine's name."""
        if os.name == "posix":  # on Windows two servers would share the port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless too many do."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._changed:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._gone(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread's body."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._gone(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that went away is no error of ours; anything else is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def let_viewers_go(self) -> None:
        """Wait until they have the last picture; cut off those that are slow."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, _PATIENCE)
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _gone(self, request: socket.socket) -> None:
        with self._changed:
            if request in self._open:
                self._open.remove(request)
                self._free.release()
                self._changed.notify_all()


class _Asked(io.RawIOBase):
    """What a peer asks, which must have come some seconds from now: not each byte of it."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        """True, for the buffer around it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As the library's; TimeoutError at the end of the time."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "openvis", ""
    timeout = _SILENCE

    def do_GET(self) -> None:
        """Answer one of the paths."""
        answers = {
            "/": lambda: self._whole("text/html; charset=utf-8", self.server.page),
            "/state.json": lambda: self._whole("application/json", self.server.served.state()),
            "/live": self._live,
            "/stream.mjpg": self._stream,
        }
        if len(self.headers.get_all("Host", [])) > 1:
            self._refuse(HTTPStatus.BAD_REQUEST, "a request has one Host")
        elif not is_allowed_host(self.headers.get("Host"), self.server.host):
            self._refuse(HTTPStatus.FORBIDDEN, "ask for this machine by its address or own name")
        elif self.path != "/" and self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            self._refuse(HTTPStatus.FORBIDDEN, "this is not for other sites")
        elif (answer := answers.get(self.path)) is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"there are {', '.join(answers)}")
        else:
            answer()

    def setup(self) -> None:
        """As the library's, but that all of a request has to come in time."""
        super().setup()
        self.rfile = io.BufferedReader(_Asked(self.connection, self.timeout))

    def parse_request(self) -> bool:
        """As the library's; all but GET is refused."""
        try:
            if not super().parse_request():
                return False
        finally:
            self.connection.settimeout(self.timeout)  # the reader has shortened it
        if self.command != "GET":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered")
        return self.command == "GET"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Nothing: stderr is the run's."""

    def end_headers(self) -> None:
        """The headers that every answer has."""
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Content-Security-Policy", _policy()),
        ):
            self.send_header(name, value)
        super().end_headers()

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        self._whole("text/plain; charset=utf-8", f"{words}\n".encode(), status)

    def _whole(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _shots(self, kind: str) -> Iterator[bytes]:
        """The pictures for this viewer after the headers, or a refusal."""
        with self.server.served.viewer() as taken:
            if not taken:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many look on; close one")
                return
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.end_headers()
            yield from self.server.served.shots()

    def _live(self) -> None:
        for jpeg in self._shots("application/octet-stream"):
            state = self.server.served.state()
            self.wfile.write(struct.pack(">II", len(state), len(jpeg)) + state + jpeg)

    def _stream(self) -> None:
        # the boundary follows each picture at once: browsers show a part when it has ended
        begun = False
        for jpeg in self._shots(f"multipart/x-mixed-replace; boundary={_BOUNDARY}"):
            if jpeg:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                lead = b"" if begun else f"--{_BOUNDARY}\r\n".encode()
                end = f"\r\n--{_BOUNDARY}\r\n".encode()
                self.wfile.write(lead + head.encode("ascii") + jpeg + end)
                begun = True


@functools.cache
def _page() -> bytes:
    return resources.files(__package__).joinpath("page.html").read_bytes()


@functools.cache
def _policy() -> str:
    """The page may run its own script, use its own style and ask its own server: nothing else."""
    page = _page().decode("utf-8")
    allowed = {}
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        allowed[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; "
        f"style-src 'sha256-{allowed['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
