"""Run lengths against pycocotools, and the files of results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco

from openvis_rt.errors import OutputError
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    Instance,
    VideoInstance,
    VideoResult,
    box_of,
    decode_mask,
    empty_rle,
    encode_masks,
    write_results,
)


def reference(mask: np.ndarray) -> dict[str, object]:
    rle = coco.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def frame_result(index: int = 0, name: str = "cat") -> FrameResult:
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    [rle] = encode_masks(mask[None])
    return FrameResult(index, index / 25, 4, 6, (Instance(7, 2, name, 0.5, box_of(rle), rle),))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 23), (64, 40)])
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


def test_video_results_count_categories_from_one():
    rle = empty_rle(4, 6)
    result = VideoResult(4, 6, 2, (VideoInstance(3, 0, "cat", 0.25, (rle, rle)),))
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
