"""Rows of a text classifier from a file or an array: what is taken, and what every refusal says."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from openvis_rt import BackendOptions, Pipeline, Selection
from openvis_rt.errors import InputError, VocabularyError
from openvis_rt.runtime.classifier import classifier_from_rows, closed_classifier
from openvis_rt.runtime.matrices import matrix_from
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.vocabulary import Vocabulary

WORDS = ("cat", "dog", "monkey, ape")
VOCABULARY = Vocabulary(WORDS)
WIDTH = 32  # of the tiny models' CLIP


def rows(count: int = len(WORDS), width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


def saved(tmp_path: Path, array: np.ndarray, name: str = "classifier.npy") -> Path:
    path = tmp_path / name
    with path.open("wb") as file:  # whatever the name ends in
        np.save(file, array)
    return path


def refused(source: Path | np.ndarray, width: int = WIDTH) -> str:
    with pytest.raises(InputError) as caught:
        matrix_from(source, width, "classifiers")
    assert type(caught.value) is InputError
    assert caught.value.exit_code == 2
    if isinstance(source, Path):
        assert str(source) in str(caught.value)
    return str(caught.value)


def misfit(array: np.ndarray) -> str:
    with pytest.raises(VocabularyError) as caught:
        classifier_from_rows(VOCABULARY, array)
    assert caught.value.exit_code == 2
    return str(caught.value)


# matrices


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_of_any_kind_become_float32(tmp_path, dtype):
    wanted = rows().astype(dtype)
    for source in (wanted, saved(tmp_path, wanted)):
        found = matrix_from(source, WIDTH, "classifiers")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(np.float32))


def test_a_matrix_that_was_saved_transposed_is_read_as_it_was(tmp_path):
    wanted = np.asfortranarray(rows())
    path = saved(tmp_path, wanted)
    assert b"'fortran_order': True" in path.read_bytes()
    np.testing.assert_array_equal(matrix_from(path, WIDTH, "classifiers"), wanted)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (rows(width=512), "float32 [3, 512]"),
        (rows().T, "float32 [32, 3]"),
        (rows()[0], "float32 [32]"),
        (rows()[None], "float32 [1, 3, 32]"),
        (np.float32(1), "float32 []"),
        (rows()[:0], "float32 [0, 32]"),
        (np.ones((3, WIDTH), np.int64), "int64 [3, 32]"),
        (np.ones((3, WIDTH), bool), "bool [3, 32]"),
        (np.ones((3, WIDTH), np.complex64), "complex64 [3, 32]"),
        (np.full((3, WIDTH), "a"), "<U1 [3, 32]"),
    ],
)
def test_what_is_no_matrix_of_that_width_is_refused(tmp_path, array, found):
    for source in (saved(tmp_path, array), np.asarray(array)):
        message = refused(source)
        assert found in message
        assert "classifiers of this model are floats [rows, 32]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path, value):
    array = rows()
    array[1, 2] = value
    for source in (array, saved(tmp_path, array)):
        assert "NaN or infinity; classifiers are finite" in refused(source)


def test_numbers_beyond_float32_are_refused_without_a_warning():
    assert "infinity" in refused(rows().astype(np.float64) * 1e300)


# files


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    assert "none.npy does not exist" in refused(tmp_path / "none.npy")
    assert "is a directory" in refused(tmp_path)


@pytest.mark.parametrize("name", ["rows.txt", "rows.npz", "rows", "rows.NPY2"])
def test_another_format_is_refused_by_its_name(tmp_path, name):
    message = refused(saved(tmp_path, rows(), name))
    assert "classifiers are read from a .npy file" in message


@pytest.mark.parametrize("name", ["features.pkl", "features.pth", "features.pt"])
def test_a_pickle_is_never_opened_and_the_message_tells_how_to_convert_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(_Bomb()))
    assert "pickled dicts" not in refused(path)  # the public classifiers are .npy files
    with pytest.raises(InputError, match="pickled dicts") as caught:
        matrix_from(path, WIDTH, "image embeddings")
    assert f"torch.load('{path}'" in str(caught.value)
    assert "numpy.save" in str(caught.value)


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickled_objects_in_a_npy_file_are_not_loaded(tmp_path):
    array = np.array([[_Bomb()] * WIDTH] * 3, dtype=object)
    path = tmp_path / "rows.npy"
    np.save(path, array, allow_pickle=True)
    message = refused(path)
    assert "pickled Python objects, which could run code; nothing was loaded" in message
    assert "numpy.save" in message
    path.write_bytes(pickle.dumps(_Bomb()))  # no .npy file at all
    refused(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path, rows())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "is damaged, or no .npy file" in refused(path)


def test_an_archive_under_the_name_of_an_array_is_refused(tmp_path):
    path = tmp_path / "rows.npy"
    with path.open("wb") as file:
        np.savez(file, rows=rows())
    refused(path)


def test_a_header_that_asks_for_more_than_there_is_memory_is_refused(tmp_path):
    path = tmp_path / "rows.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, WIDTH)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(640))
    refused(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ", 512), }",
        "{1: 2, 'descr': '<f4'}",
        "{[]: 2}",
        "-" * 4000,
    ],
    ids=["huge", "key", "list", "deep"],
)
def test_headers_that_break_numpys_parser_are_refused(tmp_path, header):
    path = tmp_path / "rows.npy"
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match="damaged"):
        matrix_from(path, 512, "classifiers")


def test_no_damage_gets_past_the_one_kind_of_error(tmp_path):
    """A changed byte anywhere is read as some numbers, or is refused; there is no other error."""
    path = saved(tmp_path, rows())
    data = path.read_bytes()
    rng = random.Random(0)
    refusals, others = 0, set()
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            matrix_from(path, WIDTH, "classifiers")
        except InputError:
            refusals += 1
        except Exception as exc:
            others.add(type(exc).__name__)
    assert not others
    assert refusals > 200


# rows


def test_rows_are_normalised_and_named():
    made = classifier_from_rows(VOCABULARY, rows() * np.float32(3))
    assert made.names == WORDS
    assert made.rows == [1, 1, 1]  # synonyms of a name are only its label
    assert made.embeddings.dtype == np.float32
    wanted = rows() / np.linalg.norm(rows(), axis=1, keepdims=True)
    np.testing.assert_allclose(made.embeddings, wanted, atol=1e-7)


def test_the_public_codes_row_of_zeros_for_the_background_is_left_out():
    with_background = np.concatenate([rows(), np.zeros((1, WIDTH), np.float32)])
    made = classifier_from_rows(VOCABULARY, with_background)
    np.testing.assert_array_equal(
        made.embeddings, classifier_from_rows(VOCABULARY, rows()).embeddings
    )


@pytest.mark.parametrize("count", [1, 2, 4, 5, 1196])
def test_another_number_of_rows_than_names_is_refused(count):
    message = misfit(rows(count))
    assert f"{count} rows and the vocabulary 3 names" in message
    assert "one name a row" in message


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_of_zeros_stands_for_no_class(place):
    array = rows()
    array[place] = 0
    assert f"row {place} of the classifier is all zeros" in misfit(array)


def test_zeros_in_place_of_a_class_are_no_background():
    first = np.concatenate([np.zeros((1, WIDTH), np.float32), rows()])
    assert "4 rows" in misfit(first)  # the background is the last row
    two = np.concatenate([rows(), np.zeros((2, WIDTH), np.float32)])
    assert "5 rows" in misfit(two)
    last = rows()
    last[2] = 0  # as many rows as names: the last one is a class
    assert "row 2" in misfit(last)


@pytest.mark.parametrize("scale", [1e-10, 1e15, 1e25])
def test_the_length_of_a_row_does_not_matter(scale):
    made = classifier_from_rows(VOCABULARY, rows() * np.float32(scale))
    wanted = classifier_from_rows(VOCABULARY, rows()).embeddings
    np.testing.assert_allclose(made.embeddings, wanted, atol=1e-6)


def test_a_closed_vocabulary_has_names_and_no_rows():
    made = closed_classifier(VOCABULARY, 3, "minvis-r50")
    assert (made.names, made.rows, made.embeddings) == (WORDS, [1, 1, 1], None)


@pytest.mark.parametrize("classes", [1, 2, 4, 40])
def test_a_closed_vocabulary_wants_all_of_its_names(classes):
    with pytest.raises(VocabularyError) as caught:
        closed_classifier(VOCABULARY, classes, "minvis-r50")
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert f"minvis-r50 knows {classes} classes" in message
    assert "the vocabulary has 3 names" in message
    assert "order" in message


# in a pipeline


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [i for i, _ in sample_frames(width=90, height=60, fps=2, seconds=3, objects=2)]


@pytest.fixture
def video_of(frames, tmp_path_factory):
    """The result of a tiny model's video."""
    pytest.importorskip("torch", reason="exporting needs the extra [export]")
    from tiny_ovformer import shared_bundle

    def video_of(classifier, name="ovformer-video-r50", vocabulary=WORDS):
        with Pipeline.open(
            shared_bundle(name, tmp_path_factory),
            vocabulary=vocabulary,
            classifier=classifier,
            selection=Selection(threshold=0.0),
            backend="onnxruntime",
            backend_options=BackendOptions(device="cpu"),
        ) as pipeline:
            list(pipeline.stream(frames))
            return pipeline.finish()

    return video_of


def test_a_file_says_what_its_rows_say(video_of, tmp_path):
    wanted = video_of(rows())
    assert {i.name for i in wanted.instances} == set(WORDS)
    with_background = np.concatenate([rows(), np.zeros((1, WIDTH), np.float32)])
    assert video_of(saved(tmp_path, with_background)) == wanted
    transposed = video_of(saved(tmp_path, np.asfortranarray(rows())))
    for ours, theirs in zip(transposed.instances, wanted.instances, strict=True):
        assert (ours.track_id, ours.category_id) == (theirs.track_id, theirs.category_id)
        assert ours.score == pytest.approx(theirs.score, abs=1e-6)  # norms add up in another order


def test_classes_change_places_with_their_rows(video_of):
    one = video_of(rows())
    other = video_of(rows()[::-1], vocabulary=WORDS[::-1])
    scores = [{(i.track_id, i.name): i.score for i in v.instances} for v in (one, other)]
    assert scores[0].keys() == scores[1].keys()
    assert all(scores[0][pair] == pytest.approx(scores[1][pair], abs=1e-6) for pair in scores[0])


def test_refusals_come_before_any_frame(video_of, tmp_path):
    with pytest.raises(InputError, match=r"\[3, 512\]; classifiers of this model .* 32\]"):
        video_of(rows(width=512))
    with pytest.raises(VocabularyError, match="5 rows and the vocabulary 3 names"):
        video_of(saved(tmp_path, rows(5)))


def test_a_model_with_its_own_classes_takes_no_classifier(video_of):
    own = tuple(f"class {index}" for index in range(6))
    with pytest.raises(InputError, match="minvis-r50 has a closed vocabulary") as caught:
        video_of(rows(6), "minvis-r50", own)
    assert caught.value.exit_code == 2
    with pytest.raises(VocabularyError, match=r"knows 6 classes.*has 3 names"):
        video_of(None, "minvis-r50")
    assert {i.name for i in video_of(None, "minvis-r50", own).instances} <= set(own)
