"""Run lengths against pycocotools, and the files of results."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO

from openvis_rt.errors import DependencyError, OutputError
from openvis_rt.printable import printable
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    Instance,
    VideoInstance,
    VideoResult,
    read_frame_log,
    write_categories,
    write_results,
)
from openvis_rt.runtime.video.run_lengths import (
    box_of,
    decode_box,
    decode_mask,
    empty_rle,
    encode_masks,
    join,
    run_lengths,
)


def reference(mask: np.ndarray) -> dict[str, object]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def frame_result(index: int = 0, name: str = "cat") -> FrameResult:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    [rle] = encode_masks(mask[None])
    return FrameResult(index, index / 25, 4, 6, (Instance(7, 3, name, 0.5, box_of(rle), rle),))


def two_objects() -> tuple[np.ndarray, FrameResult]:
    """Their masks, bool [2, 7, 9], and a frame of them."""
    masks = np.zeros((2, 7, 9), np.uint8)
    masks[0, 1:4, 2:7] = 1
    masks[0, 2, 3] = 0
    masks[1, 6, 8] = 1  # the last pixel
    first, second = encode_masks(masks)
    instances = (
        Instance(7, 3, "cat", 0.75, (2, 1, 5, 3), first),
        Instance(4, 1, "dog", 0.5, (8, 6, 1, 1), second),
    )
    return masks.astype(bool), FrameResult(11, 0.5, 7, 9, instances)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (17, 23), (64, 40), *((5, width) for width in range(1, 18))]
)
def test_encoding_equals_pycocotools(density, size):
    rng = np.random.default_rng(0)
    masks = (rng.random((5, *size)) < density).astype(np.uint8)
    encoded = encode_masks(masks)
    assert encoded == [reference(mask) for mask in masks]
    for mask, rle in zip(masks, encoded, strict=True):
        decoded = decode_mask(rle)
        assert decoded.dtype == np.uint8
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    "area",
    [
        np.s_[0:3, 0:2],
        np.s_[5:8, 7:9],  # touches the last row and column
        np.s_[:, 4:6],  # whole columns make one run
        np.s_[6:8, 2:5],  # each run ends where the next column begins
        np.s_[7:8, 8:9],  # the last pixel alone
        np.s_[0:1, 0:1],
    ],
)
def test_encoding_at_the_borders(area):
    mask = np.zeros((8, 9), np.uint8)
    mask[area] = 1
    assert encode_masks(mask[None]) == [reference(mask)]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 8), (16, 17), (33, 64)])
def test_masks_of_all_kinds_side_by_side(size):
    """Numbers of one mask never reach into the next one's."""
    y, x = np.indices(size)
    board = ((x + y) % 2).astype(np.uint8)
    whole = np.ones(size, np.uint8)
    masks = np.stack([whole, 0 * whole, board, 1 - board, whole, x % 2, y % 2, 0 * whole])
    masks = masks.astype(np.uint8)
    found = run_lengths(np.packbits(masks, axis=-1), size[1])
    assert list(found) == [reference(mask) for mask in masks]
    assert [found[index] for index in (5, 0)] == [reference(masks[5]), reference(masks[0])]
    again = join([found, run_lengths(np.packbits(masks[2:3], axis=-1), size[1]), found], *size)
    assert list(again) == [*found, reference(board), *found]
    assert len(join([], *size)) == 0


def test_long_runs_in_large_masks():
    """Numbers of up to five letters, of both signs."""
    rng = np.random.default_rng(2)
    for height, width in ((2000, 3001), (1, 70000), (70000, 1)):
        ends = np.sort(rng.integers(0, height * width, (4, 6)), axis=1)
        places = np.arange(height * width)
        masks = [np.searchsorted(e, places, "right").reshape(width, height).T % 2 for e in ends]
        masks = np.stack(masks).astype(np.uint8)
        assert encode_masks(masks) == [reference(mask) for mask in masks]


def test_decoding_of_runs_longer_than_a_column():
    """Numbers of several letters, with differences of both signs."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        ends = np.sort(rng.integers(0, 300 * 200, rng.integers(1, 9)))
        mask = np.searchsorted(ends, np.arange(300 * 200), "right").reshape(200, 300).T % 2
        mask = mask.astype(np.uint8)
        np.testing.assert_array_equal(decode_mask(reference(mask)), mask)


def test_names_that_are_no_text(tmp_path):
    with FrameLog(tmp_path / "log") as log:
        log.write(frame_result(0, "caf\udce9"))
    line = json.loads((tmp_path / "log").read_text("utf-8"))
    assert line["instances"][0]["name"] == "caf\udce9"


def test_a_log_holds_no_letter_that_a_terminal_obeys_and_loses_none(tmp_path):
    name = "c\x1b[31m\x7f\x9b\u202ed\ufeff é 猫"
    with FrameLog(tmp_path / "log") as log:
        log.write(frame_result(0, name))
    write_categories(tmp_path / "categories", [name])
    for file in ("log", "categories"):
        text = (tmp_path / file).read_text("utf-8")
        assert text == printable(text)
        assert "é 猫" in text
    [found] = read_frame_log(tmp_path / "log")
    assert found.instances[0].name == name
    assert json.loads((tmp_path / "categories").read_text("utf-8"))[0]["name"] == name


def test_encoding_takes_views_and_nothing():
    masks = np.zeros((6, 8, 10), np.uint8)
    masks[::2, 3, 2:9:2] = 1
    assert encode_masks(masks[::2, :, ::-1]) == [reference(m) for m in masks[::2, :, ::-1]]
    assert encode_masks(masks[:0]) == []


def test_empty_rle_and_boxes():
    mask = np.zeros((5, 7), np.uint8)
    assert empty_rle(5, 7) == reference(mask)
    assert box_of(empty_rle(5, 7)) == (0, 0, 0, 0)
    mask[1:4, 2:7] = 1
    assert box_of(encode_masks(mask[None])[0]) == (2, 1, 5, 3)


# as arrays, and for other libraries


def test_a_frame_as_arrays():
    masks, frame = two_objects()
    for array, dtype, wanted in (
        (frame.masks, np.bool_, masks),
        (frame.boxes, np.int64, [[2, 1, 5, 3], [8, 6, 1, 1]]),
        (frame.scores, np.float64, [0.75, 0.5]),
        (frame.track_ids, np.int64, [7, 4]),
        (frame.class_ids, np.int64, [3, 1]),
    ):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, wanted)
    for instance, mask in zip(frame.instances, masks, strict=True):
        assert instance.mask.dtype == np.bool_
        np.testing.assert_array_equal(instance.mask, mask)


def test_a_frame_without_objects_has_arrays_of_no_row():
    frame = FrameResult(0, None, 7, 9, ())
    assert frame.masks.shape == (0, 7, 9)
    assert frame.boxes.shape == (0, 4)
    assert {a.shape for a in (frame.scores, frame.track_ids, frame.class_ids)} == {(0,)}
    assert frame.to_coco(1) == []


def test_masks_of_an_object_through_a_video():
    masks, frame = two_objects()
    first, second = (instance.segmentation for instance in frame.instances)
    found = VideoInstance(7, 3, "cat", 0.5, (first, empty_rle(7, 9), second)).masks
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, [masks[0], masks[0] & False, masks[1]])


def test_annotations_are_read_by_pycocotools(tmp_path, capsys):
    masks, frame = two_objects()
    annotations = [*frame.to_coco(5), *frame.to_coco(6, first_id=3)]
    assert [a["id"] for a in annotations] == [1, 2, 3, 4]
    path = tmp_path / "annotations.json"
    images = [{"id": i, "height": 7, "width": 9, "file_name": f"{i}.png"} for i in (5, 6)]
    write_categories(tmp_path / "categories.json", ("dog", "bird", "cat"))
    categories = json.loads((tmp_path / "categories.json").read_text())
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    data_set = COCO(path)
    capsys.readouterr()  # it prints
    for image in (5, 6):
        found = data_set.loadAnns(data_set.getAnnIds(imgIds=image))
        assert [data_set.cats[a["category_id"]]["name"] for a in found] == ["cat", "dog"]
        assert [a["bbox"] for a in found] == [[2, 1, 5, 3], [8, 6, 1, 1]]
        assert [a["area"] for a in found] == [14, 1]
        assert [(a["score"], a["track_id"]) for a in found] == [(0.75, 7), (0.5, 4)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycocotools under numpy 2
            for annotation, mask in zip(found, masks, strict=True):
                np.testing.assert_array_equal(data_set.annToMask(annotation), mask)


def test_detections_of_supervision():
    reason = "supervision is no part of any extra that tests need: pip install supervision"
    supervision = pytest.importorskip("supervision", reason=reason)
    masks, frame = two_objects()
    found = frame.to_supervision()
    assert isinstance(found, supervision.Detections)
    # right and bottom are the first column and row outside
    np.testing.assert_array_equal(found.xyxy, [[2, 1, 7, 4], [8, 6, 9, 7]])
    np.testing.assert_array_equal(found.mask, masks)
    np.testing.assert_array_equal(found.confidence, [0.75, 0.5])
    np.testing.assert_array_equal(found.class_id, [3, 1])
    np.testing.assert_array_equal(found.tracker_id, [7, 4])
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    assert len(FrameResult(0, None, 7, 9, ()).to_supervision()) == 0


def test_without_supervision_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DependencyError, match="supervision is not installed") as caught:
        two_objects()[1].to_supervision()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert re.search(rf"^{caught.value.extra} = \[", project, re.MULTILINE)


# a whole video


def tracks_of(*instances: tuple[int, int, float, str]) -> VideoResult:
    """Of tracks, category ids, scores and frames: "1" shows the object in that frame, "0" not."""
    mask = np.ones((1, 4, 6), np.uint8)
    [full], empty = encode_masks(mask), empty_rle(4, 6)
    found = tuple(
        VideoInstance(t, c, f"c{c}", s, tuple(full if bit == "1" else empty for bit in frames))
        for t, c, s, frames in instances
    )
    return VideoResult(4, 6, len(instances[0][3]), found)


def test_a_frame_of_a_video_shows_each_track_once_under_its_best_class_there():
    video = tracks_of(
        (7, 1, 0.9, "110"), (7, 2, 0.95, "010"), (7, 3, 0.5, "111"), (4, 1, 0.92, "011")
    )

    def shown(index: int, **options) -> list[tuple[int, int, float]]:
        frame = video.frame(index, **options)
        assert (frame.index, frame.height, frame.width) == (index, 4, 6)
        return [(i.track_id, i.category_id, i.score) for i in frame.instances]

    assert shown(0) == [(7, 1, 0.9)]
    assert shown(1) == [(7, 2, 0.95), (4, 1, 0.92)]
    assert shown(2) == [(4, 1, 0.92), (7, 3, 0.5)]
    assert shown(1, limit=1) == [(7, 2, 0.95)]
    assert shown(2, threshold=0.5) == [(4, 1, 0.92), (7, 3, 0.5)]
    assert shown(2, threshold=0.51) == [(4, 1, 0.92)]
    assert shown(0, threshold=0.91) == []
    assert video.frame(0).time is None
    assert video.frame(0, 0.25).time == 0.25
    with pytest.raises(IndexError):
        video.frame(3)


def test_results_have_the_categories_of_their_instances():
    rle = empty_rle(4, 6)
    result = VideoResult(4, 6, 2, (VideoInstance(3, 1, "cat", 0.25, (rle, rle)),))
    [entry] = result.to_results(video_id=9)
    assert list(entry) == ["video_id", "score", "category_id", "segmentations"]
    assert entry == {
        "video_id": 9,
        "score": 0.25,
        "category_id": 1,
        "segmentations": [rle, rle],
    }


def test_frame_log_lines(tmp_path):
    path = tmp_path / "frames.jsonl"
    with FrameLog(path) as log:
        log.write(frame_result(0, "猫"))
        assert not path.exists()
        log.write(FrameResult(1, None, 4, 6, ()))
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines[1] == {"frame": 1, "time": None, "size": [4, 6], "instances": []}
    [instance] = lines[0]["instances"]
    assert list(instance) == ["id", "name", "category_id", "score", "box", "segmentation"]
    assert (instance["id"], instance["name"], instance["category_id"]) == (7, "猫", 3)
    assert instance["box"] == [2, 1, 3, 2]
    assert decode_mask(instance["segmentation"]).sum() == 6
    assert list(tmp_path.iterdir()) == [path]


def test_frame_log_writes_each_line_at_once(tmp_path):
    with FrameLog(tmp_path / "frames.jsonl") as log:
        log.write(frame_result())
        [partial] = tmp_path.iterdir()
        assert partial.read_text("utf-8").endswith("\n")


def test_frame_log_after_an_error_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "frames.jsonl"
    path.write_text("before")

    def fail():
        with FrameLog(path) as log:
            log.write(frame_result())
            raise ConnectionError("of the caller")

    with pytest.raises(ConnectionError, match="of the caller"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_frame_log_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), FrameLog(tmp_path / "file" / "log"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_frame_log_of_a_killed_process(tmp_path, number):
    code = """
import sys, time
from pathlib import Path
from openvis_rt.runtime.video.results import FrameLog, FrameResult
with FrameLog(Path(sys.argv[1])) as log:
    log.write(FrameResult(0, 0.0, 4, 6, ()))
    print("written", flush=True)
    time.sleep(60)
"""
    path = tmp_path / "frames.jsonl"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(20) != 0
    assert not path.exists()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def test_categories_are_names_by_their_ids(tmp_path):
    write_categories(tmp_path / "categories.json", ("cat", "monkey, ape", "猫"))
    text = (tmp_path / "categories.json").read_text("utf-8")
    assert "猫" in text
    assert json.loads(text) == [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "monkey, ape"},
        {"id": 3, "name": "猫"},
    ]


def test_write_results_takes_entries_one_at_a_time(tmp_path):
    path = tmp_path / "results.json"
    entries = [{"video_id": i, "name": "é"} for i in range(3)]
    write_results(path, iter(entries))
    assert json.loads(path.read_text("utf-8")) == entries
    write_results(path, [])
    assert json.loads(path.read_text("utf-8")) == []


@pytest.mark.parametrize(("others", "message"), [(True, "not made by openvis"), (False, "lies in")])
def test_a_run_replaces_neither_its_source_nor_what_others_made(tmp_path, others, message):
    output = tmp_path / "videos"
    output.mkdir()
    kept = ["a.mp4"] if others else ["frames.jsonl", "overlay.mp4"]
    for name in kept:
        (output / name).write_text("")
    source = tmp_path / "b.mp4" if others else output / "overlay.mp4"
    pipeline = SimpleNamespace(mode="video")  # nothing else of it is used before the output is made
    with pytest.raises(OutputError, match=message):
        run_video(pipeline, str(source), output, RunOptions(overwrite=True))
    assert sorted(file.name for file in output.iterdir()) == kept


def test_an_error_of_reading_inside_is_not_one_of_writing(tmp_path):
    def fail() -> None:
        with FrameLog(tmp_path / "log") as log:
            log.write(frame_result())
            (tmp_path / "missing").read_bytes()

    with pytest.raises(FileNotFoundError, match="missing"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_box_is_decoded_without_the_rest():
    rng = np.random.default_rng(3)
    for density in (0.002, 0.3, 1.0):
        mask = (rng.random((37, 53)) < density).astype(np.uint8)
        mask[20, 30] = 1
        [rle] = encode_masks(mask[None])
        for box in (box_of(rle), (0, 0, 53, 37), (30, 20, 1, 1), (10, 5, 20, 31)):
            left, top, width, height = box
            found = decode_box(rle, box)
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, mask[top : top + height, left : left + width])
    assert not decode_box(empty_rle(37, 53), (10, 5, 20, 31)).any()
