"""What a file is by its first bytes: every refusal has a reason, and none needs torch."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from openvis_rt.checkpoints.formats import refuse_foreign_file
from openvis_rt.checkpoints.weights import read_weights
from openvis_rt.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3)}
PAGE = (
    b"\xef\xbb\xbf\n<!DOCTYPE HTML>\n<html><head><title>\nVirus scan warning</title></head></html>"
)


def torch_bytes(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def numpy_bytes(write, *args: object) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *args)
    return buffer.getvalue()


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return buffer.getvalue()


def refused(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        refuse_foreign_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ({path.stat().st_size} bytes) ")
    with pytest.raises(CheckpointError) as again:
        read_weights(path)  # every command says the same
    assert str(again.value) == message
    return message


@pytest.mark.parametrize(
    "content",
    [
        torch_bytes({"model": WEIGHTS}),
        torch_bytes({"model": WEIGHTS}, _use_new_zipfile_serialization=False),
        torch_bytes({"model": WEIGHTS}, _use_new_zipfile_serialization=False, pickle_protocol=4),
        save(WEIGHTS),
    ],
    ids=["zip", "legacy", "legacy, protocol 4", "safetensors"],
)
def test_weights_pass(tmp_path, content):
    path = tmp_path / "weights"
    path.write_bytes(content)
    refuse_foreign_file(path)


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("a.pth", b"", ["is empty", "download it again"]),
        ("a.pth", PAGE, ["is a web page ('Virus scan warning')", "download the file itself"]),
        ("a.pkl", PAGE, ["is a web page"]),
        ("a.safetensors", b"<html>404</html>", ["is a web page,", "download the file itself"]),
        ("a.pth", gzip.compress(b"x", mtime=0), ["a gzip file", "gunzip"]),
        ("a.pth", bz2.compress(b"x"), ["a bzip2 file", "bunzip2"]),
        ("a.tar", tar_bytes(), ["a tar archive", "unpack it"]),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid x\n", ["git lfs pull"]),
        ("a.npy", numpy_bytes(np.save, np.zeros(2)), ["an array of numpy", "--classifier"]),
        ("a.npz", numpy_bytes(np.savez, np.zeros(2)), ["is a zip file of arr_0.npy", "data.pkl"]),
        ("a.zip", zip_bytes(), ["is a zip file of nothing"]),
        ("a.mp4", b"\0\0\0\x20ftypisom" + bytes(20), ["is a video", "openvis run"]),
        ("a.pth", torch_bytes({"model": WEIGHTS})[:300], ["zip file without its end", "cut short"]),
        ("a.safetensors", save(WEIGHTS)[:30], ["is cut short", "of its header"]),
        ("a.pth", b"404: Not Found\n", ["is a text that begins with '404: Not Found'"]),
        ("a.json", json.dumps({"a": 1}).encode(), ["is a text that begins with"]),
        ("a.onnx", b"\x08\x0a\x12\x07pytorch", ["is an ONNX graph", "bundle"]),
        ("a.plan", b"ptrt\0\0\0\0", ["is an engine", "bundle"]),
        ("a.bin", b"\x08\x0a\x12\x07pytorch", ["begins with the bytes 08 0a 12 07"]),
        ("a.pkl", pickle.dumps({"model": {"a": np.zeros(2)}}), ["plain pickle (it names numpy."]),
        ("a.pkl", pickle.dumps({"a": np.zeros(2)}, protocol=2), ["plain pickle (it names numpy."]),
        ("a.pkl", pickle.dumps({"a": 1}, protocol=0), ["is a plain pickle, which could run code"]),
        ("a.pth", pickle.dumps({"a": [1]}), ["is a plain pickle, which could run code"]),
    ],
)
def test_what_holds_no_weights_is_called_by_its_name(tmp_path, name, content, messages):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert all(text in message for text in messages), message


def test_the_conversion_of_a_pickle_works(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"model": {"a": np.arange(3.0)}}))
    command = refused(path).splitlines()[-1].strip()
    ended = subprocess.run(
        command.replace("python", sys.executable, 1), shell=True, timeout=60, check=False
    )
    assert ended.returncode == 0
    found = read_weights(tmp_path / "model-weights.pth").tensors
    assert found["a"].tolist() == [0, 1, 2]


def test_any_bytes_have_a_reason(tmp_path):
    rng = random.Random(0)
    starts = (
        b"",
        b"\x80\x02",
        b"\x80\x04\x95",
        b"PK\x03\x04",
        b"(dp0\n",
        b"<html><title>",
        b"\x08",
    )
    path = tmp_path / "noise.pkl"
    for number in range(200):
        path.write_bytes(starts[number % len(starts)] + rng.randbytes(rng.randrange(1, 200)))
        with pytest.raises(CheckpointError) as caught:
            refuse_foreign_file(path)
        reason = str(caught.value).partition(" bytes) ")[2]
        assert len(reason) > 30
        assert "()" not in reason.splitlines()[0]
