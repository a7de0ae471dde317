"""Names, matrices, caches, videos and pictures that a stranger made."""

from __future__ import annotations

import io
import json
import os
import sqlite3

import numpy as np
import pytest
from borders import survives
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strange import changed, damaged

from openvis_rt import Vocabulary, open_video
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.matrices import matrix_from
from openvis_rt.runtime.text_cache import TextCache, cache_place


@given(data=st.data())
def test_names_in_json(tmp_path, data):
    good = {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog, hound"}]}
    value = data.draw(changed(data.draw(st.sampled_from([good, ["cat", {"name": "dog"}]]))))
    path = tmp_path / "names.json"
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
    survives(lambda: Vocabulary.from_file(path))


@given(data=st.binary(max_size=300), suffix=st.sampled_from([".txt", ".json"]))
def test_names_in_any_bytes(tmp_path, data, suffix):
    path = tmp_path / f"names{suffix}"
    path.write_bytes(data)
    survives(lambda: Vocabulary.from_file(path))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5_000, "1" * 10_000, "[NaN]"])
def test_names_in_deep_json(tmp_path, text):
    path = tmp_path / "names.json"
    path.write_text(text)
    assert survives(lambda: Vocabulary.from_file(path)) == "VocabularyError"


def test_names_from_a_pipe_and_a_device(tmp_path):
    os.mkfifo(tmp_path / "names.txt")
    for path in (tmp_path / "names.txt", "/dev/zero"):
        assert survives(lambda p=path: Vocabulary.from_file(type(tmp_path)(p))) == "VocabularyError"


@given(data=st.data())
def test_a_matrix(tmp_path, data):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 4), np.float32))
    path = tmp_path / "rows.npy"
    path.write_bytes(damaged(data, buffer.getvalue(), 40))
    survives(lambda: matrix_from(path, 4, "classifiers"))


@given(
    shape=st.lists(st.integers(-1, 10**13), max_size=3),
    dtype=st.sampled_from(["<f4", "|O", "<c8", "|S9"]),
)
def test_a_matrix_that_claims_much(tmp_path, shape, dtype):
    header = repr({"descr": dtype, "fortran_order": False, "shape": tuple(shape)}).encode()
    text = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    path = tmp_path / "rows.npy"
    path.write_bytes(text)
    survives(lambda: matrix_from(path, 4, "classifiers"))


@given(data=st.data())
def test_a_cache_of_embeddings(tiny_bundle, tmp_path, monkeypatch, data):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle(tmp_path, Bundle.open(tiny_bundle, verify=False).manifest)
    place = cache_place()
    cache = TextCache(bundle, "fp32", 4, lambda _: None)
    wanted = np.array([1, 0, 0, 0], np.float32)
    cache.put({"cat": wanted})
    if data.draw(st.booleans()):
        place.write_bytes(damaged(data, place.read_bytes(), 60))
    else:
        value = data.draw(
            st.one_of(
                st.none(), st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(max_size=40)
            )
        )
        with sqlite3.connect(place) as database:
            database.execute("UPDATE embeddings SET vector = ?", (value,))
        database.close()
    found: dict[str, np.ndarray] = {}
    told: list[str] = []
    again = TextCache(bundle, "fp32", 4, told.append)
    survives(lambda: found.update(again.get(["cat"])))
    assert all((vector == wanted).all() for vector in found.values())
    place.unlink()


@given(data=st.data())
def test_a_video_with_changed_bytes(small_video, tmp_path, data):
    path = tmp_path / "video.mp4"
    path.write_bytes(damaged(data, small_video.read_bytes(), 200))

    def watch() -> None:
        with open_video(str(path)) as video:
            for _ in video:
                pass

    survives(watch)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the file
@given(data=st.data())
def test_a_folder_of_pictures(tmp_path, data):
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF"]))
    Image.new("RGB", (16, 12), (200, 30, 90)).save(buffer, kind)
    folder = tmp_path / "frames"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "0.png").write_bytes(damaged(data, buffer.getvalue(), 30))

    def watch() -> None:
        with open_video(str(folder)) as video:
            for _ in video:
                pass

    survives(watch)
