"""Annotation, results and split files: what is read of each format, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from generated_annotations import burst_from, compressed, generate, uncompressed, write
from pycocotools import mask as coco

from openvis_rt import errors
from openvis_rt.errors import InputError
from openvis_rt.evaluation import results_files
from openvis_rt.evaluation.annotation_files import annotations_from_ytvis, read_annotations
from openvis_rt.evaluation.burst import annotations_from_burst
from openvis_rt.evaluation.masks import areas_of, rle_from_json
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.results_files import read_entries, write_official_results
from openvis_rt.evaluation.splits import BURST_COMMON, read_split
from openvis_rt.evaluation.vocabularies import vocabulary_for
from openvis_rt.vocabulary import Vocabulary

HEIGHT, WIDTH = 20, 30


def mask() -> np.ndarray:
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    out[5:15, 10:25] = 1
    return out


def small(**changes) -> dict:
    """One video of two frames with one track."""
    entry = {
        "id": 1,
        "video_id": 7,
        "category_id": 3,
        "iscrowd": 0,
        "segmentations": [compressed(mask()), None],
    }
    entry |= changes
    return {
        "videos": [
            {"id": 7, "height": HEIGHT, "width": WIDTH, "file_names": ["a/0.jpg", "a/1.jpg"]}
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [entry],
    }


def saved(folder: Path, data: object, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


# masks


def polygon(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.mark.parametrize("form", [compressed(mask()), uncompressed(mask())])
def test_both_forms_of_run_lengths_are_the_mask(form):
    rle = rle_from_json(form, HEIGHT, WIDTH)
    assert rle == compressed(mask())
    assert areas_of([rle, None], HEIGHT, WIDTH).tolist() == [150, 0]


def test_polygons_are_filled_and_taken_together():
    rle = rle_from_json([polygon(10, 5, 25, 15), polygon(0, 0, 2, 2)], HEIGHT, WIDTH)
    wanted = mask()
    wanted[0:2, 0:2] = 1
    assert coco.iou([rle], [compressed(wanted)], [0])[0, 0] == 1


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_nothing_is_no_mask(nothing):
    assert rle_from_json(nothing, HEIGHT, WIDTH) is None


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": "1"}, r"size \[30, 20\].*\[20, 30\]"),
        ({"counts": "1"}, "size None"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, "sum to 15.*600 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 601]}, "run lengths from 0 up"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5]}, "run lengths from 0 up"),
        ({"size": [HEIGHT, WIDTH]}, "size and counts"),
        ("text", "a list of polygons"),
        ([[1, 2, 3, 4]], "at least three corners"),
        ([[1, 2, 3, 4, 5, "6"]], "at least three corners"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "at least three corners"),  # pycocotools would allocate 1e9
        ([[0, 0, float("nan"), 0, 9, 9]], "at least three corners"),
    ],
)
def test_a_segmentation_of_another_form_is_refused(form, message):
    with pytest.raises(InputError, match=message):
        rle_from_json(form, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "text", ["", "P", "oooooooooooo0", "\n\n", "é", "`" * 40, compressed(mask())["counts"][:-1]]
)
def test_a_text_that_is_no_run_lengths_is_refused(text):
    good = compressed(mask())
    for rles in ([{**good, "counts": text}], [good, {**good, "counts": text}, good]):
        with pytest.raises(InputError, match="no COCO run lengths of a frame of 20x30"):
            areas_of(rles, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "change",
    [
        {"height": -4},
        {"height": 0},
        {"width": 2**31},
        {"areas": [10**400]},
        {"areas": [float("nan")]},
        {"areas": [-5.0]},
    ],
)
def test_numbers_that_no_video_has_are_refused(tmp_path, change):
    video = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_names": ["a/0.jpg"]}
    track = {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [compressed(mask())]}
    data = {
        "videos": [{**video, **{k: v for k, v in change.items() if k != "areas"}}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{**track, **{k: v for k, v in change.items() if k == "areas"}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError):
        read_annotations(tmp_path / "a.json")


def test_json_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="is no JSON"):
        read_annotations(tmp_path / "deep.json")


def test_areas_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 300), (240, 320), (1080, 1920)):
        masks = [(rng.random((height, width)) < p).astype(np.uint8) for p in (0, 0.01, 0.5, 1)]
        masks.append(np.kron(np.eye(2), np.ones((height, width)))[:height, :width].astype(np.uint8))
        rles = [compressed(m) for m in masks]
        assert areas_of(rles, height, width).tolist() == [int(coco.area(r)) for r in rles]


# annotation files


def test_a_file_of_ytvis(tmp_path):
    found = read_annotations(saved(tmp_path, small(areas=[150, None])))
    assert (found.format, found.class_agnostic, found.splits) == ("ytvis", False, {})
    [video], [track] = found.videos, found.tracks
    assert (video.name, video.frames) == ("a", ("a/0.jpg", "a/1.jpg"))
    assert (track.category_id, track.area, track.pixels.tolist()) == (3, 150, [150, 0])


def test_a_file_of_uvo_is_evaluated_without_classes(tmp_path):
    data = small()
    data["videos"][0]["ytid"] = "abc"
    found = read_annotations(saved(tmp_path, data))
    assert (found.format, found.class_agnostic, found.videos[0].name) == ("uvo", True, "abc")
    assert read_annotations(saved(tmp_path, data), "ytvis").class_agnostic is False


@pytest.mark.parametrize("name", [None, ["cat"], {"x": 1}, True, 3])
def test_a_category_whose_name_is_no_text_is_refused(tmp_path, name):
    data = small()
    data["categories"][0]["name"] = name
    with pytest.raises(InputError, match="the name of a category is a text"):
        read_annotations(saved(tmp_path, data))


def test_groups_that_the_file_names():
    data = small()
    data["categories"][0]["partition"] = "base"
    data["categories"][1]["partition"] = "novel"
    assert annotations_from_ytvis(data, "ytvis").splits == {"base": {3}, "novel": {5}}
    data["categories"] = [
        {"id": 3, "name": "cat", "frequency": "f"},
        {"id": 5, "name": "dog", "frequency": "r"},
    ]
    assert annotations_from_ytvis(data, "ytvis").splits == {"base": {3}, "novel": {5}}


def test_a_file_of_burst():
    truth, _ = burst_from(generate(1, categories=8, tracks=9), 1)
    found = annotations_from_burst(truth)
    assert [category.id for category in found.categories] == [4, 5, 13, 347, 554]
    assert {track.category_id for track in found.tracks} <= {4, 5, 13, 347, 554}
    assert found.videos[0].frames[0] == "GEN/video_1/frame0000.jpg"
    assert found.split == "val"
    for entry in truth["categories"]:
        entry["split"] = "common" if entry["id"] == 5 else "uncommon"
    assert annotations_from_burst(truth).splits["common"] == {5}
    assert len(BURST_COMMON) == 78


def test_the_annotations_of_a_test_set_have_no_tracks(tmp_path):
    for nothing in (None, []):
        data = small() | {"annotations": nothing}
        assert read_annotations(saved(tmp_path, data)).tracks == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "is a list, such as a results file"),
        ("{", "is no JSON"),
        ('"text"', "holds str"),
        ({"images": [], "annotations": [], "categories": []}, "single images, as COCO"),
        ({"videos": [], "images": [], "tracks": [], "categories": []}, "format of TAO"),
        ({"info": 1, "licenses": 2}, "has info, licenses, but not both"),
        (small(segmentations=None), "boxes only cannot be used"),
        (small(segmentations=[None]), "1 segmentations, and the video has 2 frames"),
        (small(video_id=8), "is of video 8, which 'videos' does not list"),
        (small(category_id=8), "is of category 8, which 'categories' does not list"),
        (small(category_id="cat"), "'category_id' is a whole number"),
        ({"videos": [], "categories": []}, "lists no video"),
        (small() | {"categories": [{"id": 1}]}, "'name' is missing"),
        (small() | {"categories": [{"id": 3, "name": "a"}] * 2}, "category ids 3 stand twice"),
        ({"sequences": [{}], "categories": []}, "'dataset' is missing"),
        ({"sequences": 1, "categories": []}, "no annotation file of the format burst"),
    ],
)
def test_an_annotation_file_that_cannot_be_used_is_refused(tmp_path, data, message):
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(saved(tmp_path, data))
    assert "file.json" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the annotation file .* cannot be read"):
        read_annotations(tmp_path / "none.json")


def test_the_first_videos_pass_over_results_of_the_others():
    data = generate(3, videos=4)
    whole = annotations_from_ytvis(data.annotations, "ytvis")
    part = whole.first(2)
    assert [video.id for video in part.videos] == [1, 2]
    assert part.left_out == {3, 4}
    report = evaluate(part, data.results)
    assert report.predictions == sum(entry["video_id"] <= 2 for entry in data.results)


# results files


def entry(**changes) -> dict:
    found = {
        "video_id": 7,
        "category_id": 3,
        "score": 0.5,
        "segmentations": [compressed(mask()), None],
    }
    return {k: v for k, v in (found | changes).items() if v is not ...}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([entry(segmentations=..., bboxes=[[0, 0, 1, 1], None])], "boxes, which do not suffice"),
        ([entry(segmentations=...)], "no 'segmentations'"),
        ([entry(score=...)], "no 'score'"),
        ([entry(), entry(video_id=8)], "entry 2 .* no video 8; their ids are such as 7"),
        ([entry(video_id=[7])], r"'video_id' is a whole number; found \[7\]"),
        ([entry(category_id="cat")], "'category_id' is a whole number"),
        ([entry(category_id=1)], "no category 1; their ids are such as 3, 5"),
        ([entry(segmentations=[None])], "1 segmentations, and video 7 has 2"),
        ([entry(video_id=2**63)], "'video_id' is a whole number; found 9223372036854775808"),
        ([entry(score="high")], "finite number; found 'high'"),
        ([entry(score=10**400)], "finite number; found 10000"),
        ("[" + json.dumps(entry()).replace("0.5", "NaN") + "]", "finite number; found nan"),
        ([entry(segmentations=[{"size": [1, 1], "counts": "1"}, None])], r"size \[1, 1\]"),
        ([3], "entry 1 .* an object is needed"),
        ("[" + json.dumps(entry()), "cut off or damaged"),
        ("[" + json.dumps(entry()) + json.dumps(entry()) + "]", "no comma"),
        ("[1,]", "cut off or damaged|object is needed"),
        ("[] []", "something after the end"),
        ("", "neither a list nor an object"),
        ({"annotations": []}, "an object with annotations"),
    ],
)
def test_results_that_cannot_be_used_are_refused(tmp_path, results, message):
    annotations = read_annotations(saved(tmp_path, small()))
    with pytest.raises(InputError, match=message):
        evaluate(annotations, saved(tmp_path, results, "results.json"))


def test_results_of_any_class_serve_an_evaluation_without_classes(tmp_path):
    annotations = read_annotations(saved(tmp_path, small()))
    report = evaluate(annotations, [entry(category_id=99)], class_agnostic=True)
    assert report.overall["AR100"] == 1


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_a_results_file_is_read_entry_by_entry(tmp_path, monkeypatch, block):
    monkeypatch.setattr(results_files, "_BLOCK", block)
    annotations = read_annotations(saved(tmp_path, small()))
    wanted = [entry(score=score, name='a, [b] {c} "d" é') for score in (0.25, 1, 0)]
    for indent in (None, 2):
        path = saved(tmp_path, " \n" + json.dumps(wanted, indent=indent) + "\n", "results.json")
        assert list(read_entries(path, annotations)) == wanted
    assert list(read_entries(saved(tmp_path, "[ ]", "results.json"), annotations)) == []


def test_a_file_in_pieces_gives_the_same_figures(tmp_path, monkeypatch):
    paths = write(tmp_path, generate(5))
    before = evaluate(*paths)
    monkeypatch.setattr(results_files, "_BLOCK", 100)
    assert evaluate(*paths) == before


@pytest.mark.parametrize("form", ["ytvis", "burst"])
def test_official_results_are_what_was_written(tmp_path, form):
    data = generate(6, categories=8, crowd=0.0)
    annotations = annotations_from_ytvis(data.annotations, "ytvis")
    ids = [1, 2, 3, 4, 5, 6, 7, 8]
    if form == "burst":
        annotations = annotations_from_burst(burst_from(data, 6)[0])
        ids = [4, 13, 347, 554, 5, 4, 13, 5]
    entries = [
        {**e, "category_id": ids[e["category_id"] - 1]}
        for e in sorted(data.results, key=lambda e: e["video_id"])
        if any(e["segmentations"])  # BURST's form has no track that no frame shows
    ]
    path = tmp_path / "results.json"
    write_official_results(path, annotations, entries)
    found = list(read_entries(path, annotations))
    keys = ("video_id", "category_id", "segmentations")
    plain = sorted(entries, key=str), sorted(({k: e[k] for k in e} for e in found), key=str)
    assert len(plain[0]) == len(plain[1])
    for first, second in zip(*(sorted(map(str, _kept(p, keys))) for p in plain), strict=True):
        assert first == second
    assert sorted(e["score"] for e in found) == pytest.approx(sorted(e["score"] for e in entries))
    assert evaluate(annotations, path).overall == evaluate(annotations, entries).overall


def _kept(entries, keys):
    return [[entry[key] for key in keys] for entry in entries]


# groups and names


def test_a_split_file_has_ids_and_names(tmp_path):
    annotations = read_annotations(saved(tmp_path, small()))
    path = saved(tmp_path, {"base": [3], "novel": ["Dog"]}, "split.json")
    assert read_split(path, annotations) == {"base": {3}, "novel": {5}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no split file"),
        ({}, "no split file"),
        ({"base": []}, "'base' lists no class"),
        ({"base": [3, 9, "bird"]}, "2 classes that the annotations do not have: 9, 'bird'"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(tmp_path, data, message):
    annotations = read_annotations(saved(tmp_path, small()))
    with pytest.raises(InputError, match=message):
        read_split(saved(tmp_path, data, "split.json"), annotations)


def test_the_names_to_look_for_are_the_categories(tmp_path):
    annotations = read_annotations(saved(tmp_path, small()))
    words, classes = vocabulary_for(annotations)
    assert (words.names, classes.ids) == (("cat", "dog"), (3, 5))
    words, classes = vocabulary_for(annotations, Vocabulary(("bird", "puppy, Dog", "cat")))
    assert classes.ids == (None, 5, 3)
    with pytest.raises(errors.VocabularyError, match=r"1 of the 2 categories .* such as 'cat'"):
        vocabulary_for(annotations, Vocabulary(("bird", "dog")))
    words, classes = vocabulary_for(annotations, Vocabulary(("bird",)), class_agnostic=True)
    assert (classes.ids, classes.one_per_track) == ((3,), True)
