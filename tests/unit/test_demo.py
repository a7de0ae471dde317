"""The demo: which video it chooses, what it counts and draws, and a whole run of one system.

Nothing here depends on how good the shipped weights are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.main import app
from openvis_rt.demo import demo as demo_module
from openvis_rt.demo import engines, scene
from openvis_rt.demo.engines import build_if_possible
from openvis_rt.demo.pictures import Panel, write_contact_sheet, write_side_by_side
from openvis_rt.demo.scene import choose_scene, some_phrases, write_scene
from openvis_rt.demo.tracks import FoundTrack, colors_by_object, tracks_of
from openvis_rt.errors import DependencyError, InputError, OutputError, VocabularyError
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.runtime.video.drawing import color_of
from openvis_rt.runtime.video.reading import open_video
from openvis_rt.runtime.video.results import FrameResult, Instance, read_frame_log
from openvis_rt.runtime.video.run_lengths import box_of, decode_mask, empty_rle, encode_masks
from openvis_rt.training.world import World
from openvis_rt.training.world_categories import ATTRIBUTES, CATEGORIES, SHAPES

SMALL = {"size": (48, 84), "frames": 3}
MODEL = "instformer-mini"
PHRASES = [category.phrase for category in CATEGORIES]


@pytest.fixture
def few_videos(monkeypatch):
    """A search that takes no time."""
    monkeypatch.setattr(scene, "_SEARCHED", 60)
    monkeypatch.setattr(scene, "_DRAWN", 3)


def instances_of(masks: np.ndarray, name: str = "thing") -> list[FrameResult]:
    """Tracks 0, 1, ... from masks bool [n, T, H, W]."""
    _, frames, height, width = masks.shape
    runs = [encode_masks(track.astype(np.uint8)) for track in masks]
    return [
        FrameResult(
            t,
            None,
            height,
            width,
            tuple(
                Instance(number, 1, name, 0.5, box_of(runs[number][t]), runs[number][t])
                for number in range(len(masks))
                if masks[number, t].any()
            ),
        )
        for t in range(frames)
    ]


# which video


def test_a_seed_decides_what_is_shown_and_looked_for(few_videos):
    first, again, other = (choose_scene(seed=seed, **SMALL) for seed in (3, 3, 4))
    assert np.array_equal(first.video.images, again.video.images)
    assert first.vocabulary == again.vocabulary
    assert first.video.name != other.video.name
    assert first.video.name.startswith("test-")


def test_without_phrases_it_looks_for_what_is_there_and_for_what_is_not(few_videos):
    found = choose_scene(seed=1, **SMALL)
    assert set(found.shown) == set(found.objects)
    distractors = set(found.vocabulary.names) - set(found.objects)
    assert len(distractors) == 4
    assert distractors <= set(PHRASES)
    assert found.remarks == ()
    words = {word for phrase in found.objects for word in phrase.split()}
    assert any(words & set(phrase.split()) for phrase in distractors)  # some must be told apart


def test_the_video_that_shows_most_is_chosen(few_videos):
    world = World("test", SMALL["size"], SMALL["frames"])
    drawn = np.random.default_rng((5, 0)).integers(0, 100_000, 60).tolist()[:3]
    most = max(len(set(world[number].categories.tolist())) for number in drawn)
    assert len(set(choose_scene(seed=5, **SMALL).objects)) == most


def test_given_phrases_choose_the_video(few_videos):
    world = World("test", SMALL["size"], SMALL["frames"])
    numbers = np.random.default_rng((0, 0)).integers(0, 100_000, 60).tolist()
    last = world[numbers[-1]]  # none of those that are drawn without phrases
    phrase = CATEGORIES[last.categories[0]].phrase
    found = choose_scene([phrase.upper() + ", thing", "a dog"], seed=0, **SMALL)
    assert phrase in found.objects
    assert found.shown == (phrase.upper() + ", thing",)
    assert found.vocabulary.names == (phrase.upper() + ", thing", "a dog")
    assert found.names[found.objects.index(phrase)] == 0
    assert len(found.remarks) == 1
    assert "knows no a dog" in found.remarks[0]


def test_phrases_that_no_video_shows_are_looked_for_all_the_same(few_videos):
    found = choose_scene(["person", "bicycle"], **SMALL)
    assert found.shown == ()
    assert set(found.names) == {None}
    [remark] = found.remarks
    assert "none of the 60 videos" in remark
    assert "person; bicycle" in remark
    assert some_phrases(6)[0] in remark


def test_phrases_that_are_not_in_one_video_together_are_told(few_videos):
    found = choose_scene(PHRASES[:40], **SMALL)
    assert found.shown
    [remark] = found.remarks
    missing = [phrase for phrase in PHRASES[:40] if phrase not in found.shown]
    assert "this one shows no " + "; no ".join(missing) in remark


@pytest.mark.parametrize("phrases", [["red ring", "red ring"], [""]])
def test_unusable_phrases_are_refused(phrases):
    with pytest.raises(VocabularyError):
        choose_scene(phrases, **SMALL)


def test_what_is_written_is_what_the_truth_says(few_videos, tmp_path):
    found = choose_scene(seed=2, **SMALL)
    write_scene(tmp_path, found)
    data = read_annotations(tmp_path / "annotations.json", "ytvis")
    assert [category.name for category in data.categories] == list(found.vocabulary.names)
    with annotated_frames(data.videos[0], tmp_path) as frames:
        for frame, image in zip(frames, found.video.images, strict=True):
            assert np.array_equal(frame.image, image)
    height, width = SMALL["size"]
    entries = []
    for number, place in enumerate(found.names):
        masks = [
            next(
                (i.segmentation for i in frame.instances if i.track_id == number + 1),
                empty_rle(height, width),
            )
            for frame in found.truth()
        ]
        assert np.array_equal(
            np.stack([decode_mask(mask) for mask in masks]), found.video.masks[number]
        )
        entries.append(
            {"video_id": 1, "category_id": place + 1, "score": 1.0, "segmentations": masks}
        )
    assert evaluate(data, entries).overall["AP"] == pytest.approx(1.0)


# what is counted


def boxes(*areas: tuple[slice, slice]) -> np.ndarray:
    """Bool [n, 4, 20, 30]: each is the same area in every frame."""
    masks = np.zeros((len(areas), 4, 20, 30), bool)
    for mask, area in zip(masks, areas, strict=True):
        mask[:, area[0], area[1]] = True
    return masks


TRUE = boxes((slice(0, 10), slice(0, 10)), (slice(10, 20), slice(20, 30)))


def test_tracks_are_paired_with_the_objects_that_they_cover():
    found = tracks_of(instances_of(TRUE[::-1]), TRUE)
    assert [(t.id, t.object, t.iou) for t in found] == [(0, 1, 1.0), (1, 0, 1.0)]
    assert (found[0].name, found[0].score) == ("thing", 0.5)


def test_the_iou_is_that_of_the_whole_video():
    half = TRUE[:1].copy()
    half[0, 2:] = False  # seen in two of four frames
    [track] = tracks_of(instances_of(half), TRUE)
    assert (track.object, track.iou) == (0, 0.5)


def test_of_two_tracks_on_one_object_the_better_one_has_it():
    part = boxes((slice(0, 10), slice(0, 6)))
    found = tracks_of(instances_of(np.concatenate((part, TRUE[:1]))), TRUE)
    assert [(t.object, t.iou) for t in found] == [(None, 0.0), (0, 1.0)]


def test_a_few_common_pixels_are_no_object():
    assert [
        t.object for t in tracks_of(instances_of(boxes((slice(9, 11), slice(9, 20)))), TRUE)
    ] == [None]
    assert tracks_of(instances_of(TRUE[:0]), TRUE) == []


def test_an_object_has_one_colour_in_every_system():
    tracks = [
        FoundTrack(7, "a", 0.5, 1, 0.9),
        FoundTrack(8, "b", 0.5, None, 0),
        FoundTrack(9, "c", 0.5, None, 0),
    ]
    colors = colors_by_object(tracks, 2)
    assert colors[7] == color_of(2)
    assert len({*colors.values(), color_of(1)}) == 4


# what is drawn


def panels(masks: np.ndarray) -> list[Panel]:
    colors = {number: color_of(number + 1) for number in range(len(masks))}
    legend = [(f"thing {number}", color) for number, color in colors.items()]
    empty = [replace(result, instances=()) for result in instances_of(masks)]
    return [
        Panel("Truth", "AP 100", instances_of(masks), colors, legend),
        Panel("Other", "AP 0", empty, {}, []),
    ]


def count_of(picture: np.ndarray, color: tuple[int, int, int], tolerance: int = 12) -> int:
    return int((np.abs(picture.astype(int) - color).max(-1) <= tolerance).sum())


def test_the_sheet_has_a_row_for_each_panel(tmp_path):
    images = np.full((4, 20, 30, 3), 100, np.uint8)
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, images, panels(TRUE), heading="looked for: thing", columns=3)
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB"))
    wide = np.flatnonzero((picture == 100).all(-1).sum(0) > 50)  # columns of cells
    assert len(np.flatnonzero(np.diff(wide) > 4)) == 2  # gaps between three
    half = picture.shape[0] // 2
    for number in (1, 2):  # of a contour and the legend, in the upper row alone
        color = color_of(number)
        assert count_of(picture[:half], color, 24) > 500
        assert count_of(picture[half + 60 :], color, 24) == 0


def test_a_sheet_of_a_short_video_shows_each_frame_once(tmp_path):
    sizes = []
    for columns in (4, 9):
        path = tmp_path / f"{columns}.png"
        images = np.full((4, 20, 30, 3), 100, np.uint8)
        write_contact_sheet(path, images, panels(TRUE), heading="x" * 900, columns=columns)
        with Image.open(path) as file:
            sizes.append(file.size)
    assert sizes[0] == sizes[1]


def test_systems_stand_side_by_side(tmp_path):
    images = np.full((4, 20, 30, 3), 100, np.uint8)
    write_side_by_side(tmp_path / "overlay.mp4", images, panels(TRUE), 8)
    with open_video(str(tmp_path / "overlay.mp4")) as video:
        frames = [frame.image for frame in video]
        assert video.fps == 8
    assert len(frames) == 4
    height, width = frames[0].shape[:2]
    factor = round(384 / 20)
    assert (height, width) == (44 + factor * 20, 2 * factor * 30 + 6)
    left, right = frames[0][44:, : width // 2 - 6], frames[0][44:, width // 2 + 6 :]
    assert np.abs(right.astype(int) - 100).max() < 20  # nothing was found there
    assert np.abs(left.astype(int) - 100).max() > 80


# engines


def test_without_a_library_no_engine_is_built(monkeypatch, bundle_copy):
    def missing(_):
        raise DependencyError("tensorrt_rtx", "rtx")

    monkeypatch.setattr(engines, "tensorrt_library", missing)
    said = build_if_possible(Bundle.open(bundle_copy))
    assert said.startswith("no engine was built: tensorrt_rtx is not installed")


@pytest.mark.parametrize(("compiles_for_a_list", "targets"), [(True, ["sm89"]), (False, None)])
def test_engines_are_built_for_the_gpu_that_is_here(
    monkeypatch, bundle_copy, compiles_for_a_list, targets
):
    class Library:
        def __init__(self):
            self.compiles_for_a_list = compiles_for_a_list

        def __str__(self):
            return "a library"

    asked = {}
    monkeypatch.setattr(engines, "tensorrt_library", lambda _: Library())
    monkeypatch.setattr(engines, "build_engines", lambda _, **options: asked.update(options))
    monkeypatch.setattr(engines, "gpu_of_this_machine", lambda: None)
    assert "no NVIDIA GPU" in build_if_possible(Bundle.open(bundle_copy))
    assert asked == {}
    monkeypatch.setattr(engines, "gpu_of_this_machine", lambda: ("GPU", "sm89"))
    said = build_if_possible(Bundle.open(bundle_copy))
    assert said == "engines were built with a library for GPU"
    assert asked["targets"] == targets


# a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The report of a demo of one system over three frames, and the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "_DRAWN", 3)
        output = tmp_path_factory.mktemp("run") / "demo"
        told = []
        report = demo_module.run_demo(
            output, models=(MODEL,), size=(128, 224), frames=3, progress=lambda *a: told.append(a)
        )
    return report, output, told


def test_a_run_leaves_what_it_says(run):
    report, output, told = run
    assert {path.name for path in output.iterdir()} == {
        *("video", "annotations.json", "bundles", "results"),
        *("overlay.mp4", "contact-sheet.png", "demo.json"),
    }
    assert json.loads((output / "demo.json").read_text()) == report.to_json()
    assert all(Path(path).is_file() for path in report.to_json()["files"].values())
    bundle = Bundle.open(output / "bundles" / MODEL)
    assert list(bundle.manifest.graphs) == ["fp32"]
    assert "reference/reference.json" in bundle.manifest.files
    assert any(phase.startswith(f"1/1 {MODEL}: comparing") for phase, _, _ in told)
    with open_video(str(output / "overlay.mp4")) as video:
        assert len(list(video)) == 3


def test_its_figures_are_those_of_its_files(run):
    report, output, _ = run
    [system] = report.systems
    data = read_annotations(output / "annotations.json", "ytvis")
    results = output / "results" / MODEL / "results.json"
    assert system.ap == evaluate(data, results).overall["AP"]
    logged = read_frame_log(output / "results" / MODEL / "frames.jsonl")
    assert len(logged) == report.frames == 3
    assert {t.id for t in system.tracks} == {i.track_id for r in logged for i in r.instances}
    assert system.found + system.others == len(system.tracks)
    assert system.named <= system.found <= system.objects == len(report.objects)
    assert system.frames_per_second > 0


def test_another_folder_is_not_replaced(run, tmp_path):
    _, output, _ = run
    with pytest.raises(OutputError, match="exists already"):
        demo_module.run_demo(output, models=(MODEL,))
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="not made by openvis"):
        demo_module.run_demo(tmp_path, models=(MODEL,), overwrite=True)
    with pytest.raises(InputError, match="no model"):
        demo_module.run_demo(tmp_path / "new", models=())
    assert not (tmp_path / "new").exists()


def test_what_breaks_off_leaves_nothing(few_videos, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "load_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_module.run_demo(tmp_path / "demo", **SMALL)
    assert list(tmp_path.iterdir()) == []


# the command


def test_the_command_prints_a_table_and_json(run, monkeypatch, tmp_path):
    report, _, _ = run
    asked = {}

    def ran(output, phrases, **options):
        asked.update(options, output=output, phrases=phrases)
        return report

    monkeypatch.setattr(demo_module, "run_demo", ran)
    words = ["-c", "red ring", "-c", "blue star", "--seed", "4", "-o", str(tmp_path / "new")]
    ended = CliRunner().invoke(app, ["demo", *words, "--json"])
    assert ended.exit_code == 0, ended.output
    assert asked["phrases"] == ["red ring", "blue star"]
    assert (asked["seed"], asked["output"]) == (4, tmp_path / "new")
    assert json.loads(ended.stdout) == report.to_json()
    for text in (MODEL, "named right", report.video, "contact-sheet.png"):
        assert text in ended.stderr


def test_the_command_refuses_a_folder_that_exists(tmp_path):
    ended = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert isinstance(ended.exception, OutputError)
    assert ended.exception.exit_code == 2
    assert "--overwrite" in str(ended.exception)


def test_the_words_of_the_world_are_listed():
    ended = CliRunner().invoke(app, ["demo", "--list"])
    assert ended.exit_code == 0
    assert all(shape in ended.stdout for shape in SHAPES)
    assert all(attribute.phrase.format("...") in ended.stdout for attribute in ATTRIBUTES)
    listed = json.loads(CliRunner().invoke(app, ["demo", "--list", "--json"]).stdout)
    assert listed["phrases"] == PHRASES
    assert set(listed["attributes"]) == {attribute.name for attribute in ATTRIBUTES}
