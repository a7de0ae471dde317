"""Bundles that must not open, and output that appears whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny import NETWORK, VARIANT, export_tiny, traced_before

from openvis_rt.bundle import MANIFEST, SCHEMA, Bundle, write_manifest
from openvis_rt.errors import BundleError, InputError, OutputError
from openvis_rt.export import bundle_export
from openvis_rt.files import output_directory, output_file, sha256_of
from openvis_rt.graphs import CLIP_VIS_GRAPHS

FILES = [
    "propose.onnx",
    "classify.onnx",
    "text.onnx",
    "masks.onnx",
    "tokenizer/tokenizer.json",
]
TESTS = Path(__file__).parents[1]


def replace(path: Path, data: bytes) -> None:
    """Write a file anew; the old one may be a link to the bundle that all tests share."""
    path.unlink()
    path.write_bytes(data)


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    replace(path, bytes(data))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a script of its own; it may end itself in any way."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


# what opens


def test_an_exported_bundle_holds_these_files_and_opens(tiny_bundle):
    found = sorted(
        p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()
    )
    assert found == sorted([MANIFEST, *FILES])
    bundle = Bundle.open(tiny_bundle)
    assert sorted(bundle.manifest.files) == sorted(FILES)
    assert bundle.manifest.variant == VARIANT.name
    assert bundle.manifest.preprocess.network_size == NETWORK
    assert bundle.manifest.checkpoint == {"random_weights": 0}
    assert bundle.graph_sha256("text") == sha256_of(tiny_bundle / "text.onnx")


def test_a_manifest_survives_being_written_and_read(bundle_copy):
    before = Bundle.open(bundle_copy).manifest
    write_manifest(bundle_copy, before)
    assert Bundle.open(bundle_copy).manifest == before


def test_a_bundle_may_be_moved_and_may_grow_what_it_does_not_check(bundle_copy, tmp_path):
    moved = bundle_copy.rename(tmp_path / "elsewhere [1] ü")
    (moved / "engines").mkdir()
    (moved / "engines" / "any.plan").write_bytes(b"plan")
    Bundle.open(str(moved))


def test_no_file_of_a_bundle_tells_where_it_was_made(tiny_bundle):
    traces = [str(TESTS).encode(), str(tiny_bundle.parent).encode(), str(Path.home()).encode()]
    for file in [MANIFEST, *FILES]:
        content = (tiny_bundle / file).read_bytes()
        assert not [t for t in traces if t in content and t != b"/"], file


def test_another_precision_is_refused_by_naming_what_is_there(opened_bundle):
    with pytest.raises(BundleError, match=r"no graph 'text' in precision 'int8'.*fp32"):
        opened_bundle.graph_path("text", "int8")


# what does not


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_flipped_bit_in_any_file_is_found(bundle_copy, file, share):
    path = bundle_copy / file
    flip_bit(path, round(share * (path.stat().st_size - 1)))
    with pytest.raises(BundleError, match="was changed") as caught:
        Bundle.open(bundle_copy)
    assert file in str(caught.value)
    assert "openvis export" in str(caught.value)


def test_one_flipped_bit_anywhere_in_the_manifest_is_found(bundle_copy):
    path = bundle_copy / MANIFEST
    for place in range(0, path.stat().st_size - 1, 11):  # the last byte only ends the last line
        flip_bit(path, place)
        with pytest.raises(BundleError):
            Bundle.open(bundle_copy, verify=False)
        flip_bit(path, place)
    Bundle.open(bundle_copy)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_or_truncated_file_is_named(bundle_copy, file):
    path = bundle_copy / file
    replace(path, path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{path.name} has [0-9]+ bytes"):
        Bundle.open(bundle_copy)
    path.unlink()
    with pytest.raises(BundleError, match=f"{path.name} is missing"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"x"', "{}", '{"schema": null}', f'{{"schema": {SCHEMA}}}']
)
def test_a_manifest_that_is_none_is_refused(bundle_copy, text):
    (bundle_copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle_copy)


def test_a_manifest_that_is_no_text_is_refused(bundle_copy):
    (bundle_copy / MANIFEST).write_bytes(bytes(range(256)))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(bundle_copy)


def test_a_newer_schema_is_refused_by_its_number(bundle_copy):
    path = bundle_copy / MANIFEST
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "schema": SCHEMA + 1, "of_the_future": 1}))
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1}.*reads {SCHEMA}"):
        Bundle.open(bundle_copy)


def test_what_is_no_bundle_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for path, message in [
        (tmp_path / "none", "no such directory"),
        (file, "no such directory"),
        (tmp_path, MANIFEST),
    ]:
        with pytest.raises(BundleError, match=message) as caught:
            Bundle.open(path)
        assert caught.value.exit_code == 2


# exports that do not end


KILLED_EXPORT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny import export_tiny, traced_before
import openvis_rt.export.bundle_export as bundle_export

def progress(phase, *_):
    if phase == "writing the manifest":
        os.kill(os.getpid(), signal.SIGKILL)

bundle_export.onnx_from_module = traced_before(Path(sys.argv[2]))
export_tiny(Path(sys.argv[3]), overwrite=True, verify=False, progress=progress)
"""


def test_a_killed_export_leaves_nothing_that_opens_and_keeps_the_old_bundle(bundle_copy):
    new, folder = bundle_copy.with_name("new"), bundle_copy.parent
    for target in (new, bundle_copy):
        ended = python(KILLED_EXPORT, TESTS, bundle_copy, target)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    Bundle.open(bundle_copy)
    litter = [path for path in folder.iterdir() if path != bundle_copy]
    assert len(litter) == 2
    for path in (new, *litter):
        with pytest.raises(BundleError):
            Bundle.open(path)
    assert all((path / "masks.onnx").is_file() for path in litter)  # it was nearly done


def test_a_failing_export_keeps_the_old_bundle_and_leaves_nothing_else(
    bundle_copy, tiny_bundle, monkeypatch
):
    before = (bundle_copy / MANIFEST).read_bytes()
    monkeypatch.setattr(bundle_export, "onnx_from_module", traced_before(tiny_bundle))

    def fail(phase: str, *_: object) -> None:
        if phase == "exporting masks":
            raise ArithmeticError("boom")

    with pytest.raises(ArithmeticError, match="boom"):
        export_tiny(bundle_copy, overwrite=True, progress=fail)
    assert (bundle_copy / MANIFEST).read_bytes() == before
    Bundle.open(bundle_copy)
    assert names(bundle_copy.parent) == ["bundle"]


@pytest.mark.parametrize("size", [(31, 64), (64, 8)])
def test_a_network_smaller_than_its_stride_is_refused_before_any_work(tmp_path, size):
    with pytest.raises(InputError, match="too small"):
        export_tiny(tmp_path / "bundle", network_size=size)
    assert names(tmp_path) == []


# directories and files that appear whole or not at all


def test_a_directory_takes_its_name_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "er" / "out"
    with output_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_existing_directory_is_kept_unless_it_may_be_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OutputError, match="--overwrite"), output_directory(target):
        pytest.fail("the block must not run")
    with pytest.raises(KeyError), output_directory(target, overwrite=True):
        raise KeyError
    assert names(target) == ["old"]
    with output_directory(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_file_where_a_directory_is_wanted_is_replaced_without_litter(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    with output_directory(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing_and_is_not_renamed(tmp_path, error):
    def interrupt(path: Path) -> None:
        path.write_text("1")
        raise error

    with pytest.raises(error), output_directory(tmp_path / "out") as folder:
        interrupt(folder / "a")
    with pytest.raises(error), output_file(tmp_path / "out.txt") as path:
        interrupt(path)
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from openvis_rt.files import output_directory
with output_directory(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["out", "out[1]", "a b ü"])
def test_litter_of_a_killed_process_is_removed_by_the_next_one(tmp_path, name):
    target = tmp_path / name
    assert python(KILLED, target).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert not target.exists()
    with output_directory(target):
        pass
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("running", "starting"), [("out-2", "out"), ("out", "out"), ("out", "*"), ("out", "o*")]
)
def test_work_that_is_still_running_is_no_litter(tmp_path, running, starting):
    with output_directory(tmp_path / running, overwrite=True) as folder:
        (folder / "work").write_text("hours of it")
        other = threading.Thread(target=_make, args=(tmp_path / starting,))
        other.start()
        other.join()
        assert (folder / "work").is_file()
    assert names(tmp_path / running) == ["work"]


def _make(path: Path) -> None:
    with output_directory(path, overwrite=True):
        pass


def test_a_place_below_a_file_cannot_be_written_and_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"), output_directory(tmp_path / "file/out"):
        pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="cannot write"), output_file(tmp_path / "file/out.txt"):
        pytest.fail("the block must not run")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, a place nobody can write")
def test_a_read_only_place_says_so():
    with pytest.raises(OutputError, match="/proc/out"), output_directory(Path("/proc/out")):
        pytest.fail("the block must not run")


def test_the_working_directory_itself_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError), output_directory(Path(), overwrite=True):
        pass
    assert names(tmp_path) == ["mine"]


FULL = """
import resource, sys
from pathlib import Path
from openvis_rt.errors import OutputError
from openvis_rt.files import output_directory, output_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as good as a full disk
target, kind = Path(sys.argv[1]), sys.argv[2]
try:
    if kind == "file":
        with output_file(target) as path:
            path.write_bytes(bytes(2000))
    else:
        with output_directory(target, overwrite=True) as folder:
            (folder / "a").write_bytes(bytes(2000))
except OutputError as exc:
    print(exc)
    sys.exit(exc.exit_code)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("old")
    else:
        target.mkdir()
        (target / "old").write_text("old")
    ended = python(FULL, target, kind)
    assert ended.returncode == 2, ended.stderr
    assert "cannot write" in ended.stdout
    assert names(tmp_path) == ["out"]
    assert (target if kind == "file" else target / "old").read_text() == "old"


def test_a_file_takes_its_name_at_the_end_with_the_users_rights(tmp_path):
    target = tmp_path / "new" / "a.json"
    with output_file(target) as path:
        path.write_text("1")
        assert not target.exists()
        assert path.suffix == ".json"
    assert target.read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert names(target.parent) == ["a.json"]


def test_the_docs_list_every_tensor_of_the_contract():
    text = (Path(__file__).parents[2] / "docs" / "graphs.md").read_text(encoding="utf-8")
    for graph in CLIP_VIS_GRAPHS.values():
        for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(d) for d in tensor.shape)
                line = f"| `{graph.name}` | {side} | `{tensor.name}` | {tensor.dtype} | [{shape}] |"
                assert line in text, f"docs/graphs.md lacks: {line}"
