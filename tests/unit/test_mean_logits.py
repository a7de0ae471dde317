"""Video scores from mean logits, against the formula written out frame by frame."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.special import softmax
from traced_memory import held_by

from openvis_rt.runtime.tracking.mean_logits import FORMULAS, MeanLogits

ROWS = [1, 3, 2]  # rows of each class: synonyms
TRACKS, FRAMES = 6, 9


def video(seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(FRAMES):
        yield (
            {
                "class_scores": 4 * rng.standard_normal((TRACKS, sum(ROWS))).astype(np.float32),
                "object_logits": rng.standard_normal((TRACKS, 2)).astype(np.float32),
                "mask_area": (rng.random(TRACKS) < 0.6) * rng.integers(1, 50, TRACKS),
            },
            rng.permutation(TRACKS),
        )


def wanted(frames, *, objectness):
    """The definition: lists of the visible frames' logits, in track order."""
    scores = np.zeros((TRACKS, len(ROWS)))
    for track in range(TRACKS):
        seen = [(o, order[track]) for o, order in frames if o["mask_area"][order[track]] > 0]
        if not seen:
            continue
        logits = np.mean([o["class_scores"][q] for o, q in seen], axis=0)
        per_frame = [
            [part.max() for part in np.split(o["class_scores"][q], np.cumsum(ROWS)[:-1])]
            for o, q in seen
        ]
        assert len(logits) == sum(ROWS)
        scores[track] = softmax(np.mean(per_frame, axis=0))
        if objectness:
            scores[track] *= softmax(np.mean([o["object_logits"][q] for o, q in seen], axis=0))[0]
    return scores


@pytest.mark.parametrize("objectness", [False, True])
def test_the_formula(objectness):
    formula = FORMULAS["softmax-objectness" if objectness else "softmax"]
    sums = MeanLogits(TRACKS, ROWS, formula, visible_only=True, keep=True)
    frames = list(video())
    for output, order in frames:
        sums.add_output(output, order)
    expected = wanted(frames, objectness=objectness)
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-6)  # float32 logits
    best = sums.detections(4)
    assert [d.score for d in best] == sorted(expected.ravel(), reverse=True)[:4] or np.allclose(
        [d.score for d in best], sorted(expected.ravel(), reverse=True)[:4], atol=1e-6
    )
    for found in best:
        shown = [o["mask_area"][order[found.track]] > 0 for o, order in frames]
        np.testing.assert_array_equal(found.shown, shown)
    categories, scores, _ = sums.running_scores()
    np.testing.assert_allclose(scores, expected.max(1), atol=1e-6)
    assert categories.shape == (TRACKS,)


def test_a_track_that_never_has_a_pixel_scores_0_and_nothing_is_nan():
    sums = MeanLogits(TRACKS, ROWS, FORMULAS["softmax-objectness"], visible_only=True, keep=True)
    for output, order in video():
        sums.add_output({**output, "mask_area": output["mask_area"] * 0}, order)
    assert not sums.scores().any()
    assert all(d.score == 0 and not d.shown.any() for d in sums.detections(3))


def test_streaming_keeps_nothing():
    sums = MeanLogits(TRACKS, ROWS, FORMULAS["softmax"], visible_only=True, keep=False)
    frames = list(video())

    def traced_after(times: int) -> int:
        for _ in range(times):
            for output, order in frames:
                sums.add_output(output, order)
        return held_by("*/tracking/*")

    tracemalloc.start(8)
    try:
        begun = traced_after(2)
        assert traced_after(100) - begun < 900 * 8  # a kept frame takes a hundred bytes
    finally:
        tracemalloc.stop()
    assert sums.detections(5) == []


def test_windows_count_once_however_long_and_every_frame_has_its_bit():
    """VideoOVFormer's score: unweighted means over windows, a sigmoid for each class."""
    rng = np.random.default_rng(1)
    sums = MeanLogits(TRACKS, ROWS, FORMULAS["sigmoid-objectness"], visible_only=False, keep=True)
    windows = [(dict(output), order) for output, order in video(1)]
    lengths = [5, 5, 5, 2]
    for (output, order), length in zip(windows, lengths, strict=False):
        output["mask_area"] = rng.integers(0, 3, (TRACKS, length)).astype(np.float32)
        sums.add_output(output, order)
    windows = windows[: len(lengths)]
    parts = np.cumsum(ROWS)[:-1]
    z = np.mean(
        [
            np.stack([p.max(1) for p in np.split(o["class_scores"], parts, axis=1)], 1)[order]
            for o, order in windows
        ],
        axis=0,
    )
    objects = softmax(np.mean([o["object_logits"][order] for o, order in windows], axis=0), axis=1)
    expected = np.sqrt(objects[:, :1] / (1 + np.exp(-z)))
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-6)  # float32 logits
    seen = np.concatenate([o["mask_area"][order] > 0 for o, order in windows], axis=1)
    for found in sums.detections(3):
        assert found.shown.shape == (sum(lengths),)
        np.testing.assert_array_equal(found.shown, seen[found.track])


def test_a_closed_vocabularys_last_column_is_no_class():
    """MinVIS: the softmax is over "no object" as well, the score is not."""
    formula = FORMULAS["softmax-without-last"]
    sums = MeanLogits(TRACKS, [1] * 5, formula, visible_only=False, keep=True)
    frames = list(video(2))
    for output, order in frames:
        del output["object_logits"]
        sums.add_output(output, order)
    mean = np.mean([o["class_scores"][order] for o, order in frames], axis=0)
    np.testing.assert_allclose(sums.scores(), softmax(mean, axis=1)[:, :-1], atol=1e-6)
