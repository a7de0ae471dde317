"""Bundles: what opens, what must not, and what an export may replace."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import NETWORK, VARIANT, export_tiny, traced_before

from openvis_rt.bundle.bundle import (
    MANIFEST,
    SCHEMA,
    TOKENIZER,
    Bundle,
    Manifest,
    write_manifest,
)
from openvis_rt.errors import BundleError, InputError, OutputError, RecordError
from openvis_rt.export import bundle as bundle_export
from openvis_rt.files import sha256_of
from openvis_rt.records import record_from_json
from openvis_rt.systems import SYSTEMS

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
MAJOR, MINOR = map(int, SCHEMA.split("."))


def put_anew(path: Path, data: bytes) -> None:
    """Write a file anew; the old one may be a link to the bundle that all tests share."""
    path.unlink()
    path.write_bytes(data)


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    put_anew(path, bytes(data))


def rewrite(bundle: Path, **change: object) -> None:
    """Other fields in the manifest, with its digest as it then has to be."""
    data = {**json.loads((bundle / MANIFEST).read_text()), **change}
    data.pop("manifest_sha256")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["manifest_sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(data))


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
    write_manifest(bundle_copy, before, before.files)
    assert Bundle.open(bundle_copy).manifest == before


def test_a_bundle_that_was_opened_before_is_known_again(bundle_copy):
    opened = Bundle.open(bundle_copy)
    assert Bundle.open(bundle_copy, sha256=opened.sha256).sha256 == opened.sha256
    rewrite(bundle_copy, tools={"torch": "another"})
    with pytest.raises(BundleError, match="was replaced or changed since it was first opened"):
        Bundle.open(bundle_copy, sha256=opened.sha256)


def test_only_what_is_listed_belongs_to_a_bundle(bundle_copy, tmp_path):
    moved = bundle_copy.rename(tmp_path / "elsewhere [1] ü")
    for name in ("engines/any.plan", "text/embeddings.sqlite", "reference/a.npz", "notes.txt"):
        (moved / name).parent.mkdir(exist_ok=True)
        (moved / name).write_bytes(b"x")
    bundle = Bundle.open(str(moved))
    assert sorted(bundle.manifest.files) == sorted(FILES)
    write_manifest(moved, bundle.manifest)
    graphs = [file for file in FILES if file.endswith(".onnx")]
    assert sorted(Bundle.open(moved).manifest.files) == sorted(graphs)
    with pytest.raises(BundleError, match=r"does not list it"):
        Bundle.open(moved).file_path(TOKENIZER)
    assert bundle.file_path(TOKENIZER) == moved / TOKENIZER


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
    put_anew(path, path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{path.name} has [0-9]+ bytes"):
        Bundle.open(bundle_copy)
    path.unlink()
    with pytest.raises(BundleError, match=f"{path.name} is missing"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"x"', "{}", '{"schema": null}', f'{{"schema": "{SCHEMA}"}}'],
)
def test_a_manifest_that_is_none_is_refused(bundle_copy, text):
    (bundle_copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle_copy)


def test_a_manifest_that_is_no_text_is_refused(bundle_copy):
    (bundle_copy / MANIFEST).write_bytes(bytes(range(256)))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "schema",
    [f"{MAJOR + 1}.0", f"{MAJOR - 1}.9", 3, MAJOR, float(SCHEMA), f"{MAJOR}", f"{MAJOR}.x"],
)
def test_another_major_schema_is_refused_by_its_number(bundle_copy, schema):
    rewrite(bundle_copy, schema=schema, of_the_future=1)
    with pytest.raises(BundleError, match=rf"schema {schema}; .*reads {MAJOR}\.x.*export it again"):
        Bundle.open(bundle_copy)


def test_a_newer_minor_schema_is_read_and_what_is_new_in_it_passed_over(bundle_copy):
    before = Bundle.open(bundle_copy).manifest
    data = json.loads((bundle_copy / MANIFEST).read_text())
    data["preprocess"]["of_the_future"] = [1]
    rewrite(bundle_copy, preprocess=data["preprocess"], schema=f"{MAJOR}.{MINOR + 1}", new={"x": 1})
    found = Bundle.open(bundle_copy).manifest
    assert found == replace(before, schema=f"{MAJOR}.{MINOR + 1}")


def test_an_unknown_field_of_the_schema_that_is_read_is_damage(bundle_copy):
    rewrite(bundle_copy, colour=1)
    with pytest.raises(BundleError, match="colour: this field is not known"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_length": "1"}, "window_length: a whole number is needed, found '1'"),
        ({"tracker": {"name": 1}}, r"tracker\.name: a string"),
        ({"preprocess": None}, "preprocess: an object is needed"),
        ({"graphs": {}}, "every precision needs the same graphs"),
        ({"graphs": {"fp32": {}}}, "every precision needs the same graphs"),
        ({"files": {}}, r"'classify\.onnx' of a graph is not among the bundle's files"),
        ({"files": {"a": {"bytes": 1}}}, r"files\.a\.sha256: this field is missing"),
    ],
    ids=str,
)
def test_a_wrong_field_of_the_manifest_is_named(bundle_copy, change, message):
    if "graphs" not in change:
        data = json.loads((bundle_copy / MANIFEST).read_text())
        change = {**change, "graphs": {"fp32": data["graphs"]["fp32"]}}
    rewrite(bundle_copy, **change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle_copy)


def test_precisions_with_other_graphs_are_refused(bundle_copy):
    graphs = json.loads((bundle_copy / MANIFEST).read_text())["graphs"]
    del graphs["fp16"]["text"]
    rewrite(bundle_copy, graphs=graphs)
    with pytest.raises(BundleError, match="every precision needs the same graphs"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../a.onnx", "a/../../b", "a/..", "..", ".", "", "./a", "a//b", "a/"),
        *(
            "a\\b",
            "..\\a",
            "a\0b",
            "bundle.json",
            "engines/x/a.plan",
            "text/a",
            ".adding-x/a",
            "\ud800",
        ),
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(bundle_copy, name):
    data = json.loads((bundle_copy / MANIFEST).read_text())
    entry = data["files"]["text.onnx"]
    rewrite(bundle_copy, files={**data["files"], name: entry})
    with pytest.raises(BundleError, match=r"no path of a|cannot be followed"):
        Bundle.open(bundle_copy, verify=False)
    with pytest.raises(BundleError, match=r"no path of a|cannot be followed"):
        write_manifest(bundle_copy, record_from_json(Manifest, data, strict=False), [name])
    data["graphs"]["fp32"]["text"]["file"] = name
    rewrite(bundle_copy, files=data["files"], graphs=data["graphs"])
    with pytest.raises(BundleError, match=r"no path of a|not among"):
        Bundle.open(bundle_copy, verify=False)


@pytest.mark.parametrize("kind", ["file", "folder", "circle"])
def test_a_link_that_leaves_the_bundle_is_refused(bundle_copy, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    if kind == "file":
        (bundle_copy / "text.onnx").rename(outside / "text.onnx")
        (bundle_copy / "text.onnx").symlink_to(outside / "text.onnx")
    elif kind == "folder":
        (bundle_copy / "tokenizer").rename(outside / "tokenizer")
        (bundle_copy / "tokenizer").symlink_to("../outside/tokenizer")
    else:
        (bundle_copy / "text.onnx").unlink()
        (bundle_copy / "text.onnx").symlink_to("text.onnx")
    with pytest.raises(BundleError, match=r"leads out of the bundle|cannot be followed|is missing"):
        Bundle.open(bundle_copy)
    if kind != "circle":
        with pytest.raises(BundleError, match="leads out of the bundle"):
            Bundle.open(bundle_copy, verify=False)


def test_links_inside_a_bundle_and_to_a_bundle_are_followed(bundle_copy, tmp_path):
    (bundle_copy / "text.onnx").rename(bundle_copy / "moved.onnx")
    (bundle_copy / "text.onnx").symlink_to("moved.onnx")
    (tmp_path / "link").symlink_to(bundle_copy)
    Bundle.open(tmp_path / "link")


def test_a_file_that_is_not_there_cannot_be_listed(bundle_copy):
    before = (bundle_copy / MANIFEST).read_bytes()
    manifest = Bundle.open(bundle_copy).manifest
    with pytest.raises(BundleError, match=r"reference/a\.npz is to be a part"):
        write_manifest(bundle_copy, manifest, ["reference/a.npz"])
    with pytest.raises(RecordError, match="window_length"):
        write_manifest(bundle_copy, replace(manifest, window_length=1.5))
    assert (bundle_copy / MANIFEST).read_bytes() == before


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
    for graph in [graph for system in SYSTEMS.values() for graph in system.graphs.values()]:
        for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(d) for d in tensor.shape)
                line = f"| `{graph.name}` | {side} | `{tensor.name}` | {tensor.dtype} | [{shape}] |"
                assert line in text, f"docs/graphs.md lacks: {line}"
