"""Adding to a bundle: what appears, who is kept out, and what a killed process leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openvis_rt.bundle.bundle import (
    MANIFEST,
    SCHEMA,
    Bundle,
    Change,
    GraphFile,
    Manifest,
    Preprocess,
    write_manifest,
)
from openvis_rt.errors import BundleError, InputError, OutputError, RecordError
from openvis_rt.files import sha256_of
from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.systems.system import Score, Tracker

GRAPHS = ("propose", "masks")
OLD = {
    "propose.onnx": "propose",
    "masks.onnx": "masks",
    "propose.int8.onnx": "old int8",
    "tracker.safetensors": "tracker",
    "calibration/frames/0.npz": "old frames",
}

NEWER = f"{SCHEMA.split('.')[0]}.7"


def graph(name: str, file: str, precision: str) -> GraphFile:
    return GraphFile(file, precision, GraphSpec(name, (), ()))


def write_small_bundle(path: Path) -> Bundle:
    """A bundle whose files are a word each, with INT8 and a calibration already in it."""
    for name, text in OLD.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    wide = {name: graph(name, f"{name}.onnx", "fp32") for name in GRAPHS}
    int8 = {**wide, "propose": graph("propose", "propose.int8.onnx", "int8")}
    manifest = Manifest(
        system="clip-vis",
        variant="tiny",
        graphs={"fp32": wide, "int8": int8},
        preprocess=Preprocess((24, 32), None, 24, 32, 32, (0.0, 0.0, 0.0)),
        tracker=Tracker("momentum", parameters={"alpha": 1.0}),
        score=Score("frame-logits"),
        window_length=1,
        detections=10,
        prompts=("{}",),
        text_sha256="",
        checkpoint={},
        tools={},
    )
    others = [name for name in OLD if not name.endswith(".onnx")]
    write_manifest(path, manifest, others)
    (path / "notes.txt").write_text("the user's own, not listed")
    (path / "engines").mkdir()
    (path / "engines" / "a.plan").write_text("a plan")
    return Bundle.open(path)


UNLISTED = {MANIFEST, "notes.txt", "engines/a.plan"}


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return write_small_bundle(tmp_path / "bundle")


def files_of(path: Path) -> dict[str, bytes]:
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def change_by(bundle: Bundle, act: Callable[[Change], object]) -> None:
    """A change of which ``act`` is all."""
    with bundle.adding() as change:
        act(change)


def add_everything(path: Path) -> None:
    """A new precision, INT8 anew, a recorded reference, and another calibration."""
    with Bundle.open(path).adding() as change:
        wide = change.manifest.graphs["fp32"]
        change.new_file("propose.fp16.onnx").write_text("fp16")
        half = graph("propose", "propose.fp16.onnx", "fp16")
        change.set_precision("fp16", {**wide, "propose": half})
        name = change.unused_name("propose.int8.onnx")
        change.new_file(name).write_text("new int8")
        change.set_precision("int8", {**wide, "propose": graph("propose", name, "int8")})
        change.new_file("reference/deep/in.npz").write_text("inputs")
        change.new_file("reference/out.npz").write_text("outputs")
        change.drop("calibration")
        change.new_file("calibration/ranges.json").write_text("{}")
        change.manifest = replace(change.manifest, tools={"calibration": "1"})


ADDED = {
    "propose.onnx",
    "masks.onnx",
    "tracker.safetensors",
    "propose.fp16.onnx",
    "propose.int8.2.onnx",
    "reference/deep/in.npz",
    "reference/out.npz",
    "calibration/ranges.json",
}


# what a change does


def test_a_change_appears_as_a_whole_and_takes_away_what_it_replaced(bundle):
    add_everything(bundle.path)
    grown = Bundle.open(bundle.path)
    assert set(grown.manifest.files) == ADDED
    assert set(files_of(bundle.path)) == ADDED | UNLISTED
    assert not (bundle.path / "calibration" / "frames").exists()
    assert list(grown.manifest.graphs) == ["fp32", "int8", "fp16"]
    assert grown.graph_path("propose", "int8").read_text() == "new int8"
    assert grown.graph_sha256("propose", "fp16") == sha256_of(bundle.path / "propose.fp16.onnx")
    assert grown.graph("masks", "fp16") == bundle.graph("masks")
    assert grown.manifest.tools == {"calibration": "1"}
    assert grown.manifest.preprocess == bundle.manifest.preprocess
    mode = (bundle.path / MANIFEST).stat().st_mode
    assert (bundle.path / "propose.fp16.onnx").stat().st_mode == mode


def test_an_exported_bundle_can_grow(bundle_copy):
    before = Bundle.open(bundle_copy)
    with before.adding() as change:
        change.new_file("reference/a.npz").write_bytes(b"a")
    grown = Bundle.open(bundle_copy)
    entry = grown.manifest.files["reference/a.npz"]
    files = {**before.manifest.files, "reference/a.npz": entry}
    assert grown.manifest == replace(before.manifest, files=files)


def test_nothing_is_seen_of_a_change_before_its_end(bundle):
    before = files_of(bundle.path)
    with bundle.adding() as change:
        change.new_file("reference/a.npz").write_text("a")
        change.drop("tracker.safetensors")
        assert Bundle.open(bundle.path).manifest == bundle.manifest
        now = files_of(bundle.path)
        assert {name: now[name] for name in before} == before
        assert not (bundle.path / "reference").exists()


def test_a_change_begins_with_the_bundle_as_it_is_now(bundle):
    for name in ("a", "b"):
        with bundle.adding() as change:  # opened before either was added
            change.new_file(f"reference/{name}").write_text(name)
    assert {"reference/a", "reference/b"} < set(Bundle.open(bundle.path).manifest.files)


def test_a_change_of_nothing_is_a_change_of_nothing(bundle):
    before = files_of(bundle.path)
    with bundle.adding():
        pass
    assert files_of(bundle.path) == before


def test_an_error_in_the_block_leaves_the_bundle_as_it_was(bundle):
    before = files_of(bundle.path)

    def fail(change: Change) -> None:
        change.new_file("reference/a.npz").write_text("a")
        change.drop("tracker.safetensors")
        raise KeyError

    with pytest.raises(KeyError):
        change_by(bundle, fail)
    assert files_of(bundle.path) == before
    assert not list(bundle.path.glob(".*"))


def wrong_type(change):
    change.manifest = replace(change.manifest, detections="10")


def no_graph_file(change):
    change.set_precision("fp16", {n: graph(n, "a.onnx", "fp16") for n in GRAPHS})


def other_graphs(change):
    change.set_precision("fp16", {"masks": change.manifest.graphs["fp32"]["masks"]})


def engine_as_graph(change):
    change.set_precision("fp16", {n: graph(n, "engines/a.plan", "fp16") for n in GRAPHS})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda change: change.new_file("reference/a"), BundleError, "reference/a is to be a part"),
        (no_graph_file, BundleError, "'a.onnx' of a graph is not among"),
        (engine_as_graph, BundleError, "of a graph is not among"),
        (other_graphs, BundleError, "every precision needs the same graphs"),
        (wrong_type, RecordError, "detections: a whole number is needed, found '10'"),
        (lambda change: change.drop("nothing"), BundleError, "no file nothing"),
        (lambda change: change.drop("masks.onnx"), BundleError, "no file masks.onnx"),
        (lambda change: change.new_file("../a"), BundleError, "no path of a file"),
        (lambda change: change.new_file("engines/a"), BundleError, "no path of a listed file"),
        (lambda change: change.new_file("masks.onnx"), OutputError, "Take another name"),
        (lambda change: change.new_file("notes.txt"), OutputError, "Remove it yourself"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_and_changes_nothing(bundle, spoil, error, message):
    before = files_of(bundle.path)

    def add_and_spoil(change: Change) -> None:
        change.new_file("reference/good.npz").write_text("good")
        spoil(change)

    with pytest.raises(error, match=message):
        change_by(bundle, add_and_spoil)
    assert files_of(bundle.path) == before
    assert Bundle.open(bundle.path).manifest == bundle.manifest


def test_a_folder_that_leads_out_is_not_written_to(bundle, tmp_path):
    (tmp_path / "outside").mkdir()
    (bundle.path / "reference").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="leads out"), bundle.adding() as change:
        change.new_file("reference/a.npz")


def test_names_that_are_taken_get_a_number(bundle):
    with bundle.adding() as change:
        assert change.unused_name("a.npz") == "a.npz"
        change.new_file("a.npz").write_text("1")
        assert change.unused_name("a.npz") == "a.2.npz"
        change.new_file("a.2.npz").write_text("2")
        assert change.unused_name("a.npz") == "a.3.npz"
        assert change.unused_name("propose.int8.onnx") == "propose.int8.2.onnx"
        assert change.unused_name("notes.txt") == "notes.2.txt"


def test_a_bundle_of_a_newer_minor_schema_is_not_rewritten(bundle, monkeypatch):
    for module in ("manifest_file", "manifest"):
        monkeypatch.setattr(f"openvis_rt.bundle.{module}.SCHEMA", NEWER)
    write_manifest(bundle.path, bundle.manifest, bundle.manifest.files)
    before = files_of(bundle.path)
    with pytest.raises(BundleError, match=f"schema {NEWER}.*would lose"), bundle.adding():
        pytest.fail("the block must not run")
    assert files_of(bundle.path) == before


def test_a_full_disk_is_said(bundle):
    before = files_of(bundle.path)

    def fill(change: Change) -> None:
        change.new_file("reference/a.npz").write_text("a")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"cannot add to .*No space.*It is as it was"):
        change_by(bundle, fill)
    assert files_of(bundle.path) == before


def test_an_error_of_other_files_is_left_as_it_is(bundle, tmp_path):
    with pytest.raises(FileNotFoundError), bundle.adding():
        (tmp_path / "none").read_text()


# two writers


def test_a_second_writer_is_refused_until_the_first_has_ended(bundle):
    with bundle.adding() as change:
        change.new_file("reference/a").write_text("a")
        with pytest.raises(OutputError, match="another process is adding"), bundle.adding():
            pytest.fail("the block must not run")
        ended = subprocess.run(
            [sys.executable, "-c", SECOND, str(bundle.path)], capture_output=True, text=True
        )
        assert "OutputError: another process is adding" in ended.stderr
    with bundle.adding() as change:
        change.new_file("reference/b").write_text("b")
    assert {"reference/a", "reference/b"} < set(Bundle.open(bundle.path).manifest.files)


SECOND = """
import sys
from openvis_rt.bundle.bundle import Bundle
with Bundle.open(sys.argv[1]).adding():
    pass
"""


@pytest.mark.parametrize("adds", [True, False])
def test_a_writer_does_no_harm_to_a_bundle_that_was_exported_over_its_own(bundle, tmp_path, adds):
    other = write_small_bundle(tmp_path / "other")
    before = files_of(other.path)

    def swap(change: Change) -> None:
        if adds:
            change.new_file("reference/a").write_text("a")
        change.drop("calibration")
        bundle.path.rename(tmp_path / "away")
        other.path.rename(bundle.path)

    with pytest.raises(InputError, match=r"was replaced by another bundle"):
        change_by(bundle, swap)
    assert files_of(bundle.path) == before


# a writer that is killed


KILLED = """
import os, shutil, signal, sys
from pathlib import Path

sys.path[:0] = sys.argv[1:3]
from test_growing import add_everything

# every step on the disk has an event before it; at the n-th one inside the bundle the process dies
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
source, work = Path(sys.argv[3]), Path(sys.argv[4])
for number in range(1, 1000):
    path = work / str(number)
    shutil.copytree(source, path)
    if not (child := os.fork()):
        left = number

        def step(event, arguments):
            global left
            if event in STEPS and str(path) in map(str, arguments) or any(
                str(a).startswith(f"{path}/") for a in arguments
            ):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(step)
        add_everything(path)
        os._exit(0)
    if not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        break
"""


def test_a_writer_that_is_killed_at_any_step_leaves_the_old_bundle_or_the_new_one(bundle, tmp_path):
    old = files_of(bundle.path)
    work = tmp_path / "work"
    work.mkdir()
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(here),
        str(here.parent),
        str(bundle.path),
        str(work),
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    killed = sorted(work.iterdir(), key=lambda path: int(path.name))
    whole = killed.pop()
    new = files_of(whole)
    assert set(new) == ADDED | UNLISTED
    assert len(killed) > 30
    seen = []
    for path in killed:
        manifest = Bundle.open(path).manifest  # every listed file is whole
        grown = "fp16" in manifest.graphs
        seen.append(grown)
        wanted = new if grown else old
        found = files_of(path)
        assert {name: found[name] for name in wanted} == wanted
        with Bundle.open(path).adding():
            pass  # the next writer clears up, and only what the killed one has left
        assert files_of(path) == wanted
        assert not [f for f in path.rglob("*") if f.is_dir() and not any(f.iterdir())]
    assert seen == sorted(seen)  # the old one until some step, the new one from there on
    assert {True, False} == set(seen)


def test_a_list_of_names_that_a_stranger_wrote_removes_nothing_of_ours(bundle, tmp_path):
    (tmp_path / "mine").write_text("mine")
    litter = bundle.path / ".adding-strange"
    litter.mkdir()
    names = ["../mine", str(tmp_path / "mine"), "engines/a.plan", "masks.onnx", MANIFEST, 3, ""]
    (litter / "names.json").write_text(json.dumps(names))
    before = files_of(bundle.path)
    with bundle.adding():
        pass
    assert (tmp_path / "mine").read_text() == "mine"
    assert set(before) - set(files_of(bundle.path)) == {".adding-strange/names.json"}
    Bundle.open(bundle.path)


@pytest.mark.parametrize("text", ["", "{", "3", "null", "[" * 100_000, "\udcff"])
def test_a_damaged_list_of_names_stops_no_writer(bundle, text):
    litter = bundle.path / ".adding-strange"
    litter.mkdir()
    (litter / "names.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    add_everything(bundle.path)
    assert set(files_of(bundle.path)) == ADDED | UNLISTED


def test_ctrl_c_leaves_the_bundle_as_it_was(bundle):
    before = files_of(bundle.path)

    def interrupt(change: Change) -> None:
        change.new_file("reference/a").write_text("a")
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        change_by(bundle, interrupt)
    assert files_of(bundle.path) == before
