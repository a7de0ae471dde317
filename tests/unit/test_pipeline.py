"""The pipeline on the tiny bundle: both modes, new classes, bad frames, and where masks land."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import NETWORK, QUERIES

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import MANIFEST, Bundle, Manifest, write_manifest
from openvis_rt.errors import BackendError, BundleError, InputError, VocabularyError
from openvis_rt.geometry import resized_size
from openvis_rt.runtime.preprocessing import letterbox_for, place_frame
from openvis_rt.runtime.run import RunOptions, RunReport, _explain_letterbox, run_video
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.runtime.video.results import decode_mask

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
        pipelines.append(Pipeline.open(opened_bundle, backend="onnxruntime", **options))
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
        assert instance.name == CLASSES[instance.category_id]
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
    pipeline, steady = opened(), opened()
    assert pipeline.step(frames[0]) == steady.step(frames[0])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._inner._classify, "write", _refuse)
        with pytest.raises(InputError, match="too many rows"):
            pipeline.set_vocabulary(["one", "two"])
    assert pipeline.step(frames[1]) == steady.step(frames[1])


def _refuse(*_) -> None:
    raise InputError("too many rows")


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
    pipeline = opened()
    write = pipeline._inner._masks.write

    def refuse(name, value, slot=0):
        if name == "frame_size" and value[0] > 130:
            raise InputError("too large for this engine")
        write(name, value, slot)

    monkeypatch.setattr(pipeline._inner._masks, "write", refuse)
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
        ({"device": "tpu"}, InputError),
        ({"precision": "int3"}, BundleError),
        ({"tracker_frames": 0}, InputError),
        ({"tracker_top_k": -1}, InputError),
        ({"vocabulary": ()}, VocabularyError),
    ],
)
def test_what_cannot_be_opened_says_so(opened_bundle, options, error):
    with pytest.raises(error):
        Pipeline.open(opened_bundle, **{"vocabulary": CLASSES, **options})


def test_cuda_without_cuda_is_an_error_and_no_silent_fallback(opened_bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime offers CUDA")
    with pytest.raises(BackendError, match="CUDAExecutionProvider") as caught:
        Pipeline.open(opened_bundle, vocabulary=CLASSES, device="cuda")
    assert caught.value.exit_code == 3


def test_a_bundle_of_another_family_is_refused(bundle_copy):
    data = json.loads((bundle_copy / MANIFEST).read_text())
    write_manifest(bundle_copy, Manifest.from_json({**data, "family": "of-tomorrow"}))
    with pytest.raises(BundleError, match="of-tomorrow"):
        Pipeline.open(bundle_copy, vocabulary=CLASSES)


def test_a_graph_that_onnx_runtime_cannot_load_names_its_file(bundle_copy):
    (bundle_copy / "propose.onnx").unlink()
    (bundle_copy / "propose.onnx").write_bytes(b"no graph")
    write_manifest(bundle_copy, Bundle.open(bundle_copy, verify=False).manifest)
    with pytest.raises(BundleError, match=r"propose\.onnx"):
        Pipeline.open(bundle_copy, vocabulary=CLASSES)


def test_closing_twice_is_no_error(opened_bundle, frames):
    with Pipeline.open(opened_bundle, vocabulary=CLASSES) as pipeline:
        pipeline.step(frames[0])
        pipeline.close()


# memory


def test_classify_reads_the_very_memory_that_propose_writes(opened, frames):
    pipeline = opened()
    pipeline.step(frames[0])
    propose, classify = pipeline._inner._propose, pipeline._inner._classify
    mask = propose._hosts["pool_mask"]
    mask[:] = True
    classify.run()
    seen = classify.fetch("class_scores")
    assert np.ptp(seen, axis=1).min() > 1e-4
    mask[::2] = False  # instances without a pixel: every class is as likely
    classify.run()
    np.testing.assert_array_equal(classify.fetch("class_scores")[1::2], seen[1::2])
    np.testing.assert_allclose(classify.fetch("class_scores")[::2], 1 / 4, rtol=1e-6)


def test_what_was_fetched_belongs_to_the_caller(opened, frames):
    pipeline = opened()
    first = pipeline.step(frames[0])
    queries = pipeline._inner._propose.fetch("queries")
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
    pipeline = opened()
    pipeline.step(image)
    family = pipeline._inner
    placement = pipeline.placement(height, width)
    # mask logits that a perfect network would give: the share of white in each cell of stride 4
    padded = np.zeros((64, 96), np.float32)
    padded[: NETWORK[0], : NETWORK[1]] = family._frames[0, ..., 0] / 255
    cells = padded.reshape(16, 4, 24, 4).mean((1, 3)) - 0.5
    family._propose._hosts["mask_logits"][:] = -1
    family._propose._hosts["mask_logits"][3, 0] = cells
    [[rle], [nothing]] = family._make_masks(np.array([3, 5]), 0)
    assert not decode_mask(nothing).any()
    mask = decode_mask(rle)
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


def test_a_bundle_that_resizes_wants_the_videos_own_size(opened, monkeypatch):
    pipeline = opened()
    manifest = pipeline.bundle.manifest
    resizes = replace(manifest, preprocess=replace(manifest.preprocess, source_size=(240, 360)))
    bundle = replace(pipeline.bundle, manifest=resizes)
    monkeypatch.setattr(pipeline, "bundle", bundle)
    monkeypatch.setattr(pipeline._inner, "_bundle", bundle)
    report = RunReport("stream", "")
    _explain_letterbox(pipeline, SimpleNamespace(height=480, width=640), report)
    [warning] = report.warnings
    assert warning.endswith("export with --source-size 480x640")


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
            assert pipeline._frames == pipeline._inner._placed == 0
        report = run_video(pipeline, str(small_video), tmp_path / name, RunOptions(overlay=False))
        assert report.frames == 12
        written.append([f.read_bytes() for f in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]
    assert not (tmp_path / "cut").exists()


# what must not go on quietly


def test_a_mode_that_is_none_is_refused_at_once(opened):
    with pytest.raises(InputError, match="video or stream"):
        opened("vidoe")


@pytest.mark.parametrize("output", ["class_scores", "mask_iou", "object_logits"])
def test_nan_of_a_graph_stops_the_video_by_name(opened, frames, monkeypatch, output):
    pipeline = opened("video")
    family = pipeline._inner
    session = family._classify if output == "class_scores" else family._propose
    fetch = session.fetch

    def poisoned(name, slot):
        value = fetch(name, slot)
        return np.full_like(value, np.nan) if name == output else value

    monkeypatch.setattr(session, "fetch", poisoned)
    with pytest.raises(BackendError, match=output):
        pipeline.step(frames[0])


def test_a_frame_that_fails_half_way_spoils_its_video_and_no_other(opened, frames, monkeypatch):
    pipeline, fresh = opened("video"), opened("video")
    pipeline.step(frames[0])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._inner._masks, "run", _fail)
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
    pipeline = opened("stream", device="auto")
    pipeline.step(frames[0])
    assert "cpu" in pipeline.backend
    assert any("running on the CPU" in warning for warning in pipeline.warnings)
    with pytest.raises(BackendError, match="fell back"):
        opened("stream", device="cuda")
