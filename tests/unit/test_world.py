"""The generated world: what is in it, that its masks are what is seen, and that it can be read."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from openvis_rt.errors import InputError, OutputError
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.evaluation.splits import read_split
from openvis_rt.runtime.video.run_lengths import decode_mask
from openvis_rt.training import world as world_module
from openvis_rt.training.world import World, write_dataset
from openvis_rt.training.world_categories import (
    ATTRIBUTES,
    BASE,
    CATEGORIES,
    NOVEL,
    NOVEL_SHAPES,
    SHAPES,
)
from openvis_rt.training.world_motion import Actor, Path, render
from openvis_rt.training.world_scenes import draw_camera
from openvis_rt.training.world_sprites import draw_sprite
from openvis_rt.vocabulary import Vocabulary

STILL = ((0.0, 0.0, 0.0),) * 4
INDEX = {category.phrase: index for index, category in enumerate(CATEGORIES)}

PINNED = {  # videos of validation: phrases, mean of the pixels, pixels of each object
    0: (["striped key"], 151.77, [24114]),
    2: (["green gear", "dotted gear", "dotted gear"], 136.16, [28603, 68194, 55635]),
}


# categories


def test_what_a_video_means_to_show_is_known_without_drawing_it():
    world = World("test", (48, 84), 4)
    for number in range(6):
        shown, planned = world[number].categories.tolist(), list(world.planned(number))
        assert 1 <= len(shown) <= len(planned) <= 4
        assert all(shown.count(index) <= planned.count(index) for index in shown)
    with pytest.raises(IndexError):
        world.planned(-1)


def test_phrases_are_a_vocabulary_of_many_attributes_and_shapes():
    assert len(ATTRIBUTES) >= 12
    assert len(SHAPES) >= 16
    assert len(Vocabulary(tuple(c.phrase for c in CATEGORIES))) == len(CATEGORIES)
    assert {"striped star", "red ring", "dotted arrow", "fish with eyes"} <= set(INDEX)


def test_novel_shapes_are_never_base_and_all_else_is_seen_apart():
    base, novel = ([CATEGORIES[i] for i in group] for group in (BASE, NOVEL))
    assert sorted(BASE + NOVEL) == list(range(len(CATEGORIES)))
    assert {c.shape for c in base} == set(SHAPES) - set(NOVEL_SHAPES)
    assert {c.attribute for c in base} == set(ATTRIBUTES)
    known = [c for c in novel if c.shape not in NOVEL_SHAPES]
    assert len({c.shape for c in known}) >= 12  # novel combinations of shapes that are known
    assert len({c.attribute for c in known}) == len(ATTRIBUTES)


def test_every_category_is_drawn_and_shapes_differ():
    rng = np.random.default_rng(0)
    covers = {}
    for category in CATEGORIES:
        alpha = np.asarray(draw_sprite(category, 32, rng))[..., 3] > 127
        assert 0.08 < alpha.mean() < 0.9, category.phrase
        if category.attribute.name == "red":
            covers[category.shape] = alpha
    for one, other in itertools.combinations(covers.values(), 2):
        assert (one & other).sum() / (one | other).sum() < 0.85


def test_colours_and_parts_are_what_the_phrase_says():
    rng = np.random.default_rng(0)
    red, green, blue, _ = np.asarray(draw_sprite(CATEGORIES[INDEX["red disc"]], 64, rng))[32, 32]
    assert red > 150
    assert max(green, blue) < 80
    eyes = np.asarray(draw_sprite(CATEGORIES[INDEX["square with eyes"]], 64, rng))[..., :3]
    for x in (32 - 8, 32 + 8):  # a black pupil each, in white
        assert eyes[32, x].max() < 30
        assert eyes[32 - 6, x].min() > 230


def test_every_object_has_a_pale_rim_and_its_colour_within():
    rng = np.random.default_rng(0)
    for phrase in ("black square", "striped square", "square with eyes"):
        row = np.asarray(draw_sprite(CATEGORIES[INDEX[phrase]], 64, rng))[48]
        left = int(np.argmax(row[:, 3] > 127))
        assert row[left, :3].min() > 230, phrase
        assert row[left + 4, :3].min() < 230, phrase


# videos


def test_a_video_is_the_same_whoever_asks_and_in_whatever_order():
    first = World("test", (48, 64), 3)
    wanted = [first[i] for i in range(3)]
    again = World("test", (48, 64), 3)
    for index in (2, 0, 1):
        video = again[index]
        assert video.name == wanted[index].name
        np.testing.assert_array_equal(video.images, wanted[index].images)
        np.testing.assert_array_equal(video.masks, wanted[index].masks)
        np.testing.assert_array_equal(video.categories, wanted[index].categories)


def test_splits_seeds_and_places_are_different_videos():
    videos = [World(split, (48, 64), 1)[0].images for split in ("train", "validation", "test")]
    videos += [World("train", (48, 64), 1, seed=1)[0].images, World("train", (48, 64), 1)[1].images]
    for one, other in itertools.combinations(videos, 2):
        assert np.abs(one.astype(int) - other).mean() > 2


def test_the_world_is_the_same_on_every_machine():
    for index, (phrases, mean, pixels) in PINNED.items():
        video = World("validation")[index]
        assert [CATEGORIES[i].phrase for i in video.categories] == phrases
        # another NumPy or Pillow may round a few pixels otherwise
        assert float(video.images.mean()) == pytest.approx(mean, abs=0.1)
        assert video.masks.sum((1, 2, 3)).tolist() == pytest.approx(pixels, rel=0.01, abs=8)


def test_training_shows_base_categories_only_unless_told_otherwise():
    def shown(world: World) -> set[int]:
        return {int(c) for index in range(40) for c in world[index].categories}

    assert shown(World("train", (32, 48), 1)) <= set(BASE)
    assert shown(World("train", (32, 48), 1, novel=True)) & set(NOVEL)
    validation = shown(World("validation", (32, 48), 1))
    assert validation & set(BASE)
    assert validation & set(NOVEL)


def test_a_video_has_three_objects_at_most_that_are_large_in_it():
    edges: list[float] = []
    world = World("train", (64, 112), 1)
    counts = set()
    for index in range(100):
        video = world[index]
        counts.add(len(video.categories))
        for mask, visible in zip(video.masks[:, 0], video.visible[:, 0], strict=True):
            if visible > 0.98:
                rows, columns = (mask.any(axis).nonzero()[0] for axis in (1, 0))
                edges.append((max(np.ptp(rows), np.ptp(columns)) + 1) / 64)
    assert counts == {1, 2, 3}
    assert 0.4 < np.median(edges) < 0.75


def test_masks_are_disjoint_and_tracks_leave_and_come_back():
    world, returned = World("validation", (48, 80), 24), 0
    for index in range(8):
        video = world[index]
        assert video.images.shape == (24, 48, 80, 3)
        assert video.images.dtype == np.uint8
        assert video.masks.shape == (len(video.categories), 24, 48, 80)
        assert video.masks.sum(0).max() <= 1
        assert (video.masks.sum((2, 3)).max(1) >= 16).all()
        assert video.visible.shape == video.masks.shape[:2]
        assert (video.visible[video.masks.any((2, 3))] > 0).all()
        assert video.visible.max() <= 1
        seen = video.masks.any((2, 3)).astype(int)
        returned += int((np.count_nonzero(np.diff(seen, axis=1) == 1, axis=1) > 0).sum())
    assert returned >= 2


@pytest.mark.parametrize(
    "arguments", [("training",), ("train", (16, 160)), ("train", (96, 160), 0)]
)
def test_a_world_without_anything_to_see_is_refused(arguments):
    with pytest.raises(InputError):
        World(*arguments)


def test_videos_are_numbered_from_zero():
    with pytest.raises(IndexError):
        World("train")[-1]


def test_visible_is_the_part_that_nothing_hides():
    parts = []
    for index in range(12):
        video = World("train", (64, 96), 3, most_objects=1)[index]
        assert len(video.categories) == 1
        top, left, bottom, right = (
            *(video.masks[0][:, 0].any(1), video.masks[0][:, :, 0].any(1)),
            *(video.masks[0][:, -1].any(1), video.masks[0][:, :, -1].any(1)),
        )
        inside = ~(top | left | bottom | right)
        parts += video.visible[0, inside].tolist()
    assert np.median(parts) > 0.97  # but for the few that something stands before


# rendering


def square(edge: int, colour: int = 255) -> Image.Image:
    return Image.new("RGBA", (edge, edge), (colour, colour, colour, 255))


def still_camera():
    rng = np.random.default_rng(0)
    while (camera := draw_camera(4, rng)).at(2)[:2] != (0, 0):
        pass
    return camera


def test_a_mask_is_where_the_object_is_seen_and_no_further():
    camera = still_camera()
    zoom = camera.at(0)[2]
    back = Actor(square(64), Path((0.0, 0.0), (0.0, 0.0), 0, STILL, 0.5 / zoom, 0.3, 0.0))
    front = Actor(square(64, 90), Path((0.2, 0.1), (0.0, 0.0), 0, STILL, 0.3 / zoom, 0.0, 0.0))
    picture = Image.new("RGB", (160, 96))
    seen = render(picture, [back, front], camera, 0, shadows=False)
    gray = np.asarray(picture.convert("L")).astype(int)
    np.testing.assert_array_equal(seen[0] > 0.6, gray > 0.6 * 255 + 0.4 * 90)
    assert seen.sum(0).max() <= 1 + 1e-6
    assert seen[1].sum() == pytest.approx((0.3 * 96) ** 2, rel=0.03)  # nothing hides it
    alone = render(Image.new("RGB", (160, 96)), [back], camera, 0, shadows=False)
    assert alone[0].sum() == pytest.approx((0.5 * 96) ** 2, rel=0.03)
    np.testing.assert_allclose(alone[0] * (1 - seen[1]), seen[0], atol=1e-6)


def test_the_camera_moves_objects_as_it_moves_the_background():
    canvas = Image.new("RGB", (240, 144))
    canvas.paste((255, 255, 255), (110, 62, 150, 102))  # 40 pixels, off the centre by 10, 10
    edge = 40 / 96
    thing = Actor(square(80), Path((10 / 96, 10 / 96), (0.0, 0.0), 0, STILL, edge, 0.0, 0.0))
    rng = np.random.default_rng(5)
    moved = 0
    for _ in range(6):
        camera = draw_camera(20, rng)
        for frame in (0, 19):
            view = camera.background(canvas, frame, (96, 160))
            there = np.asarray(view)[..., 0] > 127
            seen = render(view, [thing], camera, frame, shadows=False)[0] > 0.5
            assert (seen & there).sum() / (seen | there).sum() > 0.93
            moved += abs(camera.at(frame)[0]) > 0.05
    assert moved >= 4


def test_what_lies_outside_the_frame_is_not_drawn():
    away = Actor(square(64), Path((3.0, 0.0), (0.0, 0.0), 0, STILL, 0.4, 0.0, 0.0))
    picture = Image.new("RGB", (64, 48))
    seen = render(picture, [away], still_camera(), 0, shadows=True)
    assert seen.shape == (1, 48, 64)
    assert not seen.any()
    assert not np.asarray(picture).any()


# files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set, and its videos."""
    folder = tmp_path_factory.mktemp("world") / "validation"
    world = World("validation", (48, 80), 12)
    videos = [world[index] for index in range(6)]
    told: list[int] = []
    write_dataset(folder, "validation", iter(videos), progress=told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    return folder, videos


def test_the_truth_held_against_itself_has_an_ap_of_100(written):
    folder, _ = written
    annotations = read_annotations(folder / "annotations.json")
    truth = json.loads((folder / "annotations.json").read_text())["annotations"]
    entries = [{**track, "score": 1.0} for track in truth]
    groups = read_split(folder / "split.json", annotations)
    report = evaluate(annotations, entries, splits=groups)
    assert set(report.groups) == {"base", "novel"}
    for figures in (report.overall, *report.groups.values()):
        assert figures["AP"] == pytest.approx(1, abs=1e-12)
    wrong = [{**e, "category_id": e["category_id"] % len(CATEGORIES) + 1} for e in entries]
    assert evaluate(annotations, wrong).overall["AP"] < 0.2


def test_annotations_are_the_masks_and_null_where_nothing_is_seen(written):
    folder, videos = written
    annotations = read_annotations(folder / "annotations.json")
    tracks = iter(annotations.tracks)
    hidden = 0
    for video in videos:
        for mask, index in zip(video.masks, video.categories, strict=True):
            track = next(tracks)
            assert not track.crowd
            assert annotations.categories[track.category_id - 1].name == CATEGORIES[index].phrase
            for rle, frame in zip(track.segmentations, mask, strict=True):
                hidden += rle is None
                assert (rle is None) == (not frame.any())
                if rle is not None:
                    np.testing.assert_array_equal(decode_mask(rle), frame)
    assert next(tracks, None) is None
    assert hidden


def test_frames_are_read_as_the_evaluation_reads_them(written):
    folder, videos = written
    annotations = read_annotations(folder / "annotations.json")
    with annotated_frames(annotations.videos[1], folder / "JPEGImages") as frames:
        images = np.stack([frame.image for frame in frames])
    assert np.abs(images.astype(int) - videos[1].images).mean() < 6  # JPEG


def test_nothing_is_replaced_that_is_not_a_data_set_of_ours(written, tmp_path):
    folder, videos = written
    with pytest.raises(OutputError, match="exists"):
        write_dataset(folder, "validation", videos[:1])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        write_dataset(tmp_path, "validation", videos[:1], overwrite=True)
    with pytest.raises(InputError, match="at least one video"):
        write_dataset(tmp_path / "none", "validation", [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_writes_a_data_set_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["world", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            world_module.main()
        return int(ended.value.code or 0)

    asked = (tmp_path / "out", "--split", "train", "--videos", 2, "--frames", 2)
    assert run(*asked, "--height", 32, "--width", 48) == 0
    annotations = read_annotations(tmp_path / "out" / "annotations.json")
    assert [video.frames[0] for video in annotations.videos] == [
        "train-00000/00000.jpg",
        "train-00001/00000.jpg",
    ]
    assert run(*asked) == 2
    assert "error:" in capsys.readouterr().err
    assert run(*asked, "--overwrite") == 0
