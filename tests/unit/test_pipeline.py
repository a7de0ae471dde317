"""The pipeline on the tiny bundle: both modes, new classes, bad frames, and where masks land."""

from __future__ import annotations

import gc
import itertools
import json
import re
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import NETWORK, QUERIES
from watched_backend import TwoSlots, WatchedBackend, Zeros

from openvis_rt import (
    BackendError,
    BackendOptions,
    Bundle,
    BundleError,
    DependencyError,
    EngineError,
    InputError,
    Pipeline,
    RunOptions,
    Selection,
    TrackingOptions,
    VocabularyError,
    decode_mask,
    run_video,
)
from openvis_rt.bundle.bundle import write_manifest
from openvis_rt.geometry import resized_size
from openvis_rt.runtime.backends.registry import BACKENDS
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.preprocessing import letterbox_for, place_frame
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems.system import Score, Tracker

CLASSES = ("cat", "dog", "monkey, ape")
EVERYTHING = Selection(threshold=0.0, limit=QUERIES)


def frames_of(count: int, *, width: int = 180, height: int = 120, seed: int = 0):
    made = sample_frames(width=width, height=height, fps=5, seconds=count / 5, seed=seed, objects=2)
    return [image for image, _ in made]


@pytest.fixture
def opened(opened_bundle):
    """Opens pipelines on the shared bundle and closes them in the end."""
    pipelines: list[Pipeline] = []

    def open_pipeline(mode="stream", vocabulary=CLASSES, selection=EVERYTHING, **options):
        options = {"mode": mode, "vocabulary": vocabulary, "selection": selection, **options}
        options = {"backend": "onnxruntime", **options}
        pipelines.append(Pipeline.open(opened_bundle, **options))
        return pipelines[-1]

    yield open_pipeline
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture(scope="module")
def frames():
    return frames_of(6)


# what a video gives


def test_both_modes_show_the_same_in_every_frame(opened, frames):
    streamed = list(opened("stream").stream(frames))
    assert list(opened("video").stream(frames)) == streamed
    assert [r.index for r in streamed] == list(range(6))
    assert all(r.instances for r in streamed)


def test_a_video_reports_a_mask_of_the_sources_size_for_every_frame(opened, frames):
    pipeline = opened("video")
    shown = list(pipeline.stream(frames))
    result = pipeline.finish()
    assert (result.height, result.width, result.frame_count) == (120, 180, 6)
    assert len(result.instances) == 20  # the bundle's number of detections
    for instance in result.instances:
        assert instance.name == CLASSES[instance.category_id - 1]
        assert 0 <= instance.score <= 1
        assert [rle["size"] for rle in instance.segmentations] == [[120, 180]] * 6
    # a track's mask is the same in the video's result and in the frame's
    by_track = {i.track_id: i.segmentations for i in result.instances}
    for frame in shown:
        for instance in frame.instances:
            if instance.track_id in by_track:
                assert by_track[instance.track_id][frame.index] == instance.segmentation


def test_the_video_score_is_the_last_frames_score_where_no_frame_was_dropped(opened, frames):
    pipeline = opened("video")
    *_, last = pipeline.stream(frames)
    final = {(i.track_id, i.category_id): i.score for i in pipeline.finish().instances}
    both = [i for i in last.instances if (i.track_id, i.category_id) in final]
    assert both
    for instance in both:
        assert final[instance.track_id, instance.category_id] == pytest.approx(instance.score)


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_two_videos_in_a_row_are_as_two_fresh_pipelines(opened, frames, mode):
    other = frames_of(4, width=100, height=130, seed=3)
    pipeline = opened(mode)
    found = []
    for video in (frames, other):
        found.append(list(pipeline.stream(video)))
        found.append(pipeline.finish() if mode == "video" else pipeline.reset())
    wanted = []
    for video in (frames, other):
        fresh = opened(mode)
        wanted.append(list(fresh.stream(video)))
        wanted.append(fresh.finish() if mode == "video" else None)
    assert found == wanted


def test_reset_forgets_a_video_in_the_middle(opened, frames):
    pipeline = opened("video")
    list(pipeline.stream(frames_of(3, seed=9)))
    pipeline.reset()
    found = list(pipeline.stream(frames)), pipeline.finish()
    fresh = opened("video")
    assert found == (list(fresh.stream(frames)), fresh.finish())


def test_the_order_of_the_classes_changes_numbers_of_classes_only(opened, frames):
    def scores(vocabulary):
        pipeline = opened("video", vocabulary)
        list(pipeline.stream(frames))
        return {(i.track_id, i.name): i.score for i in pipeline.finish().instances}

    a, b = scores(CLASSES[:2]), scores(CLASSES[1::-1])
    assert a.keys() == b.keys()
    assert {name for _, name in a} == set(CLASSES[:2])
    for key, score in a.items():
        assert b[key] == pytest.approx(score, rel=1e-5)


def test_a_vocabulary_of_lv_viss_size_runs(opened, frames):
    pipeline = opened("video", tuple(f"thing {i}" for i in range(60)), Selection(0.0, 3))
    assert len(pipeline.step(frames[0]).instances) == 3
    assert len({i.name for i in pipeline.finish().instances}) > 1


@pytest.mark.parametrize("limit", [1, 4])
def test_the_selection_limits_what_a_frame_shows(opened, frames, limit):
    full = opened().step(frames[0]).instances
    assert opened(selection=Selection(0.0, limit)).step(frames[0]).instances == full[:limit]
    middle = full[len(full) // 2].score
    above = opened(selection=Selection(middle, QUERIES)).step(frames[0]).instances
    assert above == tuple(i for i in full if i.score >= middle)
    assert opened(selection=Selection(1.0, QUERIES)).step(frames[0]).instances == ()


def test_boxes_are_tight_around_masks(opened, frames):
    for instance in opened().step(frames[0]).instances:
        rows, columns = np.nonzero(decode_mask(instance.segmentation))
        x, y, width, height = instance.box
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())


# a change of classes


def test_in_a_stream_classes_change_at_once_while_tracks_go_on(opened, frames):
    pipeline, steady, late = opened(), opened(), opened(vocabulary=("zebra", "car"))
    for frame in frames[:3]:
        assert pipeline.step(frame) == steady.step(frame)
    pipeline.set_vocabulary(("zebra", "car"))
    for number, frame in enumerate(frames[3:]):
        found, same, fresh = pipeline.step(frame), steady.step(frame), late.step(frame)
        assert {i.name for i in found.instances} <= {"zebra", "car"}
        masks = {i.track_id: i.segmentation for i in same.instances}
        assert {i.track_id: i.segmentation for i in found.instances} == masks
        if number == 0:  # scores start anew: as if the video had begun here
            scores = sorted(i.score for i in fresh.instances)
            assert sorted(i.score for i in found.instances) == pytest.approx(scores, rel=1e-5)


def test_in_video_mode_classes_change_between_videos_only(opened, frames):
    pipeline = opened("video")
    pipeline.set_vocabulary(("zebra",))  # before the first frame
    pipeline.step(frames[0])
    with pytest.raises(InputError, match="middle of a video"):
        pipeline.set_vocabulary(("car",))
    pipeline.step(frames[1])
    assert {i.name for i in pipeline.finish().instances} == {"zebra"}
    pipeline.set_vocabulary(("car", "bus"))  # more rows than before
    pipeline.step(frames[0])
    assert {i.name for i in pipeline.finish().instances} == {"car", "bus"}


def test_an_unusable_vocabulary_leaves_the_old_one_in_place(opened, frames):
    pipeline, steady = opened(), opened()
    for bad in ((), ("cat", "cat"), ("x" * 10_000,)):
        with pytest.raises(VocabularyError):
            pipeline.set_vocabulary(bad)
    assert pipeline.step(frames[0]) == steady.step(frames[0])


def test_rows_that_the_backend_refuses_leave_the_old_ones_in_place(opened, frames, monkeypatch):
    backend = WatchedBackend()
    pipeline, steady = opened(backend=backend), opened()
    assert pipeline.step(frames[0]) == steady.step(frames[0])
    with monkeypatch.context() as patch:
        patch.setattr(backend.sessions["classify"], "write", _refuse)
        with pytest.raises(InputError, match="too many rows"):
            pipeline.set_vocabulary(["one", "two"])
    assert pipeline.class_names == CLASSES
    assert pipeline.step(frames[1]) == steady.step(frames[1])


def _refuse(*_) -> None:
    raise InputError("too many rows")


def test_a_classifier_is_used_as_it_stands(opened, frames):
    """Its names and its rows, of which a class may have several; the vocabulary says nothing."""
    rows = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    given = Classifier(("x", "y"), [1, 2], rows)
    pipeline = opened("video", vocabulary=("other",), classifier=given)
    assert pipeline.class_names == ("x", "y")
    pipeline.step(frames[0])
    assert {i.name for i in pipeline.finish().instances} == {"x", "y"}
    pipeline.set_vocabulary(("other",), classifier=Classifier(("z",), [1], rows[:1]))
    pipeline.step(frames[0])
    assert {(i.name, i.category_id) for i in pipeline.finish().instances} == {("z", 1)}
    with pytest.raises(InputError, match=r"text_embeddings.*\[3, 31\]"):
        pipeline.set_vocabulary(("w",), classifier=Classifier(("w",), [3], rows[:, :31]))


# bad input


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((120, 180, 3), np.float32),
        np.zeros((120, 180), np.uint8),
        np.zeros((120, 180, 4), np.uint8),
        np.zeros((0, 180, 3), np.uint8),
        np.zeros((120, 181, 3), np.uint8),
        np.zeros((180, 120, 3), np.uint8),
        None,
        [[[0, 0, 0]]],
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}" if isinstance(a, np.ndarray) else type(a).__name__,
)
@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_bad_frame_is_refused_and_the_video_goes_on(opened, frames, frame, mode):
    pipeline, steady = opened(mode), opened(mode)
    assert pipeline.step(frames[0]) == steady.step(frames[0])
    with pytest.raises(InputError):
        pipeline.step(frame)
    assert pipeline.step(frames[1]) == steady.step(frames[1])
    if mode == "video":
        assert pipeline.finish() == steady.finish()


def test_a_gap_in_a_source_is_no_end_of_the_video(opened, frames):
    found = []
    with pytest.raises(InputError, match="NoneType"):
        found += opened().stream([frames[0], frames[1], None, frames[2]])
    stream = opened().stream([frames[0], frames[1], None, frames[2]])
    assert [next(stream).index for _ in range(2)] == [0, 1]
    with pytest.raises(InputError, match="NoneType"):
        next(stream)


def test_a_size_that_the_backend_refuses_stays_refused(opened, frames, monkeypatch):
    backend = WatchedBackend()
    pipeline = opened(backend=backend)
    masks = backend.sessions["masks"]
    write = masks.write

    def refuse(name, value, slot=0):
        if name == "frame_size" and value[0] > 130:
            raise InputError("too large for this engine")
        write(name, value, slot)

    monkeypatch.setattr(masks, "write", refuse)
    large = frames_of(1, width=200, height=140)[0]
    for _ in range(2):
        with pytest.raises(InputError, match="too large"):
            pipeline.step(large)
    assert pipeline.step(frames[0]) == opened().step(frames[0])


@pytest.mark.parametrize("in_flight", [0, -1])
def test_no_frame_in_flight_is_no_stream(opened, frames, in_flight):
    with pytest.raises(InputError, match="in_flight"):
        next(opened().stream(frames, in_flight=in_flight))


def test_frames_are_read_only_to_the_pipeline(opened, frames):
    small = np.ascontiguousarray(frames[0][:60, :90])  # the network's size: nothing is resized
    for image in (frames[0], small):
        locked = image.copy()
        locked.flags.writeable = False
        opened().step(locked)
        np.testing.assert_array_equal(locked, image)
    turned = np.asfortranarray(frames[0])
    assert opened().step(turned) == opened().step(frames[0])


def test_finishing_needs_video_mode_and_a_frame(opened, frames):
    with pytest.raises(InputError, match="no frame"):
        opened("video").finish()
    streaming = opened("stream")
    streaming.step(frames[0])
    with pytest.raises(InputError, match="streaming"):
        streaming.finish()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backend": "abacus"}, InputError),
        ({"mode": "vidoe"}, InputError),
        ({"precision": "int3"}, BundleError),
        ({"tracking": TrackingOptions(frames=0)}, InputError),
        ({"tracking": TrackingOptions(top_k=-1)}, InputError),
        ({"tracking": TrackingOptions(window_length=2)}, InputError),
        ({"vocabulary": ()}, VocabularyError),
    ],
)
def test_what_cannot_be_opened_says_so(opened_bundle, options, error):
    with pytest.raises(error):
        Pipeline.open(opened_bundle, **{"vocabulary": CLASSES, **options})


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"cuda": "numba"}])
def test_options_of_a_backend_that_there_are_not_are_refused(options):
    [name] = options.values()
    with pytest.raises(InputError, match=f"{name}.*there are: auto, "):
        BackendOptions(**options)


def test_cuda_without_cuda_is_an_error_and_no_silent_fallback(opened_bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime offers CUDA")
    with pytest.raises(BackendError, match="CUDAExecutionProvider") as caught:
        Pipeline.open(
            opened_bundle,
            vocabulary=CLASSES,
            backend="onnxruntime",
            backend_options=BackendOptions(device="cuda"),
        )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "change",
    [
        {"tracker": Tracker("of-tomorrow")},
        {"score": Score("of-tomorrow")},
        {"score": Score("mean-logits", {"formula": "of-tomorrow", "visible_only": True})},
    ],
    ids=["tracker", "score", "formula"],
)
def test_rules_that_are_not_known_here_are_refused_before_the_first_frame(bundle_copy, change):
    manifest = Bundle.open(bundle_copy, verify=False).manifest
    write_manifest(bundle_copy, replace(manifest, **change), manifest.files)
    with pytest.raises(BundleError, match="of-tomorrow"):
        Pipeline.open(bundle_copy, vocabulary=CLASSES)


def test_a_system_of_another_name_runs_by_its_rules(bundle_copy, frames):
    """What is driven follows from the manifest's rules and tensors, not from a list of systems."""
    manifest = Bundle.open(bundle_copy, verify=False).manifest
    with Pipeline.open(bundle_copy, vocabulary=CLASSES, mode="stream") as pipeline:
        wanted = pipeline.step(frames[0])
    write_manifest(bundle_copy, replace(manifest, system="of-tomorrow"), manifest.files)
    with Pipeline.open(bundle_copy, vocabulary=CLASSES, mode="stream") as pipeline:
        assert pipeline.step(frames[0]) == wanted


def test_a_graph_that_onnx_runtime_cannot_load_names_its_file(bundle_copy):
    (bundle_copy / "propose.onnx").unlink()
    (bundle_copy / "propose.onnx").write_bytes(b"no graph")
    manifest = Bundle.open(bundle_copy, verify=False).manifest
    write_manifest(bundle_copy, manifest, manifest.files)
    with pytest.raises(BundleError, match=r"propose\.onnx"):
        Pipeline.open(bundle_copy, vocabulary=CLASSES)


def test_closing_twice_is_no_error(opened_bundle, frames):
    with Pipeline.open(opened_bundle, vocabulary=CLASSES) as pipeline:
        pipeline.step(frames[0])
        pipeline.close()
    with pytest.raises(InputError, match="closed"):
        pipeline.step(frames[0])
    with pytest.raises(InputError, match="closed"):
        pipeline.set_vocabulary(CLASSES)


# memory


def test_what_one_graph_makes_another_one_reads_without_the_host(opened, frames):
    backend = WatchedBackend()
    opened(backend=backend).step(frames[0])
    bound = {name: session.bound for name, session in backend.sessions.items() if session.bound}
    assert bound == {
        "classify": {"features": "propose", "pool_mask": "propose"},
        "masks": {"mask_logits": "propose"},
    }
    assert backend.sessions["propose"].written == {"frames"}
    assert backend.sessions["classify"].written == {"text_embeddings"}
    assert backend.sessions["masks"].written == {"picture_size", "frame_size", "selected"}


def test_any_source_of_masks_drives_the_classifier(opened, opened_bundle, frames):
    spec = opened_bundle.graph("classify").spec
    mask = np.ones(next(t.shape for t in spec.inputs if t.name == "pool_mask"), np.bool_)
    seen = []
    for _ in range(2):
        backend = WatchedBackend(fed={"pool_mask": mask})
        opened(backend=backend).step(frames[0])
        seen.append(backend.sessions["classify"].fetch("class_scores"))
        mask[::2] = False  # instances without a pixel: every class is as likely
    assert np.ptp(seen[0], axis=1).min() > 1e-4
    np.testing.assert_array_equal(seen[1][1::2], seen[0][1::2])
    np.testing.assert_allclose(seen[1][::2], 1 / 4, rtol=1e-6)


def test_what_was_fetched_belongs_to_the_caller(opened, frames):
    backend = WatchedBackend()
    pipeline = opened(backend=backend)
    first = pipeline.step(frames[0])
    queries = backend.sessions["propose"].fetch("queries")
    kept, shown = queries.copy(), [dict(i.segmentation) for i in first.instances]
    pipeline.step(frames[1][::-1])
    np.testing.assert_array_equal(queries, kept)
    assert [i.segmentation for i in first.instances] == shown


def test_a_stream_of_any_length_needs_the_same_memory(opened, frames):
    pipeline = opened()

    def traced_after(count: int) -> int:
        for number in range(count):
            pipeline.step(frames[number % len(frames)])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        filled = traced_after(15)  # the tracker's memory is full
        # Python's lists of free objects breathe by some 15 KB; one frame's embeddings are 10 KB
        assert traced_after(30) - filled < 30 * 1200
    finally:
        tracemalloc.stop()


# a backend of one's own


def test_a_backend_that_is_given_is_closed_with_the_pipeline(opened_bundle, frames):
    backend = WatchedBackend()
    with Pipeline.open(opened_bundle, vocabulary=CLASSES, backend=backend) as pipeline:
        assert pipeline.backend == "onnxruntime (cpu, fp32)"
        pipeline.step(frames[0])
        assert backend.closed == 0
    assert backend.closed == 1


@pytest.mark.parametrize(
    "options",
    [{"mode": "vidoe"}, {"precision": "int3"}, {"vocabulary": ()}, {"classifier": "none.npy"}],
    ids=lambda options: next(iter(options)),
)
def test_a_backend_that_is_given_is_closed_where_opening_fails(opened_bundle, options):
    backend = WatchedBackend()
    with pytest.raises(InputError):
        Pipeline.open(opened_bundle, **{"vocabulary": CLASSES, "backend": backend, **options})
    assert backend.closed == 1


def test_a_backend_of_a_page_runs_a_video(opened, small_video, tmp_path):
    """Its outputs are zeros, so there is nothing to be seen, and it says so."""
    report = run_video(opened("video", backend=Zeros()), str(small_video), tmp_path / "out")
    assert report.backend == "zeros (nowhere, fp32)"
    assert (report.frames, report.tracks) == (12, 0)
    assert [w for w in report.warnings if "no object was found at all" in w]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results) == 20
    assert {entry["score"] for entry in results} == {0.0}


# what auto chooses, and what it says


@pytest.fixture
def libraries(monkeypatch):
    """Neither TensorRT is installed; a test may put something in its place."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    return lambda name: monkeypatch.delitem(sys.modules, name)


def test_auto_is_silent_of_what_is_not_installed(opened, libraries):
    told = []
    pipeline = opened(backend="auto", warn=told.append)
    assert pipeline.backend.startswith("onnxruntime (cpu")
    assert pipeline.warnings == told == []


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer"),
        ("import module_that_it_needs", "module_that_it_needs"),
        ("__version__ = '8.6.1'", "needs 10.3 or newer"),
        ("", "version"),  # a folder or file that happens to have the name
    ],
    ids=["library", "module", "old", "other"],
)
def test_auto_tells_why_it_does_not_run_on_a_library_that_is_there(
    opened, libraries, monkeypatch, tmp_path, code, why
):
    (tmp_path / "tensorrt.py").write_text(code)
    libraries("tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    pipeline = opened(backend="auto", warn=told.append)
    assert pipeline.backend.startswith("onnxruntime (cpu")
    [message] = told
    assert message.startswith("not running on tensorrt: ")
    assert why in message
    assert pipeline.warnings == told
    sys.modules.pop("tensorrt", None)


def test_auto_tells_of_a_missing_binding_of_a_library_that_is_there(opened, monkeypatch):
    def without_binding(options, warn) -> WatchedBackend:
        raise DependencyError("cuda-python", "tensorrt")

    monkeypatch.setitem(BACKENDS, "tensorrt", without_binding)
    told = []
    opened(backend="auto", warn=told.append)
    [message] = [one for one in told if one.startswith("not running on tensorrt: ")]
    assert "cuda-python is not installed" in message


def test_auto_tells_of_a_missing_engine_and_gives_its_device_back(opened, libraries, monkeypatch):
    backend, told = WatchedBackend(), []

    def check(bundle, precision) -> None:
        raise EngineError("graph 'propose' has no engine for this GPU: openvis build ...")

    monkeypatch.setattr(backend, "check", check)
    monkeypatch.setitem(BACKENDS, "tensorrt", lambda options, warn: backend)
    opened(backend="auto", warn=told.append)
    assert told == [
        "not running on tensorrt: graph 'propose' has no engine for this GPU: openvis build ..."
    ]
    assert backend.closed == 1
    with pytest.raises(EngineError, match="no engine"):
        opened(backend="tensorrt")
    opened(backend="auto", backend_options=BackendOptions(device="cpu"), warn=told.append)
    assert len(told) == 1  # nothing else was tried


def test_a_warning_is_told_when_it_arises(opened, small_video, tmp_path, monkeypatch):
    """While the video runs, to the pipeline's listener; and the report has it as well."""

    def complaining(options, warn) -> WatchedBackend:
        backend, opened_by = WatchedBackend(), WatchedBackend.open

        def open_session(*args, **named):
            session = opened_by(backend, *args, **named)
            if session.spec.name == "propose":
                run, frames = session.run, itertools.count(1)
                session.run = lambda slot: (next(frames) == 3 and warn("it is hot"), run(slot))
            return session

        backend.open = open_session
        return backend

    monkeypatch.setitem(BACKENDS, "tensorrt", complaining)
    events = []
    report = run_video(
        opened(backend="tensorrt", warn=events.append),
        str(small_video),
        tmp_path / "out",
        RunOptions(overlay=False),
        lambda _phase, done, _total: events.append(done),
    )
    assert events == [1, 2, "it is hot", *range(3, 13)]
    assert report.warnings == ["it is hot"]


# categories, and a run without any object


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_categories_count_from_1_and_their_names_stand_beside_the_results(
    opened, small_video, tmp_path, mode
):
    report = run_video(opened(mode), str(small_video), tmp_path / "out", RunOptions(overlay=False))
    assert report.outputs["categories"] == tmp_path / "out/categories.json"
    categories = json.loads((tmp_path / "out/categories.json").read_text())
    assert categories == [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    names = {c["id"]: c["name"] for c in categories}
    lines = (tmp_path / "out/frames.jsonl").read_text().splitlines()
    shown = [instance for line in lines for instance in json.loads(line)["instances"]]
    assert shown
    assert all(names[i["category_id"]] == i["name"] for i in shown)
    if mode == "video":
        results = json.loads((tmp_path / "out/results.json").read_text())
        assert {entry["category_id"] for entry in results} == {1, 2, 3}


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_run_without_any_track_tells_the_best_score_and_what_to_try(
    opened, small_video, tmp_path, mode
):
    told = []
    pipeline = opened(mode, selection=Selection(threshold=0.99))
    options = RunOptions(overlay=False)
    report = run_video(pipeline, str(small_video), tmp_path / "out", options, warn=told.append)
    assert report.tracks == 0
    [message] = told
    assert report.warnings == told
    found = re.fullmatch(
        r"no object reached the threshold of 0\.99; the best score was (0\.\d{3}) \((.*)\)\. "
        r"Try --threshold (0\.\d+), or other names",
        message,
    )
    score, name, advice = float(found[1]), found[2], float(found[3])
    assert name in CLASSES
    again = opened(mode, selection=Selection(threshold=advice))
    report = run_video(again, str(small_video), tmp_path / "again", options)
    assert report.tracks > 0
    lines = (tmp_path / "again/frames.jsonl").read_text().splitlines()
    shown = [(i["score"], i["name"]) for line in lines for i in json.loads(line)["instances"]]
    assert (pytest.approx(score, abs=5e-4), name) == max(shown)


# where masks land


@pytest.mark.parametrize(
    ("height", "width"),
    [(120, 180), (60, 90), (121, 183), (180, 120), (301, 203), (90, 400), (33, 47), (720, 1280)],
)
def test_a_rectangle_comes_back_where_it_was_drawn(opened, height, width):
    top, bottom = round(0.2 * height), round(0.7 * height)
    left, right = round(0.35 * width), round(0.9 * width)
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    backend = WatchedBackend(fed={"mask_logits": np.zeros((QUERIES, 1, 16, 24), np.float32)})
    pipeline = opened(backend=backend)
    propose, masks = backend.sessions["propose"], backend.sessions["masks"]
    run = masks.run

    def run_on_perfect_masks(slot=0) -> None:
        """Of query 3: the share of white in each cell of stride 4 of the frame as it was placed."""
        padded = np.zeros((64, 96), np.float32)
        placed = propose.input_view("frames", (1, *NETWORK, 3))
        padded[: NETWORK[0], : NETWORK[1]] = placed[0, ..., 0] / 255
        logits = np.full((QUERIES, 1, 16, 24), -1, np.float32)
        logits[3, 0] = padded.reshape(16, 4, 24, 4).mean((1, 3)) - 0.5
        masks.write("mask_logits", logits)
        run(slot)

    masks.run = run_on_perfect_masks
    for name in ("mask_area", "mask_mass"):  # queries 3 and 5 are seen; 5 has no pixel in the end
        propose.changes[name] = lambda value: (
            np.isin(np.arange(len(value)), (3, 5)) * value.dtype.type(9)
        )
    [found] = pipeline.step(image).instances
    assert found.track_id == 3  # in the first frame a track is its query
    placement = pipeline.letterbox(height, width)
    mask = found.mask
    assert mask.shape == (height, width)
    rows, columns = np.nonzero(mask)
    # an edge is known to a pixel of the network's frame, and rounds to one of the source's;
    # half a cell of stride 4, as a wrong convention of coordinates shifts it, is twice that
    slack = max(height / placement.picture[0], width / placement.picture[1]) + 1
    found = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    np.testing.assert_allclose(found, (top, bottom, left, right), atol=slack)
    area = (bottom - top) * (right - left)
    assert mask[top:bottom, left:right].sum() > 0.8 * area


@pytest.mark.parametrize(
    ("height", "width", "fills"),
    [(120, 180, True), (60, 90, True), (1080, 1620, True), (120, 184, False), (90, 60, False)],
)
def test_a_source_of_the_networks_shape_fills_its_frame(opened_bundle, height, width, fills):
    placement = letterbox_for(height, width, opened_bundle.manifest.preprocess)
    assert placement.fills is fills
    if fills:
        assert placement.picture == placement.cut == placement.official == NETWORK


@pytest.mark.parametrize(("height", "width"), [(100, 400), (410, 2000), (2000, 410), (720, 1280)])
@pytest.mark.parametrize("short_side", [360, 480])
def test_a_bundle_of_the_official_size_takes_its_video_as_it_is(
    opened_bundle, height, width, short_side
):
    """Where the long side's limit binds, each side is rounded by itself."""
    size = resized_size(height, width, short_side, 1333)
    rule = opened_bundle.manifest.preprocess
    rule = replace(rule, network_size=size, short_side=short_side, max_side=1333)
    placement = letterbox_for(height, width, rule)
    assert placement.picture == placement.cut == placement.official == size
    assert placement.fills


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3000), (2160, 3840)])
def test_a_frame_of_any_shape_fits_and_keeps_its_shape(opened_bundle, size):
    placement = letterbox_for(*size, opened_bundle.manifest.preprocess)
    assert all(1 <= p <= n for p, n in zip(placement.picture, NETWORK, strict=True))
    assert placement.picture[0] == NETWORK[0] or placement.picture[1] == NETWORK[1]
    assert placement.cut == placement.picture
    out = np.zeros((*NETWORK, 3), np.uint8)
    place_frame(np.full((*size, 3), 9, np.uint8), placement, out, (100.6, 50, 20))
    height, width = placement.picture
    assert (out[:height, :width] == 9).all()
    assert (out[height:] == (101, 50, 20)).all()
    assert (out[:, width:] == (101, 50, 20)).all()


def test_a_video_of_another_shape_is_told_what_to_export_before_it_runs(opened, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(frames_of(3, width=160, height=120)):
        Image.fromarray(image).save(pictures / f"{number}.png")
    told = []

    def frame_done(*_) -> None:
        told.append(None)

    options = RunOptions(overlay=False)
    report = run_video(
        opened(), str(pictures), tmp_path / "out", options, frame_done, warn=told.append
    )
    wanted = (
        "the video's frames fill only 60x80 (height x width) of the bundle's 60x90; for the "
        "official numbers on this video, export with --size 60x80"
    )
    assert told[0] == wanted
    assert told.count(None) == report.frames == 3
    assert report.warnings[0] == wanted


def test_a_stream_that_goes_on_after_a_reset_begins_a_new_video(opened, frames):
    for slots, backend in ((1, WatchedBackend()), (2, TwoSlots())):
        pipeline, fresh = opened("video", backend=backend), opened("video")
        stream = pipeline.stream(frames)
        next(stream)
        pipeline.reset()  # with it goes what the device has in flight
        assert list(stream) == list(fresh.stream(frames[slots:]))
        assert pipeline.finish() == fresh.finish()


def test_a_stream_that_was_given_up_does_no_harm_to_the_next_one(opened, frames):
    pipeline, fresh = opened("video", backend=TwoSlots()), opened("video")
    for end in ("close", "go on"):
        old = pipeline.stream(frames_of(4, seed=9))
        next(old)
        pipeline.reset()
        new = pipeline.stream(frames)
        found = [next(new)]
        if end == "close":
            old.close()
        else:
            with pytest.raises(InputError, match="another stream is open"):
                next(old)
        with pytest.raises(InputError, match="another stream is open"):
            pipeline.finish()
        found += new
        assert found == list(fresh.stream(frames))
        assert pipeline.finish() == fresh.finish()


def test_what_an_earlier_video_left_around_the_picture_is_painted_over(opened):
    wide, tall = frames_of(1, width=180, height=120)[0], frames_of(1, width=90, height=180)[0]
    pipeline = opened()
    pipeline.step(wide)
    pipeline.reset()
    assert pipeline.step(tall) == opened().step(tall)


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_a_run_that_failed_leaves_nothing_to_the_next(opened, tmp_path, small_video, mode):
    def interrupt(_phase, done, _total) -> None:
        if done == 5:
            raise KeyboardInterrupt

    written = []
    for name in ("after", "alone"):
        pipeline = opened(mode)
        if name == "after":
            pipeline.step(frames_of(1)[0])  # of a video that was given up
            with pytest.raises(KeyboardInterrupt):
                run_video(pipeline, str(small_video), tmp_path / "cut", RunOptions(), interrupt)
            assert pipeline.best == (0.0, "")  # nothing of it is known any more
        report = run_video(pipeline, str(small_video), tmp_path / name, RunOptions(overlay=False))
        assert report.frames == 12
        written.append([f.read_bytes() for f in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]
    assert not (tmp_path / "cut").exists()


# what must not go on quietly


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e20])  # the last one's square is infinite
@pytest.mark.parametrize("output", ["class_scores", "mask_iou", "object_logits", "queries"])
def test_what_is_no_number_of_a_graph_stops_the_video_by_name(opened, frames, output, value):
    backend = WatchedBackend()
    pipeline = opened("video", backend=backend)
    graph = "classify" if output == "class_scores" else "propose"
    backend.sessions[graph].changes[output] = lambda old: np.full_like(old, value)
    with pytest.raises(BackendError, match=f"{graph}.*{output}.*frame 0"):
        pipeline.step(frames[0])


@pytest.mark.parametrize("good", [0, 1])
def test_a_frame_that_fails_half_way_spoils_its_video_and_no_other(
    opened, frames, monkeypatch, good
):
    backend = WatchedBackend()
    pipeline, fresh = opened("video", backend=backend), opened("video")
    for frame in frames[:good]:
        pipeline.step(frame)
    with monkeypatch.context() as patch:
        patch.setattr(backend.sessions["masks"], "run", _fail)
        with pytest.raises(BackendError, match="device lost"):
            pipeline.step(frames[1])
    for go_on in (lambda: pipeline.step(frames[2]), pipeline.finish):
        with pytest.raises(InputError, match="reset"):
            go_on()
    pipeline.reset()
    for each in (pipeline, fresh):
        list(each.stream(frames))
    assert pipeline.finish() == fresh.finish()


def _fail(_slot) -> None:
    raise BackendError("device lost")


@pytest.mark.filterwarnings("ignore")  # ONNX Runtime warns of the provider that it has not
def test_auto_runs_on_the_cpu_where_cuda_is_offered_and_does_not_work(opened, frames, monkeypatch):
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: offered)
    told = []
    pipeline = opened("stream", backend_options=BackendOptions(device="auto"), warn=told.append)
    assert any("running on the CPU" in warning for warning in told)  # when it was found out
    assert pipeline.warnings == told
    pipeline.step(frames[0])
    assert "cpu" in pipeline.backend
    with pytest.raises(BackendError, match="fell back"):
        opened("stream", backend_options=BackendOptions(device="cuda"))


@pytest.mark.parametrize("threads", [0, 10**11])
def test_a_backend_without_threads_or_beyond_all_is_refused(threads):
    with pytest.raises(InputError, match=f"1 to 1024 threads; got {threads}"):
        BackendOptions(threads=threads)


@pytest.mark.parametrize("options", [{"max_frames": 0}, {"max_frames": 2**63}, {"video_id": 2**63}])
def test_a_run_has_numbers_of_64_bits(options):
    with pytest.raises(InputError, match=next(iter(options))):
        RunOptions(**options)
