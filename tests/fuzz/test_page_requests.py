"""Requests to the page of a run from whoever reaches its port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from borders import few, watched
from hypothesis import given
from hypothesis import strategies as st

from openvis_rt.runtime.views.server import PageServer

SECRET = b"this is the state"
SILENCE = 0.3  # seconds that the server waits for a peer here; 10 outside


class Shown:
    """One viewer, one picture."""

    def state(self) -> bytes:
        return SECRET

    @contextlib.contextmanager
    def viewer(self) -> Iterator[bool]:
        yield True

    def shots(self) -> Iterator[bytes]:
        yield SECRET


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openvis_rt.runtime.views.server._Handler.timeout", SILENCE)
        with PageServer("127.0.0.1", 0, Shown()) as opened:
            yield opened


def asked(server: PageServer, data: bytes, piece: int) -> bytes:
    """All that the server answers to bytes that come in pieces."""
    port = int(server.address.rsplit(":", 1)[1].rstrip("/"))
    found = b""
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        with contextlib.suppress(OSError):  # the server may have closed it by then
            for at in range(0, len(data), piece):
                peer.sendall(data[at : at + piece])
            peer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := peer.recv(1 << 16):
                found += part
    return found


METHODS = st.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS", b"get", b"\xff", b""])
PATHS = st.sampled_from(
    [
        *(b"/", b"/state.json", b"/live", b"/stream.mjpg", b"//", b"/../etc/passwd", b"/%00", b"*"),
        *(
            b"http://evil.example/state.json",
            b"/state.json?x=1",
            b"/" + b"a" * 70_000,
            b"/\x1b[31m",
        ),
    ]
)
HOSTS = st.sampled_from(
    [
        *(b"127.0.0.1", b"localhost", b"localhost:1", b"evil.example", b"127.0.0.1.evil.example"),
        *(
            b"127.0.0.1@evil.example",
            b"",
            b"[::1]",
            b"[",
            b"\xff\xfe",
            b"localhost\tevil",
            b"x" * 9000,
        ),
    ]
)
OWN = ("127.0.0.1", "localhost", "[::1]")
HEADERS = st.sampled_from(
    [
        *(b"Sec-Fetch-Site: cross-site", b"Content-Length: -1", b"Content-Length: 99999999999"),
        *(b"Transfer-Encoding: chunked", b"X: " + b"y" * 70_000, b": :", b"Expect: 100-continue"),
        *(b"\0", b"Upgrade: websocket", b"Range: bytes=0-", b"Host: evil.example", b" folded"),
    ]
)


@few(60)
@given(
    method=METHODS,
    path=PATHS,
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9.9", b"HTTP/x", b""]),
    host=st.none() | HOSTS,
    headers=st.lists(HEADERS, max_size=3) | HEADERS.map(lambda header: [header] * 150),
    piece=st.sampled_from([1 << 20, 1 << 20, 7]),
)
def test_a_request(server, capfd, method, path, version, host, headers, piece):
    lines = [b" ".join((method, path, version))]
    lines += [] if host is None else [b"Host: " + host]
    data = b"\r\n".join([*lines, *headers, b"", b""])
    piece = max(piece, len(data) // 200)
    found = b""

    def use() -> str:
        nonlocal found
        found = asked(server, data, piece)
        return found.split(b"\r\n")[0].decode("latin-1")[:12] or "no answer"

    watched(use)
    own = (host or b"").decode("latin-1").split(":")[0] in OWN or host == b"[::1]"
    if SECRET in found:
        assert own, "a stranger's page could read it"
        assert method == b"GET"
    assert asked(server, b"GET /state.json HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", 99).endswith(
        SECRET
    )
    assert "Traceback" not in capfd.readouterr().err


@few(40)
@given(data=st.binary(max_size=400))
def test_any_bytes(server, capfd, data):
    watched(lambda: asked(server, data, 1 << 20).split(b"\r\n")[0].decode("latin-1")[:12] or "no")
    assert asked(server, b"GET /state.json HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", 99).endswith(
        SECRET
    )
    assert "Traceback" not in capfd.readouterr().err


def test_peers_that_say_nothing_are_let_go(server):
    port = int(server.address.rsplit(":", 1)[1].rstrip("/"))
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5)) for _ in range(32)
        ]
        for peer in slow:
            peer.sendall(b"GET / HT")
        for peer in slow:
            with contextlib.suppress(ConnectionError):
                assert not peer.recv(1 << 16).startswith(b"HTTP/1.0 200")
    found = asked(server, b"GET /state.json HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", 99)
    assert found.endswith(SECRET)
