"""Bundles that a stranger made: every digest is right, and something in a file is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from borders import survives
from hypothesis import given
from hypothesis import strategies as st
from strange import changed, damaged

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import MANIFEST, TOKENIZER, TRACKER, Bundle

NAMES = ["cat", "striped dog"]
FRAMES = [np.full((60, 100, 3), 40 * i, np.uint8) for i in range(3)]


@pytest.fixture(scope="session")
def instformer_bundle(tmp_path_factory) -> Path:
    """A bundle with a recurrence, besides everything that a bundle can have."""
    pytest.importorskip("torch", reason="exporting needs the extra [export]")
    import torch
    from tiny_instformer import EMBED, tiny_instformer

    from openvis_rt.export.bundle import export_bundle

    model = tiny_instformer()
    cell = torch.nn.RNN(256 + EMBED, 256 + EMBED)
    model.recurrence = {name: value.detach() for name, value in cell.state_dict().items()}
    path = tmp_path_factory.mktemp("instformer") / "bundle"
    facts = {"random_weights": 0}
    export_bundle(model, path, network_size=(64, 96), precisions=("fp32",), checkpoint=facts)
    with Pipeline.open(path, vocabulary=NAMES):  # so that the cache of text is full
        pass
    return path


@pytest.fixture
def stranger(instformer_bundle, tmp_path):
    """Writes one file of a copy anew, and the manifest with its right digest, whatever it says.

    The file of the case before is put back first: all cases of a test have the same folder.
    """
    path = tmp_path / "bundle"
    shutil.copytree(instformer_bundle, path, copy_function=os.link)
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["manifest_sha256"]
    replaced: list[str] = []

    def write(name: str, data: bytes) -> Path:
        for other in replaced:
            (path / other).unlink()
            os.link(instformer_bundle / other, path / other)
        replaced[:] = [name]
        (path / name).unlink()
        (path / name).write_bytes(data)
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return write_manifest({**manifest, "files": {**manifest["files"], name: entry}})

    def write_manifest(data) -> Path:
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
        (path / MANIFEST).unlink()
        (path / MANIFEST).write_text(json.dumps({**data, "manifest_sha256": digest}))
        return path

    write.manifest = manifest
    write.write_manifest = write_manifest
    write.path = path
    return write


@pytest.fixture(scope="session")
def originals(instformer_bundle) -> dict[str, bytes]:
    """The bytes of each file of the bundle."""
    names = Bundle.open(instformer_bundle).manifest.files
    return {name: (instformer_bundle / name).read_bytes() for name in names}


def use(path: Path) -> None:
    """What `openvis run` does with a bundle."""
    with Pipeline.open(
        path, vocabulary=NAMES, backend="onnxruntime", warn=lambda _: None
    ) as pipeline:
        for _ in pipeline.stream(iter(FRAMES)):
            pass
        pipeline.finish()


@given(data=st.data())
def test_a_manifest_with_strange_values(stranger, openvis, data):
    path = stranger.write_manifest(data.draw(changed(stranger.manifest)))
    survives(lambda: use(path))
    code, _, _ = openvis("inspect", path)
    assert code in (0, 2, 3)


@given(data=st.data())
def test_a_graph_with_changed_bytes(stranger, originals, data):
    name = data.draw(st.sampled_from(["propose.onnx", "classify.onnx", "masks.onnx", "text.onnx"]))
    path = stranger(name, damaged(data, originals[name]))
    survives(lambda: use(path))


@given(data=st.data())
def test_a_tracker_with_changed_bytes(stranger, originals, data):
    path = stranger(TRACKER, damaged(data, originals[TRACKER]))
    survives(lambda: use(path))


@given(data=st.data())
def test_a_tokenizer_with_strange_values(stranger, originals, data):
    tokenizer = json.loads(originals[TOKENIZER])
    few = {**tokenizer, "model": {**tokenizer["model"], "vocab": {}, "merges": []}}
    made = data.draw(changed(few))
    if data.draw(st.booleans()) and isinstance(made.get("model"), dict):
        made["model"] |= {k: tokenizer["model"][k] for k in ("vocab", "merges")}
    path = stranger(TOKENIZER, json.dumps(made).encode("utf-8", "surrogatepass"))
    survives(lambda: use(path))
