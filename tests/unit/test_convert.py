"""Finished results in other programs' forms, read back with those programs' own readers."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import warnings
from collections import defaultdict
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from openvis_rt.convert import mots, rerun
from openvis_rt.convert.convert import FORMATS, ConvertOptions, convert_results
from openvis_rt.convert.finished import FinishedRun
from openvis_rt.errors import DependencyError, InputError, OutputError
from openvis_rt.runtime.video.results import FrameLog, FrameResult, Instance, write_categories
from openvis_rt.runtime.video.run_lengths import box_of, decode_mask, encode_masks, subsampled

HEIGHT, WIDTH, FRAMES = 64, 96, 6
NAMES = ("person", 'dog, "the" one', "水\u2028母")
SCORES = (0.9, 0.6, 0.3)
IDS = (0, 4, 9)


def masks_of(frame: int) -> np.ndarray:
    """Uint8 [3, H, W]: the first two overlap, the third is missing in frames 2 and 3."""
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[0, 5:20, frame : frame + 15] = 1
    masks[1, 10:30, 8:30] = 1
    masks[2, 31:39, 40:59] = frame not in (2, 3)
    return masks


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    folder.mkdir()
    write_categories(folder / "categories.json", NAMES)
    with FrameLog(folder / "frames.jsonl") as log:
        for frame in range(FRAMES):
            found = [
                Instance(IDS[place], place + 1, NAMES[place], SCORES[place], box_of(rle), rle)
                for place, rle in enumerate(encode_masks(masks_of(frame)))
                if box_of(rle)[2]
            ]
            log.write(FrameResult(frame, frame / 10, HEIGHT, WIDTH, tuple(found)))
    return folder


def seen() -> list[tuple[int, int]]:
    """Frames, and the places of the objects that they show."""
    return [(f, place) for f in range(FRAMES) for place in range(3) if masks_of(f)[place].any()]


def test_a_summary_has_tracks_with_their_frames(run_folder):
    summary = FinishedRun.open(run_folder).summary()
    assert (summary.height, summary.width) == (HEIGHT, WIDTH)
    assert summary.times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [(t.track_id, t.name, t.score) for t in summary.tracks] == [
        *zip(IDS, NAMES, SCORES, strict=True)
    ]
    assert [track.frames for track in summary.tracks] == [[*range(6)], [*range(6)], [0, 1, 4, 5]]


def test_a_track_has_the_class_that_its_frames_sum_up_for(tmp_path):
    """In stream mode a track's class may change."""
    write_categories(tmp_path / "categories.json", ("cat", "dog"))
    [rle] = encode_masks(np.ones((1, 4, 4), np.uint8))
    with FrameLog(tmp_path / "frames.jsonl") as log:
        for frame, (number, score) in enumerate([(1, 0.9), (2, 0.5), (2, 0.6)]):
            found = Instance(3, number, ("cat", "dog")[number - 1], score, (0, 0, 4, 4), rle)
            log.write(FrameResult(frame, None, 4, 4, (found,)))
    summary = FinishedRun.open(tmp_path).summary()
    [track] = summary.tracks
    assert (track.category_id, track.name, track.score) == (2, "dog", 0.6)
    assert summary.times == pytest.approx([0.0, 0.04, 0.08])  # no clock: 25 a second


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("size", [(7, 9), (17, 23), (40, 64), (3, 3)])
def test_subsampled_run_lengths_are_those_of_the_subsampled_mask(size, density, step):
    mask = (np.random.default_rng(step).random((1, *size)) < density).astype(np.uint8)
    half = step // 2
    expected = encode_masks(mask[:, half::step, half::step])[0]
    assert subsampled(encode_masks(mask)[0], step) == expected


def test_coco_reads_the_annotations(run_folder, tmp_path, capsys):
    path = tmp_path / "coco.json"
    assert convert_results(run_folder, "coco", path) == {"annotations": len(seen())}
    coco = COCO(str(path))
    capsys.readouterr()
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES)
    assert [image["frame_index"] for image in coco.loadImgs(coco.getImgIds())] == [*range(FRAMES)]
    read = []
    for annotation in coco.loadAnns(coco.getAnnIds()):
        frame = coco.imgs[annotation["image_id"]]["frame_index"]
        place = IDS.index(annotation["track_id"])
        read.append((frame, place))
        mask = masks_of(frame)[place]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, under numpy 2
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["score"] == SCORES[place]
        assert annotation["category_id"] == place + 1
    assert read == seen()


def test_the_pictures_and_the_text_of_mots_say_the_same(run_folder, tmp_path):
    folder = tmp_path / "mots"
    numbers = {"person": 2, NAMES[1]: 3, NAMES[2]: 4}
    assert convert_results(run_folder, "mots", folder) == {"classes": numbers}
    assert json.loads((folder / "classes.json").read_text()) == numbers
    from_text = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint16)
    for line in (folder / "instances.txt").read_text().splitlines():
        frame, number, kind, height, width, counts = line.split(" ")
        assert int(kind) == int(number) // 1000
        rle = {"size": [int(height), int(width)], "counts": counts}
        from_text[int(frame) - 1] += decode_mask(rle) * np.uint16(number)
    for frame in range(FRAMES):
        with Image.open(folder / "instances" / f"{frame + 1:06d}.png") as picture:
            read = np.array(picture)
        assert picture.mode.startswith("I;16")
        np.testing.assert_array_equal(read, from_text[frame])
        expected = np.zeros((HEIGHT, WIDTH), np.uint16)
        for place in (2, 1, 0):  # the best on top
            expected[masks_of(frame)[place] != 0] = (2001, 3001, 4001)[place]
        np.testing.assert_array_equal(read, expected)


def test_trackeval_takes_the_text_of_mots(run_folder, tmp_path, capsys):
    """As ground truth and as a tracker's result: everything is found."""
    trackeval = pytest.importorskip("trackeval", reason="comes with the extra [dev]")
    convert_results(run_folder, "mots", tmp_path / "out")
    truth, results = tmp_path / "gt" / "seq" / "gt", tmp_path / "trackers" / "ours" / "data"
    for folder, name in ((truth, "gt.txt"), (results, "seq.txt")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes((tmp_path / "out" / "instances.txt").read_bytes())
    (tmp_path / "gt" / "seq" / "seqinfo.ini").write_text(f"[Sequence]\nseqLength={FRAMES}\n")
    data_set = trackeval.datasets.MOTSChallenge(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SEQ_INFO": {"seq": FRAMES},
            "SKIP_SPLIT_FOL": True,
            "PRINT_CONFIG": False,
        }
    )
    raw = data_set.get_raw_seq_data("ours", "seq")  # refuses masks that overlap
    data = data_set.get_preprocessed_seq_data(raw, "pedestrian")
    hota = trackeval.metrics.HOTA().eval_sequence(data)
    capsys.readouterr()
    assert data["num_gt_dets"] == FRAMES  # one person, in every frame
    assert np.all(hota["HOTA"] == 1.0)


def test_mots_refuses_more_classes_than_a_pixel_can_name(tmp_path):
    names = [f"name {number}" for number in range(70)]
    write_categories(tmp_path / "categories.json", names)
    [rle] = encode_masks(np.ones((1, 2, 2), np.uint8))
    found = tuple(Instance(n, n + 1, names[n], 0.5, (0, 0, 2, 2), rle) for n in range(70))
    with FrameLog(tmp_path / "frames.jsonl") as log:
        log.write(FrameResult(0, 0.0, 2, 2, found))
    with pytest.raises(InputError, match="more than 61 classes besides car and pedestrian"):
        convert_results(tmp_path, "mots", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_class_of_mots_has_the_number_of_what_is_ignored():
    assert 10 not in mots._FREE
    assert max(mots._FREE) * mots.INSTANCES + mots.INSTANCES - 1 <= np.iinfo(np.uint16).max


def test_trackeval_takes_the_boxes_of_mot(run_folder, tmp_path, capsys):
    trackeval = pytest.importorskip("trackeval", reason="comes with the extra [dev]")
    results = tmp_path / "trackers" / "ours" / "data"
    results.mkdir(parents=True)
    told = convert_results(run_folder, "mot", results / "seq.txt")
    assert told == {"boxes": len(seen())}
    truth = tmp_path / "gt" / "seq" / "gt"
    truth.mkdir(parents=True)
    lines = (results / "seq.txt").read_text().splitlines()
    rows = [line.split(",")[:6] for line in lines]
    (truth / "gt.txt").write_text("".join(",".join((*row, "1", "1", "1")) + "\n" for row in rows))
    data_set = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(tmp_path / "gt"),
            "TRACKERS_FOLDER": str(tmp_path / "trackers"),
            "SEQ_INFO": {"seq": FRAMES},
            "SKIP_SPLIT_FOL": True,
            "PRINT_CONFIG": False,
        }
    )
    raw = data_set.get_raw_seq_data("ours", "seq")
    data = data_set.get_preprocessed_seq_data(raw, "pedestrian")
    capsys.readouterr()
    assert data["num_tracker_dets"] == len(seen())
    assert data["num_tracker_ids"] == 3
    assert rows[0] == ["1", "1", "1", "6", "15", "15"]  # frame, id, left and top count from 1
    assert [float(c) for c in data["tracker_confidences"][0]] == list(SCORES)


def test_a_table_is_read_back(run_folder, tmp_path):
    path = tmp_path / "boxes.csv"
    assert convert_results(run_folder, "csv", path) == {"rows": len(seen())}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["frame"]), IDS.index(int(r["track_id"]))) for r in rows] == seen()
    assert [row["name"] for row in rows[:3]] == [*NAMES[:2], "水\\u2028母"]
    first = rows[0]
    assert [int(first[key]) for key in ("x", "y", "width", "height", "area")] == [0, 5, 15, 15, 225]
    assert float(rows[-1]["time"]) == 0.5


def read_recording(path) -> tuple[dict, dict]:
    """By Rerun's own reader: entity -> component -> frame -> its value, and the static ones."""
    chunk = pytest.importorskip("rerun.chunk", reason="needs the extra [rerun]")
    moving: dict = defaultdict(lambda: defaultdict(dict))
    static: dict = defaultdict(dict)
    for part in chunk.RrdReader(str(path)).stream().to_chunks():
        batch = part.to_record_batch()
        kept = [name for name in batch.schema.names if name != "log_time"]
        for row in batch.select(kept).to_pylist():
            for key, value in row.items():
                if value is not None and part.is_static:
                    static[part.entity_path][key] = value
                elif value is not None:
                    moving[part.entity_path][key][row.get("frame")] = value
    return moving, static


def test_rerun_reads_the_recording(run_folder, tmp_path):
    pytest.importorskip("rerun", reason="needs the extra [rerun]")
    images = tmp_path / "images"
    images.mkdir()
    for frame in range(FRAMES):
        Image.new("RGB", (WIDTH, HEIGHT), (40 * frame, 0, 0)).save(images / f"{frame}.png")
    path = tmp_path / "a.rrd"
    assert convert_results(run_folder, "rerun", path, ConvertOptions(str(images))) == {
        "reduced_by": 1
    }
    moving, static = read_recording(path)
    [film] = static["/video"]["AssetVideo:blob"]
    with av.open(io.BytesIO(bytes(film))) as container:
        assert "av1" in container.streams.video[0].codec_context.codec.name  # needs no FFmpeg
        shown = [
            frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in container.decode(video=0)
        ]
    assert [round(red / 40) for red, _, _ in shown] == [*range(FRAMES)]
    [context] = static["/video"]["AnnotationContext:context"]
    infos = [entry["class_description"]["info"] for entry in context]
    assert [info["label"] for info in infos[1:]] == [
        f"{name} #{number}" for name, number in zip(NAMES, IDS, strict=True)
    ]
    assert infos[0]["color"] == 0  # class 0 is transparent
    assert all(info["color"] & 255 == 255 for info in infos[1:])

    masks = moving["/video/masks"]["SegmentationImage:buffer"]
    boxes = moving["/video/boxes"]
    assert sorted(masks) == [*range(FRAMES)]
    for frame in range(FRAMES):
        [buffer] = masks[frame]
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        for place in (2, 1, 0):
            expected[masks_of(frame)[place] != 0] = place + 1
        np.testing.assert_array_equal(np.array(buffer, np.uint8).reshape(HEIGHT, WIDTH), expected)
        shown = [place for f, place in seen() if f == frame]
        assert boxes["Boxes2D:class_ids"][frame] == [place + 1 for place in shown]
        assert boxes["Boxes2D:labels"][frame][0] == "person #0 0.90"
        assert boxes["Boxes2D:half_sizes"][frame][0] == [7.5, 7.5]
    scores = moving["/scores/9"]["Scalars:scalars"]
    assert {frame for frame, [score] in scores.items() if score == 0.3} == {0, 1, 4, 5}
    nanoseconds = [moving["/video"]["VideoFrameReference:timestamp"][f][0] for f in range(FRAMES)]
    assert nanoseconds == pytest.approx([frame * 1e8 for frame in range(FRAMES)], abs=2e4)


def test_rerun_missing_names_the_extra(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(DependencyError, match=r"openvis-rt\[rerun\]"):
        convert_results(run_folder, "rerun", tmp_path / "a.rrd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [100, 300])
def test_recordings_stay_within_their_memory(count):
    frames, sides = 15_000, (720, 1280)
    summary = SimpleNamespace(
        times=range(frames), tracks=range(count), height=sides[0], width=sides[1]
    )
    step = rerun._step_of(summary)
    wide = 1 if count < 256 else 2

    def taken(step):
        return frames * (720 // step) * (1280 // step) * wide

    assert taken(step) <= rerun.MASK_BYTES < taken(step - 1)


def test_a_score_of_a_recording_breaks_where_its_track_is_not_seen(run_folder):
    track = FinishedRun.open(run_folder).summary().tracks[2]
    places, scores = rerun._with_gaps(track, FRAMES)
    assert places == [0, 1, 2, 4, 5]
    assert [math.isnan(score) for score in scores] == [False, False, True, False, False]


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_log_leaves_nothing(run_folder, tmp_path, to):
    if to == "rerun":
        pytest.importorskip("rerun", reason="needs the extra [rerun]")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("categories.json", "frames.jsonl"):
        (folder / name).write_bytes((run_folder / name).read_bytes())
    with (folder / "frames.jsonl").open("ab") as file:
        file.write(b'{"frame": 6, "time"')
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=r"frames\.jsonl, line 7 is no frame's result"):
        convert_results(folder, to, out / f"a{FORMATS[to][0]}")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "name"), [("coco", "categories.json"), ("coco", "results.json"), ("mots", "")]
)
def test_a_conversion_does_not_replace_what_it_reads(run_folder, tmp_path, to, name):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "results.json").write_text("[]")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="is read from there"):
        convert_results(folder, to, folder / name, ConvertOptions(overwrite=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [1, 0, 2, 3]}, r"line 1 .*the box \[1, 0, 2, 3\] is not that of its mask"),
        ({"box": [1.0, 0, 2, 4]}, "line 1 .*a whole number of 0 to"),
        ({"name": "cat"}, "frame 0 has 'cat' as the name of category 1"),
        ({"category_id": 2}, "frame 0 has 'disc' as the name of category 2"),
    ],
)
def test_an_object_that_contradicts_itself_is_refused(tmp_path, change, message):
    write_categories(tmp_path / "categories.json", ["disc"])
    mask = {"size": [4, 6], "counts": "45?"}
    found = {"id": 1, "name": "disc", "category_id": 1, "score": 0.5, "box": [1, 0, 2, 4]}
    found |= {"segmentation": mask, **change}
    line = {"frame": 0, "time": 0.0, "size": [4, 6], "instances": [found]}
    (tmp_path / "frames.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=message):
        FinishedRun.open(tmp_path).summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "line 2 .*frame 3 comes after frame 3"),
        ({"frame": 1}, "line 2 .*frame 1 comes after frame 3"),
        ({"frame": 10**11}, "line 2 .*a whole number of 0 to"),
        ({"frame": 4, "time": 1e300}, "line 2 .*a number of 0 to"),
        ({"frame": 4, "time": -1}, "line 2 .*a number of 0 to"),
        ({"frame": 4, "size": [1 << 15] * 2}, "line 2 .*at most 178956970 pixels"),
    ],
)
def test_a_line_that_no_run_writes_is_refused(tmp_path, change, message):
    write_categories(tmp_path / "categories.json", ["disc"])
    line = {"frame": 3, "time": 0.0, "size": [4, 6], "instances": []}
    lines = [json.dumps(line), json.dumps({**line, **change})]
    (tmp_path / "frames.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        FinishedRun.open(tmp_path).summary()


def test_frames_of_two_sizes_are_refused(run_folder, tmp_path):
    for name in ("categories.json", "frames.jsonl"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    with (tmp_path / "frames.jsonl").open("ab") as file:
        file.write(b'{"frame": 6, "time": null, "size": [5, 5], "instances": []}\n')
    with pytest.raises(InputError, match="frame 6 is 5x5, and those before are 96x64"):
        FinishedRun.open(tmp_path).summary()


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("png", "a.png", "no form 'png' is known; there are html, rerun, coco"),
        ("coco", "a.txt", r"coco is a file that ends in \.json; got"),
    ],
)
def test_what_cannot_be_written_is_refused(run_folder, tmp_path, to, name, message):
    with pytest.raises(InputError, match=message):
        convert_results(run_folder, to, tmp_path / name)


def test_a_folder_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="Give the folder that `openvis run` wrote"):
        convert_results(tmp_path, "coco", tmp_path / "a.json")


def test_mots_replaces_its_own_folder_only(run_folder, tmp_path):
    folder = tmp_path / "mots"
    convert_results(run_folder, "mots", folder)
    with pytest.raises(OutputError, match="exists already"):
        convert_results(run_folder, "mots", folder)
    convert_results(run_folder, "mots", folder, ConvertOptions(overwrite=True))
    (folder / "mine.txt").touch()
    with pytest.raises(OutputError, match="was not made by openvis"):
        convert_results(run_folder, "mots", folder, ConvertOptions(overwrite=True))


def test_the_command_tells_what_it_wrote(openvis, run_folder, tmp_path):
    path = tmp_path / "boxes.csv"
    code, out, _ = openvis("convert", run_folder, "--to", "csv", "-o", path, "--json")
    assert code == 0
    assert json.loads(out) == {"to": "csv", "output": str(path), "rows": len(seen())}
    code, out, err = openvis("convert", run_folder, "--to", "csv", "-o", path)
    assert (code, out) == (2, "")
    assert "--overwrite" in err
