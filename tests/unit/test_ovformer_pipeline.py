"""OVFormer, OV2Seg and MinVIS as videos, in small, against their formulas in plain numpy.

The networks run in ONNX Runtime straight from the bundle's files; windows, association, scores and
masks are written here anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, softmax
from watched_backend import TwoSlots, WatchedBackend

from openvis_rt import (
    BackendOptions,
    Bundle,
    Frame,
    InputError,
    Pipeline,
    RunOptions,
    Selection,
    TrackingOptions,
    VocabularyError,
    decode_mask,
    run_video,
)
from openvis_rt.runtime.video.generated import sample_frames

pytest.importorskip("torch", reason="exporting needs the extra [export]")

import open_clip
import torch
from tiny import NETWORK, traced_before
from tiny_instformer import EMBED, SIDE
from tiny_ovformer import CLASSES, QUERIES, export_small, shared_bundle, tiny_ovformer
from torch.nn import functional as F

from openvis_rt.export import bundle as bundle_export
from openvis_rt.models.clip import encode_text
from openvis_rt.systems.graphs import CONTEXT_LENGTH

EVERYTHING = Selection(threshold=0.0, limit=QUERIES)
SOURCE = (120, 180)  # twice the network's frame: the host resizes
WORDS = ("cat", "dog", "monkey", "box")
OWN = tuple(f"class {index}" for index in range(CLASSES))  # of MinVIS
SYSTEMS = ["ovformer-frame-swin-b", "ov2seg-swin-b", "minvis-r50"]


@pytest.fixture(scope="session")
def video_bundle(tmp_path_factory) -> Bundle:
    return shared_bundle("ovformer-video-r50", tmp_path_factory)


@pytest.fixture(params=SYSTEMS)
def frame_bundle(request, tmp_path_factory) -> Bundle:
    return shared_bundle(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def bare_bundle(video_bundle, tmp_path_factory) -> Bundle:
    """The same network, exported without CLIP."""
    path = tmp_path_factory.mktemp("bare") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_export, "onnx_from_module", traced_before(video_bundle.path))
        return export_small(tiny_ovformer(with_clip=False), path, verify=False).bundle


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    made = sample_frames(width=SOURCE[1], height=SOURCE[0], fps=2, seconds=5.5, objects=3)
    return [image for image, _ in made]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """A text classifier, one row for each of WORDS."""
    made = np.random.default_rng(5).standard_normal((len(WORDS), EMBED)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def opened(video_bundle, rows):
    """Opens the video model with WORDS and their rows."""

    def opened(bundle=video_bundle, *, tracking=None, **options) -> Pipeline:
        options = {"vocabulary": WORDS, "classifier": rows, "selection": EVERYTHING, **options}
        options = {
            "backend": "onnxruntime",
            "tracking": TrackingOptions(**tracking or {}),
            **options,
        }
        return Pipeline.open(bundle, backend_options=BackendOptions(device="cpu"), **options)

    return opened


def whole(pipeline, frames):
    """Every frame's result, and the video's."""
    return list(pipeline.stream(frames)), pipeline.finish()


# the formulas


@dataclass
class Window:
    """What the networks say of a window, in the queries' order."""

    masks: np.ndarray  # logits [N, T, h, w]
    queries: np.ndarray
    objects: np.ndarray | None
    logits: np.ndarray


@cache
def network_of(path) -> Network:
    """The graphs of a bundle, loaded once."""
    return Network(Bundle.open(path, verify=False))


class Network:
    """A bundle's graphs in ONNX Runtime."""

    def __init__(self, bundle: Bundle) -> None:
        self._sessions = {
            name: onnxruntime.InferenceSession(
                bundle.graph_path(name, "fp32"), providers=["CPUExecutionProvider"]
            )
            for name in bundle.graphs
            if name != "masks"
        }

    def run(self, graph: str, **inputs) -> dict[str, np.ndarray]:
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def embed(self, frames) -> np.ndarray:
        return self.run("embed", pictures=pictures_of(frames))["image_embeddings"]

    def window(self, frames, rows=None, embeddings=None) -> Window:
        found = self.run("propose", frames=resized(frames))
        inputs = {"queries": found["queries"]}
        wanted = {i.name for i in self._sessions["classify"].get_inputs()}
        if "text_embeddings" in wanted:
            inputs["text_embeddings"] = rows
        if "image_embeddings" in wanted:
            inputs["image_embeddings"] = self.embed(frames) if embeddings is None else embeddings
        logits = self.run("classify", **inputs)["class_scores"]
        return Window(found["mask_logits"], found["queries"], found.get("object_logits"), logits)


def resized(frames) -> np.ndarray:
    size = NETWORK[::-1]
    pictures = [Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def pictures_of(frames) -> np.ndarray:
    """CLIP's: the short side to SIDE, the centre of the long one."""
    wide = SIDE * SOURCE[1] // SOURCE[0]
    left = round((wide - SIDE) / 2)
    pictures = [Image.fromarray(f).resize((wide, SIDE), Image.Resampling.BICUBIC) for f in frames]
    return np.stack([np.asarray(p)[:, left : left + SIDE] for p in pictures])


def masks_of(logits) -> np.ndarray:
    """Bool [N, T, H, W] at the source's size."""

    def bilinear(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    padded = bilinear(torch.from_numpy(logits), (64, 96))[..., : NETWORK[0], : NETWORK[1]]
    return (bilinear(padded, SOURCE) > 0).numpy()


def unit(x) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def aligned(windows: list[Window], alpha: float) -> list[Window]:
    """The windows in the tracks' order."""
    memory, out = None, []
    for window in windows:
        order = np.arange(len(window.queries))
        if memory is not None:
            order = linear_sum_assignment((1 - unit(window.queries) @ unit(memory).T).T)[1]
        new = window.queries[order].astype(np.float64)
        memory = new if memory is None else alpha * new + (1 - alpha) * memory
        objects = None if window.objects is None else window.objects[order]
        out.append(Window(window.masks[order], new, objects, window.logits[order]))
    return out


def presence(windows: list[Window]) -> np.ndarray:
    return softmax(np.mean([c.objects for c in windows], 0, dtype=np.float64), axis=1)[:, :1]


def mean_logits(windows: list[Window]) -> np.ndarray:
    return np.mean([c.logits for c in windows], 0, dtype=np.float64)


def sigmoid_score(windows: list[Window]) -> np.ndarray:
    """S [N, C] of OVFormer and OV2Seg."""
    return np.sqrt(expit(mean_logits(windows)) * presence(windows))


def official_frame_scores(windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """OV2Seg's final scores [N, C], and which frames are kept [N, C, T]."""
    scores = sigmoid_score(windows)
    of_frame = np.stack([sigmoid_score([window]) for window in windows], axis=2)
    kept = of_frame >= 0.1 * scores[..., None]
    masks = np.concatenate([c.masks for c in windows], axis=1).astype(np.float64)
    inside = masks > 0
    area = (kept * inside.sum((2, 3))[:, None]).sum(2)
    mass = (kept * (expit(masks) * inside).sum((2, 3))[:, None]).sum(2)
    return scores * mass / (area + 1e-6), kept


def assert_video(video, scores, masks, count, names, kept=None, by=None):
    """The result's instances are the ``count`` best pairs by ``by``, in its order."""
    order = np.argsort(-(scores if by is None else by), axis=None, kind="stable")[:count]
    pairs = [(int(p) // scores.shape[1], int(p) % scores.shape[1]) for p in order]
    assert len(video.instances) == len(pairs)
    best = by if by is not None else scores
    for instance, pair in zip(video.instances, pairs, strict=True):
        ours = instance.track_id, instance.category_id - 1
        # two pairs whose scores differ by rounding alone may change places
        assert ours == pair or best[ours] == pytest.approx(best[pair], abs=1e-6)
        assert instance.name == names[ours[1]]
        assert instance.score == pytest.approx(scores[ours], abs=1e-5)
        assert len(instance.segmentations) == masks.shape[1] == video.frame_count
        for t, segmentation in enumerate(instance.segmentations):
            wanted = masks[ours[0], t] & (True if kept is None else kept[ours][t])
            # a pixel whose logit is zero but for rounding
            assert (decode_mask(segmentation) != wanted).mean() < 1e-3
    assert (video.height, video.width) == SOURCE


def windows_of(frames, length):
    return [frames[start : start + length] for start in range(0, len(frames), length)]


# VideoOVFormer


def test_the_bundle_says_what_it_is(video_bundle):
    manifest = video_bundle.manifest
    assert (manifest.system, manifest.window_length) == ("ovformer-video", 5)
    assert (manifest.tracker.name, manifest.tracker.parameters) == ("momentum", {"alpha": 1.0})
    assert set(video_bundle.graphs) == {"propose", "embed", "classify", "text", "masks"}
    shapes = {t.name: t.shape for t in video_bundle.graph("propose").spec.outputs}
    assert shapes["mask_logits"] == (QUERIES, "T", 16, 24)
    assert shapes["mask_area"] == (QUERIES, "T")
    embed = video_bundle.graph("embed").spec
    assert embed.inputs[0].shape == ("T", SIDE, SIDE, 3)
    assert embed.outputs[0].shape == ("T", EMBED)


def test_results_come_in_order_and_as_soon_as_their_window_is_complete(opened, frames):
    taken = 0

    def source(count):
        nonlocal taken
        taken = 0
        for frame in frames[:count]:
            taken += 1
            yield frame

    with opened() as pipeline:
        assert pipeline.window_length == 5
        for count in (1, 4, 5, 6, 11):
            for index, result in enumerate(pipeline.stream(source(count))):
                assert result.index == index
                assert (result.height, result.width) == SOURCE
                assert taken == min(count, 5 * (index // 5 + 1))
            assert index == count - 1
            assert pipeline.finish().frame_count == count


@pytest.mark.parametrize(("length", "count"), [(5, 1), (5, 6), (5, 11), (2, 11), (1, 4)])
def test_a_video_is_what_the_formulas_give(opened, video_bundle, frames, rows, length, count):
    network = network_of(video_bundle.path)
    windows = aligned(
        [network.window(c, rows) for c in windows_of(frames[:count], length)], alpha=1.0
    )
    masks = masks_of(np.concatenate([w.masks for w in windows], axis=1))
    scores = sigmoid_score(windows)
    with opened(tracking={"window_length": length, "detections": 12}) as pipeline:
        results, video = whole(pipeline, frames[:count])
    assert_video(video, scores, masks, 12, WORDS)
    for number in range(len(windows)):  # a frame's result knows the windows up to its own
        so_far = sigmoid_score(windows[: number + 1])
        for result in results[number * length : (number + 1) * length]:
            shown = {i.track_id: i for i in result.instances}
            assert set(shown) == set(np.flatnonzero(masks[:, result.index].any((1, 2))))
            for track, instance in shown.items():
                assert instance.score == pytest.approx(so_far[track].max(), abs=1e-5)
                assert instance.category_id - 1 == so_far[track].argmax()
                different = decode_mask(instance.segmentation) != masks[track, result.index]
                assert different.mean() < 1e-3


def test_the_pairs_beyond_the_bundles_number_are_left_out(opened, frames, video_bundle):
    assert video_bundle.manifest.detections == 50
    with opened() as pipeline:
        _, video = whole(pipeline, frames[:6])
    assert len(video.instances) == QUERIES * len(WORDS)  # 40 pairs: there are no more
    with opened(tracking={"detections": 3}) as pipeline:
        _, few = whole(pipeline, frames[:6])
    assert few.instances == video.instances[:3]


def test_windows_of_another_length_give_other_masks(opened, frames):
    with opened() as five, opened(tracking={"window_length": 2}) as two:
        assert (five.window_length, two.window_length) == (5, 2)
        assert whole(five, frames[:4])[1] != whole(two, frames[:4])[1]


@pytest.mark.parametrize("length", [0, -1, 6])
def test_a_window_length_that_was_not_exported_is_refused(opened, length):
    with pytest.raises(
        InputError, match=rf"1 to 5 frames, got {length}\b.*--window-length"
    ) as caught:
        opened(tracking={"window_length": length})
    assert caught.value.exit_code == 2


def test_stepping_needs_windows_of_one_frame(opened, frames):
    with opened() as pipeline:
        with pytest.raises(InputError, match="5 frames together") as caught:
            pipeline.step(frames[0])
        assert "window_length=1" in str(caught.value)
        results, _ = whole(pipeline, frames[:2])  # nothing of it is left behind
        assert [r.index for r in results] == [0, 1]
    with (
        opened(tracking={"window_length": 1}) as stepped,
        opened(tracking={"window_length": 1}) as streamed,
    ):
        assert [stepped.step(f) for f in frames[:4]] == list(streamed.stream(frames[:4]))


def test_both_modes_show_the_same(opened, frames):
    with opened() as video, opened(mode="stream") as stream:
        assert list(video.stream(frames)) == list(stream.stream(frames))


def test_numbers_and_times_of_frames_come_back(opened, frames):
    numbered = [Frame(7 + 2 * i, 0.1 * i, frame) for i, frame in enumerate(frames[:7])]
    with opened() as pipeline:
        results = list(pipeline.stream(numbered))
    assert [(r.index, r.time) for r in results] == [(f.index, f.time) for f in numbered]


# image embeddings


def test_given_embeddings_take_the_place_of_the_computed_ones(
    opened, video_bundle, frames, tmp_path
):
    embeddings = network_of(video_bundle.path).embed(frames)
    file = tmp_path / "video.npy"
    np.save(file, embeddings)
    with opened() as pipeline:
        _, wanted = whole(pipeline, frames)
    for given in (embeddings.astype(np.float64), file):
        backend = WatchedBackend()
        with opened(image_embeddings=given, backend=backend) as pipeline:
            assert set(backend.sessions) == {"propose", "classify", "masks"}
            _, video = whole(pipeline, frames)
        assert {(i.track_id, i.category_id) for i in video.instances} == {
            (i.track_id, i.category_id) for i in wanted.instances
        }
        score = {(i.track_id, i.category_id): i.score for i in video.instances}
        for instance in wanted.instances:
            pair = instance.track_id, instance.category_id
            assert score[pair] == pytest.approx(instance.score, abs=1e-5)


def test_each_window_looks_at_its_own_rows_of_given_embeddings(opened, video_bundle, frames, rows):
    given = np.random.default_rng(2).standard_normal((11, EMBED)).astype(np.float32)
    network = network_of(video_bundle.path)
    pairs = zip(windows_of(frames, 2), windows_of(given, 2), strict=True)
    windows = aligned([network.window(c, rows, e) for c, e in pairs], alpha=1.0)
    with opened(image_embeddings=given, tracking={"window_length": 2}) as pipeline:
        for _ in range(2):  # and a second video begins with the first row again
            _, video = whole(pipeline, frames)
            masks = masks_of(np.concatenate([w.masks for w in windows], axis=1))
            assert_video(video, sigmoid_score(windows), masks, 40, WORDS)
    with opened() as pipeline:
        assert whole(pipeline, frames)[1].instances[0].score != video.instances[0].score


def test_too_few_embeddings_end_the_video_with_an_error(opened, frames):
    given = np.ones((7, EMBED), np.float32)
    seen = []
    with opened(image_embeddings=given) as pipeline:
        with pytest.raises(InputError, match=r"for 7 frames.*one for each frame") as caught:
            seen.extend(pipeline.stream(frames))
        assert caught.value.exit_code == 2
        assert [r.index for r in seen] == list(range(5))  # the windows before it
        pipeline.reset()
        assert len(whole(pipeline, frames[:7])[0]) == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((11, EMBED + 1), np.float32), rf"\[11, {EMBED + 1}\].*\[rows, {EMBED}\]"),
        (np.ones(EMBED, np.float32), rf"\[{EMBED}\].*\[rows, {EMBED}\]"),
        (np.full((11, EMBED), np.inf, np.float32), "infinity"),
        (np.zeros((0, EMBED), np.float32), r"\[0, "),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_at_once(opened, given, message):
    with pytest.raises(InputError, match=message) as caught:
        opened(image_embeddings=given)
    assert "image embeddings" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("minvis-r50", OWN), ("ov2seg-swin-b", WORDS)], ids=["minvis", "ov2seg"]
)
def test_embeddings_for_a_model_that_has_none_are_refused(opened, tmp_path_factory, name, words):
    bundle, given = shared_bundle(name, tmp_path_factory), np.ones((3, EMBED), np.float32)
    with pytest.raises(InputError, match=f"{name}.*no image embeddings"):
        opened(bundle, vocabulary=words, classifier=None, image_embeddings=given)


# what goes wrong in the middle


@pytest.mark.parametrize("kind", ["size", "exception"])
def test_results_of_the_frames_before_a_bad_one_come_first(opened, frames, kind):
    def source(bad):
        yield from frames[:bad]
        if kind == "exception":
            raise RuntimeError("the camera is gone")
        yield frames[bad][:-2]

    error, message = InputError, "180x118 came after frames of 180x120"
    if kind == "exception":
        error, message = RuntimeError, "camera"
    with opened() as pipeline, opened() as fresh:
        for bad in (3, 5, 7):
            seen = []
            with pytest.raises(error, match=message):
                seen.extend(pipeline.stream(source(bad)))
            wanted, video = whole(fresh, frames[:bad])
            assert seen == wanted
            assert pipeline.finish() == video  # the frames before it are a video


def test_stopping_early_leaves_nothing_for_the_next_video(opened, frames):
    with opened() as pipeline, opened() as fresh:
        wanted = whole(fresh, frames[2:9])
        for count in (1, 4, 5, 6):
            stream = pipeline.stream(frames)
            for _ in range(count):
                next(stream)
            stream.close()
            pipeline.reset()
            assert whole(pipeline, frames[2:9]) == wanted


def test_stopping_within_a_window_keeps_the_frames_that_were_associated(opened, frames):
    """Frames of a window are one step: those whose results were not taken are part of the video."""
    with opened() as pipeline, opened() as fresh:
        stream = pipeline.stream(frames)
        next(stream)
        next(stream)
        stream.close()
        results = list(pipeline.stream(frames[5:]))
        assert [r.index for r in results] == list(range(5, 11))
        assert pipeline.finish() == whole(fresh, frames)[1]


def test_a_source_that_fails_within_a_window_can_be_taken_up_again(opened, frames):
    """The frames before the failure were a short window."""

    def source():
        yield from frames[:7]
        raise RuntimeError("lost")

    with opened() as pipeline:
        with pytest.raises(RuntimeError, match="lost"):
            list(pipeline.stream(source()))
        results = list(pipeline.stream(frames[7:]))
        assert [r.index for r in results] == [7, 8, 9, 10]
        assert pipeline.finish().frame_count == 11


# the vocabulary


def test_a_stream_changes_its_classes_between_windows_and_keeps_its_tracks(opened, frames, rows):
    other = np.ascontiguousarray(rows[::-1] + np.float32(0.1))
    with opened(mode="stream") as pipeline, opened(mode="stream") as same:
        wanted = list(same.stream(frames))
        found = []
        for result in pipeline.stream(frames):
            found.append(result)
            if len(found) == 2:
                pipeline.set_vocabulary(("a", "b"), classifier=other[:2])
    names = [{i.name for i in r.instances} for r in found]
    assert all(n <= set(WORDS) for n in names[:5])  # of the window that was done already
    assert all(n <= {"a", "b"} for n in names[5:])
    assert any(names[:5])
    assert any(names[5:])
    for ours, theirs in zip(found, wanted, strict=True):
        tracks = [{i.track_id: i.segmentation for i in r.instances} for r in (ours, theirs)]
        assert tracks[0] == tracks[1]


def test_class_averages_start_anew_with_other_classes(opened, video_bundle, frames, rows):
    network = network_of(video_bundle.path)
    windows = aligned([network.window(c, rows[:2]) for c in windows_of(frames, 5)], alpha=1.0)
    with opened(mode="stream") as pipeline:
        stream = pipeline.stream(frames)
        for _ in range(5):
            next(stream)
        pipeline.set_vocabulary(WORDS[:2], classifier=rows[:2])
        later = list(stream)
    scores = sigmoid_score(windows[1:2])
    for instance in later[0].instances:
        assert instance.score == pytest.approx(scores[instance.track_id].max(), abs=1e-5)


def test_a_video_keeps_its_classes_to_the_end(opened, frames, rows):
    with opened() as pipeline:
        stream = pipeline.stream(frames)
        next(stream)
        with pytest.raises(InputError, match="middle of a video"):
            pipeline.set_vocabulary(("a",), classifier=rows[:1])
        stream.close()
        pipeline.reset()
        pipeline.set_vocabulary(("a",), classifier=rows[:1])
        assert {i.name for i in whole(pipeline, frames[:3])[1].instances} == {"a"}


def test_names_are_read_in_the_prompt_of_the_paper(opened, video_bundle, frames):
    """Without a classifier: 'A photo of {}', and a class is as sure as its surest synonym."""
    assert video_bundle.manifest.prompts == ("A photo of {}",)
    words = ("cat", "monkey, ape")
    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)(
        [f"A photo of {phrase}" for phrase in ("cat", "monkey", "ape")]
    )
    rows = unit(encode_text(tiny_ovformer().clip_model, tokens).detach().numpy())
    network = network_of(video_bundle.path)
    windows = aligned([network.window(c, rows) for c in windows_of(frames, 5)], alpha=1.0)
    for window in windows:
        window.logits = np.stack([window.logits[:, 0], window.logits[:, 1:].max(1)], axis=1)
    with opened(vocabulary=words, classifier=None) as pipeline:
        _, video = whole(pipeline, frames)
    masks = masks_of(np.concatenate([w.masks for w in windows], axis=1))
    assert_video(video, sigmoid_score(windows), masks, 20, words)


# two windows in flight, as on a backend that computes beside the host


def test_two_windows_in_flight_change_no_result(opened, frames):
    taken = 0

    def source():
        nonlocal taken
        taken = 0
        for frame in frames:
            taken += 1
            yield frame

    with opened(backend=TwoSlots()) as ahead:
        results, wanted = [], []
        for result in ahead.stream(source()):  # of 5, 5 and 1 frames
            assert taken == (10 if result.index < 5 else 11)
            results.append(result)
        video = ahead.finish()
        for result in ahead.stream(source(), in_flight=1):
            assert taken == min(11, 5 * (result.index // 5 + 1))
            wanted.append(result)
        assert results == wanted
        assert ahead.finish() == video
        stream = ahead.stream(source())
        next(stream)
        stream.close()  # the second window was taken ahead, and is no part of the video
        later = list(ahead.stream(frames[5:]))
        assert [r.index for r in later] == list(range(5, 11))
        assert ahead.finish() == video


def test_a_window_in_flight_is_classified_again(opened, frames, rows):
    with opened(mode="stream", backend=TwoSlots()) as pipeline:
        found = []
        for result in pipeline.stream(frames):
            found.append(result)
            if len(found) == 1:
                pipeline.set_vocabulary(("a", "b"), classifier=rows[:2])
    names = [{i.name for i in r.instances} for r in found]
    assert all(n <= set(WORDS) for n in names[:5])
    assert all(n and n <= {"a", "b"} for n in names[5:])


def test_given_embeddings_follow_their_windows_through_two_slots(opened, frames):
    given = np.random.default_rng(2).standard_normal((11, EMBED)).astype(np.float32)
    with opened(
        image_embeddings=given, backend=TwoSlots(), tracking={"window_length": 3}
    ) as pipeline:
        wanted = list(pipeline.stream(frames, in_flight=1))
        video = pipeline.finish()
        stream = pipeline.stream(frames)
        next(stream)
        stream.close()  # three frames are in the video, and the rows of the others still to come
        assert list(pipeline.stream(frames[3:])) == wanted[3:]
        assert pipeline.finish() == video


# frame by frame


def test_a_per_frame_model_is_what_its_formulas_give(opened, frame_bundle, frames, rows):
    system = frame_bundle.manifest.system
    words, closed = (OWN, True) if system == "minvis" else (WORDS, False)
    network = network_of(frame_bundle.path)
    alpha = 1.0 if closed else 0.7
    windows = aligned([network.window([frame], rows) for frame in frames], alpha)
    masks = masks_of(np.concatenate([w.masks for w in windows], axis=1))
    detections = {"minvis": 10, "ovformer-frame": 10, "ov2seg": 50}[system]
    assert frame_bundle.manifest.detections == detections
    if closed:
        scores, kept, by = softmax(mean_logits(windows), axis=1)[:, :-1], None, None
    else:
        scores, kept = official_frame_scores(windows)
        by = sigmoid_score(windows)
    given = None if closed else rows
    with opened(frame_bundle, vocabulary=words, classifier=given) as pipeline:
        results, video = whole(pipeline, frames)
    assert [r.index for r in results] == list(range(11))
    assert_video(video, scores, masks, min(detections, scores.size), words, kept, by)


def test_per_frame_models_step_and_take_no_windows(opened, frame_bundle, frames, rows):
    closed = frame_bundle.manifest.system == "minvis"
    options = {
        "vocabulary": OWN if closed else WORDS,
        "classifier": None if closed else rows,
        "mode": "stream",
    }
    with opened(frame_bundle, **options) as a, opened(frame_bundle, **options) as b:
        assert (a.window_length, frame_bundle.manifest.window_length) == (1, 1)
        assert [a.step(f) for f in frames[:4]] == list(b.stream(frames[:4]))
    with pytest.raises(InputError, match="frame by frame, not on windows of 2"):
        opened(frame_bundle, **options, tracking={"window_length": 2})
    with pytest.raises(InputError, match="momentum has no frames; it has alpha"):
        opened(frame_bundle, **options, tracking={"frames": 3})


def test_the_frame_model_looks_at_each_frames_own_embedding(opened, frames, rows, tmp_path_factory):
    bundle = shared_bundle("ovformer-frame-swin-b", tmp_path_factory)
    embeddings = np.concatenate([network_of(bundle.path).embed([frame]) for frame in frames])
    with opened(bundle, image_embeddings=embeddings) as given, opened(bundle) as computed:
        ours, theirs = whole(given, frames)[1], whole(computed, frames)[1]
    for a, b in zip(ours.instances, theirs.instances, strict=True):
        assert (a.track_id, a.category_id) == (b.track_id, b.category_id)
        assert a.score == pytest.approx(b.score, abs=1e-5)
    with opened(bundle, image_embeddings=embeddings[::-1]) as swapped:
        assert whole(swapped, frames)[1] != ours


# without CLIP


def test_a_bundle_without_clip_wants_what_clip_would_have_said(opened, bare_bundle, frames, rows):
    assert set(bare_bundle.graphs) == {"propose", "classify", "masks"}
    given = np.ones((11, EMBED), np.float32)
    with pytest.raises(InputError, match=r"without CLIP.*whole frames.*--image-embeddings"):
        opened(bare_bundle)
    with pytest.raises(InputError, match=r"without CLIP.*class names.*--classifier"):
        opened(bare_bundle, image_embeddings=given, classifier=None)
    with opened(bare_bundle, image_embeddings=given) as pipeline:
        ours = whole(pipeline, frames)
        with pytest.raises(InputError, match=r"without CLIP.*class names"):
            pipeline.set_vocabulary(("horse",))
    with opened(image_embeddings=given) as pipeline:
        assert whole(pipeline, frames) == ours


def test_minvis_wants_all_of_its_own_names(opened, tmp_path_factory):
    bundle = shared_bundle("minvis-r50", tmp_path_factory)
    assert set(bundle.graphs) == {"propose", "classify", "masks"}
    with pytest.raises(VocabularyError, match=rf"knows {CLASSES} classes.*has 4 names"):
        opened(bundle, classifier=None)


@pytest.mark.parametrize("detections", [0, -1])
def test_less_than_one_detection_is_refused(opened, detections):
    with pytest.raises(InputError, match="at least one"):
        opened(tracking={"detections": detections})


def test_the_delay_is_the_rest_of_the_window(opened):
    with opened() as pipeline:
        assert pipeline.delay() == 4
    with opened(tracking={"window_length": 1}) as pipeline:
        assert pipeline.delay() == 0


@pytest.fixture(scope="module")
def resizing_bundle(tmp_path_factory) -> Bundle:
    """Of the source's size: the graphs make the network's frame and CLIP's picture themselves."""
    path = tmp_path_factory.mktemp("resizing") / "bundle"
    export_small(tiny_ovformer(decoder_layers=1), path, source_size=SOURCE, verify=False)
    return Bundle.open(path)


def test_graphs_that_resize_look_at_the_same_pictures(opened, frames, resizing_bundle):
    bundle = resizing_bundle
    pictures = bundle.graph("embed").spec.inputs[0]
    assert pictures.shape == ("T", *SOURCE, 3)
    session = onnxruntime.InferenceSession(
        bundle.graph_path("embed"), providers=["CPUExecutionProvider"]
    )
    [given] = session.run(None, {"pictures": np.stack(frames[:6])})
    with opened(bundle) as pipeline:
        found = whole(pipeline, frames[:6])
    with opened(bundle, image_embeddings=given) as pipeline:
        results, video = whole(pipeline, frames[:6])
    # windows of 5 and 1 were computed, and 6 frames at once given: sums in another order
    scores = [np.array([i.score for i in v.instances]) for v in (found[1], video)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert [r.index for r in found[0]] == [r.index for r in results]


def test_a_bundle_that_resizes_wants_the_videos_own_size(opened, resizing_bundle, tmp_path):
    """Of another size CLIP sees the letterboxed frame, unless its embeddings were given."""
    source = tmp_path / "pictures"
    source.mkdir()
    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(source / "0.png")

    def told(**given) -> list[str]:
        messages: list[str] = []
        with opened(resizing_bundle, **given) as pipeline:
            options = RunOptions(overlay=False, overwrite=True)
            run_video(pipeline, str(source), tmp_path / "out", options, warn=messages.append)
        return messages

    clip, shape = told()[:2]
    assert clip.startswith("CLIP sees this video's frames as they are fitted into")
    assert "120x180" in clip
    assert "--source-size 120x160" in clip
    assert shape.endswith("export with --source-size 120x160")
    assert told(image_embeddings=np.ones((1, EMBED), np.float32))[0] == shape
