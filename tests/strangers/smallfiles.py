"""Small files that a stranger sends: names, tokenizers, matrices, sidecars, proofs."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from contents import Put, changed_bytes, changed_fields, no_files, texts
from court import Case
from sealing import replaced
from workshop import Workshop

from openvis_rt.records import json_from_record

sys.path.append(str(Path(__file__).parent.parent))

from sidecars import PLAN, sidecar

__all__ = ["ROWS", "Arguments", "arrays", "cases", "every_change", "npy"]

Arguments = Sequence[str | Path]
Use = Callable[[Path, Put], Arguments]
"""Writes a strange file where the command looks for it, and gives the command."""


def cases(puts: Iterable[tuple[str, Put]], use: Use, *writes: str) -> Iterator[Case]:
    """A case of each strange file."""
    for name, put in puts:

        def make(folder: Path, put: Put = put) -> Arguments:
            return use(folder, put)

        yield Case(name, make, frozenset({"out", *writes}))


def every_change(good: Any, count: int) -> Iterator[tuple[str, Put]]:
    """Other kinds of file and other texts in place of some JSON, and so many changed fields."""
    text = json.dumps(good, indent=1).encode()
    return chain(no_files(), texts(text), changed_fields(good, count))


def vocabularies(workshop: Workshop) -> Iterator[Case]:
    """Names as lines, and in an annotation file."""

    def use(folder: Path, put: Put, name: str) -> Arguments:
        put(folder / name)
        return ["run", workshop.bundle, workshop.video, "--vocabulary", name, "-o", "out"]

    category = {"id": 1, "name": "disc", "synonyms": ["disk"]}
    whole = {"categories": [category, {"id": 2, "name": "square"}], "videos": []}
    yield from cases(every_change(whole, 90), lambda f, put: use(f, put, "names.json"))
    for name in (None, ["cat", "dog"], {"x": 1}, True, 7, 0.5):

        def make(folder: Path, name: Any = name) -> Arguments:
            text = json.dumps([{"name": "disc"}, {"name": name}])
            return use(folder, lambda path: path.write_text(text), "names.json")

        yield Case(f"the name {name}", make, codes=frozenset({2}))
    lines = chain(no_files(), texts(b"disc\nsquare, box\n"))
    yield from cases(lines, lambda f, put: use(f, put, "names.txt"))


def tokenizers(workshop: Workshop) -> Iterator[Case]:
    """A tokenizer that is listed with its true digest, and has other fields."""
    name = "tokenizer/tokenizer.json"
    good = (workshop.bundle / name).read_bytes()

    def use(folder: Path, put: Put) -> Arguments:
        bundle = workshop.linked(folder)
        (bundle / name).unlink()
        put(bundle / name)
        replaced(bundle, name, (bundle / name).read_bytes())
        return ["run", "bundle", workshop.video, "-c", "zebra", "--only", "-o", "out"]

    puts = chain(changed_fields(json.loads(good), 60), changed_bytes(good, 20))
    yield from cases(puts, use, "bundle")


def matrices(workshop: Workshop) -> Iterator[Case]:
    """Text embeddings of the classes in a `.npy` file."""
    manifest = json.loads((workshop.bundle / "bundle.json").read_text())
    width = manifest["graphs"]["fp32"]["text"]["spec"]["outputs"][0]["shape"][-1]
    rows = np.eye(2, width, dtype=np.float32)

    def use(folder: Path, put: Put) -> Arguments:
        put(folder / "rows.npy")
        names = ["-c", "disc", "-c", "square", "--only", "--classifier", "rows.npy"]
        return ["run", workshop.bundle, workshop.video, *names, "-o", "out"]

    puts = chain(no_files(), texts(b"1 2\n"), arrays(rows), changed_bytes(npy(rows), 90))
    yield from cases(puts, use)


def npy(array: Any) -> bytes:
    """The bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def arrays(rows: Any) -> Iterator[tuple[str, Put]]:
    """Rows in other types and shapes, and with other values."""
    kinds = ("<f2", "<f8", ">f4", "<i4", "u1", "<c8", "<U3", "?", "<M8[s]")
    found = {kind: rows.astype("i8" if "M" in kind else "f4").astype(kind) for kind in kinds}
    one = np.arange(rows.size).reshape(rows.shape) == 3
    for value in (np.nan, np.inf, -np.inf, 0.0, 3e38, 1e-45):
        found[f"{value} in one place"] = np.where(one, np.float32(value), rows)
        found[f"{value} everywhere"] = np.full_like(rows, value)
    shapes = [(0,), (1,), (2, 1), (1, 2), (3,), (2, 2, 2), ()]
    found |= {f"shape {shape}": np.ones(shape, np.float32) for shape in shapes}
    found |= {"negated": -rows, "scaled": rows * 9, "the same twice": rows[[0, 0]]}
    found |= {"in Fortran's order": np.asfortranarray(rows), "of one class": rows[:1]}
    for name, array in found.items():
        data = npy(array)
        yield name, lambda path, data=data: path.write_bytes(data)


def sidecars(workshop: Workshop) -> Iterator[Case]:
    """Sidecars of an engine, which `inspect` and a run look at."""
    good = json_from_record(_sidecar(workshop))
    yield from _of_engine(workshop, "classify.fp32.json", good, 430)


def proofs(workshop: Workshop) -> Iterator[Case]:
    """What is said to have come of comparing an engine."""
    sha256 = hashlib.sha256(PLAN).hexdigest()
    held = {"plan_sha256": sha256, "gpu": "a GPU", "library": "TensorRT 10", "rules": "0"}
    compared = {"output": "class_scores", "measure": "dB", "value": 40.0, "gate": 30.0}
    outputs = [{**compared, "passed": True}, {**compared, "measure": "share", "passed": False}]
    corner = {"lengths": {"K": 2}, "sizes": {"frames": [64, 96]}, "slot": 0, "outputs": outputs}
    corners = [{**corner, "inputs": "seeded"}]
    good = {"held": held, "reference": "ONNX Runtime", "corners": corners, "schema": 1}
    yield from _of_engine(workshop, "classify.fp32.gpu.proof.json", good, 130)


def _sidecar(workshop: Workshop) -> Any:
    manifest = json.loads((workshop.bundle / "bundle.json").read_text())
    file = manifest["graphs"]["fp32"]["classify"]["file"]
    return sidecar(onnx_sha256=manifest["files"][file]["sha256"])


def _of_engine(workshop: Workshop, name: str, good: Any, count: int) -> Iterator[Case]:
    own = json.dumps(json_from_record(_sidecar(workshop)))

    def use(folder: Path, put: Put) -> Arguments:
        engines = workshop.linked(folder) / "engines/tensorrt-rtx-sm86"
        engines.mkdir(parents=True)
        (engines / "classify.fp32.plan").write_bytes(PLAN)
        (engines / "classify.fp32.json").write_text(own)
        (engines / name).unlink(missing_ok=True)
        put(engines / name)
        return ["inspect", "bundle"]

    yield from cases(every_change(good, count), use, "bundle")


ROWS = {
    "vocabularies": vocabularies,
    "tokenizers": tokenizers,
    "matrices": matrices,
    "sidecars": sidecars,
    "proofs": proofs,
}
