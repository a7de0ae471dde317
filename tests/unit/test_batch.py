"""`openvis batch`: sources, ids and folders, what is done again, failures, merged results."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sealing import sealed

from openvis_rt.errors import InputError, OutputError, VideoError
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.run import RunOptions
from openvis_rt.serving import worker as worker_module
from openvis_rt.serving.batch import PoolOptions, run_batch
from openvis_rt.serving.index import BatchFolder, Record, folder_names
from openvis_rt.serving.ray_pool import Resources, fit_pool
from openvis_rt.serving.sources import fetched, find_videos, fingerprint
from openvis_rt.serving.worker import BatchWork, Worker, hash_of
from openvis_rt.vocabulary import Vocabulary

CLASSES = ("cat", "dog")
HERE = PoolOptions(workers=0)


@pytest.fixture
def clips(tmp_path, small_video) -> Path:
    """Two folders with a video of the same name each, and one more."""
    for name in ("a/x.mp4", "b/x.mp4", "b/y.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(small_video, tmp_path / "clips" / name)
    return tmp_path / "clips"


@pytest.fixture
def work(cached_bundle) -> BatchWork:
    """Few frames, and every object of them is shown."""
    return BatchWork(
        cached_bundle,
        Vocabulary(CLASSES),
        backend="onnxruntime",
        selection=Selection(threshold=0.0),
        run=RunOptions(overlay=False, max_frames=3),
    )


@pytest.fixture
def batch(work, clips, tmp_path):
    """Runs a batch in this process."""

    def run(*sources, **given):
        named = {"work": work, "pool": HERE, **given}
        return run_batch(sources=sources or (str(clips),), output=tmp_path / "out", **named)

    return run


@pytest.fixture
def runs(monkeypatch):
    """The sources that `run_video` was called with; a test may put an error for one of them."""
    called, errors, real = [], {}, worker_module.run_video

    def run(pipeline, source, *args):
        called.append(source)
        for name, error in errors.items():
            if source.endswith(name) and error:
                raise error.pop()
        return real(pipeline, source, *args)

    monkeypatch.setattr(worker_module, "run_video", run)
    run.called, run.errors = called, errors
    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def ids_in(results: Path) -> set[int]:
    return {entry["video_id"] for entry in json.loads(results.read_text())}


# sources


def test_sources_are_found_once_in_natural_order(clips, tmp_path):
    for name in (
        "c/f2.mp4",
        "c/f10.mp4",
        "c/note.md",
        "c/.hidden.mp4",
        "images/v1/0.png",
        "out/o.mp4",
    ):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).touch()
    listed = clips / "list.txt"
    listed.write_text("# two\nb/y.mp4\n\nc/*.mp4\n")
    found = find_videos(
        [str(listed), str(clips), str(clips / "a" / "x.mp4")], outside=clips / "out"
    )
    names = [str(Path(path).relative_to(clips)) for path in found]
    assert names == ["b/y.mp4", "c/f2.mp4", "c/f10.mp4", "a/x.mp4", "b/x.mp4", "images/v1"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("0", "camera"),
        ("rtsp://host/1", "stream"),
        ("s3://user:secret@bucket/x.mp4", "password"),
        ("absent.mp4", "there is no"),
        ("absent*.mp4", "finds no video"),
        ("nothing://x.mp4", "cannot be read"),
    ],
)
def test_what_is_no_video_is_refused(source, words, tmp_path, monkeypatch):
    if "nothing" in source:
        pytest.importorskip("fsspec", reason="addresses need the extra [ray]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as refused:
        find_videos([source], outside=tmp_path / "out")
    assert "secret" not in str(refused.value)


def test_an_object_store_is_listed_and_fetched(small_video):
    fsspec = pytest.importorskip("fsspec", reason="addresses need the extra [ray]")
    store = fsspec.filesystem("memory")
    for name in ("/b/v10.mp4", "/b/v9.mp4", "/b/note.md"):
        store.pipe(name, small_video.read_bytes())
    try:
        found = find_videos(["memory://b/*.mp4"], outside=Path("/absent"))
        assert found == ["memory:///b/v9.mp4", "memory:///b/v10.mp4"]
        assert find_videos(["memory://b"], outside=Path("/absent")) == found
        with fetched(found[0]) as path:
            assert Path(path).read_bytes() == small_video.read_bytes()
        assert not Path(path).exists()
        before = fingerprint(found[0])
        store.pipe("/b/v9.mp4", b"else")
        assert fingerprint(found[0]) != before
        with pytest.raises(VideoError, match="cannot be read"), fetched("memory://b/gone.mp4"):
            pass
    finally:
        store.rm("/b", recursive=True)


def test_a_fingerprint_is_that_of_the_bytes(tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "v" / name).write_bytes(b"one")
    before = fingerprint(str(tmp_path / "v"))
    os.utime(tmp_path / "v" / "1.png", (1, 1))
    assert fingerprint(str(tmp_path / "v")) == before
    (tmp_path / "v" / "2.png").write_bytes(b"two")
    assert fingerprint(str(tmp_path / "v")) != before


# ids and folders


def test_folders_have_names_that_tell_their_videos_apart():
    sources = ["/d/a/x.mp4", "/d/b/x.mp4", "/d/b/y.mp4", "/e/a/x.mp4", "s3://k/b/x.MP4?v=1"]
    names = folder_names([*sources, "/d/b/y.mkv", "/d/f.1", "/d/ü !.mp4"], {"f.1"})
    assert names["/d/a/x.mp4"] == "d-a-x"
    assert names["/e/a/x.mp4"] == "e-a-x"
    assert names["/d/f.1"] == "d-f.1"
    assert names["/d/ü !.mp4"] == "ü_"
    assert len({name.casefold() for name in names.values()}) == len(names)
    assert {names["/d/b/y.mp4"][:2], names["/d/b/y.mkv"][:2]} == {"y-"}  # and a hash


def test_a_source_keeps_its_id_and_folder(tmp_path):
    folder = BatchFolder(tmp_path / "out")
    with folder.held():
        first = folder.add(["/d/a/x.mp4"])
        later = folder.add(["/d/b/x.mp4", "/d/a/x.mp4"])
    assert later[1] == first[0]
    assert [video.id for video in later] == [2, 1]
    assert later[0].folder == "b-x"


# a whole batch


def test_every_video_has_what_a_run_writes_and_all_are_merged(
    openvis, cached_bundle, clips, tmp_path
):
    options = ["-c", "cat", "-c", "dog", "--only", "--backend", "onnxruntime", "--threshold", 0]
    options += ["--no-overlay", "--max-frames", 3, "--json"]
    out = tmp_path / "out"
    code, told, _ = openvis("batch", cached_bundle, clips, "-o", out, "--workers", 0, *options)
    assert code == 0
    assert {k: json.loads(told)[k] for k in ("videos", "finished", "failed", "frames")} == {
        "videos": 3,
        "finished": 3,
        "failed": [],
        "frames": 9,
    }
    videos = json.loads((out / "videos.json").read_text())
    assert [v["folder"] for v in videos] == ["a-x", "b-x", "y"]
    entries = []
    for video in videos:
        alone = tmp_path / video["folder"]
        numbered = ["--video-id", video["id"], "-o", alone]
        assert openvis("run", cached_bundle, video["source"], *options, *numbered)[0] == 0
        assert files_of(alone) == files_of(out / "videos" / video["folder"])
        entries += json.loads((alone / "results.json").read_text())
    assert entries
    assert json.loads((out / "results.json").read_text()) == entries
    assert (out / "categories.json").read_bytes() == (alone / "categories.json").read_bytes()


def test_only_what_is_missing_or_changed_is_done_again(batch, runs, clips):
    assert batch().finished == 3
    runs.called.clear()
    assert batch().skipped == 3
    assert runs.called == []
    changed = clips / "b" / "y.mp4"
    changed.write_bytes(changed.read_bytes() + b"\0" * 8)
    again = batch()
    assert (again.skipped, again.finished) == (2, 1)
    assert runs.called == [str(changed)]


def test_another_option_is_refused_or_makes_all_anew(batch, work, runs):
    batch()
    other = replace(work, selection=Selection(threshold=0.1))
    with pytest.raises(OutputError, match="another selection"):
        batch(work=other)
    runs.called.clear()
    assert batch(work=other, overwrite=True).finished == 3
    assert len(runs.called) == 3


def test_a_damaged_video_is_a_row_and_the_others_are_done(openvis, cached_bundle, clips, tmp_path):
    (clips / "a" / "x.mp4").write_bytes(b"no video")
    arguments = ["-c", "cat", "--workers", 0, "--no-overlay", "--max-frames", 1]
    code, _, err = openvis("batch", cached_bundle, clips, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert "1 failed" in err
    record = json.loads((tmp_path / "out" / "records" / "a-x.json").read_text())
    assert (record["status"], record["attempts"]) == ("failed", 1)  # it would fail again
    assert not (tmp_path / "out" / "videos" / "a-x").exists()
    assert ids_in(tmp_path / "out" / "results.json") == {2, 3}


def test_an_error_that_may_pass_is_tried_again_with_a_new_pipeline(batch, runs, monkeypatch):
    opened, real = [], BatchWork.open
    monkeypatch.setattr(BatchWork, "open", lambda *given: opened.append(1) or real(*given))
    runs.errors["b/x.mp4"] = [RuntimeError("the device was lost")]
    runs.errors["y.mp4"] = [RuntimeError("again"), RuntimeError("lost")]
    told = []
    report = batch(warn=told.append)
    assert (report.finished, report.repeated, report.exit_code) == (2, 2, 1)
    assert [r.error for r in report.failed] == ["RuntimeError: again"]
    assert len(opened) == 3  # the first, and after each failure that another attempt followed
    assert any("again" in line for line in told)


def test_a_worker_of_its_own_process_ends_with_a_broken_pipeline(work, runs, clips, tmp_path):
    class ExitedError(Exception):
        pass

    def leave(_code):
        raise ExitedError

    folder, name = BatchFolder(tmp_path / "out"), hash_of(work.made_with())
    with folder.held(), pytest.MonkeyPatch.context() as patch:
        video = folder.add([str(clips / "a" / "x.mp4")])[0]
        patch.setattr(worker_module.os, "_exit", leave)
        runs.errors["x.mp4"] = [RuntimeError("lost"), RuntimeError("lost")]
        for attempt in (1, 2):  # Ray begins it anew
            worker = Worker(work, folder, name, "now", dies=True)
            with pytest.raises(ExitedError):
                worker.do(video)
            assert folder.record(video).attempts == attempt
            worker.close()
        found = Worker(work, folder, name, "now", dies=True).do(video)
    assert (found.status, found.error, found.exit_code) == ("failed", "RuntimeError: lost", 1)


def test_a_bundle_that_is_replaced_under_a_batch_stops_it(work, batch, bundle_copy, monkeypatch):
    real = BatchFolder.settle

    def settle(self, *given, **more):
        manifest = json.loads((bundle_copy / "bundle.json").read_text())
        sealed(bundle_copy, {**manifest, "tools": {"torch": "another"}})  # a bundle all the same
        return real(self, *given, **more)

    monkeypatch.setattr(BatchFolder, "settle", settle)
    report = batch(work=replace(work, bundle=bundle_copy))
    assert (report.finished, report.exit_code) == (0, 2)
    assert "was replaced or changed since it was first opened" in report.stopped


def test_a_video_that_kills_its_workers_is_given_up(work, runs, clips, tmp_path):
    folder, name = BatchFolder(tmp_path / "out"), hash_of(work.made_with())
    with folder.held():
        video = folder.add([str(clips / "a" / "x.mp4")])[0]
        folder.write(Record(video, "running", "", name, "now", attempts=2))
        found = Worker(work, folder, name, "now").do(video)
        assert (found.status, found.exit_code) == ("failed", 3)
        assert "died in each of 2 attempts" in found.error
        assert runs.called == []
        worker = Worker(work, folder, name, "the next batch")
        assert worker.do(video).status == "finished"
        worker.close()


def test_a_full_disk_stops_the_batch_which_goes_on_later(batch, runs):
    full = OutputError("cannot write: the disk is full")
    full.__cause__ = OSError(errno.ENOSPC, "no space")
    runs.errors["b/x.mp4"] = [full]
    report = batch()
    assert (report.finished, report.left, report.exit_code) == (1, 2, 2)
    assert "disk is full" in report.stopped
    later = batch()
    assert (later.skipped, later.finished, later.exit_code) == (1, 2, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_is_finished(batch, clips, tmp_path, monkeypatch, number):
    calls, real = [], worker_module.run_video

    def run(pipeline, source, output, options, progress, warn):
        calls.append(source)

        def press(*_):
            if len(calls) == 2:
                os.kill(os.getpid(), number)

        return real(pipeline, source, output, replace(options, max_frames=None), press, warn)

    monkeypatch.setattr(worker_module, "run_video", run)
    report = batch()
    assert (report.finished, report.left, report.exit_code) == (1, 2, 130)
    assert [p.name for p in (tmp_path / "out" / "videos").iterdir()] == ["a-x"]
    assert {e["video_id"] for e in json.loads((tmp_path / "out" / "results.json").read_text())} == {
        1
    }


def test_ctrl_c_between_videos_leaves_what_is_finished(batch, monkeypatch):
    real = Worker.do

    def do(self, video):
        if video.id == 2:
            raise KeyboardInterrupt
        return real(self, video)

    monkeypatch.setattr(Worker, "do", do)
    report = batch()
    assert (report.finished, report.interrupted, report.exit_code) == (1, True, 130)


def test_a_folder_is_one_batch_s_at_a_time_and_no_stranger_s(batch, tmp_path):
    folder = BatchFolder(tmp_path / "out")
    with folder.held(), pytest.raises(OutputError, match="another batch writes"):
        batch()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"mine\.txt"):
        batch()


def test_without_ray_nothing_is_begun(openvis, cached_bundle, clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, stderr = openvis("batch", cached_bundle, clips, "-c", "cat", "-o", tmp_path / "out")
    assert code == 3
    assert "openvis-rt[ray]" in stderr
    assert not (tmp_path / "out").exists()


def test_litter_of_killed_workers_is_cleared(batch, tmp_path):
    batch()
    litter = tmp_path / "out" / "videos" / ".partial-y-abcdefgh"
    litter.mkdir()
    (tmp_path / "out" / "records" / ".partial-1.json").touch()
    batch()
    assert not litter.exists()
    assert not list((tmp_path / "out" / "records").glob(".*"))


def test_tables_are_csv_without_pyarrow(batch, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    batch()
    with (tmp_path / "out" / "videos.csv").open() as file:
        assert [(row["folder"], row["frames"]) for row in csv.DictReader(file)] == [
            ("a-x", "3"),
            ("b-x", "3"),
            ("y", "3"),
        ]
    logged = (tmp_path / "out" / "videos" / "y" / "frames.jsonl").read_text().splitlines()
    with (tmp_path / "out" / "instances.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["video_id"] == "3"]
    shown = [(f["frame"], i["id"]) for f in map(json.loads, logged) for i in f["instances"]]
    assert shown
    assert [(int(row["frame"]), int(row["track_id"])) for row in rows] == shown


def test_tables_are_parquet_with_pyarrow(batch, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [ray]")
    batch()
    rows = parquet.read_table(tmp_path / "out" / "videos.parquet").to_pylist()
    assert [(row["folder"], row["frames"]) for row in rows] == [("a-x", 3), ("b-x", 3), ("y", 3)]
    assert parquet.read_table(tmp_path / "out" / "instances.parquet").num_rows > 0


# the pool


@pytest.mark.parametrize(
    ("cores", "gpus", "memory", "videos", "given", "workers", "threads"),
    [
        (16, 0, 64, 100, {}, 16, 1),
        (16, 0, 8, 100, {}, 4, 4),  # memory is short
        (16, 2, 64, 100, {"gpus": 1}, 2, 8),
        (16, 2, 64, 100, {"gpus": 0.5}, 4, 4),
        (16, 0, 64, 3, {}, 3, 5),  # no more than videos
        (2, 0, 64, 100, {"workers": 4}, 4, 1),
        (2, 0, 1, 100, {}, 1, 2),  # never none
    ],
)
def test_a_pool_fits_what_there_is(cores, gpus, memory, videos, given, workers, threads):
    resources = Resources(cores, gpus, memory)
    options = {"workers": None, "gpus": 0, "memory": 2, **given}
    pool = fit_pool(resources, videos, **options)
    assert (pool.workers, pool.threads) == (workers, threads)
    assert pool.workers * pool.cores <= cores
    assert pool.workers * pool.gpus <= gpus


def test_a_pool_without_its_gpus_is_refused():
    with pytest.raises(InputError, match="gpus-per-worker"):
        fit_pool(Resources(8, 1, 64), 10, workers=2, gpus=1, memory=1)
    with pytest.raises(InputError, match="--workers 0"):
        PoolOptions(workers=0, address="auto")


def test_a_pool_that_is_too_large_for_the_memory_is_told():
    told = []
    fit_pool(Resources(8, 0, 4 << 30), 10, workers=4, gpus=0, memory=2 << 30, warn=told.append)
    assert "8.0 GiB" in told[0]


@pytest.mark.timeout(240)  # Ray starts a dozen processes
def test_ray_gives_what_this_process_gives(batch, cached_bundle, clips, tmp_path):
    pytest.importorskip("ray", reason="workers need the extra [ray]")
    batch()
    arguments = ["-c", "cat", "-c", "dog", "--only", "--backend", "onnxruntime", "--threshold", "0"]
    arguments += ["--no-overlay", "--max-frames", "3", "--json", "--workers", "2"]
    command = [sys.executable, "-m", "openvis_rt", "batch", cached_bundle, clips, *arguments]
    other = tmp_path / "by-ray"
    ended = subprocess.run(  # Ray leaves threads and signal handlers in its process
        [*map(str, command), "-o", str(other)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["finished"] == 3
    for folder in (tmp_path / "out" / "videos").iterdir():
        assert files_of(folder) == files_of(other / "videos" / folder.name)
    assert (tmp_path / "out" / "results.json").read_bytes() == (other / "results.json").read_bytes()
