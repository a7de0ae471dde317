"""Pipelines on TensorRT: every number must be that of the ONNX Runtime backend, bit for bit."""

from __future__ import annotations

import gc
import resource
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from doubles.engines import CLASSES, EVERYTHING, KINDS, frames_of, plan_of, write_plan
from doubles.fake_cuda import SCHEDULES

from openvis_rt import Pipeline
from openvis_rt.errors import BackendError, EngineError, InputError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.graphs import Graphs
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.preprocessing import letterbox_for
from openvis_rt.runtime.video.reading import Frame

# the same numbers as ONNX Runtime


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_video_is_that_of_onnx_runtime(opened, driver, frames, expected, kind, schedule):
    driver.schedule(schedule)
    pipeline = opened("video", kind)
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected
    assert [told for told in pipeline.warnings if "compiles the kernels" not in told] == []


@pytest.mark.parametrize("seed", range(8))
def test_any_order_that_a_device_may_choose_gives_the_same(opened, driver, frames, expected, seed):
    driver.schedule("random", seed + 100)
    pipeline = opened("video")
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_frame_by_frame_is_the_same(opened, driver, frames, expected, schedule):
    driver.schedule(schedule)
    pipeline = opened("video")
    assert [pipeline.step(frame) for frame in frames] == expected[0]
    assert pipeline.finish() == expected[1]


@pytest.mark.parametrize("in_flight", [1, 2, None])
def test_frames_in_flight_change_nothing(opened, frames, expected, in_flight):
    pipeline = opened("stream")
    assert list(pipeline.stream(frames, in_flight=in_flight)) == expected[0]


def test_two_frames_are_in_flight(opened, frames):
    pipeline = opened("stream")
    taken = []

    def source():
        for number, frame in enumerate(frames):
            taken.append(number)
            yield frame

    stream = pipeline.stream(source())
    assert next(stream).index == 0
    assert taken == [0, 1]
    stream.close()


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 10])
def test_masks_are_made_in_parts_of_eight(opened, reference, frames, limit):
    selection = Selection(threshold=0.0, limit=limit)
    made = [open_it(selection=selection).step(frames[0]) for open_it in (opened, reference)]
    assert made[0] == made[1]
    assert len(made[0].instances) == limit


def test_the_next_masks_are_begun_before_the_first_are_waited_for(sessions, built, driver, frames):
    def queued():
        return driver.calls("cuLaunchHostFunc") + driver.calls("cuGraphLaunch")

    with closing(Graphs(built, sessions(), "fp32", embeds=False)) as graphs:
        letterbox = letterbox_for(*frames[0].shape[:2], built.manifest.preprocess)
        graphs.set_sizes(letterbox)
        graphs.set_text_embeddings(np.ones((2, 32), np.float32))
        slot = graphs.submit([Frame(0, None, frames[0])], letterbox, None)
        graphs.collect(slot, 0)
        before = queued()
        made = graphs.masks(np.arange(10), slot)
        first = next(made)
        assert queued() == before + 2
        assert [len(first), *map(len, made)] == [8, 2]


def test_another_vocabulary_in_the_middle_of_a_stream(opened, reference, driver, frames):
    driver.schedule("others")
    found = []
    for pipeline in (opened(), reference()):
        results = [pipeline.step(frame) for frame in frames[:3]]
        pipeline.set_vocabulary(["one", "two", "three", "four", "five, 5"])
        results += list(pipeline.stream(frames[3:]))
        pipeline.set_vocabulary(["two"])
        found.append(results + list(pipeline.stream(frames)))
    assert found[0] == found[1]


def test_a_vocabulary_that_changes_while_frames_are_in_flight(opened, driver, frames):
    pipeline = opened()
    stream = pipeline.stream(frames)
    next(stream)
    pipeline.set_vocabulary(["one", "two"])
    names = {i.name for result in stream for i in result.instances}
    assert names <= {"one", "two"}


def test_a_frame_beside_an_open_stream_is_refused(opened, driver, frames):
    """Its result would be that of the frame that is in flight."""
    pipeline = opened("video")
    stream = pipeline.stream(frames)
    first = next(stream)
    for other in (
        lambda: pipeline.step(frames[0]),
        lambda: next(pipeline.stream(frames)),
        pipeline.finish,
    ):
        with pytest.raises(InputError, match="open"):
            other()
    assert [first.index, *(result.index for result in stream)] == list(range(len(frames)))
    assert pipeline.finish().frame_count == len(frames)


def test_a_window_in_flight_that_cannot_be_classified_again_spoils_the_video(
    opened, driver, frames
):
    pipeline = opened()
    for names in (["one", "two"], CLASSES):  # their embeddings are kept, and not computed again
        pipeline.set_vocabulary(names)
    stream = pipeline.stream(frames)
    next(stream)
    driver.fail_next("cuLaunchHostFunc", "UNKNOWN")
    with pytest.raises(BackendError, match="fails to run in graph 'classify'"):
        pipeline.set_vocabulary(["one", "two"])
    with pytest.raises(InputError, match="reset"):
        next(stream)
    pipeline.reset()
    names = {i.name for result in pipeline.stream(frames) for i in result.instances}
    assert names == {"one", "two"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reset_and_an_abandoned_stream_leave_no_trace(opened, driver, frames, expected, schedule):
    driver.schedule(schedule)
    pipeline = opened("video")
    stream = pipeline.stream(frames_of(5, seed=9))
    next(stream)
    stream.close()
    pipeline.reset()
    other = frames_of(3, width=90, height=100, seed=4)
    list(pipeline.stream(other))
    pipeline.finish()
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected


def test_sources_of_many_sizes(opened, reference):
    sizes = [(180, 120), (64, 200), (33, 17), (256, 256)]
    found = []
    for pipeline in (opened(), reference()):
        for width, height in sizes:
            pipeline.reset()
            found.append(list(pipeline.stream(frames_of(2, width=width, height=height))))
    assert found[: len(sizes)] == found[len(sizes) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_video_of_windows_is_that_of_onnx_runtime(opened, built_windows, driver, kind, schedule):
    """Whole windows and a shorter last one, two in flight, image embeddings on the device."""
    driver.schedule(schedule)
    frames = frames_of(11)
    pipeline = opened("video", kind, bundle=built_windows)
    found = list(pipeline.stream(frames)), pipeline.finish()
    options = {"vocabulary": CLASSES, "selection": EVERYTHING}
    with Pipeline.open(built_windows, backend=OnnxRuntime("cpu"), **options) as reference:
        assert found == (list(reference.stream(frames)), reference.finish())
    assert [result.index for result in found[0]] == list(range(11))


# what it costs


def test_everything_is_allocated_when_it_is_opened(opened, driver, frames):
    pipeline = opened()
    list(pipeline.stream(frames))
    before = {f: driver.calls(f) for f in ("cuMemAlloc", "cuMemAllocHost", "cuEventCreate")}
    live = driver.live()
    list(pipeline.stream(frames))
    pipeline.step(frames[0])
    assert {f: driver.calls(f) for f in before} == before
    assert driver.live() == live


def test_every_graph_is_captured_after_its_first_run(opened, driver, frames):
    pipeline = opened()
    for frame in frames[:2]:
        pipeline.step(frame)
    assert driver.calls("cuStreamBeginCapture") == 0  # a slot's first run
    list(pipeline.stream(frames))
    assert driver.calls("cuStreamBeginCapture") == 8  # `propose`, `classify`, `masks` of 8 and of 2
    assert driver.calls("cuGraphLaunch") == 6 * 4
    assert pipeline.counters()["cuda_graph_launches"] == 6 * 4
    assert "CUDA graphs" in pipeline.backend


@pytest.mark.parametrize("kind", ["tensorrt-rtx"])
def test_rtx_captures_by_itself(opened, driver, frames, kind):
    list(opened(kind=kind).stream(frames))
    assert driver.calls("cuStreamBeginCapture") == 0


def test_without_cuda_graphs_everything_is_the_same(opened, driver, frames, expected, monkeypatch):
    monkeypatch.setattr(
        "openvis_rt.runtime.backends.tensorrt.cuda_python.CudaPython.has_graphs", False
    )
    pipeline = opened()
    assert list(pipeline.stream(frames)) == expected[0]
    assert driver.calls("cuStreamBeginCapture") == 0
    assert "CUDA graphs" not in pipeline.backend


@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graphs_can_be_switched_off(opened, driver, frames, expected, kind):
    pipeline = opened(kind=kind, backend_options=BackendOptions(cuda_graphs=False))
    assert list(pipeline.stream(frames)) == expected[0]
    assert driver.calls("cuStreamBeginCapture") == 0
    assert pipeline.counters()["cuda_graph_launches"] == 0
    assert "CUDA graphs" not in pipeline.backend


@pytest.mark.parametrize(
    ("cuda_graphs", "strategy"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")]
)
def test_rtx_is_told_whether_to_capture(use, built, cuda_graphs, strategy):
    double = use("tensorrt-rtx")
    options = BackendOptions(cuda_graphs=cuda_graphs)
    with Pipeline.open(built, backend="tensorrt-rtx", backend_options=options, vocabulary=CLASSES):
        assert set(double.strategies) == {strategy}


def test_a_capture_that_fails_is_told_and_done_without(opened, driver, frames, expected):
    pipeline = opened()
    driver.fail_next("cuGraphInstantiate", "UNKNOWN")
    assert list(pipeline.stream(frames)) == expected[0]
    [warning] = pipeline.warnings
    assert "without a CUDA graph" in warning


def test_pycuda_gives_the_same(opened, driver, frames, expected):
    pytest.importorskip("pycuda.driver", exc_type=ImportError)
    pipeline = opened("video", backend_options=BackendOptions(cuda="pycuda"))
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected
    assert "pycuda" in pipeline.backend


def test_the_device_s_seconds_and_the_bytes_are_counted(opened, frames):
    pipeline = opened()
    before = pipeline.counters()
    list(pipeline.stream(frames))
    after = pipeline.counters()
    assert after["device_seconds"] > before["device_seconds"]
    frame = 60 * 90 * 3  # bytes; beside it go the chosen queries' numbers
    moved = after["bytes_to_device"] - before["bytes_to_device"]
    assert 6 * frame <= moved <= 6 * (frame + 1000)
    assert after["bytes_to_host"] > before["bytes_to_host"]


def test_memory_stays_flat(opened, driver, frames):
    pipeline = opened(selection=Selection(threshold=0.0, limit=1))

    def resident():  # KiB
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() // 1024

    def source(count):
        for number in range(count):
            yield frames[number % len(frames)]

    for _ in pipeline.stream(source(60)):
        pass
    live, before = driver.live(), resident()
    for _ in pipeline.stream(source(240)):
        pass
    assert driver.live() == live
    assert resident() - before < 4096  # less than 18 KiB a frame; a frame is 65 KiB


def test_kernels_that_rtx_compiled_are_kept(use, changeable, driver):
    """The first start says that it compiles them; a later one that it need not."""
    for graph in changeable.graphs:
        write_plan(changeable, graph, "tensorrt-rtx")
    frame = frames_of(1)[0]
    folder = changeable.path / "engines" / "tensorrt-rtx-sm87"
    compiled, told, devices = [], [], []
    for _ in range(2):
        double = use("tensorrt-rtx")
        with Pipeline.open(changeable, backend="tensorrt-rtx", vocabulary=["cat"]) as pipeline:
            before = list(pipeline.warnings)
            pipeline.step(frame)
            # a process that is killed now has kept them
            assert (folder / "propose.fp32.kernels").read_bytes() == b"KERNELS:propose"
            told.append([w for w in before if "compiles the kernels of propose.fp32" in w])
            devices.append(pipeline.backend)
        compiled.append("propose" in double.compiled)
    assert compiled == [True, False]
    assert [len(texts) for texts in told] == [1, 0]
    assert "minutes" in told[0][0]
    assert ["kernels of an earlier run" in device for device in devices] == [False, True]


def test_damaged_kernels_are_compiled_anew(use, changeable, driver, expected, frames):
    for graph in changeable.graphs:
        path = write_plan(changeable, graph, "tensorrt-rtx")
        path.with_suffix(".kernels").write_bytes(b"nonsense")
    use("tensorrt-rtx")
    options = {"vocabulary": CLASSES, "selection": EVERYTHING, "backend": "tensorrt-rtx"}
    with Pipeline.open(changeable, **options) as pipeline:
        assert any("of another GPU or version" in told for told in pipeline.warnings)
        assert list(pipeline.stream(frames)) == expected[0]


# what must not go on quietly


def failing(bundle, use, match, error=BackendError, kind="tensorrt"):
    use(kind)
    with pytest.raises(error, match=match):
        Pipeline.open(bundle, backend=kind, vocabulary=CLASSES)


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuMemAllocHost"])
@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4, 7, 12, 17])
def test_memory_that_runs_out_while_it_is_opened_leaves_nothing(use, built, driver, function, skip):
    driver.fail_next(function, "OUT_OF_MEMORY", skip=skip)
    failing(built, use, r"memory|hold|load", (BackendError, EngineError))
    assert driver.live() == {}  # before the exception is forgotten


@pytest.mark.parametrize("function", ["cuStreamCreate", "cuEventCreate"])
def test_whatever_else_fails_while_it_is_opened_leaves_nothing(use, built, driver, function):
    driver.fail_next(function, "UNKNOWN", skip=2)
    failing(built, use, function)
    assert driver.live() == {}


def test_a_small_device_is_told_its_sizes(use, built, driver):
    driver.set_memory(500_000)
    failing(built, use, r"MB")


def test_the_error_that_is_kept_keeps_no_device_memory(use, built, driver):
    driver.fail_next("cuMemAlloc", "OUT_OF_MEMORY", skip=6)
    use()
    try:
        Pipeline.open(built, backend="tensorrt", vocabulary=CLASSES)
    except (BackendError, EngineError) as exc:
        kept = exc
    assert driver.live() == {}
    del kept


def test_a_plan_that_the_library_does_not_take_names_the_command(use, changeable):
    write_plan(changeable, "masks", data=b"nonsense")
    failing(changeable, use, r"(?s)cannot load.*magic tag.*openvis build .*--force", EngineError)


def test_a_plan_of_another_library_under_a_false_name_is_not_taken(use, changeable):
    foreign = plan_of(changeable, "classify", "tensorrt-rtx").to_bytes()
    write_plan(changeable, "classify", data=foreign)
    failing(changeable, use, r"(?s)cannot load.*another library", EngineError)


def test_no_plan_for_this_gpu_is_said_before_anything_is_opened(use, changeable, driver):
    shutil.rmtree(changeable.path / "engines")
    failing(changeable, use, r"openvis build", EngineError)
    assert driver.calls("cuMemAlloc") == 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"outputs": {"instance_tokens": ("float32", (10, 32))}}, "class_scores"),
        ({"inputs": {"features": ("float16", (1, 2, 2, 3))}}, "features"),
    ],
)
def test_an_engine_of_other_tensors_is_refused(use, changeable, changes, text):
    whole = plan_of(changeable, "classify", "tensorrt")
    if "inputs" in changes:
        changes = {"inputs": {**whole.inputs, **changes["inputs"]}}
    write_plan(changeable, "classify", **changes)
    failing(changeable, use, text, EngineError)


def test_a_graph_that_fails_on_the_device_is_seen_at_the_next_result(opened, driver, frames):
    pipeline = opened()
    pipeline.step(frames[0])
    driver.fail_next("work", "LAUNCH_FAILED", skip=1)
    with pytest.raises(BackendError, match=r"(?s)context is lost.*--backend onnxruntime"):
        list(pipeline.stream(frames))
    pipeline.reset()
    with pytest.raises(BackendError, match="context is lost"):
        pipeline.step(frames[0])
    pipeline.close()
    gc.collect()
    assert driver.live() == {}


@pytest.mark.parametrize(("skip", "graph"), [(0, "propose"), (1, "classify"), (2, "masks")])
def test_work_that_cannot_be_queued_fails_its_frame(opened, driver, frames, expected, skip, graph):
    pipeline = opened("video")
    driver.fail_next("cuLaunchHostFunc", "UNKNOWN", skip=skip)
    with pytest.raises(BackendError, match=f"(?s)fails to run in graph '{graph}'.*Cuda failure"):
        pipeline.step(frames[0])
    pipeline.reset()
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected


@pytest.mark.parametrize(
    ("graph", "output"), [("propose", "mask_iou"), ("classify", "class_scores")]
)
def test_nan_stops_the_video_by_name(use, built, frames, graph, output):
    double = use()

    def poison(stem, outputs):
        if stem == graph:
            outputs[output] = np.full_like(outputs[output], np.nan)

    with Pipeline.open(built, backend="tensorrt", vocabulary=CLASSES) as pipeline:
        pipeline.step(frames[0])
        double.edit = poison
        with pytest.raises(BackendError, match=f"(?s){graph}.*{output}"):
            pipeline.step(frames[1])


def test_auto_runs_on_the_engines_and_falls_back_where_there_are_none(
    use, built, changeable, frames, expected
):
    use()
    with Pipeline.open(built, vocabulary=CLASSES, selection=EVERYTHING) as pipeline:
        assert pipeline.backend.startswith("tensorrt ")
        assert list(pipeline.stream(frames)) == expected[0]
    shutil.rmtree(changeable.path / "engines")
    with Pipeline.open(changeable, vocabulary=CLASSES, selection=EVERYTHING) as pipeline:
        assert pipeline.backend.startswith("onnxruntime")
        assert any("not running on tensorrt" in warning for warning in pipeline.warnings)


def test_an_engine_for_one_size_of_video_has_it_built_in(use, changeable, frames):
    shapes = {"masks": ("uint8", ("n", 1, 60, 12))}  # as the parser of the library finds them
    inputs = {t.name: (t.dtype, t.shape) for t in changeable.graph("masks").spec.inputs}
    write_plan(changeable, "masks", inputs=inputs, outputs=shapes, shape_values={}, symbols={})
    use()
    frame = frames_of(1, width=90, height=60)[0]
    with Pipeline.open(changeable, backend="tensorrt", vocabulary=CLASSES) as pipeline:
        with pytest.raises(InputError, match=r"frame_size \[60, 90\] built in.*--source-size"):
            pipeline.step(frames[0])
        pipeline.reset()
        found = pipeline.step(frame)
    with Pipeline.open(changeable, backend=OnnxRuntime("cpu"), vocabulary=CLASSES) as pipeline:
        assert found == pipeline.step(frame)


def test_a_video_larger_than_the_engine_makes_masks_for_is_refused(opened):
    pipeline = opened()
    with pytest.raises((InputError, BackendError), match=r"(?s)frame_size|masks"):
        pipeline.step(frames_of(1, width=300, height=200)[0])
    pipeline.reset()
    assert pipeline.step(frames_of(1)[0]).instances
