"""`run_video` in stages: what is read, kept and written, and what an error of a stage leaves."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from watched_backend import Zeros

from openvis_rt.errors import OutputError, VideoError
from openvis_rt.runtime import graphs, video_state
from openvis_rt.runtime import run as run_module
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.preprocessing import PreparedFrame
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.encoders import EncoderOptions
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import open_video
from openvis_rt.runtime.video.results import read_frame_log
from openvis_rt.runtime.video.run_lengths import run_lengths
from openvis_rt.runtime.views.opening import ViewOptions, open_views
from openvis_rt.systems.graphs import MASKS_PER_RUN

CLASSES = ["cat", "dog", "bird"]


@pytest.fixture(autouse=True)
def _no_threads_left():
    yield
    assert not {t.name for t in threading.enumerate() if "overlay" in t.name or "decode" in t.name}


@pytest.fixture
def opened(cached_bundle):
    """Opens pipelines that show every object, and closes them."""
    from openvis_rt.runtime.options import Selection

    pipelines: list[Pipeline] = []

    def open_pipeline(mode: str, **options) -> Pipeline:
        given = {"backend": "onnxruntime", "selection": Selection(threshold=0.0), **options}
        pipelines.append(Pipeline.open(cached_bundle, vocabulary=CLASSES, mode=mode, **given))
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def openings(monkeypatch):
    """How often a source was opened by a run."""
    counted = []

    def open_counted(*args, **named):
        counted.append(args)
        return open_video(*args, **named)

    monkeypatch.setattr(run_module, "open_video", open_counted)
    return counted


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_results_are_the_same_with_and_without_an_overlay(
    opened, openings, small_video, tmp_path, mode
):
    written = []
    for overlay in (True, False):
        output = tmp_path / str(overlay)
        report = run_video(opened(mode), str(small_video), output, RunOptions(overlay=overlay))
        assert (output / "overlay.mp4").exists() == overlay
        assert (report.encoder is not None) == overlay
        files = sorted(f for f in output.iterdir() if f.suffix != ".mp4")
        written.append([f.read_bytes() for f in files])
    assert written[0] == written[1]
    times = [found.time for found in read_frame_log(tmp_path / "False/frames.jsonl")]
    with open_video(str(small_video)) as video:
        assert times == [frame.time for frame in video]
    passes = 2 if mode == "video" else 1
    assert len(openings) == passes + 1  # without an overlay nothing is read a second time


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_the_overlay_shows_each_frame_with_its_own_result(
    opened, small_video, tmp_path, mode, monkeypatch
):
    """What reaches the encoder is what one drawer makes of the log, frame by frame."""
    encoded = []
    write = OverlayWriter.write_canvas

    def keep(self, canvas, time):
        encoded.append(np.stack(canvas.planes, -1))
        write(self, canvas, time)

    monkeypatch.setattr(OverlayWriter, "write_canvas", keep)
    run_video(opened(mode), str(small_video), tmp_path / "out")
    drawer = Drawer()
    results = read_frame_log(tmp_path / "out/frames.jsonl")
    with open_video(str(small_video)) as video:
        for frame, result, found in zip(video, results, encoded, strict=True):
            np.testing.assert_array_equal(found, drawer.draw(frame.image, result))


@pytest.mark.parametrize("mode", ["video", "stream"])
@pytest.mark.parametrize("stage", ["draw", "encode"])
def test_an_error_of_a_stage_is_the_runs_and_leaves_no_output(
    opened, small_video, tmp_path, monkeypatch, mode, stage
):
    owner, name = (Drawer, "paint") if stage == "draw" else (OverlayWriter, "write_canvas")
    original, calls = getattr(owner, name), []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise OutputError("the disk is full")
        return original(self, *args)

    monkeypatch.setattr(owner, name, failing)
    pipeline = opened(mode)
    with pytest.raises(OutputError, match="the disk is full"):
        run_video(pipeline, str(small_video), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert pipeline.best == (0.0, "")  # nothing of it is known any more


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_run_that_is_watched_writes_the_same(opened, small_video, tmp_path, mode):
    written, frames = [], []
    for serve in (None, "0"):
        output = tmp_path / str(serve)
        with open_views(ViewOptions(serve=serve), print, pytest.fail) as views:
            run_video(opened(mode), str(small_video), output, views=views)
            state = views.board.to_json()
        frames.append((state["frames"], state["phase"], state["frame_count"]))
        files = sorted(f for f in output.iterdir() if f.suffix != ".mp4")  # x264's bytes vary
        written.append([file.read_bytes() for file in files])
        assert (output / "overlay.mp4").stat().st_size > 10_000
    assert written[0] == written[1]
    assert frames[0] == frames[1]
    assert frames[0][:2] == (len(read_frame_log(tmp_path / "0/frames.jsonl")), "finishing")


def test_a_source_that_became_shorter_meanwhile_is_said_to_be(
    opened, small_video, tmp_path, monkeypatch
):
    times = iter((None, 5))

    @contextmanager
    def cut(video, most):
        with video:
            yield itertools.islice(video, most)

    def open_shorter(*args, **named):
        video, most = open_video(*args, **named), next(times)
        if most is None:
            return video
        return cut(video, most)

    monkeypatch.setattr(run_module, "open_video", open_shorter)
    with pytest.raises(VideoError, match="ended after 5 frames when it was read again"):
        run_video(opened("video"), str(small_video), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_encoder_is_refused_before_any_frame_is_segmented(opened, small_video, tmp_path):
    seen = []
    options = RunOptions(encoder=EncoderOptions(encoder="mpeg4", quality=3))
    with pytest.raises(Exception, match="mpeg4 takes no quality"):
        run_video(
            opened("video", backend=Zeros()),
            *(str(small_video), tmp_path / "out", options),
            progress=lambda *done: seen.append(done),
        )
    assert seen == []


def test_frames_that_are_resized_ahead_give_the_same_results(opened, small_video):
    one, other = opened("stream"), opened("stream")
    with (
        open_video(str(small_video)) as plain,
        open_video(str(small_video), prepare=other.prepared) as prepared,
    ):
        ahead = list(prepared)
        assert all(isinstance(frame, PreparedFrame) for frame in ahead)
        assert list(one.stream(plain)) == list(other.stream(ahead))


def test_an_error_of_the_preparation_reaches_the_reader(small_video):
    def prepare(frame):
        if frame.index == 3:
            raise MemoryError("no room")
        return frame

    with (
        open_video(str(small_video), prepare=prepare) as video,
        pytest.raises(MemoryError, match="no room"),
    ):
        list(video)
    with open_video(str(small_video), prepare=prepare) as video:
        assert [next(video).index for _ in range(3)] == [0, 1, 2]


def test_the_report_names_the_encoder(opened, small_video, tmp_path):
    options = RunOptions(encoder=EncoderOptions(encoder="mpeg4"))
    report = run_video(opened("stream"), str(small_video), Path(tmp_path / "out"), options)
    assert json.loads(json.dumps(report.to_json()))["encoder"] == "mpeg4"


def test_masks_of_one_run_are_bounded_by_bytes(opened, small_video, tmp_path, monkeypatch):
    """Few bytes make many runs, and the same results."""
    made: list[int] = []

    def counted(rows, width):
        made.append(len(rows))
        return run_lengths(rows, width)

    monkeypatch.setattr(video_state, "run_lengths", counted)
    options, logs = RunOptions(overlay=False, max_frames=3), []
    for limit in (graphs._BYTES_OF_MASKS, 2 * 180 * 120 * graphs._BYTES_A_PIXEL):
        monkeypatch.setattr(graphs, "_BYTES_OF_MASKS", limit)
        run_video(opened("video"), str(small_video), tmp_path / str(limit), options)
        logs.append((tmp_path / str(limit) / "results.json").read_bytes())
        assert max(made) == (2 if len(logs) == 2 else MASKS_PER_RUN)
        made.clear()
    assert logs[0] == logs[1]
