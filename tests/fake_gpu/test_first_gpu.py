"""``benchmarks/first_gpu.py`` over the doubles: every step is there, and stops where it should."""

from __future__ import annotations

import json
import os
import re
import shutil
from itertools import groupby

import first_gpu
import first_gpu_engines
import first_gpu_videos
import first_gpu_work
import numpy as np
import pytest
from doubles.engines import PROFILES, write_plan

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.build.engines import BuildResult
from openvis_rt.engines.library import TensorRtLibrary
from openvis_rt.engines.plan import Sidecar, sidecar_path
from openvis_rt.errors import EngineError, InputError

LARGE = {"profiles": {**PROFILES, "K": (1, 8, 256)}}  # the largest K that is recorded
STEPS = [step.name for step in first_gpu.STEPS]


@pytest.fixture
def bundle(recorded, tmp_path):
    """A copy of the tiny bundle, with FP16 and a reference, to put engines into."""
    return shutil.copytree(recorded / "recorded", tmp_path / "bundle", copy_function=os.link)


@pytest.fixture
def first_day(use, bundle, tmp_path, monkeypatch, capsys):
    """Runs the script with doubles in the place of library and builder."""

    def run(*options, kind="tensorrt", of=bundle, prepare=lambda _double: None):
        double = use(kind)
        library = TensorRtLibrary(kind, double, double.__version__)

        def build(bundle, *, backend, precisions, graphs, **_options):
            assert backend == kind
            made = []
            for precision in precisions:
                for graph in graphs:
                    path = write_plan(bundle, graph, kind, precision=precision, **LARGE)
                    made.append(BuildResult(path, Sidecar.read(sidecar_path(path)), skipped=False))
            return made

        monkeypatch.setattr(first_gpu_engines, "build_engines", build)
        for module in (first_gpu_engines, first_gpu_work):
            monkeypatch.setattr(module, "tensorrt_library", lambda _backend: library)
        prepare(double)
        out = tmp_path / "out"
        few = ["--frames", "12", "--compared", "5", "--size", "120x180", "--out", str(out)]
        code = first_gpu.main([str(of), "--backend", kind, *few, *options])
        record = json.loads((out / "first_gpu.json").read_text(encoding="utf-8"))
        return code, record, capsys.readouterr()

    return run


def steps_of(record):
    return [name for name, _ in groupby(row["step"] for row in record["rows"])]


def row_of(record, what):
    [row] = [row for row in record["rows"] if row["what"] == what]
    return row["found"], row["verdict"]


def whole_day(record, printed):
    """Every step is in the JSON and in the table, and nothing failed."""
    assert steps_of(record) == STEPS
    assert {row["verdict"] for row in record["rows"]} <= {"ok", "told", "does not apply"}
    assert (record["passed"], record["failure"], record["running"]) == (True, None, "")
    lines = printed.out.splitlines()
    assert [line for line in lines if line.startswith("step")] == lines[:1]  # one table
    begun = [line.split(" ")[0] for line in lines[1:] if line[:1].strip()]  # others are wrapped
    assert [name for name, _ in groupby(begun)] == STEPS


def test_the_whole_day_on_tensorrt(first_day):
    code, record, printed = first_day()
    assert code == 0, printed.err
    whole_day(record, printed)
    rows = {row["what"] for row in record["rows"]}
    for precision in ("fp32", "fp16"):
        assert f"propose {precision} T=1 mask_logits" in rows
        assert f"classify {precision} T=1 K=256 class_scores" in rows
        assert row_of(record, f"text {precision} beside ONNX Runtime fp32")[1] == "ok"
        found, verdict = row_of(record, f"layers of propose {precision}")
        assert (found.split(" ")[1], verdict) == (f"float{precision[2:]}", "ok")
    assert row_of(record, "stream, CUDA graphs on")[0].endswith("bit-equal")
    assert row_of(record, "launches of CUDA graphs") == ("12, of all graphs together", "ok")
    assert re.fullmatch(r"\d+\.\d", row_of(record, "driver serves CUDA")[0])
    assert row_of(record, "embed")[1] == "does not apply"
    assert row_of(record, "cold and warm start")[1] == "does not apply"
    times = record["details"]["layer_milliseconds"]
    assert list(times) == ["propose fp16", "classify fp16"]
    assert list(times["propose fp16"].values())[:2] == [0.001, 0.002]
    assert [sample["frame"] for sample in record["details"]["memory"]] == list(range(1, 13))


def test_the_whole_day_on_tensorrt_rtx(first_day, bundle):
    code, record, printed = first_day(kind="tensorrt-rtx")
    assert code == 0, printed.err
    whole_day(record, printed)
    assert row_of(record, "launches of CUDA graphs")[1] == "does not apply"
    assert row_of(record, "kept kernels")[0].startswith("3 files")
    assert (bundle / "engines/tensorrt-rtx-sm87/propose.fp16.kernels").is_file()


def test_windows_of_every_length_and_a_bundle_without_fp16(first_day, recorded, tmp_path):
    windows = recorded / "recorded-windows"
    of = shutil.copytree(windows, tmp_path / "windows", copy_function=os.link)
    code, record, printed = first_day(of=of)
    assert code == 0, printed.err
    whole_day(record, printed)
    found, verdict = row_of(record, "window lengths")
    assert (found.split(",")[:5], verdict) == (["T=1", " T=2", " T=3", " T=4", " T=5"], "ok")
    for what in ("text fp16", "propose, classify fp16", "step"):
        assert row_of(record, what)[1] == "does not apply"
    assert row_of(record, "launches of CUDA graphs")[1] == "ok"
    assert row_of(record, "embed fp32 T=5 image_embeddings")[1] == "ok"


# what must stop the day, in its step


def stopped(result, step, code, text):
    """It stopped in this step, said so, and kept the rows before and the step's own."""
    found, record, printed = result
    assert found == code
    assert steps_of(record) == STEPS[: STEPS.index(step) + 1]
    assert record["failure"]["step"] == step
    assert text in record["failure"]["message"]
    assert (record["rows"][-1]["what"], record["rows"][-1]["verdict"]) == ("stopped here", "FAILED")
    assert (record["passed"], record["running"]) == (False, step)
    assert f"step '{step}' failed" in printed.err
    assert text in printed.err
    assert record["failure"]["next"] in printed.err
    [line] = [line for line in printed.out.splitlines() if "stopped here" in line]
    assert line.startswith(step)
    return record


def test_a_driver_without_a_device_stops_it_at_once(first_day, driver):
    driver.set_devices(0)
    try:
        stopped(first_day(), "versions", 3, "there is no NVIDIA GPU here")
    finally:
        driver.set_devices(1)


@pytest.mark.parametrize(
    ("function", "text"),
    [("cuEventRecord", "cuEventRecord"), ("cuGraphInstantiate", "cuGraphInstantiate")],
)
def test_cuda_that_fails_by_itself(first_day, driver, function, text):
    driver.fail_next(function, "UNKNOWN")
    record = stopped(first_day(), "cuda", 3, text)
    copied = [row["what"] for row in record["rows"]].count("1 MiB there and back")
    assert copied == (function == "cuGraphInstantiate")


def test_bytes_that_do_not_come_back(first_day, monkeypatch):
    from openvis_rt.runtime.backends.tensorrt.cuda_python import CudaPython

    monkeypatch.setattr(CudaPython, "_copy_in", lambda *_: None)
    stopped(first_day(), "cuda", 3, "copied to the device and back")


def test_a_graph_that_does_not_build(first_day, monkeypatch):
    def refuse(*_arguments, graphs, **_options):
        raise EngineError(f"the parser refuses {graphs}")

    def prepare(_double):
        monkeypatch.setattr(first_gpu_engines, "build_engines", refuse)

    stopped(first_day(prepare=prepare), "masks", 3, "the parser refuses ['masks']")


@pytest.mark.parametrize(
    ("stem", "output", "step", "after"),
    [
        ("masks", "masks", "masks", "masks fp32 n=8 masks"),
        ("text.fp16", "embeddings", "text", "text fp32 beside ONNX Runtime fp32"),
        ("propose", "queries", "networks", "propose fp32 T=1 mask_logits"),
        ("classify.fp16", "class_scores", "networks", "propose fp16 T=1 mask_logits"),
    ],
)
def test_a_wrong_output(first_day, stem, output, step, after):
    """The step's other outputs have their rows as well."""

    def wrong(of, outputs):
        if of == stem:
            outputs[output] = np.zeros_like(outputs[output])

    def prepare(double):
        double.edit = wrong

    record = stopped(first_day(prepare=prepare), step, 4, f"'{output}'")
    assert after in [row["what"] for row in record["rows"]]
    bad = {row["what"].split(" ")[-1] for row in record["rows"] if row["verdict"] == "FAILED"}
    assert bad == {output, "here"}


def test_a_text_tower_that_only_departs_from_onnx_runtime(first_day, monkeypatch):
    """Recorded answers that are as wrong would hide it."""
    monkeypatch.setattr(first_gpu_engines, "_compared", lambda *_: iter(()))

    def prepare(double):
        double.edit = lambda stem, outputs: [value.fill(1) for value in outputs.values()]

    stopped(first_day(prepare=prepare), "text", 4, "beside ONNX Runtime")


def test_layers_that_an_inspector_names_of_another_precision_are_told(first_day, monkeypatch):
    def prepare(_double):
        written = first_gpu_engines.build_engines

        def build(bundle, *, precisions, graphs, **options):
            made = written(bundle, precisions=precisions, graphs=graphs, **options)
            if (precisions, graphs) == (["fp16"], ["propose"]):
                write_plan(bundle, "propose", precision="fp16", inspected="fp32", **LARGE)
            return made

        monkeypatch.setattr(first_gpu_engines, "build_engines", build)

    code, record, _ = first_day(prepare=prepare)
    assert code == 0
    found, verdict = row_of(record, "layers of propose fp16")
    assert "the network is fp16, and these names are fp32" in found
    assert verdict == "told"


def test_a_profiler_that_tells_nothing_can_be_left_out(first_day, monkeypatch):
    def prepare(double):
        double.IProfiler = type("Silent", (double.IProfiler,), {"report_layer_time": None})

    monkeypatch.setattr("openvis_rt.runtime.backends.tensorrt.session.new_profiler", silent)
    stopped(first_day(), "profile", 3, "told of no layer of propose")
    code, record, _ = first_day("--without", "profile")
    assert code == 0
    assert row_of(record, "profile") == ("left out: --without", "does not apply")


def silent(trt, _seconds):
    """A profiler that keeps nothing."""

    class Silent(trt.IProfiler):
        def report_layer_time(self, layer, milliseconds):
            pass

    return Silent()


def test_a_capture_that_fails_keeps_what_ran_without(first_day, driver):
    driver.fail_next("cuGraphInstantiate", "UNKNOWN", skip=1)  # the first is the step's `cuda`
    record = stopped(
        first_day("--without", "proof"), "compare", 3, "'propose' runs without a CUDA graph"
    )
    assert row_of(record, "stream, CUDA graphs off")[1] == "ok"


def test_frames_that_differ_between_stream_and_step(first_day, monkeypatch):
    """As with a buffer that is overwritten too early: only where two frames are in flight."""
    real = first_gpu_videos.Pipeline.stream

    def stream(self, frames, *, in_flight=None):
        frames = list(frames)
        if in_flight is None and len(frames) == 5:
            frames[3] = frames[2]
        return real(self, frames, in_flight=in_flight)

    monkeypatch.setattr(first_gpu_videos.Pipeline, "stream", stream)
    record = stopped(first_day(), "compare", 4, "frame 3")
    assert row_of(record, "step, CUDA graphs off")[1] == "ok"
    assert row_of(record, "stream, CUDA graphs off")[1] == "FAILED"


def test_a_graph_that_is_not_captured_though_it_could(first_day, monkeypatch):
    name = "openvis_rt.runtime.backends.tensorrt.cuda.Cuda.launches"
    monkeypatch.setattr(name, property(lambda _: 0, lambda _self, _value: None), raising=False)
    stopped(first_day(), "compare", 3, "propose could run as a CUDA graph")


def test_memory_that_grows(first_day, monkeypatch):
    sizes = iter(range(100, 10_000, 50))
    monkeypatch.setattr(first_gpu_videos, "resident", lambda: float(next(sizes)))
    record = stopped(first_day(), "frames", 3, "host memory grew by 550.0 MB")
    assert row_of(record, "host memory")[1] == "FAILED"
    assert row_of(record, "host: wait")[1] == "told"


def test_kernels_that_are_not_kept(first_day, monkeypatch):
    from openvis_rt.runtime.backends.tensorrt.kernel_cache import KernelCache

    monkeypatch.setattr(KernelCache, "save", lambda _self: None)
    stopped(first_day(kind="tensorrt-rtx"), "start", 3, "were not kept")


def test_a_defect_of_ours_is_told_with_its_traceback(first_day, monkeypatch):
    def defect(_work):
        yield first_gpu_work.Row("before", "it", "ok")
        raise ZeroDivisionError("a defect")

    planted = [first_gpu.Step("versions", defect, "the code"), *first_gpu.STEPS[1:]]
    monkeypatch.setattr(first_gpu, "STEPS", planted)
    result = first_day()
    record = stopped(result, "versions", 1, "a defect")
    assert [row["what"] for row in record["rows"]] == ["before", "stopped here"]
    assert "in defect" in result[2].err


def test_ctrl_c_keeps_the_rows(first_day, monkeypatch, tmp_path):
    def interrupted(_work):
        yield first_gpu_work.Row("before", "it", "ok")
        at_once = json.loads((tmp_path / "out/first_gpu.json").read_text(encoding="utf-8"))
        assert (at_once["running"], at_once["rows"][-1]["what"]) == ("cuda", "before")
        raise KeyboardInterrupt

    planted = [*first_gpu.STEPS[:1], first_gpu.Step("cuda", interrupted, ""), *first_gpu.STEPS[2:]]
    monkeypatch.setattr(first_gpu, "STEPS", planted)
    code, record, printed = first_day()
    assert code == 130
    assert steps_of(record) == ["versions", "cuda"]
    assert "interrupted in step 'cuda'" in printed.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--compared", "2"], "3 or more"),
        (["--frames", "0"], "1 or more"),
        (["--without", "text"], "invalid choice"),  # later steps need its engine
    ],
)
def test_options_that_cannot_be(bundle, capsys, options, text):
    with pytest.raises(SystemExit, match="2"):
        first_gpu.main([str(bundle), *options])
    assert text in capsys.readouterr().err


def test_a_place_that_cannot_be_written(bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert first_gpu.main([str(bundle), "--out", str(tmp_path / "file" / "out")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_bundle_without_a_reference_is_refused(built, tmp_path, capsys):
    assert first_gpu.main([str(built.path), "--out", str(tmp_path / "out")]) == 2
    assert "no recorded reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layers_are_not_timed_in_a_cuda_graph(sessions, built):
    session = sessions().open(Bundle.open(built.path), "propose", "fp32")
    with pytest.raises(InputError, match="cuda_graphs=False"):
        session.profile()
