"""The overlay at an address: received here, in order; another side that goes away; a window."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from openvis_rt.errors import InputError, UnavailableError
from openvis_rt.runtime.video.overlay import Canvas
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.views.board import Board, Setting
from openvis_rt.runtime.views.sending import Sending
from openvis_rt.runtime.views.sink import is_sink, sink_of
from openvis_rt.runtime.views.views import Picture, Run, Views
from openvis_rt.runtime.views.window import Window

HEIGHT, WIDTH = 90, 161
SETTING = Setting("a.mp4", "mini", "cpu", "stream", ("cat",), 9, (WIDTH, HEIGHT))


def picture_of(grey: int) -> Picture:
    image = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
    return Picture(Canvas(image).frame(), FrameResult(0, 0.0, HEIGHT, WIDTH, ()))


def greys_of(stream: bytes) -> list[int]:
    """Of each frame of an MPEG-TS stream, which must have rising times."""
    greys, times = [], []
    with av.open(io.BytesIO(stream), format="mpegts") as container:
        for frame in container.decode(video=0):
            assert (frame.width, frame.height) == (WIDTH + 1, HEIGHT)
            greys.append(int(frame.to_ndarray(format="gray").mean()))
            times.append(frame.pts)
    assert times == sorted(set(times))
    return greys


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Receiver:
    """Takes one connection after the other and keeps what comes."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.streams: list[bytearray] = []
        self.connections: list[socket.socket] = []
        self.ended = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.connections.append(connection)
            self.streams.append(bytearray())
            try:
                while data := connection.recv(65536):
                    self.streams[-1] += data
            except OSError:
                pass
            connection.close()
            self.ended += 1

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self._thread.join(10)


@pytest.fixture
def receiver():
    opened = Receiver()
    yield opened
    opened.close()


def feed(view: Sending, greys: range, done: Callable[[], object]) -> None:
    """One picture after the other, the last one again and again, until something is true."""
    for grey in greys:
        view.show(picture_of(grey))
        time.sleep(0.03)
    until(lambda: view.show(picture_of(greys[-1])) or time.sleep(0.03) or done())


def test_pictures_arrive_in_order_and_a_receiver_that_goes_away_is_found_again(receiver):
    said, warned = [], []
    with Sending(receiver.address, said.append, warned.append) as sending:
        sending.begin(Run(SETTING, lambda: None, lambda: None))
        feed(sending, range(40, 60), lambda: receiver.streams and len(receiver.streams[0]) > 4000)
        receiver.connections[0].shutdown(socket.SHUT_RDWR)
        feed(sending, range(80, 100), lambda: len(receiver.streams) > 1 and said[1:])
        feed(sending, range(120, 160), lambda: len(receiver.streams[1]) > 4000)
    assert said == [f"the overlay is sent to {receiver.address}"] * 2
    [warning] = warned
    assert warning.startswith(f"nothing reaches {receiver.address}: ")
    assert warning.endswith("The run goes on; trying again")
    until(lambda: receiver.ended == 2)
    first, second = (greys_of(bytes(stream)) for stream in receiver.streams)
    assert len(first) > 5
    assert first == sorted(first)
    assert 38 <= first[0] <= 62
    assert len(second) > 5
    assert second == sorted(second)
    assert 156 <= second[-1] <= 161  # the last picture of the run


def test_whoever_connects_sees_the_run(receiver):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said, stream = [], bytearray()
    with Sending(f"tcp://127.0.0.1:{port}?listen", said.append, pytest.fail) as sending:
        sending.show(picture_of(50))
        deadline = time.monotonic() + 20
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        client.setblocking(False)

        def received() -> bool:
            with contextlib.suppress(BlockingIOError):
                stream.extend(client.recv(65536))
            return len(stream) > 4000

        feed(sending, range(60, 80), received)
    client.close()
    assert said[0].startswith("waiting for somebody who connects to tcp://127.0.0.1")
    greys = greys_of(bytes(stream))
    assert greys == sorted(greys)


def test_where_nobody_connects_the_run_ends_at_once_and_says_so():
    warned = []
    with Sending("tcp://127.0.0.1:9?listen", lambda _: None, warned.append) as sending:
        sending.show(picture_of(50))
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
    told = "nobody had connected when the run ended"
    assert warned == [f"nothing reached tcp://127.0.0.1:9?listen: {told}"]


def test_an_address_that_does_not_answer_is_told_when_the_run_ends():
    warned = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live/key"
        with Sending(address, pytest.fail, warned.append) as sending:
            sending.show(picture_of(50))
            silent.settimeout(20)
            connection, _ = silent.accept()  # and nothing is said
        connection.close()
    assert warned == [f"nothing reached {address}: it had not answered when the run ended"]


ADDRESSES = {
    "rtmp://me:secret@host/live/key": "flv",
    "rtsp://host:8554/live": "rtsp",
    "srt://host:9000?mode=caller": "mpegts",
    "udp://239.0.0.1:5000": "mpegts",
    "tcp://[::1]:5000": "mpegts",
    "rtp://host:5004": "rtp_mpegts",
    "/dev/video9": "v4l2",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_each_address_has_its_container(address):
    assert is_sink(address)
    assert sink_of(address).format == ADDRESSES[address]
    av.format.ContainerFormat(ADDRESSES[address], "w")  # PyAV has it
    assert not sink_of(address).waits


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host/x", "begins with rtmp://"),
        ("file:///etc/passwd", "begins with rtmp://"),
        ("concat:a|b", "begins with rtmp://"),
        ("/dev/sda", "begins with rtmp://"),
        ("udp://host", "names no port"),
        ("tcp://host:99999", "is no address"),
        ("rtmp://", "begins with rtmp://"),
    ],
)
def test_what_nothing_can_be_sent_to_is_refused(address, words):
    with pytest.raises(InputError, match=words):
        Sending(address, pytest.fail, pytest.fail)


def test_who_waits_for_a_connection():
    assert sink_of("tcp://0.0.0.0:5000?listen").waits
    assert sink_of("tcp://0.0.0.0:5000?listen=1&tcp_nodelay=1").waits
    assert not sink_of("tcp://0.0.0.0:5000?listen=0").waits
    assert sink_of("srt://0.0.0.0:5000?mode=listener").waits


def test_without_a_display_a_window_is_refused_in_words(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UnavailableError, match=r"no window here: .+ --serve 8000"), Window(print):
        pass


@pytest.fixture
def display(monkeypatch):
    """The name of a display that is not shown."""
    pytest.importorskip("tkinter", reason="this Python has no Tk")
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (apt install xvfb xdotool)")
    number = 100 + os.getpid() % 30_000  # not one that another run of these tests takes
    name, place = f":{number}", Path(f"/tmp/.X11-unix/X{number}")
    command = ["Xvfb", name, "-noreset", "-screen", "0", "640x480x24"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(place.exists)
    monkeypatch.setenv("DISPLAY", name)
    yield name
    server.terminate()
    server.wait()


@pytest.mark.parametrize("key", ["q", "Escape"])
def test_a_window_shows_the_newest_picture_and_a_key_ends_the_run(display, key):
    from PIL import ImageGrab

    stopped = threading.Event()
    with Window(pytest.fail) as window, Views(Board(), [], pytest.fail):
        window.begin(Run(SETTING, stopped.set, lambda: None))
        window.show(picture_of(77))
        until(lambda: ImageGrab.grab(xdisplay=display).getpixel((5, 5)) == (77, 77, 77))
        window.show(picture_of(200))
        until(lambda: ImageGrab.grab(xdisplay=display).getpixel((5, 5)) == (200, 200, 200))
        assert window.watched
        assert not stopped.is_set()
        focus = ("search", "--sync", "--onlyvisible", "--name", "openvis", "windowfocus", "--sync")
        for command in (focus, ("key", key)):
            subprocess.run(["xdotool", *command], check=True, timeout=20)
        until(stopped.is_set)
        until(lambda: not window.watched)
        window.show(picture_of(1))  # is dropped


def test_a_window_closes_when_the_run_ends(display):
    stopped = threading.Event()
    with Window(pytest.fail) as window:
        window.begin(Run(SETTING, stopped.set, lambda: None))
        window.show(picture_of(77))
    assert not stopped.is_set()
