"""`openvis eval`: a bundle over a data set, broken off, gone on with, and with videos that fail."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from generated_annotations import burst_from, generate, write
from generated_data_set import write_data_set
from PIL import Image

from openvis_rt import Pipeline, evaluate, predict_videos, read_annotations, vocabulary_for
from openvis_rt.errors import DependencyError, OutputError, VideoError
from openvis_rt.evaluation.annotations import Video
from openvis_rt.evaluation.pictures import write_pictures
from openvis_rt.evaluation.predicting import prepare_output
from openvis_rt.evaluation.sources import annotated_frames

pytest.importorskip("onnxruntime", reason="running needs the extra [cpu]")


@pytest.fixture
def openvis(openvis):
    """`openvis eval` in this process: exit code, stdout, stderr."""
    return partial(openvis, "eval")


@pytest.fixture
def data_set(tmp_path) -> tuple[Path, Path]:
    return write_data_set(tmp_path / "data", videos=3)


@pytest.fixture
def asked(cached_bundle, data_set, tmp_path) -> tuple[object, ...]:
    """Arguments of a whole run into ``tmp_path / "out"``."""
    annotations, videos = data_set
    return (
        *(cached_bundle, "--annotations", annotations, "--videos", videos),
        *("-o", tmp_path / "out", "--backend", "onnxruntime", "--device", "cpu"),
    )


def test_a_run_writes_results_metrics_and_pictures(openvis, asked, data_set, tmp_path):
    code, out, err = openvis(*asked, "--json")
    assert code == 0, err
    told = json.loads(out)
    folder = tmp_path / "out"
    names = {"results.json", "metrics.json", "metrics.md", "precision_recall.svg", "classes.svg"}
    assert {path.name for path in folder.iterdir()} == {*names, "videos"}
    assert sorted(path.name for path in (folder / "videos").iterdir()) == [
        f"000000{number}.json" for number in (10, 11, 12)
    ]
    results = json.loads((folder / "results.json").read_text())
    assert {entry["category_id"] for entry in results} <= {3, 5, 7}
    assert {entry["video_id"] for entry in results} == {10, 11, 12}
    assert told["metrics"] == json.loads((folder / "metrics.json").read_text())
    assert told["metrics"]["predictions"] == len(results) == 60
    assert evaluate(data_set[0], results).to_json() == told["metrics"]
    assert (told["run"]["done"], told["run"]["taken"], told["run"]["failed"]) == (3, 0, {})
    code, out, err = openvis("--annotations", data_set[0], "--results", folder / "results.json")
    assert (code, err) == (0, "")
    assert "AP50" in out


def test_results_are_those_of_the_pipeline(asked, openvis, data_set, cached_bundle, tmp_path):
    openvis(*asked)
    frames = [
        np.array(Image.open(data_set[1] / "clip-1" / f"{index:05}.jpg")) for index in range(4)
    ]
    names = ["disc", "box", "triangle"]
    with Pipeline.open(
        cached_bundle, vocabulary=names, backend="onnxruntime", mode="video"
    ) as pipeline:
        for _ in pipeline.stream(frames):
            pass
        wanted = pipeline.finish().to_results(11)
    for found in wanted:
        found["category_id"] = 1 + 2 * found["category_id"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry for entry in results if entry["video_id"] == 11] == wanted


def test_a_run_goes_on_where_it_was(openvis, asked, tmp_path):
    _, out, _ = openvis(*asked, "--json")
    first = json.loads(out)
    code, out, err = openvis(*asked)
    assert (code, "--resume to go on" in err) == (2, True)
    part = tmp_path / "out" / "videos" / "00000011.json"
    part.write_text(part.read_text()[:-100])  # as no write of ours leaves it
    _, out, _ = openvis(*asked, "--json", "--resume")
    second = json.loads(out)
    assert (second["run"]["done"], second["run"]["taken"]) == (3, 2)
    assert second["metrics"] == first["metrics"]
    _, out, _ = openvis(*asked, "--json", "--resume", "--detections", 5)
    third = json.loads(out)  # other options: nothing can be taken
    assert (third["run"]["taken"], third["metrics"]["predictions"]) == (0, 15)
    _, out, _ = openvis(*asked, "--json", "--overwrite", "--detections", 5, "--limit", 1)
    fourth = json.loads(out)
    assert (fourth["run"]["taken"], fourth["run"]["done"]) == (0, 1)
    assert fourth["metrics"]["videos"] == 1
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 1


def test_results_stay_until_a_new_run_can_begin(openvis, asked, data_set, tmp_path):
    openvis(*asked)
    made = sorted((tmp_path / "out" / "videos").iterdir())
    (tmp_path / "none.txt").write_text("")
    code, _, _ = openvis(*asked, "--overwrite", "--vocabulary", tmp_path / "none.txt")
    assert (code, sorted((tmp_path / "out" / "videos").iterdir())) == (2, made)
    code, _, err = openvis(*asked, "--overwrite", "--resume")
    assert (code, "give one of both" in err) == (2, True)
    moved = data_set[1].rename(tmp_path / "elsewhere")
    others = [moved if argument == data_set[1] else argument for argument in asked]
    _, out, _ = openvis(*others, "--json", "--resume")
    assert json.loads(out)["run"]["taken"] == 0  # other videos


def test_a_video_that_fails_is_told_and_counts_as_empty(openvis, asked, data_set, tmp_path):
    broken = data_set[1] / "clip-1" / "00002.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    shutil.move(data_set[1] / "clip-2", data_set[1] / "away")
    code, out, _ = openvis(*asked, "--json")
    assert code == 2
    told = json.loads(out)
    assert set(told["run"]["failed"]) == set(told["metrics"]["failed"]) == {"clip-1", "clip-2"}
    assert "00002.jpg cannot be read as an image" in told["run"]["failed"]["clip-1"]
    assert "4 of the 4 frames of clip-2 are missing" in told["run"]["failed"]["clip-2"]
    assert "clip-1" in (tmp_path / "out" / "metrics.md").read_text()
    assert (told["metrics"]["videos"], told["metrics"]["tracks"]) == (3, 9)
    assert told["metrics"]["predictions"] == 20
    broken.write_bytes(good)
    shutil.move(data_set[1] / "away", data_set[1] / "clip-2")
    code, out, _ = openvis(*asked, "--json", "--resume")
    told = json.loads(out)
    assert (code, told["run"]["taken"], told["run"]["failed"]) == (0, 1, {})
    assert told["metrics"]["predictions"] == 60


def test_a_test_set_gives_results_and_no_metrics(openvis, asked, data_set, tmp_path):
    data = json.loads(data_set[0].read_text())
    data_set[0].write_text(json.dumps({k: v for k, v in data.items() if k != "annotations"}))
    code, out, err = openvis(*asked)
    assert (code, out) == (0, "")
    assert "nothing was measured" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "videos"}
    code, _, err = openvis(
        "--annotations", data_set[0], "--results", tmp_path / "out" / "results.json"
    )
    assert (code, "no annotated track" in err) == (2, True)


def test_an_evaluation_without_classes_reports_each_track_once(openvis, asked, tmp_path):
    code, out, _ = openvis(*asked, "--json", "--class-agnostic")
    told = json.loads(out)["metrics"]
    assert (code, told["class_agnostic"], len(told["classes"])) == (0, True, 1)
    assert 0 < told["predictions"] <= 3 * 10  # of ten queries, and not of 20 under all classes


def test_burst_results_have_the_form_of_burst(openvis, cached_bundle, tmp_path):
    truth, _ = burst_from(
        generate(2, videos=2, categories=8, sizes=((64, 96),), frames=(2, 3), crowd=0.0), 2
    )
    annotations = tmp_path / "burst.json"
    annotations.write_text(json.dumps(truth))
    for sequence in truth["sequences"]:
        folder = tmp_path / "frames" / sequence["dataset"] / sequence["seq_name"]
        folder.mkdir(parents=True)
        for name in sequence["annotated_image_paths"]:
            Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / name)
    args = (cached_bundle, "--annotations", annotations, "--videos", tmp_path / "frames")
    code, out, err = openvis(*args, "-o", tmp_path / "out", "--backend", "onnxruntime", "--json")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [s["seq_name"] for s in results["sequences"]] == ["video_1", "video_2"]
    told = json.loads(out)["metrics"]
    assert set(told["groups"]) == {"common", "uncommon"}
    again = evaluate(annotations, tmp_path / "out" / "results.json")
    assert again.overall == told["overall"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give a bundle to run, or --results"),
        (("bundle", "--results", "r.json"), "give a bundle to run, or --results"),
        (("bundle",), "--videos needs the folder"),
        (("bundle", "--videos", "nowhere"), "nowhere is none"),
        (("bundle", "--videos", "."), "--output needs a folder"),
        (("bundle", "--videos", ".", "-o", "out", "--classifier", "no.npy"), "no.npy is no file"),
        (("--results", "out/r.json", "-o", "out", "--overwrite"), "no results file out/r.json"),
    ],
)
def test_what_does_not_go_together_is_refused(openvis, args, message):
    code, _, err = openvis(*args, "--annotations", "a.json")
    assert (code, message in err) == (2, True)


def test_a_folder_of_others_is_left_alone(tmp_path):
    out = tmp_path / "out"
    prepare_output(out)
    prepare_output(out)  # empty: nothing to lose
    (out / "thesis.txt").write_text("mine")
    for taken in (False, True):
        with pytest.raises(OutputError):
            prepare_output(out, taken=taken)
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_whole_videos_only(data_set, cached_bundle, tmp_path):
    annotations, out = read_annotations(data_set[0]), tmp_path / "out"
    words, classes = vocabulary_for(annotations)

    (out / "videos").mkdir(parents=True)
    for name in ("metrics.json", "videos/.partial-abc.json"):  # of an earlier run, and of a killed
        (out / name).write_text("old")

    def interrupt(name: str, *_: object) -> None:
        if name == "video clip-2":
            raise KeyboardInterrupt

    with Pipeline.open(cached_bundle, vocabulary=words, backend="onnxruntime") as pipeline:
        with pytest.raises(KeyboardInterrupt):
            predict_videos(
                pipeline, annotations, data_set[1], out, classes=classes, progress=interrupt
            )
        assert [path.name for path in out.iterdir()] == ["videos"]
        assert sorted(p.name for p in (out / "videos").iterdir()) == [
            "00000010.json",
            "00000011.json",
        ]
        prepare_output(out, taken=True)
        found = predict_videos(pipeline, annotations, data_set[1], out, classes=classes)
    assert (found.done, found.taken) == (3, 2)


def test_two_runs_do_not_write_into_one_folder(data_set, cached_bundle, tmp_path):
    annotations = read_annotations(data_set[0])
    words, classes = vocabulary_for(annotations)
    told = []

    def second(name: str, *_: object) -> None:
        if not told and name.startswith("video"):
            told.append(name)
            with pytest.raises(OutputError, match="another process writes"):
                predict_videos(pipeline, annotations, data_set[1], tmp_path / "o", classes=classes)

    with Pipeline.open(cached_bundle, vocabulary=words, backend="onnxruntime") as pipeline:
        found = predict_videos(
            pipeline, annotations, data_set[1], tmp_path / "o", classes=classes, progress=second
        )
    assert (told, found.done) == (["video clip-0"], 3)


# where frames come from


def test_only_annotated_frames_are_read(tmp_path):
    path, videos = write_data_set(tmp_path, videos=1, frames=6, step=2)
    [video] = read_annotations(path).videos
    with annotated_frames(video, videos) as frames:
        images = [frame.image for frame in frames]
    assert len(images) == 3
    for index, image in zip((0, 2, 4), images, strict=True):
        assert np.array_equal(image, np.array(Image.open(videos / f"clip-0/{index:05}.jpg")))


def write_video(path: Path, count: int) -> None:
    """Frame k has the grey of 20 k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=64, height=48, pix_fmt="bgr0")
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * index, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def greys(video: Video, folder: Path) -> list[int]:
    with annotated_frames(video, folder) as frames:
        return [round(int(frame.image.mean()) / 20) for frame in frames]


def test_a_video_file_gives_the_frames_that_the_names_number(tmp_path):
    write_video(tmp_path / "abc.mkv", 8)
    names = ("abc/0.png", "abc/3.png", "abc/7.png")
    assert greys(Video(1, "abc", 48, 64, names), tmp_path) == [0, 3, 7]
    late = Video(1, "abc", 48, 64, ("abc/3.png", "abc/9.png"))
    with pytest.raises(VideoError, match="1 of the 2 frames that are annotated"):
        greys(late, tmp_path)
    named = Video(1, "abc", 48, 64, ("abc/first.png", "abc/last.png"))
    with pytest.raises(VideoError, match="do not end with rising numbers"):
        greys(named, tmp_path)
    with pytest.raises(VideoError, match=r"have 48x64 .* annotated at 10x10"):
        greys(Video(1, "abc", 10, 10, names), tmp_path)


# pictures


def test_pictures_are_drawn_of_every_report(tmp_path):
    for seed, options in ((1, {}), (2, {"categories": 60, "tracks": 40}), (3, {"categories": 1})):
        folder = tmp_path / str(seed)
        folder.mkdir()
        report = evaluate(*write(folder, generate(seed, **options)))
        paths = write_pictures(report, folder)
        assert len(paths) == (1 if seed == 3 else 2)
        for path in paths:
            text = path.read_text()
            assert text.startswith("<?xml")
            assert "<svg" in text
        again = [path.read_text() for path in write_pictures(report, folder)]
        assert again == [path.read_text() for path in paths]


def test_without_matplotlib_the_metrics_are_written_and_pictures_are_told(
    openvis, monkeypatch, tmp_path
):
    annotations, results = write(tmp_path, generate(1))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"openvis-rt\[eval\]"):
        write_pictures(evaluate(annotations, results), tmp_path)
    args = ("--annotations", annotations, "--results", results, "-o", tmp_path / "out")
    code, _, err = openvis(*args)
    assert (code, "no pictures were drawn" in err) == (0, True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"metrics.json", "metrics.md"}
