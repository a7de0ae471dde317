"""Temporal top-K matching: the public rule's permutations, and the corners that videos reach."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from traced_memory import held_by

from openvis_rt.errors import InputError
from openvis_rt.runtime.tracking.association import TemporalTopK

SETTINGS = [(9, 5), (5, 3), (3, 3), (1, 1), (20, 5)]


def embeddings(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize(("frames", "top_k"), SETTINGS)
def test_permutations_are_those_of_the_public_implementation(reference, frames, top_k):
    with np.load(reference / "association-clip-vis.npz") as data:
        queries, wanted = data["embeds"], data[f"T{frames}_K{top_k}/indices"]
    tracker = TemporalTopK(frames, top_k)
    found = [tracker.step(frame) for frame in queries]
    assert found[0].tolist() == list(range(queries.shape[1]))
    np.testing.assert_array_equal(found[1:], wanted)


@pytest.mark.parametrize(("frames", "top_k"), [*SETTINGS, (2, 5)])
def test_a_known_permutation_is_undone_in_every_frame(frames, top_k):
    rng = np.random.default_rng(1)
    tracks = embeddings(30)
    tracker = TemporalTopK(frames, top_k)
    tracker.step(tracks)
    for _ in range(12):
        shuffled = rng.permutation(30)
        drift = 0.05 * rng.standard_normal(tracks.shape, np.float32)
        order = tracker.step((tracks + drift)[shuffled])
        assert shuffled[order].tolist() == list(range(30))


def test_the_length_of_an_embedding_does_not_matter():
    tracks = embeddings(8)
    tracker = TemporalTopK()
    tracker.step(tracks)
    scale = np.geomspace(1e-3, 1e3, 8, dtype=np.float32)[:, None]
    assert tracker.step((tracks * scale)[::-1]).tolist() == list(range(8))[::-1]


@pytest.mark.parametrize("count", [0, 1])
def test_no_query_and_one_query_keep_their_place(count):
    tracker = TemporalTopK()
    for seed in range(12):
        order = tracker.step(embeddings(count, seed=seed))
        assert order.dtype == np.int64
        assert order.tolist() == list(range(count))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_still_give_every_track_a_query_of_its_own(value):
    tracker = TemporalTopK(5, 3)
    for _ in range(8):
        order = tracker.step(np.full((12, 4), value, np.float32))
        assert sorted(order.tolist()) == list(range(12))


def test_a_memory_shorter_than_k_lets_the_single_best_frame_decide():
    tracks = embeddings(10)
    bad = embeddings(10, seed=5)  # nothing to do with the tracks
    tracker = TemporalTopK(frames=2, top_k=3)
    tracker.step(tracks)
    tracker.step(bad)
    assert tracker.step(tracks[::-1]).tolist() == list(range(10))[::-1]


def test_newer_frames_of_the_memory_weigh_more():
    axes = np.eye(4, dtype=np.float32)
    tracker = TemporalTopK(frames=2, top_k=2)
    tracker.step(axes[:2])
    assert tracker.step(axes[2:] + np.float32(0.1) * axes[:2]).tolist() == [0, 1]
    # each is like one track in the older frame and like the other one in the newer; weighed alike,
    # the newer frame's trace of the older one would decide for the older
    assert tracker.step(axes[:2] + axes[[3, 2]]).tolist() == [1, 0]


def test_only_the_last_t_frames_are_remembered():
    tracks, others = embeddings(6), embeddings(6, seed=9)
    tracker = TemporalTopK(frames=3, top_k=1)
    tracker.step(tracks)
    for _ in range(3):
        order = tracker.step(others)
    fresh = TemporalTopK(frames=3, top_k=1)
    for _ in range(3):
        fresh.step(others[order])
    np.testing.assert_array_equal(tracker.step(tracks), fresh.step(tracks))


def test_after_a_reset_the_next_frame_starts_new_tracks():
    tracker = TemporalTopK()
    tracker.step(embeddings(6))
    tracker.reset()
    assert tracker.step(embeddings(6)[::-1]).tolist() == list(range(6))


def test_the_callers_array_is_neither_changed_nor_kept():
    queries = embeddings(6)
    before = queries.copy()
    tracker = TemporalTopK()
    tracker.step(queries)
    np.testing.assert_array_equal(queries, before)
    queries[:] = 0  # a session overwrites its output buffer at the next run
    assert tracker.step(before[::-1]).tolist() == list(range(6))[::-1]


@pytest.mark.parametrize(("frames", "top_k"), [(0, 5), (9, 0), (-1, -1)])
def test_a_tracker_without_memory_or_voters_is_refused(frames, top_k):
    with pytest.raises(InputError, match=rf"{frames}\D+{top_k}$"):
        TemporalTopK(frames, top_k)


def test_memory_does_not_grow_with_the_video():
    tracker = TemporalTopK()
    rng = np.random.default_rng(0)

    def traced_after(steps: int) -> int:
        for _ in range(steps):
            tracker.step(rng.standard_normal((40, 64), np.float32))
        return held_by("*/tracking/*")

    tracemalloc.start(8)
    try:
        filled = traced_after(12)
        assert traced_after(60) - filled < 64 * 40 * 4  # not one frame's embeddings more
    finally:
        tracemalloc.stop()
