"""The TensorRT backend over doubles: a driver that runs queued work at the worst of moments, and a
library that computes with ONNX Runtime; see ``doubles``. So every number must be that of the
ONNX Runtime backend, bit for bit.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import shutil
import sysconfig
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from doubles.fake_cuda import SCHEDULES
from doubles.tensorrt_double import VERSIONS, Plan, tensorrt_double
from graph_bundle import NETWORK_SIZE, window_models, write_bundle
from tiny_ovformer import shared_bundle

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.library import TensorRtLibrary
from openvis_rt.engines.plan import LIBRARY_DEFAULTS, Sidecar, plan_path, sidecar_path
from openvis_rt.errors import BackendError, EngineError, InputError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.tensorrt.backend import TensorRt
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.video.generated import sample_frames

pytestmark = pytest.mark.own_process

CLASSES = ("cat", "dog", "monkey, ape")
EVERYTHING = Selection(threshold=0.0, limit=100)
PROFILES = {"K": (1, 8, 64), "B": (1, 16, 128), "n": (1, 8, 8), "T": (1, 5, 5)}
SIZES = {
    "picture_size": ((1, 1), (60, 90), (60, 90)),
    "frame_size": ((1, 1), (120, 180), (256, 256)),
}
TARGETS = {"tensorrt": ("sm87",), "tensorrt 10": ("sm86", "sm87"), "tensorrt-rtx": ("sm87",)}
KINDS = tuple(TARGETS)
PROPOSE = ("queries", "object_logits")


def frames_of(count, *, width=180, height=120, seed=0):
    made = sample_frames(width=width, height=height, fps=5, seconds=count / 5, seed=seed, objects=2)
    return [image for image, _ in made]


def plan_of(bundle, graph, kind, **changes):
    spec = bundle.graph(graph).spec
    values = {t.name: SIZES[t.name] for t in spec.overridable}
    inputs = (*spec.inputs, *spec.overridable)
    fields = {
        "kind": kind,
        "onnx": str(bundle.graph_path(graph)),
        "inputs": {t.name: (t.dtype, t.shape) for t in inputs},
        "outputs": {t.name: (t.dtype, t.shape) for t in spec.outputs},
        "profiles": PROFILES,
        "shape_values": values,
        "symbols": {"frame_size": ("Hs", "Ws")} if values else {},
    }
    return Plan(**{**fields, **changes})


def write_plan(bundle, graph, kind="tensorrt", data=None, **changes):
    """A plan with its sidecar, in the place of one that was built."""
    backend, targets = kind.removesuffix(" 10"), TARGETS[kind]
    path = plan_path(bundle.path, backend, targets, graph, "fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = plan_of(bundle, graph, kind, **changes).to_bytes() if data is None else data
    path.write_bytes(data)
    spec = bundle.graph(graph).spec
    Sidecar(
        graph=graph,
        precision="fp32",
        precision_built="fp32",
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        backend=backend,
        library_version=VERSIONS[kind],
        platform=sysconfig.get_platform(),
        gpu="Fake GPU",
        targets=targets,
        options=LIBRARY_DEFAULTS,
        onnx_sha256=bundle.graph_sha256(graph),
        replaced_grid_samples=0,
        replacement_error=None,
        inputs=spec.inputs,
        outputs=spec.outputs,
        profiles={},
        shape_values={},
        layers={},
        layers_from="network",
        build_seconds=0.0,
        created_with="test",
    ).write(sidecar_path(path))
    return path


@pytest.fixture(scope="session")
def built(tiny_bundle, tmp_path_factory):
    """The tiny bundle with plans of every library."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(tiny_bundle, path, copy_function=os.link)
    bundle = Bundle.open(path)
    for kind in KINDS:
        for graph in bundle.graphs:
            write_plan(bundle, graph, kind)
    gc.collect()
    gc.freeze()  # what the export left behind would make every later collection slow
    return bundle


@pytest.fixture
def changeable(built, tmp_path):
    """A copy whose plans may be written anew."""
    path = tmp_path / "bundle"
    shutil.copytree(built.path, path, copy_function=os.link)
    shutil.rmtree(path / "engines")
    bundle = Bundle.open(path)
    for graph in bundle.graphs:
        write_plan(bundle, graph)
    return bundle


@pytest.fixture
def use(built, driver, monkeypatch):  # ``built`` first: exporting must not find a driver
    """Puts a library into the place of the real one."""
    doubles = []

    def install(kind="tensorrt"):
        double = tensorrt_double(driver, kind)
        library = TensorRtLibrary(kind.removesuffix(" 10"), double, VERSIONS[kind])
        where = "openvis_rt.runtime.backends.tensorrt.backend.tensorrt_library"
        monkeypatch.setattr(where, lambda _backend: library)
        doubles.append(double)
        return double

    yield install
    assert [failure for double in doubles for failure in double.failures] == []


@pytest.fixture
def opened(use, built):
    """Opens pipelines on a library, and closes them in the end."""
    pipelines = []

    def open_pipeline(mode="stream", kind="tensorrt", *, bundle=built, **options):
        use(kind)
        options = {"vocabulary": CLASSES, "selection": EVERYTHING, **options}
        backend = kind.removesuffix(" 10")
        pipelines.append(Pipeline.open(bundle, backend=backend, mode=mode, **options))
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def reference(built):
    """Opens pipelines on ONNX Runtime."""
    pipelines = []

    def open_pipeline(mode="stream", **options):
        options = {"vocabulary": CLASSES, "selection": EVERYTHING, **options}
        pipelines.append(
            Pipeline.open(built, backend="onnxruntime", device="cpu", mode=mode, **options)
        )
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def sessions(use, built, driver):
    """Opens the backend itself, for sessions of one graph."""
    factories = []

    def open_backend(kind="tensorrt", bundle=built):
        use(kind)
        factories.append(TensorRt(kind.removesuffix(" 10"), bundle, "fp32"))
        return factories[-1]

    yield open_backend
    for factory in factories:
        factory.close()


@pytest.fixture(scope="module")
def frames():
    return frames_of(6)


@pytest.fixture(scope="module")
def expected(built, frames):
    """Every frame's result and the video's, by ONNX Runtime."""
    options = {"vocabulary": CLASSES, "selection": EVERYTHING, "mode": "video"}
    with Pipeline.open(built, backend="onnxruntime", device="cpu", **options) as pipeline:
        return list(pipeline.stream(frames)), pipeline.finish()


# the same numbers as ONNX Runtime


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_video_is_that_of_onnx_runtime(opened, driver, frames, expected, kind, schedule):
    driver.schedule(schedule)
    pipeline = opened("video", kind)
    assert (list(pipeline.stream(frames)), pipeline.finish()) == expected
    assert pipeline.warnings == []


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


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10])
def test_masks_are_made_in_parts_of_eight(opened, reference, frames, count):
    chosen = np.arange(count)[::-1]
    made = []
    for pipeline in (opened(), reference()):
        pipeline.step(frames[0])
        made.append(pipeline._inner._make_masks(chosen, 0))
    assert made[0] == made[1]
    assert len(made[0]) == count


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
    opened, driver, frames, monkeypatch
):
    pipeline = opened()
    stream = pipeline.stream(frames)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._inner._classify, "run", _lost)
        with pytest.raises(BackendError, match="lost"):
            pipeline.set_vocabulary(["one", "two"])
    with pytest.raises(InputError, match="reset"):
        next(stream)
    pipeline.reset()
    names = {i.name for result in pipeline.stream(frames) for i in result.instances}
    assert names == {"one", "two"}


def _lost(_slot) -> None:
    raise BackendError("device lost")


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


def test_graphs_of_fixed_sizes_are_captured_after_their_first_run(opened, driver, frames):
    pipeline = opened()
    for frame in frames[:2]:
        pipeline.step(frame)
    assert driver.calls("cuStreamBeginCapture") == 0  # a slot's first run
    list(pipeline.stream(frames))
    assert driver.calls("cuStreamBeginCapture") == 2  # a slot each, of `propose`
    assert driver.calls("cuGraphLaunch") == 6
    assert "CUDA graphs" in pipeline.backend


@pytest.mark.parametrize("kind", ["tensorrt-rtx"])
def test_rtx_captures_by_itself(opened, driver, frames, kind):
    list(opened(kind=kind).stream(frames))
    assert driver.calls("cuStreamBeginCapture") == 0


def test_without_cuda_graphs_everything_is_the_same(opened, driver, frames, expected, monkeypatch):
    monkeypatch.setattr("openvis_rt.runtime.backends.tensorrt.cuda.CudaPython.has_graphs", False)
    pipeline = opened()
    assert list(pipeline.stream(frames)) == expected[0]
    assert driver.calls("cuStreamBeginCapture") == 0
    assert "CUDA graphs" not in pipeline.backend


def test_a_capture_that_fails_is_told_and_done_without(opened, driver, frames, expected):
    pipeline = opened()
    driver.fail_next("cuGraphInstantiate", "UNKNOWN")
    assert list(pipeline.stream(frames)) == expected[0]
    [warning] = pipeline.warnings
    assert "without a CUDA graph" in warning


def test_pycuda_gives_the_same(opened, driver, frames, expected):
    pytest.importorskip("pycuda.driver", exc_type=ImportError)
    pipeline = opened("video", cuda="pycuda")
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
    for graph in changeable.graphs:
        write_plan(changeable, graph, "tensorrt-rtx")
    frame = frames_of(1)[0]
    kept = []
    for _ in range(2):
        use("tensorrt-rtx")
        with Pipeline.open(changeable, backend="tensorrt-rtx", vocabulary=["cat"]) as pipeline:
            pipeline.step(frame)
            cache = pipeline._inner._propose._kernels._cache
        kept.append(cache.compiled)
    assert kept == [1, 0]
    folder = changeable.path / "engines" / "tensorrt-rtx-sm87"
    assert (folder / "propose.fp32.kernels").read_bytes() == b"KERNELS:propose"


def test_damaged_kernels_are_compiled_anew(use, changeable, driver, expected, frames):
    for graph in changeable.graphs:
        path = write_plan(changeable, graph, "tensorrt-rtx")
        path.with_suffix(".kernels").write_bytes(b"nonsense")
    use("tensorrt-rtx")
    options = {"vocabulary": CLASSES, "selection": EVERYTHING, "backend": "tensorrt-rtx"}
    with Pipeline.open(changeable, **options) as pipeline:
        assert list(pipeline.stream(frames)) == expected[0]


# sessions


def test_outputs_of_a_slot_stay_while_the_other_runs(sessions, built, driver):
    driver.schedule("at once")
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE, slots=2)
    one, two = (np.full(session._tensors["frames"].shape, v, np.uint8) for v in (10, 200))
    for slot, frame in enumerate((one, two)):
        session.write("frames", frame, slot)
        session.run(slot)
    first, second = (session.fetch("queries", slot) for slot in (0, 1))
    assert not np.array_equal(first, second)
    theirs = OnnxRuntime("cpu").open(built, "propose", "fp32", fetched=PROPOSE)
    for frame, found in ((one, first), (two, second)):
        theirs.write("frames", frame)
        theirs.run()
        np.testing.assert_array_equal(theirs.fetch("queries"), found)


def test_a_run_waits_for_who_reads_its_outputs(sessions, built, driver):
    driver.schedule("others")
    factory = sessions()
    propose = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    masks = factory.open(built, "masks", "fp32", fetched=("masks",))
    masks.bind("mask_logits", propose, "mask_logits")
    masks.write("selected", np.arange(8))
    for name in ("picture_size", "frame_size"):
        masks.write(name, np.array([60, 90]))
    random = np.random.default_rng(0).integers(0, 256, (2, 1, 60, 90, 3)).astype(np.uint8)
    found = []
    for number, overwritten in ((0, False), (0, True), (1, False)):
        propose.write("frames", random[number])
        propose.run()
        masks.run()
        if overwritten:
            propose.write("frames", random[1])
            propose.run()
        found.append(masks.fetch("masks"))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_an_input_is_written_while_the_last_one_is_on_its_way(sessions, built, driver):
    driver.schedule("late")
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    found = []
    for value in (10, 200, 10):
        session.write("frames", np.full((1, 60, 90, 3), value, np.uint8))
        session.run()
        session.write("frames", np.full((1, 60, 90, 3), 77, np.uint8))
        found.append(session.fetch("queries"))
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_an_engine_for_one_size_of_video_has_it_built_in(use, changeable, frames):
    shapes = {"masks": ("uint8", ("n", 1, 60, 90))}  # as the parser of the library finds them
    inputs = {t.name: (t.dtype, t.shape) for t in changeable.graph("masks").spec.inputs}
    write_plan(changeable, "masks", inputs=inputs, outputs=shapes, shape_values={}, symbols={})
    use()
    frame = frames_of(1, width=90, height=60)[0]
    with Pipeline.open(changeable, backend="tensorrt", vocabulary=CLASSES) as pipeline:
        with pytest.raises(InputError, match=r"frame_size \[60, 90\] built in.*--source-size"):
            pipeline.step(frames[0])
        pipeline.reset()
        found = pipeline.step(frame)
    with Pipeline.open(changeable, backend="onnxruntime", vocabulary=CLASSES) as pipeline:
        assert found == pipeline.step(frame)


def test_what_is_fetched_is_the_callers_own(sessions, built):
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    tokens = np.zeros((3, 77), np.int64)
    tokens[:, 0], tokens[:, 1] = 49406, 49407
    session.write("tokens", tokens)
    session.run()
    found = session.fetch("embeddings")
    kept = found.copy()
    tokens[:, 1], tokens[:, 2] = 320, 49407
    session.write("tokens", tokens[:2])
    session.run()
    assert session.fetch("embeddings").shape == (2, found.shape[1])
    session.close()
    np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("frames", np.zeros((1, 60, 90, 3), np.float32), "float32"),
        ("frames", np.zeros((1, 60, 91, 3), np.uint8), r"\[1, 60, 91, 3\]"),
        ("frame", np.zeros((1, 60, 90, 3), np.uint8), "no input 'frame'"),
    ],
)
def test_another_type_shape_or_name_is_refused(sessions, built, name, value, text):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match=text):
        session.write(name, value)


def test_more_than_the_profile_takes_is_refused_with_what_to_do(sessions, built):
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    with pytest.raises(InputError, match=r"(?s)up to \[128, 77\], got \[129, 77\].*openvis build"):
        session.write("tokens", np.zeros((129, 77), np.int64))


def test_a_video_larger_than_the_engine_makes_masks_for_is_refused(opened):
    pipeline = opened()
    with pytest.raises((InputError, BackendError), match=r"(?s)frame_size|masks"):
        pipeline.step(frames_of(1, width=300, height=200)[0])
    pipeline.reset()
    assert pipeline.step(frames_of(1)[0]).instances


def test_a_run_without_its_inputs_is_refused(sessions, built):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match=r"'frames'.*never written"):
        session.run()


def test_an_output_that_was_not_asked_for_stays_on_the_device(sessions, built):
    factory = sessions()
    session = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="queries, object_logits"):
        session.fetch("queries")  # not run
    session.write("frames", np.zeros((1, 60, 90, 3), np.uint8))
    session.run()
    with pytest.raises(InputError, match="stays on the device"):
        session.fetch("mask_logits")
    with pytest.raises(InputError, match="no output"):
        factory.open(built, "propose", "fp32", fetched=("logits",))


def test_another_backends_session_cannot_be_bound(sessions, built):
    mine = sessions().open(built, "classify", "fp32", fetched=("class_scores",))
    other = OnnxRuntime("cpu").open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="another backend"):
        mine.bind("features", other, "features")
    with pytest.raises(InputError, match="another backend"):
        other.bind("frames", mine, "class_scores")
    elsewhere = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="another backend"):
        mine.bind("features", elsewhere, "features")


def test_graphs_that_do_not_fit_together_are_not_bound(sessions, built):
    factory = sessions()
    classify = factory.open(built, "classify", "fp32", fetched=("class_scores",))
    propose = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(EngineError, match="one precision"):
        classify.bind("features", propose, "pool_mask")


def test_a_session_that_is_closed_is_of_no_use(sessions, built):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    session.close()
    session.close()
    assert session.closed
    with pytest.raises(InputError, match="closed"):
        session.run()


def test_closing_in_any_order_leaves_nothing(sessions, built, driver, frames):
    factory = sessions()
    session = factory.open(built, "propose", "fp32", fetched=PROPOSE, slots=2)
    session.write("frames", np.zeros((1, 60, 90, 3), np.uint8))
    session.run()
    factory.close()
    assert driver.live() == {}  # though `session` is still referred to
    factory.close()


# windows

LENGTHS = (5, 2, 5, 1)
CLIP_OUTPUTS = {"classify": ("class_scores", "brightness"), "masks": ("masks",)}


def window(length):
    random = np.random.default_rng(length)
    return random.integers(0, 256, (length, *NETWORK_SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A bundle of graphs that take windows, with plans of every library."""
    bundle = write_bundle(tmp_path_factory.mktemp("windows"), window_length=5, **window_models())
    for kind in KINDS:
        for graph in bundle.graphs:
            write_plan(bundle, graph, kind)
    return bundle


def open_clips(factory, bundle, slots=2):
    """`propose`, and `classify` and `masks` that read it; `frames` is shared."""
    propose = factory.open(bundle, "propose", "fp32", fetched=("mask_area",), slots=slots)
    readers = {g: factory.open(bundle, g, "fp32", fetched=f) for g, f in CLIP_OUTPUTS.items()}
    for name in ("frames", "mask_logits", "queries"):
        readers["classify"].bind(name, propose, name)
    readers["masks"].bind("mask_logits", propose, "mask_logits")
    text = np.random.default_rng(0).standard_normal((3, NETWORK_SIZE[1])).astype(np.float32)
    readers["classify"].write("text_embeddings", text)
    readers["masks"].write("selected", np.array([7, 2, 3]))
    for name in ("picture_size", "frame_size"):
        readers["masks"].write(name, np.array(NETWORK_SIZE))
    return propose, readers


def fetched(propose, readers, slot):
    found = {"mask_area": propose.fetch("mask_area", slot)}
    for graph, outputs in CLIP_OUTPUTS.items():
        readers[graph].run(slot)
        found |= {name: readers[graph].fetch(name, slot) for name in outputs}
    return found


def by_onnx_runtime(bundle, lengths):
    propose, readers = open_clips(OnnxRuntime("cpu"), bundle, slots=1)
    found = []
    for length in lengths:
        propose.write("frames", window(length))
        propose.run()
        found.append(fetched(propose, readers, 0))
    return found


def same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.fixture(scope="module")
def clip_bundle(built, tmp_path_factory):
    """A tiny VideoOVFormer with plans of every library; after ``built``, which freezes."""
    shared = shared_bundle("ovformer-video-r50", tmp_path_factory)
    path = tmp_path_factory.mktemp("windows") / "bundle"
    shutil.copytree(shared.path, path, copy_function=os.link)
    bundle = Bundle.open(path)
    for kind in KINDS:
        for graph in bundle.graphs:
            write_plan(bundle, graph, kind)
    return bundle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_video_of_clips_is_that_of_onnx_runtime(opened, clip_bundle, driver, kind, schedule):
    """Whole windows and a shorter last one, two of them in flight, image embeddings on the device."""
    driver.schedule(schedule)
    frames = frames_of(11)
    pipeline = opened("video", kind, bundle=clip_bundle)
    found = list(pipeline.stream(frames)), pipeline.finish()
    options = {"vocabulary": CLASSES, "selection": EVERYTHING, "device": "cpu"}
    with Pipeline.open(clip_bundle, backend="onnxruntime", **options) as reference:
        assert found == (list(reference.stream(frames)), reference.finish())
    assert [result.index for result in found[0]] == list(range(11))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_windows_of_any_length_in_two_slots(sessions, windows, driver, kind, schedule):
    driver.schedule(schedule)
    propose, readers = open_clips(sessions(kind, windows), windows)
    before = {f: driver.calls(f) for f in ("cuMemAlloc", "cuMemAllocHost", "cuEventCreate")}
    lengths, found = (*LENGTHS, *LENGTHS[::-1], 3, 3, 3, 3), []
    for number, length in enumerate(lengths):
        propose.write("frames", window(length), number % 2)
        propose.run(number % 2)
        if number:  # the window before, in the other slot
            found.append(fetched(propose, readers, (number - 1) % 2))
    found.append(fetched(propose, readers, (len(lengths) - 1) % 2))
    same(found, by_onnx_runtime(windows, lengths))
    assert {f: driver.calls(f) for f in before} == before
    assert driver.calls("cuStreamBeginCapture") == 0  # of graphs with dynamic sizes


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_input_is_read_before_the_session_that_owns_it_runs(sessions, windows, driver, schedule):
    driver.schedule(schedule)
    factory = sessions("tensorrt", windows)
    propose, readers = open_clips(factory, windows)
    embed = factory.open(windows, "embed", "fp32", fetched=("image_embeddings",), slots=2)
    embed.bind("pictures", readers["classify"], "frames")  # which reads it from `propose`
    for number, length in enumerate(LENGTHS * 2):
        propose.write("frames", window(length), number % 2)
        embed.run(number % 2)
        propose.write("frames", window(3), 1 - number % 2)
        wanted = window(length).mean((1, 2))
        found = embed.fetch("image_embeddings", number % 2)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_window_that_is_not_read_yet_is_not_written_over(sessions, windows, driver):
    driver.schedule("late")
    factory = sessions("tensorrt", windows)
    propose, readers = open_clips(factory, windows)
    for length, next_length in ((5, 2), (1, 5)):
        propose.write("frames", window(length))
        propose.run()
        for reader in readers.values():
            reader.run()
        propose.write("frames", window(next_length))
        propose.run()
        found = {n: readers[g].fetch(n) for g, names in CLIP_OUTPUTS.items() for n in names}
        (wanted,) = by_onnx_runtime(windows, [length])
        del wanted["mask_area"]
        same([found], [wanted])


def test_a_window_longer_than_the_profile_is_refused(sessions, windows):
    propose, _ = open_clips(sessions("tensorrt", windows), windows)
    text = r"(?s)'frames'.*up to \[5, 24, 32, 3\], got \[6, 24, 32, 3\].*openvis build"
    with pytest.raises(InputError, match=text):
        propose.write("frames", window(6))


def test_nothing_is_read_that_was_never_made(sessions, windows):
    propose, readers = open_clips(sessions("tensorrt", windows), windows)
    with pytest.raises(InputError, match="'frames' of graph 'propose' was never written"):
        readers["classify"].run(1)
    propose.write("frames", window(2), slot=1)
    for reader in readers.values():
        with pytest.raises(InputError, match="'propose' was never run, to read 'mask_logits'"):
            reader.run(1)
    propose.run(1)
    same([fetched(propose, readers, 1)], by_onnx_runtime(windows, [2]))
    with pytest.raises(InputError, match="never run"):  # that slot
        readers["masks"].run(0)


def test_one_axis_of_two_sizes_is_refused(sessions, windows):
    propose, readers = open_clips(sessions("tensorrt", windows), windows)
    propose.write("frames", window(5))
    propose.run()
    propose.write("frames", window(2))
    with pytest.raises(BackendError, match=r"(?s)fails to run in graph 'classify'.*must be equal"):
        readers["classify"].run()


@pytest.mark.parametrize(
    ("name", "output"),
    [("mask_logits", "mask_area"), ("frames", "mask_logits"), ("queries", "mask_area")],
    ids=["rank", "type", "dynamic"],
)
def test_windows_that_do_not_fit_together_are_not_bound(sessions, windows, name, output):
    propose, readers = open_clips(sessions("tensorrt", windows), windows)
    with pytest.raises(EngineError, match="build both anew"):
        readers["classify"].bind(name, propose, output)


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
    driver.set_memory(700_000)
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


# the double


def test_the_double_finds_a_session_that_does_not_wait(
    opened, driver, frames, expected, monkeypatch
):
    driver.schedule("others")
    pipeline = opened()
    monkeypatch.setattr(pipeline._inner._classify._cuda, "wait", lambda *_: None)
    try:
        found = list(pipeline.stream(frames))
    except BackendError:  # NaN, of memory that holds nothing yet
        return
    assert found != expected[0]


def test_the_double_finds_a_buffer_that_is_too_small(sessions, built, driver, fake_driver):
    factory = sessions()
    session = factory.open(built, "propose", "fp32", fetched=())
    session.write("frames", np.zeros((1, 60, 90, 3), np.uint8))
    session._device[0]["mask_logits"] += 256
    session.run()
    with pytest.raises(BackendError, match="context is lost"):
        factory._cuda.synchronize_all()
    assert "in no allocation" in driver.violations()
    factory.close()
    gc.collect()
    assert driver.live() == {}
    fake_driver.reset()


@pytest.fixture
def ready(sessions, built):
    """A session whose context has everything set; nobody else may keep that context."""
    session = sessions().open(built, "text", "fp32", fetched=())
    session.write("tokens", np.zeros((2, 77), np.int64))
    session.run()
    session._log.kept.clear()
    return session


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("set_input_shape", ("tokens", (0, 77)), "outside of the profile"),
        ("set_input_shape", ("tokens", (129, 77)), "outside of the profile"),
        ("set_input_shape", ("tokens", (2, 76)), "outside of the profile"),
        ("set_input_shape", ("embeddings", (2, 32)), "no input"),
        ("set_tensor_address", ("nothing", 512), "no tensor"),
    ],
)
def test_the_double_refuses_as_the_library_does(ready, method, arguments, text):
    assert getattr(ready._contexts[0], method)(*arguments) is False
    assert text in ready._log.text()


@pytest.mark.parametrize(("offset", "text"), [(None, "not set"), (8, "misaligned")])
def test_the_double_looks_at_addresses_when_it_runs(ready, offset, text):
    context, device = ready._contexts[0], ready._device[0]
    context.set_tensor_address("tokens", 0 if offset is None else device["tokens"] + offset)
    assert context.execute_async_v3(ready._stream) is False
    assert text in ready._log.text()


def test_the_double_names_sizes_that_are_missing(ready):
    context = ready._contexts[0]
    fresh = context.engine.create_execution_context()
    assert fresh.infer_shapes() == ["tokens"]
    assert fresh.execute_async_v3(ready._stream) is False
    assert "sizes of ['tokens'] are not set" in ready._log.text()
    del fresh


def test_the_double_needs_a_context_on_its_thread(ready):
    context = ready._contexts[0]
    found = []
    thread = threading.Thread(target=lambda: found.append(context.execute_async_v3(ready._stream)))
    thread.start()
    thread.join()
    assert found == [False]
    assert "no CUDA context is current" in ready._log.text()


def test_the_double_wants_a_run_before_it_is_captured_with_other_sizes(sessions, built):
    factory = sessions()
    session = factory.open(built, "text", "fp32", fetched=())
    session.write("tokens", np.zeros((2, 77), np.int64))
    session.run()
    session._contexts[0].set_input_shape("tokens", (3, 77))
    enqueue = partial(session._enqueue, session._contexts[0])
    with pytest.raises(BackendError, match="not permitted when stream is capturing"):
        factory._cuda.capture(session._owned, session._stream, enqueue)
