"""Live sources: the newest frame wins, and what a camera or a host may do to a run."""

from __future__ import annotations

import io
import itertools
import json
import resource
import signal
import threading
import time

import pytest
from misbehaving import Plan, garbled, streaming, transport_stream
from watched_backend import Zeros

from openvis_rt.errors import InputError, OutputError, VideoError
from openvis_rt.runtime.ages import Ages
from openvis_rt.runtime.options import LiveOptions
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.report import RunOptions
from openvis_rt.runtime.run import run_video
from openvis_rt.runtime.video.handover import Handover
from openvis_rt.runtime.video.reading import open_video
from openvis_rt.runtime.video.results import read_frame_log

QUICK = LiveOptions(timeout=0.4, reconnect=0)
EVERY = LiveOptions(every_frame=True, timeout=0.4, reconnect=0)


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    """Sixty frames of a stream."""
    return transport_stream(60)


@pytest.fixture
def pipeline(cached_bundle):
    """A pipeline that computes nothing."""
    with Pipeline.open(
        cached_bundle, vocabulary=["cat", "dog"], mode="stream", backend=Zeros()
    ) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _embedded(cached_bundle):
    """The names' embeddings are in the bundle's cache, so that zeros can serve for the rest."""
    Pipeline.open(cached_bundle, vocabulary=["cat", "dog"], backend="onnxruntime").close()


def live(**named) -> RunOptions:
    """Options of a run without an overlay, with ``named`` ones of its live source."""
    return RunOptions(overlay=False, live=LiveOptions(**{"timeout": 0.4, "reconnect": 0, **named}))


def test_a_handover_of_the_newest_drops_and_counts():
    door = Handover(1, newest=True)
    assert all(door.put(number) for number in range(5))
    assert (door.get(), door.dropped) == (4, 4)
    door.end()
    assert door.get() is None
    assert door.close() == []
    assert not door.put(5)


def test_a_handover_that_is_stopped_gives_nothing():
    door, stop = Handover(1), threading.Event()
    threading.Timer(0.1, stop.set).start()
    begin = time.monotonic()
    assert door.get(stop) is None
    assert time.monotonic() - begin < 5


def test_ages_are_right_to_two_percent():
    ages = Ages()
    assert ages.to_json() is None
    for number in range(1, 1001):
        ages.add(number / 1000)
    assert ages.quantile(0.5) == pytest.approx(0.5, rel=0.02)
    assert ages.quantile(0.99) == pytest.approx(0.99, rel=0.02)


def test_a_slow_consumer_gets_the_newest_frame_and_its_own_index(pieces):
    with streaming([Plan(pieces, pace=60)]) as address, open_video(address, live=QUICK) as video:
        indices = []
        for frame in video:
            indices.append(frame.index)
            assert frame.time == pytest.approx(frame.index / 30, abs=0.02)
            time.sleep(0.1)
    assert indices == sorted(set(indices))
    assert len(indices) + video.dropped == indices[-1] + 1
    assert video.dropped > 20


def test_every_frame_drops_none(pieces):
    with streaming([Plan(pieces)]) as address, open_video(address, live=EVERY) as video:
        indices = [frame.index for frame in video]
    assert indices == list(range(len(indices)))
    assert len(indices) >= 59
    assert video.dropped == 0


def test_stride_of_a_live_source(pieces):
    with streaming([Plan(pieces)]) as address, open_video(address, stride=4, live=EVERY) as video:
        assert [frame.index for frame in video] == list(range(0, 60, 4))


@pytest.mark.parametrize("trickle", [None, 0.05])
def test_a_source_that_stalls_ends_in_words_with_whole_files(pipeline, pieces, tmp_path, trickle):
    plan = Plan(pieces, stall=40, trickle=trickle)
    with streaming([plan]) as address:
        report = run_video(pipeline, address, tmp_path / "out", live(every_frame=True))
    [words] = [text for text in report.warnings if "was lost" in text]
    assert "no whole frame came within 0.4 s" in words
    assert len(read_frame_log(tmp_path / "out" / "frames.jsonl")) == report.frames > 30
    assert not (tmp_path / "out" / "unfinished.json").exists()
    assert (report.stopped, report.dropped) == (False, 0)
    assert 0 < report.age_ms["p50"] <= report.age_ms["p99"]


def test_a_source_that_comes_back_goes_on_in_the_same_files(pipeline, pieces, tmp_path):
    told = []
    plans = [Plan(pieces, reset=True), Plan(pieces)]
    with streaming(plans) as address:
        options = live(every_frame=True, reconnect=0.8)
        report = run_video(pipeline, address, tmp_path / "out", options, warn=told.append)
    log = read_frame_log(tmp_path / "out" / "frames.jsonl")
    assert [result.index for result in log] == list(range(report.frames))
    assert report.frames > 100
    assert report.reconnections == 1
    [broke, back, *_] = [text for text in told if "tcp://" in text]
    assert "tried again for up to 0.8 s" in broke
    assert "is back after" in back
    times = [result.time for result in log]
    assert times == sorted(times)
    assert max(b - a for a, b in itertools.pairwise(times)) > 0.2  # the break
    assert any("did not bring it back" in text for text in told)


def test_another_size_after_a_break_ends_with_whole_files(pipeline, pieces, tmp_path):
    plans = [Plan(pieces), Plan(transport_stream(30, width=192))]
    with streaming(plans) as address:
        options = live(every_frame=True, reconnect=5)
        report = run_video(pipeline, address, tmp_path / "out", options)
    assert any("from 160x96 to 192x96. The results end there" in w for w in report.warnings)
    assert len(read_frame_log(tmp_path / "out" / "frames.jsonl")) == report.frames == 60
    assert not (tmp_path / "out" / "unfinished.json").exists()


def test_garbage_is_counted_and_told(pieces):
    plan = Plan(garbled(pieces, [12, 33]))
    with streaming([plan]) as address, open_video(address, live=EVERY) as video:
        count = sum(1 for _ in video)
    [words] = [text for text in video.warnings if "arrived damaged" in text]
    assert "2 stretches" in words
    assert f"{60 - count} frames are missing" in words


def test_a_stream_without_damage_says_nothing_of_it(pieces):
    with streaming([Plan(pieces)]) as address, open_video(address, live=EVERY) as video:
        assert sum(1 for _ in video) == 60
    assert not [text for text in video.warnings if "damaged" in text]


@pytest.mark.parametrize("stall", [0, 40])
def test_ctrl_c_is_heard_while_nothing_comes(pipeline, pieces, tmp_path, stall):
    threading.Timer(0.6, signal.raise_signal, [signal.SIGINT]).start()
    options, out = live(timeout=8.0), tmp_path / "out"
    with streaming([Plan(pieces, stall=stall)]) as address:
        begin = time.monotonic()
        if stall == 0:
            with pytest.raises(KeyboardInterrupt):
                run_video(pipeline, address, out, options)
            assert not out.exists()
        else:
            report = run_video(pipeline, address, out, options)
            assert report.stopped
            assert len(read_frame_log(out / "frames.jsonl")) == report.frames > 0
        assert time.monotonic() - begin < 5  # of the 8 seconds that FFmpeg waits


def test_the_folder_grows_under_its_name_and_is_marked(pipeline, pieces, tmp_path):
    out, seen = tmp_path / "out", []

    def look(_phase, done, _total) -> None:
        lines = (out / "frames.jsonl").read_text().splitlines()
        seen.append((len(lines) == done, (out / "unfinished.json").exists()))
        if done == 5:
            with pytest.raises(OutputError, match="is written by another run now"):
                run_video(other, address, out, RunOptions(overwrite=True, live=EVERY))

    with (
        Pipeline.open(pipeline.bundle, vocabulary=["cat"], mode="stream", backend=Zeros()) as other,
        streaming([Plan(pieces), Plan(pieces)]) as address,
    ):
        report = run_video(pipeline, address, out, live(every_frame=True), look)
    assert set(seen) == {(True, True)}
    assert sorted(path.name for path in out.iterdir()) == ["categories.json", "frames.jsonl"]
    assert sorted(report.outputs) == ["categories", "frames"]


def test_what_a_killed_run_left_is_named_and_replaced(pipeline, pieces, tmp_path):
    from openvis_rt.runtime.recording import refuse_existing

    out = tmp_path / "out"
    out.mkdir()
    (out / "unfinished.json").write_text('{"pid": 1, "start": "2026-11-29T00:00:00+0000"}')
    (out / "frames.jsonl").write_text("{}\n")
    with pytest.raises(OutputError, match=r"was killed \(process 1, begun 2026"):
        refuse_existing(out, overwrite=False)
    with streaming([Plan(pieces)]) as address:
        options = RunOptions(overlay=False, overwrite=True, live=EVERY)
        report = run_video(pipeline, address, out, options)
    assert len(read_frame_log(out / "frames.jsonl")) == report.frames
    assert not (out / "unfinished.json").exists()


def test_a_full_disk_keeps_the_frames_before(pipeline, pieces, tmp_path):
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with streaming([Plan(pieces)]) as address:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with pytest.raises(OutputError, match=r"The \d+ frames before are kept"):
                run_video(pipeline, address, out, live(every_frame=True))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(read_frame_log(out / "frames.jsonl")) > 10
    assert (out / "unfinished.json").exists()


class Reader(io.RawIOBase):
    """Takes so many lines and goes away."""

    def __init__(self, most: int) -> None:
        self.lines, self._most = [], most

    def write(self, data) -> int:
        if len(self.lines) == self._most:
            raise BrokenPipeError
        self.lines.append(json.loads(bytes(data)))
        return len(data)


def test_lines_without_a_folder_and_a_reader_that_goes_away(pipeline, pieces):
    reader = Reader(7)
    with streaming([Plan(pieces)]) as address:
        report = run_video(pipeline, address, None, live(every_frame=True), lines=reader)
    assert [line["frame"] for line in reader.lines] == list(range(7))
    assert (report.outputs, report.stopped) == ({}, False)
    assert report.frames < 20


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="a timeout is more than 0"):
        LiveOptions(timeout=0)
    with pytest.raises(InputError, match="0 seconds or more"):
        LiveOptions(reconnect=-1)
    with pytest.raises(InputError, match="a stride is 1"):
        RunOptions(stride=0)


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_strided_file_keeps_its_own_indices_and_times(cached_bundle, small_video, tmp_path, mode):
    with open_video(str(small_video)) as video:
        whole = [frame.time for frame in video]
    with Pipeline.open(cached_bundle, vocabulary=["cat"], mode=mode, backend=Zeros()) as opened:
        report = run_video(opened, str(small_video), tmp_path / "out", RunOptions(stride=3))
    log = read_frame_log(tmp_path / "out" / "frames.jsonl")
    assert [result.index for result in log] == list(range(0, len(whole), 3))
    assert [result.time for result in log] == whole[::3]
    assert (report.frames, report.dropped, report.age_ms) == (len(log), None, None)
    with open_video(str(tmp_path / "out" / "overlay.mp4")) as overlay:
        assert [f.time for f in overlay] == pytest.approx(whole[::3], abs=0.02)


def test_a_host_that_never_sends_is_an_error_in_words(pieces):
    with (
        streaming([Plan(pieces, stall=0)]) as address,
        pytest.raises(VideoError, match=r"within 0\.4 s"),
    ):
        open_video(address, live=QUICK)


def test_the_command_writes_lines_and_nothing_else_to_stdout(
    openvis, cached_bundle, pieces, tmp_path
):
    with streaming([Plan(pieces)]) as address:
        words = ("-c", "cat", "--only", "--reconnect", 0, "--timeout", 1, "--max-frames", 5)
        command = ("run", cached_bundle, address, *words, "--every-frame", "--jsonl", "-")
        code, out, err = openvis(*command)
    assert code == 0, err
    assert len([json.loads(line)["frame"] for line in out.splitlines()]) == 5
    assert "ms old in the median" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give a folder with -o, --jsonl -, or a view such as --serve 8000"),
        (("--jsonl", "lines"), "--jsonl takes - for stdout, got lines"),
        (("--jsonl", "-", "--json"), "both write to stdout"),
    ],
)
def test_a_run_that_would_keep_nothing_is_refused(openvis, cached_bundle, options, message):
    code, out, err = openvis("run", cached_bundle, "rtsp://camera.invalid", "-c", "cat", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
