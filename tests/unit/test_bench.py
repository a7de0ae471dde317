"""A benchmark of the tiny bundle: contenders, their turns, the parts of a window, the report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from watched_backend import TwoSlots, WatchedBackend, Zeros

from openvis_rt.bench import benchmark as contest
from openvis_rt.bench.benchmark import BenchmarkSettings, benchmark
from openvis_rt.bench.chart import svg_from_report
from openvis_rt.bench.contenders import Contender, Weights, contender_from_text, model_of
from openvis_rt.bench.markdown import markdown_from_report
from openvis_rt.bench.parts import PARTS
from openvis_rt.bench.peak import measured_peak
from openvis_rt.bench.player import Player, Run, Window, vocabulary_of
from openvis_rt.bench.products import Peak
from openvis_rt.bench.remote import RemotePlayer
from openvis_rt.bench.report import Electricity
from openvis_rt.bench.report_reading import read_report
from openvis_rt.bench.timed_backend import TimedBackend
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.main import app, main
from openvis_rt.errors import BackendError, BundleError, InputError, VideoError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.pipeline import Pipeline

pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    """In place of seconds of matrix products for every report."""
    peak = Peak(1e12, 512, "numpy", 1, "cpu")
    monkeypatch.setattr(contest, "measured_peak", lambda *_: peak)


FEW = BenchmarkSettings(frames=2, rounds=2, warm_up=1, compared=1, threads=1, runs_on="onnxruntime")


class Known(Zeros):
    """Answers at once; its name tells it apart."""

    name = "known"


@pytest.fixture
def run(small_video, tmp_path):
    return Run(str(small_video), tmp_path)


def player_of(bundle, run, backend=None):
    return Player(Contender(bundle, "onnxruntime", threads=1), run, backend=backend)


def players(backends=None):
    """In place of processes; ``backends`` makes one for each contender's name."""

    def opened(contender, run, warn):
        make = (backends or {}).get(contender.runs_on)
        return Player(contender, run, warn, backend=make() if make else None)

    return opened


@pytest.fixture
def measured(opened_bundle, small_video):
    """A report of two contenders, made once for a test."""
    settings = replace(FEW, video=str(small_video))
    return benchmark(
        opened_bundle.path,
        against=["openvino"],
        settings=settings,
        open_player=players({"openvino": lambda: OnnxRuntime("cpu")}),
    )


# a player


def test_the_parts_of_a_window_add_up_to_its_seconds(cached_bundle, run):
    player = player_of(cached_bundle, run)
    (window,) = player.turn(1).windows
    assert sum(window.parts.values()) == pytest.approx(window.seconds)
    assert set(window.parts) <= set(PARTS)
    assert window.frames == 1
    for part in ("decode", "place", "propose", "classify", "masks", "scores", "overlay", "encode"):
        assert window.parts[part] > 0, part
    assert window.parts["other"] >= 0
    assert window.graphs.keys() == {"propose", "classify", "masks"}
    player.close()


def test_without_an_overlay_nothing_is_drawn(cached_bundle, run):
    player = player_of(cached_bundle, replace(run, overlay=None))
    (window,) = player.turn(1).windows
    assert window.parts["overlay"] == window.parts["encode"] == 0
    player.close()
    assert list(Path(run.overlay).iterdir()) == []


def test_a_video_begins_anew_at_its_end(cached_bundle, run):
    player = player_of(cached_bundle, run, Known())
    spent = player.turn(30)  # of a video of twelve frames
    assert len(spent.windows) == 30
    assert player.flow(15) > 0
    player.close()


def test_a_video_without_a_whole_window_is_refused(cached_bundle, run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(VideoError):
        player_of(cached_bundle, replace(run, video=str(folder)), Known())


def test_windows_that_the_model_does_not_take_are_refused(cached_bundle, run):
    with pytest.raises(InputError, match="works frame by frame, not on windows of 2"):
        player_of(cached_bundle, replace(run, window_length=2))


def test_the_first_windows_outputs_are_kept_and_then_the_video_begins_anew(cached_bundle, run):
    player = player_of(cached_bundle, run)
    (first, second), results = player.outputs(2)
    assert {"queries", "class_scores", "mask_area"} <= set(first)
    assert not np.array_equal(first["queries"], second["queries"])
    assert [r.index for r in results] == [0, 1]
    again = player.outputs(1)[0][0]
    assert np.array_equal(again["queries"], first["queries"])
    player.close()


def test_a_timed_backend_gives_what_its_backend_gives(opened_bundle):
    names, classifier = vocabulary_of(opened_bundle, 5)
    image = np.full((40, 60, 3), 90, np.uint8)
    results = []
    for backend in (OnnxRuntime("cpu"), TimedBackend(WatchedBackend())):
        with Pipeline.open(
            opened_bundle, vocabulary=names, classifier=classifier, backend=backend
        ) as pipeline:
            results.append(pipeline.step(image).scores.tolist())
    assert results[0] == results[1]


def test_rows_of_the_classifier_are_the_same_for_the_same_number(opened_bundle):
    names, first = vocabulary_of(opened_bundle, 7)
    _, second = vocabulary_of(opened_bundle, 7)
    assert (len(names), first.embeddings.shape) == (7, (7, 32))
    assert np.array_equal(first.embeddings, second.embeddings)
    assert np.linalg.norm(first.embeddings, axis=1) == pytest.approx(1, abs=1e-5)


# a process of its own


def test_a_player_in_a_process_of_its_own(cached_bundle, run):
    player = RemotePlayer(Contender(cached_bundle, "onnxruntime", threads=1), run)
    (window,) = player.turn(1).windows
    assert isinstance(window, Window)
    assert player.facts()["backend"] == "onnxruntime"
    assert player.peak_bytes() > 1e7
    assert player.pid
    player.close()
    with pytest.raises(BackendError, match="ended with code 0"):
        player.turn(1)


def test_an_error_of_the_process_is_raised_here(cached_bundle, tmp_path, run):
    with pytest.raises(BundleError, match="no-bundle"):
        RemotePlayer(Contender(tmp_path / "no-bundle", "onnxruntime"), run)
    with pytest.raises(BundleError, match="was replaced or changed"):
        RemotePlayer(Contender(cached_bundle, "onnxruntime", sha256="0" * 64), run)


# who takes part


def test_contenders_by_their_names(tmp_path):
    base = Contender(Path("bundle"), "onnxruntime", "fp32", threads=2)
    assert contender_from_text("torch", base) == replace(base, runs_on="torch")
    half = replace(base, precision="fp16")
    assert contender_from_text("onnxruntime:fp16", base) == half
    assert contender_from_text(f"{tmp_path}:fp16", base) == replace(half, bundle=tmp_path)
    assert contender_from_text(str(tmp_path), base) == replace(base, bundle=tmp_path)
    with pytest.raises(InputError, match="called 'onnx-runtime'"):
        contender_from_text("onnx-runtime", base)


def test_pytorch_needs_the_checkpoint_that_was_exported(bundle_copy, tmp_path):
    pytest.importorskip("torch", reason="PyTorch's contenders need the extra [export]")
    bundle = Bundle.open(bundle_copy)
    facts = {"file": "weights.pth", "sha256": "0" * 64}
    other = replace(bundle, manifest=replace(bundle.manifest, checkpoint=facts))
    with pytest.raises(InputError, match=r"exported from weights\.pth; give it with --checkpoint"):
        model_of(other, Weights())


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_another_library_computes_the_same(kind, opened_bundle, small_video):
    def backend():
        if kind == "torch":
            pytest.importorskip("torch", reason="PyTorch's contender needs the extra [export]")
            from tiny import tiny_model

            from openvis_rt.verify.torch_backend import TorchBackend

            return TorchBackend(tiny_model(), device="cpu")
        pytest.importorskip("openvino", reason="this contender needs the extra [openvino]")
        from openvis_rt.bench.openvino_backend import OpenVino

        return OpenVino(threads=1)

    report = benchmark(
        opened_bundle.path,
        against=[kind],
        settings=replace(FEW, video=str(small_video), compared=3),
        open_player=players({kind: backend}),
    )
    other = report.results[1]
    assert other.not_run == ""
    assert min(other.agreement.sqnr.values()) > 80  # rounding leaves 100 and more
    assert (other.agreement.same_classes, other.agreement.passed) == (1.0, True)
    assert other.agreement.mask_iou > 0.999
    assert set(other.measured.parts) == set(report.base.measured.parts)


def test_openvino_refuses_what_it_would_compute_in_fp32(opened_bundle, run):
    pytest.importorskip("openvino", reason="this contender needs the extra [openvino]")
    contender = Contender(opened_bundle.path, "openvino", "fp16")
    with pytest.raises(BackendError, match="OpenVINO computes in FP32"):
        Player(contender, run)


# a contest


def test_a_report_has_what_was_measured(measured):
    base, other = measured.results
    assert (base.name, other.name) == ("onnxruntime fp32", "openvino fp32")
    assert base.measured.ratio is None
    assert other.measured.ratio.low <= other.measured.ratio.value <= other.measured.ratio.high
    assert [len(turn) for turn in base.measured.rounds] == [1, 1]
    assert base.measured.fps == pytest.approx(1 / base.measured.seconds_a_frame)
    assert other.agreement.sqnr["queries"] == 200  # the very same library
    assert base.measured.flops["propose"] > 1e6
    assert 0 < base.measured.share_of_peak < 1
    assert base.trtexec["Latency"]["median"] == base.measured.graphs["propose"].p50 * 1e3
    assert measured.settings["threads"] == 1
    assert measured.machine.versions["onnxruntime"]


def test_contenders_take_turns_there_and_back(opened_bundle, small_video):
    order = []

    class Noted(Player):
        def turn(self, windows):
            order.append((self.facts()["backend"], windows))
            return super().turn(windows)

    backends = {"openvino": Known}
    benchmark(
        opened_bundle.path,
        against=["openvino:fp16"],  # of another precision, so nothing is held against the base
        settings=replace(FEW, video=str(small_video), frames=6, rounds=3),
        open_player=lambda c, r, w: Noted(c, r, w, backends.get(c.runs_on, lambda: None)()),
    )
    names = [name for name, _ in order]
    a, b = "onnxruntime", "known"
    assert names == [a, b, a, b, b, a, a, b]  # warming up, then the rounds
    assert [windows for _, windows in order] == [1, 1, *[2] * 6]


def test_one_whose_outputs_differ_has_no_figures(opened_bundle, small_video):
    report = benchmark(
        opened_bundle.path,
        against=["torch"],
        settings=replace(FEW, video=str(small_video)),
        open_player=players({"torch": Zeros}),
    )
    wrong = report.results[1]
    assert wrong.measured is None
    assert "outputs differ from those of onnxruntime fp32" in wrong.not_run
    assert not wrong.agreement.passed
    assert "torch fp32 has no figures: its outputs differ" in markdown_from_report(report)
    assert any("torch fp32 is left out" in warning for warning in report.warnings)


def test_one_that_does_not_work_here_is_left_out_with_its_reason(opened_bundle, small_video):
    def broken():
        raise BackendError("no such device")

    report = benchmark(
        opened_bundle.path,
        against=["tensorrt"],
        settings=replace(FEW, video=str(small_video)),
        open_player=players({"tensorrt": broken}),
    )
    assert report.results[1].not_run == "no such device"
    assert report.base.measured is not None


def test_a_base_that_does_not_work_is_an_error(opened_bundle, small_video):
    def broken():
        raise BackendError("no such device")

    with pytest.raises(BackendError, match="no such device"):
        benchmark(
            opened_bundle.path,
            settings=replace(FEW, video=str(small_video)),
            open_player=players({"onnxruntime": broken}),
        )


def test_frames_in_flight_are_measured_where_there_are_any(opened_bundle, small_video):
    report = benchmark(
        opened_bundle.path,
        settings=replace(FEW, video=str(small_video)),
        open_player=players({"onnxruntime": TwoSlots}),
    )
    assert report.base.measured.fps_in_flight > 0


def test_the_same_contender_twice_is_refused(opened_bundle):
    with pytest.raises(InputError, match="takes part twice"):
        benchmark(opened_bundle.path, against=["onnxruntime"], settings=FEW)


def test_a_second_bundle_has_its_folders_name(opened_bundle, bundle_copy, small_video):
    report = benchmark(
        opened_bundle.path,
        against=[f"{bundle_copy}:fp16"],
        settings=replace(FEW, video=str(small_video)),
        open_player=players(),
    )
    other = report.results[1]
    assert other.name == "bundle: onnxruntime fp16"
    assert (other.agreement.gate, other.agreement.passed) == (None, True)
    assert other.agreement.sqnr["class_scores"] > 20


def test_a_busy_machine_is_told(opened_bundle, small_video, monkeypatch):
    busy = iter(range(0, 10_000, 1000))
    monkeypatch.setattr(contest, "busy_seconds", lambda: float(next(busy)))
    report = benchmark(
        opened_bundle.path,
        settings=replace(FEW, video=str(small_video)),
        open_player=players(),
    )
    assert report.others == 1.0
    assert any("other processes took 100% of the cores" in text for text in report.warnings)


def test_without_onnx_operations_are_not_counted(opened_bundle, small_video, monkeypatch):
    monkeypatch.setattr(contest, "find_spec", lambda _: None)
    report = benchmark(
        opened_bundle.path,
        settings=replace(FEW, video=str(small_video)),
        open_player=players(),
    )
    assert report.base.measured.flops is None
    assert any("onnx is not installed" in text for text in report.not_measured)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_up": 0}, "one window to warm up at least, got 0"),
        ({"rounds": 1}, "at least 2 rounds; got 1"),
        ({"frames": 0}, "at least 1 frames; got 0"),
        ({"classes": 0}, "at least 1 classes; got 0"),
        ({"threads": 0}, "at least 1 threads; got 0"),
    ],
)
def test_settings_without_figures_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        BenchmarkSettings(**changes)


def test_the_machines_matrix_product():
    peak = measured_peak(1)
    assert (peak.threads, peak.device) == (1, "cpu")
    assert 1e8 < peak.flops < 1e13  # from a slow core to a fast one
    assert peak.library.split()[0] in ("numpy", "torch")


# what is shown


def test_the_chart_is_xml_with_a_bar_for_each_part_and_a_dot_for_each_window(measured):
    named = (replace(measured.base, name="<a & b>"), *measured.results[1:])
    root = ElementTree.fromstring(svg_from_report(replace(measured, results=named)))
    kinds = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert kinds.count("circle") == 4
    texts = ["".join(element.itertext()) for element in root.iter()]
    assert any("<a & b>, propose: " in text for text in texts)
    assert any(text.startswith("<a & b>") for text in texts)


def test_the_table_names_what_was_not_measured(measured):
    text = markdown_from_report(replace(measured, not_measured=("power is not measured",)))
    assert "| time, onnxruntime fp32 = 1 |" in text
    assert "- Power is not measured." in text
    assert "| W |" not in text  # a column that nobody has


def test_what_a_gpu_tells_has_columns_and_notes(measured):
    power = Electricity(71.5, 2.5, (900.0, 1000.0, 1100.0), 66.0, ("power cap",), 2_000_000)
    found = replace(
        measured.base.measured, electricity=power, bytes_to_device=3e6, bytes_to_host=1e5
    )
    base = replace(measured.base, measured=found)
    text = markdown_from_report(replace(measured, results=(base, *measured.results[1:])))
    header = text.splitlines()[4]
    assert "| GPU MB | MB to the device | MB to the host | W | J a frame |" in header
    assert "| 2 | 3.00 | 0.10 | 71.5 | 2.50 |" in text
    assert "GPU clock 900 to 1100 MHz, mean 1000, at most 66 degrees Celsius." in text
    assert "held down by power cap" in text


# the command


def test_the_command_writes_a_report_a_table_and_a_chart(
    opened_bundle, small_video, tmp_path, monkeypatch
):
    out = tmp_path / "report.json"
    common = ["bench", str(opened_bundle.path), "--backend", "onnxruntime", "--threads", "1"]
    common += ["--video", str(small_video), "--frames", "2", "--rounds", "2", "--warm-up", "1"]
    result = CliRunner().invoke(app, [*common, "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    report = read_report(out)
    assert out.with_suffix(".md").read_text() == markdown_from_report(report)
    assert ElementTree.parse(out.with_suffix(".svg"))
    result = CliRunner().invoke(
        app, [*common, "--compare", str(out), "--json"], catch_exceptions=False
    )
    found = json.loads(result.stdout)
    assert {change["what"] for change in found["changes"]} >= {"end to end", "network"}
    monkeypatch.setattr(contest, "benchmark", None)  # what cannot be compared is not measured
    other = [*common, "--compare", str(out), "--classes", "7"]
    result = CliRunner().invoke(app, other)
    assert isinstance(result.exception, InputError)
    assert "classes 7 here, 40 there" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--warm-up", "0"], 2, "one window to warm up"),
        (["--against", "nothing-of-that-name"], 2, "called 'nothing-of-that-name'"),
        (["--max-slowdown", "1.1"], 2, "give --compare OLD.json"),
        (["--compare", "missing.json"], 2, "no report"),
        (["-o", "report.txt"], 2, "ends in .json"),
        (["--source-size", "12"], 2, "height x width"),
        (["--backend", "tensorrt-rtx"], 3, ""),
    ],
)
def test_bad_usage_has_its_exit_code(options, code, message, opened_bundle, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["openvis", "bench", str(opened_bundle.path), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == code
    assert message in told
    assert "Traceback" not in told


@pytest.mark.timeout(150)  # three interpreters start one after the other
def test_ctrl_c_ends_every_process_and_leaves_nothing(cached_bundle, small_video, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "openvis_rt", "bench", str(cached_bundle)]
    command += ["--video", str(small_video), "--backend", "onnxruntime", "--threads", "1"]
    command += ["--frames", "1000000", "--rounds", "2", "-o", str(tmp_path / "report.json")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(work)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with process:
        try:
            while not any(work.glob("*/.partial-*.mp4")):  # the contender is about to run
                assert process.poll() is None
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGINT)
            told = process.communicate(timeout=40)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted; nothing half-written was left" in told
    assert [path for path in work.iterdir() if path.is_dir()] == []
    assert not (tmp_path / "report.json").exists()
    until = time.monotonic() + 10  # Python's own tracker of resources ends a moment later
    while (left := running_of_session(process.pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def running_of_session(session):
    """Processes of a session that are more than an entry that nobody has collected."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, of = path.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(path.parent.name)
    return found
