"""Seeing a run while it runs: the newest picture, the state, and who may ask for them."""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import struct
import threading
import time

import numpy as np
import pytest
import typer
from PIL import Image

from openvis_rt.cli.main import app
from openvis_rt.errors import InputError
from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.overlay import Canvas
from openvis_rt.runtime.video.results import FrameResult, Instance
from openvis_rt.runtime.video.run_lengths import box_of, encode_masks
from openvis_rt.runtime.views.address import is_allowed_host, parse_place
from openvis_rt.runtime.views.board import Board, Setting
from openvis_rt.runtime.views.newest import NewestStage
from openvis_rt.runtime.views.opening import ViewOptions, open_views
from openvis_rt.runtime.views.page import Page
from openvis_rt.runtime.views.views import Views

HEIGHT, WIDTH = 120, 160
SETTING = Setting("a.mp4", "mini", "cpu", "stream", ("cat",), 9, (WIDTH, HEIGHT))


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 5
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < end, left
        time.sleep(0.01)


@pytest.fixture
def page():
    """An open page on a free port, and its views, begun."""
    warned: list[str] = []
    board = Board()
    shown = Page("127.0.0.1", 0, board, warned.append)
    with Views(board, [shown], warned.append) as views:
        views.begin(SETTING, threading.Event())
        yield Served(shown, views)
    assert not warned


class Served:
    def __init__(self, page: Page, views: Views) -> None:
        self.page, self.views = page, views
        self.port = int(page.address.rsplit(":", 1)[1].rstrip("/"))

    def ask(self, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers=headers)
        return connection.getresponse()

    def state(self) -> dict:
        return json.loads(self.ask("/state.json").read())

    def write(self, index: int, *instances: Instance) -> None:
        self.views.write(image_of(index), result_of(index, *instances))


def image_of(index: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), (20 * index) % 256, np.uint8)


def instance_of(track_id: int = 1, name: str = "cat", score: float = 0.5) -> Instance:
    mask = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    mask[0, 20:60, 30:90] = 1
    [rle] = encode_masks(mask)
    return Instance(track_id, 1, name, score, box_of(rle), rle)


def result_of(index: int, *instances: Instance) -> FrameResult:
    return FrameResult(index, index / 25, HEIGHT, WIDTH, instances)


def message_of(answer: http.client.HTTPResponse) -> tuple[dict, bytes]:
    """The next state and picture of `/live`."""
    lengths = struct.unpack(">II", answer.read(8))
    return json.loads(answer.read(lengths[0])), answer.read(lengths[1])


def picture_of(answer: http.client.HTTPResponse) -> tuple[dict, np.ndarray]:
    while True:
        state, jpeg = message_of(answer)
        if jpeg:
            return state, np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def test_a_slow_stage_takes_the_newest_and_delays_nobody():
    seen, go = [], threading.Event()

    def work(item: int) -> None:
        seen.append(item)
        assert go.wait(10)

    with NewestStage("slow", work, lambda exc: pytest.fail(str(exc))) as stage:
        stage.put(0)
        while not seen:
            time.sleep(0.001)
        for item in range(1, 100):
            stage.put(item)
        go.set()
    assert seen == [0, 99]


def test_a_stage_that_fails_says_so_once_and_takes_no_more():
    told, calls = [], []

    def work(item: int) -> None:
        calls.append(item)
        raise ValueError("broken")

    with NewestStage("failing", work, told.append) as stage:
        stage.put(1)
        while not told:
            time.sleep(0.001)
        stage.put(2)
    assert [str(exc) for exc in told] == ["broken"]
    assert calls == [1]


def test_the_page_shows_a_drawn_picture_with_its_tracks(page):
    live = page.ask("/live")
    assert message_of(live)[0]["phase"] == "running"
    page.write(5, instance_of(7))
    state, picture = picture_of(live)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert abs(picture[100, 10].astype(int) - 100).max() < 6  # outside of the mask
    assert abs(picture[50, 60].astype(int) - 100).max() > 30  # inside
    [track] = state["tracks"]
    assert (track["id"], track["name"], track["score"], track["seen"]) == (7, "cat", 0.5, True)
    assert track["since"] == 0.2


def test_nothing_is_drawn_where_nobody_looks_and_the_first_viewer_gets_the_newest(page):
    for index in range(4):
        page.write(index)
    assert not page.page.watched
    _, picture = picture_of(page.ask("/live"))
    assert abs(int(picture[0, 0, 0]) - 60) < 6


def test_viewers_share_one_encoding_and_a_slow_one_drops(page, monkeypatch):
    encoded, encode = [], page.page._jpeg.encode
    monkeypatch.setattr(page.page._jpeg, "encode", lambda f: encoded.append(0) or encode(f))
    one, other, slow = (page.ask("/live") for _ in range(3))
    for index in range(3):
        page.write(index + 1)
        for viewer in (one, other):
            _, picture = picture_of(viewer)
            assert abs(int(picture[0, 0, 0]) - 20 * (index + 1)) < 6
    assert len(encoded) == 3
    assert picture_of(slow)[0]["frames"] >= 1


def test_a_viewer_that_takes_nothing_does_not_hold_the_run_up_or_its_end(page):
    with socket.create_connection(("127.0.0.1", page.port)) as deaf:
        deaf.sendall(b"GET /live HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        other = page.ask("/live")
        rng = np.random.default_rng(0)
        for index in range(12):
            noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            page.views.write(noise, result_of(index))
            assert picture_of(other)[0]["frames"] == index + 1


def test_the_last_message_says_that_the_run_has_ended():
    board = Board()
    shown = Page("127.0.0.1", 0, board, pytest.fail)
    with Views(board, [shown], pytest.fail) as views:
        views.begin(SETTING, threading.Event())
        served = Served(shown, views)
        live = served.ask("/live")
        served.write(3)
    messages = []
    while head := live.read(8):
        lengths = struct.unpack(">II", head)
        messages.append((json.loads(live.read(lengths[0])), live.read(lengths[1])))
    assert messages[-1][0]["phase"] == "ended"
    assert any(jpeg for _, jpeg in messages)  # the frame that was written last is seen


@pytest.mark.parametrize(
    ("error", "phase"), [(ValueError("no <b>luck</b>"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_an_error_of_the_run_is_on_the_board(error, phase):
    board = Board()
    with pytest.raises(type(error)), Views(board, [], pytest.fail):
        raise error
    found = board.to_json()
    assert found["phase"] == phase
    assert found["words"] == str(error)


def test_the_motion_jpeg_stream_is_one(page):
    stream = page.ask("/stream.mjpg")
    assert stream.headers.get_content_type() == "multipart/x-mixed-replace"
    for index in (1, 2):
        page.write(index)
        while (line := stream.readline().strip()) != b"":
            if line.startswith(b"Content-Length"):
                length = int(line.split(b":")[1])
        picture = np.asarray(Image.open(io.BytesIO(stream.read(length))).convert("RGB"))
        assert abs(int(picture[0, 0, 0]) - 20 * index) < 6
        assert stream.read(2) == b"\r\n"
        assert stream.readline() == b"--frame\r\n"


@pytest.mark.parametrize("path", ["/", "/state.json", "/live", "/stream.mjpg"])
def test_another_host_or_site_is_refused(page, path):
    assert page.ask(path, Host="evil.example:80").status == 403
    assert page.ask(path, Host=f"evil.example:{page.port}").status == 403
    if path != "/":
        assert page.ask(path, **{"Sec-Fetch-Site": "cross-site"}).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS", "BREW"])
def test_only_get_is_answered(page, method):
    answer = page.ask("/", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET"


def test_a_request_of_two_hosts_is_refused(page):
    with socket.create_connection(("127.0.0.1", page.port), 5) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert peer.recv(1 << 16).startswith(b"HTTP/1.0 400")


def test_a_peer_that_asks_letter_by_letter_is_let_go(page, monkeypatch):
    monkeypatch.setattr("openvis_rt.runtime.views.server._Handler.timeout", 0.5)
    with socket.create_connection(("127.0.0.1", page.port), 5) as peer:
        begin = time.monotonic()
        peer.sendall(b"GET / HTTP/1.1\r\nX: ")
        while not select.select([peer], [], [], 0.1)[0]:
            assert time.monotonic() < begin + 5
            peer.sendall(b"x")
    assert page.ask("/").status == 200


def test_what_is_not_there_is_not_there(page):
    for path in ("/../page.html", "/state.json?x", "/page.py"):
        assert page.ask(path).status == 404


def test_the_page_may_load_nothing_from_elsewhere(page):
    answer = page.ask("/")
    policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "innerHTML" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_viewers_are_bounded_and_one_that_leaves_makes_room(page):
    viewers = [page.ask("/live") for _ in range(8)]
    refused = page.ask("/live")
    assert refused.status == 503
    assert b"too many" in refused.read()
    assert page.state()["frames"] == 0  # which is still answered
    viewers.pop().close()
    end = time.monotonic() + 10
    while page.ask("/live").status != 200:
        assert time.monotonic() < end


def test_connections_are_bounded(page):
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(60)]
    try:
        closed, end = set(), time.monotonic() + 5
        while len(closed) < 60 - 32:
            assert time.monotonic() < end
            closed |= set(select.select(idle, [], [], 0.1)[0])  # at their end: nothing was asked
        assert len(closed) == 60 - 32
    finally:
        for connection in idle:
            connection.close()


def test_a_port_in_use_is_refused_in_words(page):
    with pytest.raises(InputError, match=rf"127.0.0.1:{page.port}: Address already in use. Give"):
        Page("127.0.0.1", page.port, Board(), pytest.fail)


@pytest.mark.parametrize(
    "place", ["", "http", "1.2.3.4", "70000", "a b:80", "::1:80", "-1", "x/y:1"]
)
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(InputError, match="--serve takes a port"):
        parse_place(place)


def test_a_place_of_this_network_is_served_with_a_warning():
    said, warned = [], []
    with open_views(ViewOptions(serve="0.0.0.0:0"), said.append, warned.append):
        pass
    assert "everyone who reaches 0.0.0.0" in warned[0]
    assert said[0].startswith("the run can be watched at http://0.0.0.0:")
    with pytest.raises(InputError, match=r"no page can be served at 203\.0\.113\.7:80"):
        open_views(ViewOptions(serve="203.0.113.7:80"), said.append, warned.append)


def test_whose_requests_are_answered():
    local = ("127.0.0.1", "127.0.0.1:80", "localhost:8000", "[::1]:80", "LOCALHOST")
    strange = (None, "", "evil.com", "127.0.0.1.evil.com", "192.168.0.2:80", "a@127.0.0.1", "x:y")
    assert all(is_allowed_host(header, "127.0.0.1") for header in local)
    assert not any(is_allowed_host(header, "127.0.0.1") for header in strange)
    here = socket.gethostname()
    assert all(is_allowed_host(h, "0.0.0.0") for h in (*local, "192.168.0.2:80", f"{here}:80"))
    assert not any(is_allowed_host(h, "0.0.0.0") for h in ("evil.com:80", "0.0.0.0.evil.com"))
    assert is_allowed_host("cam.lan:80", "cam.lan")


def test_the_board_forgets_tracks_and_escapes_names():
    now = [0.0]
    board = Board(lambda: now[0])
    board.begin(
        Setting("rtsp://me:secret@cam/1", "m", "cpu", "stream", ("a\u202eb",), None, (4, 4))
    )
    board.write(result_of(0, instance_of(1, "c\x1b[31m\u202ed"), instance_of(2)))
    found = board.to_json()
    assert found["source"] == "rtsp://me:***@cam/1"
    assert found["names"] == [r"a\u202eb"]
    assert [track["name"] for track in found["tracks"]] == [r"c\x1b[31m\u202ed", "cat"]
    now[0] = 1.0
    board.write(result_of(25, instance_of(2)))
    assert [track["seen"] for track in board.to_json()["tracks"]] == [False, True]
    now[0] = 3.0
    board.write(result_of(75, instance_of(2, score=0.75)))
    [track] = board.to_json()["tracks"]
    assert (track["id"], track["since"], track["score"]) == (2, 0.0, 0.75)


def test_the_rate_is_of_late_and_falls_while_nothing_comes():
    now = [0.0]
    board = Board(lambda: now[0])
    board.begin(SETTING)
    for index in range(100):
        now[0] = index / 10
        board.write(result_of(index))
    assert board.to_json()["frames_per_second"] == pytest.approx(10, abs=0.3)
    now[0] += 15
    assert board.to_json()["frames_per_second"] < 3
    assert board.to_json()["quiet"] == 15
    board.turn("ended")
    assert board.to_json()["frames_per_second"] == pytest.approx(10, abs=0.3)


def test_what_the_overlay_draws_is_not_drawn_again(page, monkeypatch):
    live, drawn = page.ask("/live"), []
    paint = Drawer.paint
    monkeypatch.setattr(Drawer, "paint", lambda *args: drawn.append(0) or paint(*args))
    for index in range(3):
        canvas, result = Canvas(image_of(index + 1)), result_of(index)
        page.views.show_drawn(canvas.frame(), result)
        page.views.write(image_of(0), result)
        _, picture = picture_of(live)
        assert abs(int(picture[0, 0, 0]) - 20 * (index + 1)) < 6
    assert not drawn


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "rtmp://host/live"], "-o takes a folder, got rtmp:/host/live; --overlay-to"),
        (["-o", "/dev/video9"], "-o takes a folder"),
        ([], "nothing would be kept or seen"),
        (["--serve", "port"], "--serve takes a port"),
        (["--overlay-to", "http://host/x"], "an overlay cannot be sent to"),
    ],
)
def test_a_view_that_cannot_be_is_refused_before_the_bundle_is_opened(options, words):
    command = typer.main.get_command(app)
    arguments = ["run", "no-bundle", "no-video", "-c", "cat", *options]
    with pytest.raises(InputError, match=words):
        command.main(arguments, standalone_mode=False)
