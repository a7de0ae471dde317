"""Bundles: what opens, what must not, and what an export may replace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import NETWORK, VARIANT, export_tiny, traced_before

from openvis_rt.bundle.bundle import MANIFEST, SCHEMA, Bundle, write_manifest
from openvis_rt.errors import BundleError, InputError, OutputError
from openvis_rt.export import bundle as bundle_export
from openvis_rt.files import sha256_of
from openvis_rt.systems.variants import GRAPHS_OF_FAMILY

FILES = [
    "propose.onnx",
    "classify.onnx",
    "text.onnx",
    "masks.onnx",
    "propose.fp16.onnx",
    "classify.fp16.onnx",
    "text.fp16.onnx",
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
        (file, "is a file"),
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
import openvis_rt.export.bundle as bundle_export

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


def test_an_export_replaces_bundles_and_nothing_else(tmp_path):
    (tmp_path / "mine.pth").write_text("mine")
    with pytest.raises(OutputError, match="not made by openvis"):
        export_tiny(tmp_path, overwrite=True)
    assert names(tmp_path) == ["mine.pth"]


def test_the_docs_list_every_tensor_of_the_contract():
    text = (Path(__file__).parents[2] / "docs" / "graphs.md").read_text(encoding="utf-8")
    for graph in [graph for family in GRAPHS_OF_FAMILY.values() for graph in family.values()]:
        for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(d) for d in tensor.shape)
                line = f"| `{graph.name}` | {side} | `{tensor.name}` | {tensor.dtype} | [{shape}] |"
                assert line in text, f"docs/graphs.md lacks: {line}"
