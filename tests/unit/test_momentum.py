"""One memory a track, and the scores of OV2Seg and OVFormer, against the public implementations."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import expit
from traced_memory import held_by

from openvis_rt.errors import InputError
from openvis_rt.runtime.tracking.association import Momentum
from openvis_rt.runtime.tracking.mean_logits import FORMULAS, MeanLogits
from openvis_rt.runtime.tracking.scoring import FrameLogits

RULES = {"ov2seg": 0.7, "minvis": 1.0, "ovformer-video": 1.0}


def embeddings(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def drifting(frames: int, count: int = 12) -> list[np.ndarray]:
    """Shuffled queries of tracks that move, of any length."""
    rng = np.random.default_rng(3)
    tracks, out = embeddings(count, 6), []
    for _ in range(frames):
        tracks = 0.8 * tracks + 0.6 * rng.standard_normal(tracks.shape, np.float32)
        lengths = rng.uniform(0.2, 5, (count, 1)).astype(np.float32)
        out.append((tracks * lengths)[rng.permutation(count)])
    return out


def by_hand(frames: list[np.ndarray], alpha: float) -> list[list[int]]:
    """The rule, one pair of a query and a track at a time, in double precision."""
    memory: list[np.ndarray] = []
    orders = []
    for frame in frames:
        rows = [row.astype(np.float64) for row in frame]
        order = list(range(len(rows)))
        if memory:
            cost = np.empty((len(rows), len(rows)))  # [track, query]
            for i, old in enumerate(memory):
                for j, new in enumerate(rows):
                    cosine = sum(old * new) / math.sqrt(sum(old * old) * sum(new * new))
                    cost[i, j] = 1 - cosine
            order = [int(j) for j in linear_sum_assignment(cost)[1]]
            memory = [alpha * rows[j] + (1 - alpha) * memory[i] for i, j in enumerate(order)]
        else:
            memory = rows
        orders.append(order)
    return orders


# the rule


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.7, 1.0])
def test_every_frame_is_matched_with_the_memory_of_the_definition(alpha):
    frames = drifting(20)
    tracker = Momentum(alpha)
    assert [tracker.step(frame).tolist() for frame in frames] == by_hand(frames, alpha)


def test_the_weight_of_the_newest_frame_matters():
    frames = drifting(20)
    orders = [by_hand(frames, alpha) for alpha in (0.05, 0.3, 0.7, 1.0)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("alpha", [0.5, 0.7, 1.0])
def test_a_known_permutation_is_undone_in_every_frame(alpha):
    rng = np.random.default_rng(1)
    tracks = embeddings(30)
    tracker = Momentum(alpha)
    tracker.step(tracks)
    for _ in range(12):
        shuffled = rng.permutation(30)
        order = tracker.step(
            (tracks + 0.05 * rng.standard_normal(tracks.shape, np.float32))[shuffled]
        )
        assert shuffled[order].tolist() == list(range(30))


def test_alpha_weighs_embeddings_as_they_are_and_not_their_directions():
    axes = np.eye(4, dtype=np.float32)
    first, second = axes[:2], axes[2:] + np.float32(0.1) * axes[:2]
    both = axes[:2] + axes[[3, 2]]  # each like one track's first and the other's second embedding
    for length, wanted in ((1.0, [1, 0]), (0.1, [0, 1])):  # what is short counts less
        tracker = Momentum(0.7)
        assert tracker.step(first).tolist() == [0, 1]
        assert tracker.step(np.float32(length) * second).tolist() == [0, 1]
        assert tracker.step(both).tolist() == wanted


def test_with_alpha_1_only_the_last_frame_counts():
    tracks, others = embeddings(10), embeddings(10, seed=4)
    tracker, fresh = Momentum(), Momentum()
    for frame in (tracks, others, tracks[::-1]):
        order = tracker.step(frame)
    fresh.step(tracks[::-1][order])
    np.testing.assert_array_equal(tracker.step(others), fresh.step(others))


@pytest.mark.parametrize("count", [0, 1])
def test_no_query_and_one_query_keep_their_place(count):
    tracker = Momentum(0.7)
    for seed in range(5):
        order = tracker.step(embeddings(count, seed=seed))
        assert order.dtype == np.int64
        assert order.tolist() == list(range(count))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_still_give_every_track_a_query_of_its_own(value):
    tracker = Momentum(0.7)
    for _ in range(5):
        assert sorted(tracker.step(np.full((12, 4), value, np.float32)).tolist()) == list(range(12))


def test_after_a_reset_the_next_frame_starts_new_tracks():
    tracker = Momentum(0.7)
    tracker.step(embeddings(6))
    tracker.reset()
    assert tracker.step(embeddings(6)[::-1]).tolist() == list(range(6))


def test_the_callers_array_is_neither_changed_nor_kept():
    tracker, frames = Momentum(0.7), [embeddings(6), embeddings(6) + np.float32(0.1)]
    for frame in frames:
        before = frame.copy()
        tracker.step(frame)
        np.testing.assert_array_equal(frame, before)
        frame[:] = 0  # a session overwrites its output buffer at the next run
    assert tracker.step(embeddings(6)[::-1]).tolist() == list(range(6))[::-1]


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.01, math.nan])
def test_a_memory_that_would_never_or_wrongly_follow_is_refused(alpha):
    with pytest.raises(InputError, match=f"got {alpha}") as caught:
        Momentum(alpha)
    assert caught.value.exit_code == 2


def test_memory_does_not_grow_with_the_video():
    tracker, queries = Momentum(0.7), embeddings(40, 64)
    tracemalloc.start(8)
    try:
        tracker.step(queries)
        tracker.step(queries)
        before = held_by("*/tracking/*")
        for _ in range(60):
            tracker.step(queries)
        assert held_by("*/tracking/*") - before < queries.nbytes
    finally:
        tracemalloc.stop()


# against the public implementations


@pytest.mark.parametrize(("system", "alpha"), RULES.items())
def test_permutations_are_those_of_the_public_implementation(reference, system, alpha):
    with np.load(reference / f"association-{system}.npz") as data:
        queries, wanted = data["embeds"], data["indices"]
    tracker = Momentum(alpha)
    found = [tracker.step(frame) for frame in queries]
    assert found[0].tolist() == list(range(queries.shape[1]))
    np.testing.assert_array_equal(found[1:], wanted)


def test_the_rules_of_the_reference_can_be_told_apart(reference):
    with np.load(reference / "association-ov2seg.npz") as data:
        queries, wanted = data["embeds"], data["indices"]
    tracker = Momentum(1.0)
    assert not np.array_equal([tracker.step(frame) for frame in queries][1:], wanted)


def tracked(data, alpha):
    """For each frame its logits, object logits and masks in the tracks' order."""
    tracker = Momentum(alpha)
    orders = [tracker.step(frame) for frame in data["embeds"]]
    return orders, [
        [frames[order] for frames, order in zip(data[name], orders, strict=True)]
        for name in ("logits", "obj", "masks")
    ]


def test_scores_and_dropped_frames_are_those_of_the_public_ov2seg(reference):
    with np.load(reference / "association-ov2seg.npz") as file:
        data = dict(file)
    _, (logits, objects, masks) = tracked(data, 0.7)
    np.testing.assert_allclose(np.mean(logits, 0), data["pred_logits"][0], atol=1e-6)
    np.testing.assert_allclose(np.mean(objects, 0), data["pred_obj_logits"][0], atol=1e-6)
    classes = data["logits"].shape[-1] - 1  # the last is the background
    scores = FrameLogits(data["logits"].shape[1], [1] * classes)
    for frame_logits, frame_objects, frame_masks in zip(logits, objects, masks, strict=True):
        inside = frame_masks > 0
        scores.add(
            frame_logits[:, :-1],
            frame_objects,
            inside.sum((1, 2)).astype(np.float32),
            (expit(frame_masks) * inside).sum((1, 2)).astype(np.float32),
        )
    found = sorted(scores.detections(len(data["inst/scores"])), key=lambda d: d.score)
    scores.close()
    wanted = np.argsort(data["inst/scores"])
    video = np.stack(masks, 1)  # [N, T, h, w]
    for detection, index in zip(found, wanted, strict=True):
        assert detection.category == data["inst/classes"][index]
        assert detection.score == pytest.approx(data["inst/scores"][index], abs=1e-6)
        theirs = data["inst/masks"][index]
        shown = (theirs != -1).any((1, 2))  # a frame that is dropped is -1 all over
        np.testing.assert_array_equal(detection.shown, shown)
        np.testing.assert_array_equal(video[detection.track][shown], theirs[shown])


def test_scores_are_those_of_the_public_clip_model(reference):
    """The file's instances are of its first 20 queries alone, as one window of three frames."""
    with np.load(reference / "association-ovformer-video.npz") as file:
        data = dict(file)
    queries, classes = data["logits"].shape[1], data["logits"].shape[2] - 1
    formula = FORMULAS["sigmoid-objectness"]
    scores = MeanLogits(queries, [1] * classes, formula, visible_only=False, keep=True)
    output = {
        "class_scores": data["logits"][0][:, :-1],
        "object_logits": data["obj"][0],
        "mask_area": (data["inst/in_masks"] > 0).sum((2, 3)).astype(np.float32),
    }
    scores.add_output(output, np.arange(queries))
    found = sorted(scores.detections(len(data["inst/scores"])), key=lambda d: d.score)
    order = np.argsort(data["inst/scores"])
    assert [d.category for d in found] == data["inst/labels"][order].tolist()
    np.testing.assert_allclose([d.score for d in found], data["inst/scores"][order], atol=1e-6)
    assert all(d.shown.shape == (3,) for d in found)


def test_masks_are_those_of_the_public_clip_model(reference):
    """The file's masks are at the padded size of 24x32, their picture is 20x30."""
    torch = pytest.importorskip("torch", reason="masks in PyTorch need the extra [export]")
    from openvis_rt.models.masks import Masks

    with np.load(reference / "association-ovformer-video.npz") as file:
        data = dict(file)
    masks = Masks((24, 32), (20, 30), (40, 60))
    objects = data["obj"][0]
    presence = expit(objects[:, 0] - objects[:, 1])
    scores = np.sqrt(expit(data["logits"][0][:, :-1]) * presence[:, None])
    picked = [
        int(np.abs(scores[:, label] - score).argmin())
        for label, score in zip(data["inst/labels"], data["inst/scores"], strict=True)
    ]
    ours = masks(torch.from_numpy(data["inst/in_masks"]), torch.tensor(picked)).numpy()
    np.testing.assert_array_equal(ours.astype(bool), data["inst/masks"])


def test_a_frame_far_below_the_videos_score_is_dropped_as_the_formula_says():
    """The reference drops none: here one frame of three, and the score is of the others' masks."""
    scores = FrameLogits(1, [1, 1])
    logits = np.array([[[6.0, 1.0]], [[-12.0, 1.0]], [[5.0, -2.0]]], np.float32)
    objects = np.array([[[2.0, 0.0]], [[-1.0, 0.0]], [[1.0, 0.0]]], np.float32)
    area, mass = [10.0, 20.0, 30.0], [9.0, 19.0, 21.0]
    for t in range(3):
        scores.add(
            logits[t], objects[t], np.array([area[t]], np.float32), np.array([mass[t]], np.float32)
        )
    found = {d.category: d for d in scores.detections(2)}
    scores.close()
    for category in range(2):
        video = math.sqrt(expit(logits[:, 0, category].mean()) * expit(objects[:, 0, 0].mean()))
        frames = [
            math.sqrt(expit(z) * expit(o))
            for z, o in zip(logits[:, 0, category], objects[:, 0, 0], strict=True)
        ]
        kept = [f >= 0.1 * video for f in frames]
        assert found[category].shown.tolist() == kept
        final = video * sum(np.array(mass)[kept]) / (sum(np.array(area)[kept]) + 1e-6)
        assert found[category].score == pytest.approx(final, abs=1e-6)
    assert found[0].shown.tolist() == [True, False, True]
    assert found[1].shown.all()
