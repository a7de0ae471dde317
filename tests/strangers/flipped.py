"""Files of weights with a bit turned: anywhere, and inside of a tensor.

A zip file of torch's has a checksum of every record: what loads has the numbers that were written.
Torch's older format and safetensors have none; there a turned bit is noticed where it makes the
file unreadable, or a number infinite, none, or beyond 1e10, and is a wrong number elsewhere.
"""

from __future__ import annotations

import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from court import Case, Outcome
from torch import Tensor
from weights import good, written
from workshop import Workshop

from openvis_rt.checkpoints.weights import read_weights

__all__ = ["ROWS"]

_FORMS = (".pth", ".pt", ".safetensors")


@cache
def _whole(kind: str, form: str) -> bytes:
    """A good file of a form, in FP16 as the miniatures are."""
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / f"weights{form}"
        written({key: value.half() for key, value in good(kind).items()}, path, kind)
        return path.read_bytes()
    finally:
        shutil.rmtree(folder)


def _turned(data: bytes, bits: Sequence[int], path: Path) -> None:
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def _case(
    name: str,
    file: str,
    make: Callable[[Path], object],
    judge: Callable[[Mapping[str, Tensor]], str | None],
    codes: frozenset[int],
) -> Case:
    def prepare(folder: Path) -> Sequence[str | Path]:
        make(folder / file)
        return ["inspect", file]

    def check(folder: Path, outcome: Outcome) -> str | None:
        return None if outcome.code else judge(read_weights(folder / file).tensors)

    return Case(name, prepare, codes=codes, check=check)


def _differences(kind: str, found: Mapping[str, Tensor]) -> list[str]:
    wanted = good(kind)
    differ = [k for k in found.keys() & wanted.keys() if not _same(found[k], wanted[k])]
    return sorted(found.keys() ^ wanted.keys()) + differ


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.half().float())


def anywhere(_: Workshop) -> Iterator[Case]:
    """One to eight bits turned at drawn places, most of them where a file says what is where."""
    draw = random.Random(16)
    for kind in ("ovformer-mini", "tracker", "tokens"):
        for form in _FORMS:
            for number in range(64):
                data = _whole(kind, form)
                borders = (0, len(data)) if number % 3 else _words(data, form)
                count = 1 if number % 2 else draw.randrange(2, 9)
                bits = [draw.randrange(8 * borders[0], 8 * borders[1]) for _ in range(count)]

                def judge(found: Mapping[str, Tensor], kind: str = kind, form: str = form):
                    differ = _differences(kind, found)
                    return f"other weights: {differ[:3]}" if differ and form == ".pth" else None

                def make(path: Path, data: bytes = data, bits: Sequence[int] = bits) -> None:
                    _turned(data, bits, path)

                name = f"{kind}{form}: bits {bits[:3]} of {8 * len(data)}"
                yield _case(name, f"weights{form}", make, judge, frozenset({0, 2}))


def _words(data: bytes, form: str) -> tuple[int, int]:
    """Where a file says what is where: its header, its pickle, its directory."""
    if form == ".safetensors":
        return 0, 8 + struct.unpack("<Q", data[:8])[0]
    if form == ".pt":
        return 0, min(len(data), 4000)
    return data.index(b"PK\x01\x02"), len(data)


def in_a_tensor(_: Workshop) -> Iterator[Case]:
    """One bit inside of a tensor of a `.pth`: the zip's own checksum tells."""
    draw = random.Random(61)
    for kind in ("clip-vis-mini", "ovformer-mini", "tracker"):
        data = _whole(kind, ".pth")
        places = _records(data)
        for number in range(40):
            begin, size = places[number * len(places) // 40]
            bit = 8 * begin + draw.randrange(8 * size)

            def make(path: Path, data: bytes = data, bit: int = bit) -> None:
                _turned(data, [bit], path)

            name = f"{kind}.pth: bit {bit}, in a tensor"
            yield _case(name, "weights.pth", make, lambda _: "it loads", frozenset({2}))


def _records(data: bytes) -> list[tuple[int, int]]:
    """Where the numbers of each tensor of a zip file stand, and how many bytes they have."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        records = [r for r in zipfile.ZipFile(file).infolist() if "/data/" in r.filename]
    found = []
    for record in records:
        name, extra = struct.unpack("<HH", data[record.header_offset + 26 :][:4])
        found.append((record.header_offset + 30 + name + extra, record.file_size))
    return found


ROWS = {"bits turned anywhere": anywhere, "a bit turned in a tensor": in_a_tensor}
