"""Video scores against the official formulas written out over the whole video, and their limits."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from openvis_rt.runtime.tracking import scoring
from openvis_rt.runtime.tracking.scoring import (
    FrameProbabilities,
    merge_synonyms,
    object_probability,
)

TRACKS, CLASSES, HEIGHT, WIDTH = 12, 7, 6, 8
ROWS = [1] * CLASSES


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Video:
    """A video's raw outputs in track order: logits of everything, masks included."""

    def __init__(self, frames: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.class_logits = rng.normal(0, 6, (frames, TRACKS, CLASSES)).astype(np.float32)
        self.iou = rng.random((frames, TRACKS), np.float32)
        self.objects = rng.normal(0, 2, (frames, TRACKS, 2)).astype(np.float32)
        hidden = rng.random((frames, TRACKS)) < 0.3  # tracks that some frames do not show
        self.objects[hidden, 0] -= 12
        self.masks = rng.normal(-0.5, 3, (frames, TRACKS, HEIGHT, WIDTH)).astype(np.float32)
        self.masks[rng.random((frames, TRACKS)) < 0.2] = -5  # masks without a pixel

    def play(self, scores: FrameProbabilities, frames: int | None = None) -> FrameProbabilities:
        for t in range(len(self.iou) if frames is None else frames):
            inside = self.masks[t] > 0
            sigmoid = 1 / (1 + np.exp(-self.masks[t]))
            scores.add(
                softmax(self.class_logits[t]).astype(np.float32),
                self.iou[t],
                self.objects[t],
                inside.sum((1, 2)).astype(np.float32),
                (sigmoid * inside).sum((1, 2)).astype(np.float32),
            )
        return scores

    def official(self, count: int, frames: int | None = None):
        """{(track, class): (score, shown [T])} and S, by the public code's order of operations."""
        end = len(self.iou) if frames is None else frames
        p = softmax(self.class_logits[:end])
        iou, objects = self.iou[:end].astype(np.float64), self.objects[:end].astype(np.float64)
        s1 = np.mean([np.sqrt(p[t] * iou[t][:, None]) for t in range(end)], axis=0)
        overall = np.sqrt(s1 * softmax(objects.mean(0))[:, :1])
        found = {}
        for flat in np.argsort(-overall.ravel())[:count]:
            q, c = divmod(int(flat), CLASSES)
            masks = self.masks[:end, q].astype(np.float64)
            shown = np.ones(end, bool)
            for t in range(end):
                quirk = 1 / (1 + np.exp(-p[t, q, c]))  # the sigmoid of a probability
                if np.sqrt(quirk * softmax(objects[t, q])[0]) < 0.1 * overall[q, c]:
                    shown[t] = False
                    masks[t] = -1
            inside = masks > 0
            mean = ((1 / (1 + np.exp(-masks))) * inside).sum() / (inside.sum() + 1e-6)
            found[q, c] = (overall[q, c] * mean, shown)
        return found, overall


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("frames", [1, 2, 25])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_detections_are_those_of_the_official_formulas(frames, seed):
    video = Video(frames, seed)
    wanted, _ = video.official(20)
    scores = video.play(FrameProbabilities(TRACKS, ROWS))
    found = {(d.track, d.category): d for d in scores.detections(20)}
    assert found.keys() == wanted.keys()
    for key, (score, shown) in wanted.items():
        assert found[key].score == pytest.approx(score, rel=1e-5)  # float32 inputs
        np.testing.assert_array_equal(found[key].shown, shown)
    if frames == 25:  # else this test says nothing of dropped frames
        dropped = sum((~shown).sum() for _, shown in wanted.values())
        assert 0 < dropped < 20 * frames
    scores.close()


def test_detections_come_best_first_and_never_more_than_there_are():
    scores = Video(5).play(FrameProbabilities(TRACKS, ROWS))
    table = scores.scores()
    found = [table[d.track, d.category] for d in scores.detections(10_000)]
    assert len(found) == TRACKS * CLASSES
    assert found == sorted(found, reverse=True)
    scores.close()


def test_what_is_kept_goes_to_disk_and_comes_back_the_same(monkeypatch):
    video = Video(25)
    in_memory = video.play(FrameProbabilities(TRACKS, ROWS))
    wanted = in_memory.detections(20)
    in_memory.close()
    monkeypatch.setattr(scoring, "_SPOOL_BYTES", 100)
    gc.collect()
    before = files_open()
    scores = video.play(FrameProbabilities(TRACKS, ROWS))
    assert files_open() == before + 1  # it did roll over
    for _ in range(2):  # asking does not use it up
        for a, b in zip(scores.detections(20), wanted, strict=True):
            assert (a.track, a.category, a.score) == (b.track, b.category, b.score)
            np.testing.assert_array_equal(a.shown, b.shown)
    scores.close()
    assert files_open() == before


def test_frames_may_be_added_after_asking():
    video = Video(10)
    scores = FrameProbabilities(TRACKS, ROWS)
    video.play(scores, frames=4)
    scores.detections(20)
    late = Video(10)
    for name in ("class_logits", "iou", "objects", "masks"):
        setattr(late, name, getattr(video, name)[4:])
    late.play(scores)
    whole = video.play(FrameProbabilities(TRACKS, ROWS))
    for a, b in zip(scores.detections(20), whole.detections(20), strict=True):
        assert (a.track, a.category) == (b.track, b.category)
        np.testing.assert_array_equal(a.shown, b.shown)
    scores.close()
    whole.close()


@pytest.mark.parametrize("keep", [True, False])
def test_now_says_what_the_frames_so_far_say(keep):
    video = Video(8)
    for end in (1, 5, 8):
        scores = video.play(FrameProbabilities(TRACKS, ROWS, keep=keep), frames=end)
        categories, found, shown = scores.running_scores()
        _, overall = video.official(0, frames=end)
        np.testing.assert_array_equal(categories, overall.argmax(1))
        inside = video.masks[:end] > 0
        sigmoid = 1 / (1 + np.exp(-video.masks[:end].astype(np.float64)))
        mean = (sigmoid * inside).sum((0, 2, 3)) / (inside.sum((0, 2, 3)) + 1e-6)
        np.testing.assert_allclose(found, overall.max(1) * mean, rtol=1e-5)
        p = softmax(video.class_logits[end - 1])[np.arange(TRACKS), categories]
        f = np.sqrt(softmax(video.objects[end - 1])[:, 0] / (1 + np.exp(-p)))
        np.testing.assert_array_equal(shown, f >= 0.1 * overall.max(1))
        assert end == 1 or not shown.all()
        scores.close()


def test_no_frame_gives_no_detection():
    scores = FrameProbabilities(TRACKS, ROWS)
    assert scores.detections(50) == []
    scores.close()


def test_a_track_that_no_frame_shows_scores_zero():
    scores = FrameProbabilities(1, [1, 1])
    p = np.array([[0.9, 0.1]], np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    scores.add(p, one, np.array([[9, -9]], np.float32), zero, zero)  # sure of it, but no pixel
    assert [d.score for d in scores.detections(2)] == [0.0, 0.0]
    scores.close()


def test_objectness_of_extreme_logits_is_zero_or_one_without_a_warning():
    logits = np.array([[-200, 200], [200, -200], [0, 0]], np.float32)
    assert object_probability(logits).tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("rows", [[1, 1, 1], [2, 1, 3], [5], [1, 40, 2]])
def test_synonyms_merge_like_a_softmax_over_each_class_best_logit(rows):
    logits = np.random.default_rng(3).normal(0, 8, (30, sum(rows))).astype(np.float32)
    ends = np.cumsum(rows)
    best = [logits[:, e - n : e].max(1) for e, n in zip(ends, rows, strict=True)]
    found = merge_synonyms(softmax(logits).astype(np.float32), rows)
    np.testing.assert_allclose(found, softmax(np.stack(best, 1)), rtol=2e-5, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
