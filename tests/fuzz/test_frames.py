"""What a program may give to the Python API: frames, names, and arguments of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from borders import few, survives
from hypothesis import given
from hypothesis import strategies as st
from strange import TEXTS, strange_values

from openvis_rt import Pipeline, Vocabulary
from openvis_rt.runtime.backends.registry import BackendOptions
from openvis_rt.runtime.options import Selection, TrackingOptions

DTYPES = ("u1", "i1", "u2", "i8", "f2", "f4", "f8", "c8", "?", "O", "U3", "S2", "M8[s]", ">u2")
GOOD = np.arange(60 * 100 * 3, dtype=np.uint8).reshape(60, 100, 3)


@pytest.fixture(scope="module")
def pipeline(cached_bundle):
    with Pipeline.open(
        cached_bundle, vocabulary=["cat", "dog"], mode="stream", backend="onnxruntime"
    ) as opened:
        yield opened


@st.composite
def frames(draw: st.DrawFn) -> Any:
    """Something that a caller may take for a frame."""
    kind = draw(st.sampled_from(["shape", "shape", "view", "other"]))
    if kind == "other":
        return draw(st.one_of(strange_values, st.sampled_from([GOOD.tolist(), b"abc", object()])))
    if kind == "view":
        views = [
            *(GOOD[::-1], GOOD[:, ::-1], GOOD[..., ::-1], GOOD[::2, ::3], GOOD.transpose(1, 0, 2)),
            *(np.asfortranarray(GOOD), np.broadcast_to(GOOD[:1, :1], (60, 100, 3)), _locked()),
            *(np.ma.array(GOOD, mask=True), np.rec.array(GOOD), GOOD.astype(">u1")),
            np.broadcast_to(GOOD[:1, :1], (1 << 20, 1 << 20, 3)),  # 3 TB, of 3 bytes
        ]
        return views[draw(st.integers(0, len(views) - 1))]
    sides = st.sampled_from([0, 1, 2, 3, 4, 31, 60, 100, 333])
    shape = draw(st.one_of(st.tuples(sides, sides, st.just(3)), st.lists(sides, max_size=4)))
    made = np.zeros(tuple(shape) if np.prod(shape, dtype=float) < 1e7 else (2, 2), "u1")
    made = made.astype(draw(st.sampled_from(["u1", "u1", *DTYPES])))
    if made.dtype.kind == "f" and draw(st.booleans()):
        made[...] = draw(st.sampled_from([np.nan, np.inf, -1, 300]))
    return made


def _locked() -> np.ndarray:
    made = GOOD.copy()
    made.setflags(write=False)
    return made


@few(25)
@given(given_frames=st.lists(frames(), max_size=4))
def test_strange_frames(pipeline, given_frames):
    pipeline.reset()
    seen = []

    def watch() -> None:
        for result in pipeline.stream(given_frames):
            seen.append(result.index)

    survives(watch)
    assert seen == list(range(len(seen)))
    pipeline.reset()
    assert [r.index for r in pipeline.stream([GOOD])] == [0]  # it still works


def test_a_view_of_a_frame_is_the_frame(pipeline):
    for view in (GOOD[::-1], GOOD[:, ::-1], GOOD[..., ::-1], np.asfortranarray(GOOD), _locked()):
        pipeline.reset()
        found = list(pipeline.stream([view]))
        pipeline.reset()
        assert found == list(pipeline.stream([np.ascontiguousarray(view)]))


@given(
    names=st.one_of(
        strange_values, st.lists(st.one_of(st.text(max_size=20), strange_values), max_size=5)
    )
)
def test_strange_names(names):
    survives(lambda: Vocabulary.of(names))


NUMBERS = st.sampled_from([0, 1, -1, 2, 17, 10**6, 2**31, 2**63, 10**30])
FRACTIONS = st.floats() | NUMBERS
ARGUMENTS = {
    "vocabulary": st.lists(st.text(max_size=9), max_size=3),
    "backend": st.sampled_from(TEXTS) | st.text(max_size=9),
    "backend_options": st.tuples(st.sampled_from(["cpu", *TEXTS]), st.just("auto"), NUMBERS),
    "precision": st.sampled_from(TEXTS),
    "mode": st.sampled_from(TEXTS),
    "selection": st.builds(Selection, FRACTIONS, NUMBERS),
    "classifier": st.sampled_from([np.zeros((1, 32)), np.zeros(3), np.full((1, 32), np.nan), GOOD]),
    "image_embeddings": st.sampled_from([np.zeros((1, 32)), GOOD]),
}
WINDOWS = ("window_length", "frames", "top_k", "detections")


@few(15)
@given(data=st.data())
def test_strange_arguments(cached_bundle, data):
    wanted: dict[str, Any] = {"vocabulary": ["cat"], "backend": "onnxruntime"}
    for name in data.draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=2)):
        wanted[name] = data.draw(ARGUMENTS[name])
    tracked = data.draw(st.booleans())
    windows = {name: data.draw(st.none() | NUMBERS) for name in WINDOWS}

    def use() -> None:
        if tracked:
            wanted["tracking"] = TrackingOptions(**windows)
        if "backend_options" in wanted:
            wanted["backend_options"] = BackendOptions(*wanted["backend_options"])
        with Pipeline.open(cached_bundle, warn=lambda _: None, **wanted) as opened:
            opened.step(GOOD)
            if opened.mode == "video":
                opened.finish()

    survives(use)
