"""Devices that hang, pipes, and passwords in the names of sources."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from misbehaving import Plan, streaming, transport_stream

from openvis_rt.errors import VideoError
from openvis_rt.printable import without_password
from openvis_rt.runtime.options import LiveOptions
from openvis_rt.runtime.video.container import ContainerReader, DamagedError
from openvis_rt.runtime.video.reading import open_video
from openvis_rt.runtime.video.sources import open_device
from openvis_rt.runtime.views.opening import ViewOptions, open_views

# devices of FFmpeg's own, which sleep between frames and hear of nothing meanwhile, as v4l2's do
TASKS = Path("/proc/self/task")
QUICK = "testsrc=size=64x48:rate=50,realtime"
HANGS = "testsrc=size=64x48:rate=50,setpts='PTS+gt(N,25)*9/TB',realtime=limit=60"


def test_a_device_gives_its_frames():
    reader = open_device("camera 0", QUICK, "lavfi", 5, 5)
    found = [index for (index, _, image), _ in zip(reader.frames(), range(5), strict=False)]
    reader.close()
    assert found == list(range(5))
    assert (reader.live, reader.fps) == (True, 50)


def test_a_device_that_hangs_counts_as_broken_and_is_left_behind():
    reader, found = open_device("camera 0", HANGS, "lavfi", 0.5, 5), []
    begin = time.monotonic()
    with pytest.raises(DamagedError, match=r"no whole frame came within 0\.5 s"):
        found.extend(reader.frames())  # keeps what came before the error
    reader.close()
    assert len(found) > 20
    assert time.monotonic() - begin < 7  # of the 9 seconds that it sleeps


def test_a_device_that_never_begins_is_an_error_in_words(monkeypatch):
    reader, ended = threading.Event(), threading.Event()

    class Waiting(ContainerReader):
        def __init__(self, *args, **named) -> None:
            ended.wait(30)
            super().__init__(*args, **named)

        def close(self) -> None:
            super().close()
            reader.set()

    monkeypatch.setattr("openvis_rt.runtime.video.sources.ContainerReader", Waiting)
    with pytest.raises(VideoError, match=r"camera 0 gave no picture within 0\.3 s"):
        open_device("camera 0", QUICK, "lavfi", 0.3, 0.3)
    ended.set()
    assert reader.wait(10)  # what came too late is released


def test_a_named_pipe_is_a_live_source(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = b"".join(transport_stream(30))
    threading.Thread(target=pipe.write_bytes, args=[data], daemon=True).start()
    how = LiveOptions(every_frame=True, timeout=5, reconnect=0)
    with open_video(str(pipe), live=how) as video:
        assert video.live
        assert sum(1 for _ in video) == 30
    assert any("was lost after 30 frames" in text for text in video.warnings)


def test_a_pipe_that_nobody_writes_into_is_an_error_in_words(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match=r"nothing came through .*pipe within 0\.2 s"):
        open_video(str(tmp_path / "pipe"), live=LiveOptions(timeout=0.2, reconnect=0))


def test_connections_leave_no_threads():
    pieces = transport_stream(20)

    def read() -> None:
        with streaming([Plan(pieces)]) as address:
            reader = ContainerReader(address, address, timeout=5)
            assert sum(1 for _ in reader.frames()) == 20
            reader.close()

    def tasks() -> int:
        return sum(1 for _ in TASKS.iterdir())

    if not TASKS.is_dir():
        pytest.skip("threads are counted by Linux's /proc")
    read()
    before = tasks()
    for _ in range(4):
        read()
    assert tasks() - before < 4  # each had left two


def test_an_address_that_cannot_be_taken_apart_is_an_error_in_words():
    with pytest.raises(VideoError, match=r"cannot be taken apart .* by its number: %5B"):
        open_video("http://user:a[b@127.0.0.1:9/x", live=LiveOptions(timeout=1))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:secret@host/x", "rtsp://user:***@host/x"),
        ("rtsp://user:se@cr@et@host:554/x", "rtsp://user:***@host:554/x"),
        ("rtsp://user:se/cret@host/x", "rtsp://user:***@host/x"),
        ("rtsp://user:se%2Fcret@host/x", "rtsp://user:***@host/x"),
        ("http://host/x?user=a&pwd=secret&n=1", "http://host/x?user=a&pwd=***&n=1"),
        ("got rtmp:/user:secret@host:9/a", "got rtmp:/user:***@host:9/a"),  # as a path has it
        ("C:/user/a:b@c", "C:/user/a:b@c"),
        ("srt://host:1?passphrase=secret", "srt://host:1?passphrase=***"),
        ("http://host/x?access_token=secret#t", "http://host/x?access_token=***#t"),
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("rtsp://user:password@host/...", "rtsp://user:password@host/..."),
        ("names such as key=1 & a:b@c", "names such as key=1 & a:b@c"),
    ],
)
def test_passwords_of_addresses_are_not_shown(text, shown):
    assert without_password(text) == shown


def test_what_a_view_warns_of_is_kept_for_the_report():
    told = []
    views = open_views(ViewOptions(serve="0.0.0.0:0"), lambda _: None, told.append)
    with views:
        assert views.warnings == told
    assert "everyone who reaches 0.0.0.0 can watch" in told[0]
