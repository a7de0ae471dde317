"""Video scores from mean logits, against the formula written out frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from openvis_rt.runtime.mean_logits import MeanLogits

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
    sums = MeanLogits(TRACKS, ROWS, objectness=objectness, keep=True)
    frames = list(video())
    for output, order in frames:
        sums.add_frame(output, order)
    expected = wanted(frames, objectness=objectness)
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-6)  # float32 logits
    best = sums.detections(4)
    assert [d.score for d in best] == sorted(expected.ravel(), reverse=True)[:4] or np.allclose(
        [d.score for d in best], sorted(expected.ravel(), reverse=True)[:4], atol=1e-6
    )
    for found in best:
        shown = [o["mask_area"][order[found.track]] > 0 for o, order in frames]
        np.testing.assert_array_equal(found.shown, shown)
    categories, scores, visible = sums.now()
    np.testing.assert_allclose(scores, expected.max(1), atol=1e-6)
    np.testing.assert_array_equal(visible, frames[-1][0]["mask_area"][frames[-1][1]] > 0)
    assert categories.shape == (TRACKS,)


def test_a_track_that_never_has_a_pixel_scores_0_and_nothing_is_nan():
    sums = MeanLogits(TRACKS, ROWS, objectness=True, keep=True)
    for output, order in video():
        sums.add_frame({**output, "mask_area": output["mask_area"] * 0}, order)
    assert not sums.scores().any()
    assert all(d.score == 0 and not d.shown.any() for d in sums.detections(3))


def test_streaming_keeps_nothing():
    sums = MeanLogits(TRACKS, ROWS, objectness=False, keep=False)
    for output, order in video():
        sums.add_frame(output, order)
    assert not sums._history
    assert sums.detections(5) == []
