"""Files of weights whose container is strange: pickles, zips, headers, places."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from court import Case
from torch import nn
from weights import PARTS, good, strange_file, used, written
from workshop import Workshop

from openvis_rt.checkpoints.shipped import FOLDER

__all__ = ["ROWS"]

_SMALL = {"a.weight": torch.zeros(3), "b.weight": torch.ones(2, 2)}
Make = Callable[[Path], object]


def zipped(pickled: bytes, *others: tuple[str, bytes]) -> Make:
    """Writes a zip file around a pickle, as torch lays it out."""

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3")):
                archive.writestr(f"archive/{name}", data)
            for name, data in others:
                archive.writestr(f"archive/{name}", data)

    return make


def legacy(pickled: bytes) -> Make:
    """Writes the older format around a pickle."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return lambda path: path.write_bytes(head + pickle.dumps({}, 2) + pickled + pickle.dumps([], 2))


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _called(name: str, *arguments: bytes) -> bytes:
    return f"c{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _entry(value: bytes) -> bytes:
    return b"\x80\x02}" + _text("a") + value + b"s."


_PRIME = 2**61 - 1  # integers are hashed by their rest of it
BOMBS: dict[str, bytes] = {
    "5 GB of nothing": _entry(_called("builtins\nbytearray", _number(5 * 10**9))),
    "and by its old name": _entry(_called("__builtin__\nbytearray", _number(5 * 10**9))),
    "a number of numpy of 2 GB": _entry(
        _called("numpy._core.multiarray\nscalar", _called("numpy\ndtype", _text("V2000000000")))
    ),
    "a number of numpy 1": _entry(
        _called("numpy.core.multiarray\nscalar", _called("numpy\ndtype", _text("f8")))
    ),
    "a tensor without a file": _entry(_called("torch\nFloatTensor", _number(10**9))),
    "a storage without a file": _entry(_called("torch.storage\nUntypedStorage", _number(10**10))),
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a deep tuple as a size": _entry(b"ctorch\nSize\n)" + b"\x85" * 100_000 + b"R"),
    "a tuple of itself thrice": b"\x80\x02})" + b"q\x00h\x00h\x00\x87" * 40 + b"K\x01s.",
    "a deep list": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a deep dict": b"\x80\x02" + b"}K\x01" * 60_000 + b"N" + b"s" * 60_000 + b".",
    "integers of one hash": b"\x80\x02}("
    + b"".join(_number(n * _PRIME) + b"N" for n in range(80_000))
    + b"u.",
    "tuples of one hash": b"\x80\x02}("
    + b"".join(_number(n * _PRIME) + _number(-n * _PRIME) + b"\x86N" for n in range(40_000))
    + b"u.",
    "60 MiB of empty lists": b"\x80\x02" + b"]" * (60 << 20) + b".",
    "9 MiB of empty lists": b"\x80\x02(" + b"]" * (9 << 20) + b"t.",
    "a key of 1 MB": b"\x80\x02}" + _text("k" * 1_000_000) + b"Ns.",
    "a key of 15 MB": b"\x80\x02}" + _text("k." * 7_500_000) + b"Ns.",
    "a function of 3 MB": b"\x80\x02c" + b"m" * 3_000_000 + b"\nf\n)R.",
    "a text that is called": b"\x80\x02" + _text("x" * 3_000_000) + b")R.",
    "a list that is called": b"\x80\x02(" + b"K\x01" * 100_000 + b"t)R.",
    "a text that is made": b"\x80\x02" + _text("x" * 3_000_000) + b")\x81.",
    "a list for a class": b"\x80\x02]]a)\x81.",
    "methods that are numbers": b"\x80\x02ccollections\nOrderedDict\n)R"
    + b"".join((_text("a"), b"Ns}(", _text("items"), b"K\x05", _text("keys"), b"K\x05", b"ub.")),
    "methods that are texts": b"\x80\x02ccollections\nOrderedDict\n)R"
    + b"".join((_text("a"), b"Ns}(", _text("get"), b"N", _text("__iter__"), _text("x"), b"ub.")),
    "os.system": _entry(_called("os\nsystem", _text("touch was-run"))),
    "posix.system": _entry(_called("posix\nsystem", _text("touch was-run"))),
    "eval": _entry(_called("builtins\neval", _text("open('was-run', 'w')"))),
    "getattr": _entry(_called("builtins\ngetattr", _text("a"), _text("b"))),
    "subprocess": _entry(_called("subprocess\nPopen", _text("touch was-run"))),
    "torch.load itself": _entry(_called("torch.serialization\nload", _text("/etc/passwd"))),
    "torch.jit": _entry(_called("torch.jit\nload", _text("/etc/passwd"))),
    "numpy.load": _entry(_called("numpy\nload", _text("/etc/passwd"))),
    "an old instance": b"(ios\nsystem\n.",
    "a stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "protocol 3": b"\x80\x03}C\x03abcNs.",
    "protocol 9": b"\x80\x09}.",
    "an unknown step": b"\x80\x02\xff.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "the end alone": b".",
    "what was never put": b"\x80\x02h\x07.",
    "a tuple of three of none": b"\x80\x02\x87.",
    "a mark that was not set": b"\x80\x02t.",
    "a text that is cut": b"\x80\x02X\xff\xff\xff\x7fabc",
    "a storage that is not there": _entry(
        _called(
            "torch._utils\n_rebuild_tensor_v2",
            *(b"(", _text("storage"), b"ctorch\nFloatStorage\n", _text("7"), _text("cpu")),
            *(_number(10**12), b"tQ", b"K\x00", b"K\x05\x85", b"K\x01\x85", b"\x89"),
            b"ccollections\nOrderedDict\n)R",
        )
    ),
    "a storage of no name": _entry(b"K\x07Q"),
    "a storage of a text": _entry(_text("abc") + b"Q"),
}


def pickles(_: Workshop) -> Iterator[Case]:
    """Pickles that torch's guard would let through, or that cost more than they hold."""
    for name, data in BOMBS.items():
        yield from strange_file(name, "clip-vis-mini", "weights.pth", zipped(data))
        yield from strange_file(name, "ovformer-mini", "weights.pt", legacy(data))
        bare = data or b"\x80"
        yield from strange_file(name, "tracker", "bare.pkl", lambda p, b=bare: p.write_bytes(b))


def _saved(content: Any = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(_SMALL if content is None else content, buffer, **options)
    return buffer.getvalue()


def _again(change: Callable[[zipfile.ZipFile, str, bytes], object], **options: Any) -> Make:
    """Writes torch's records anew, as ``change`` has them."""

    def make(path: Path) -> None:
        source = zipfile.ZipFile(io.BytesIO(_saved({"model": dict(good("tokens"))})))
        with zipfile.ZipFile(path, "w", **options) as target:
            for record in source.infolist():
                change(target, record.filename, source.read(record))

    return make


def _doubled(target: zipfile.ZipFile, name: str, data: bytes) -> None:
    target.writestr(name, data)
    if name.endswith("/0"):
        target.writestr(name.replace("data", "DATA"), bytes(len(data)))


def _bytes(change: Callable[[bytearray], bytes | bytearray]) -> Make:
    return lambda path: path.write_bytes(change(bytearray(_saved(dict(good("tracker"))))))


def _set(at: int, value: bytes, from_end: bool = True) -> Callable[[bytearray], bytes]:
    def change(data: bytearray) -> bytes:
        place = len(data) - at if from_end else at
        data[place : place + len(value)] = value
        return bytes(data)

    return change


def _decoy(path: Path) -> None:
    """Two directories: one where the end says, and one before the end, where readers look."""
    outer = _saved(dict(good("tracker")))
    inner = bytearray(_saved())
    inner[-6:-2] = struct.pack("<I", 0)
    path.write_bytes(outer + bytes(inner))


def _script(path: Path) -> None:
    torch.jit.script(nn.Linear(3, 3)).save(str(path))


def _bomb(path: Path) -> None:
    """A pickle of 5 GB of lists in 5 MB: one packed piece, many times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(b"]" * (1 << 23)) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", piece * 640 + b"\x03\x00")
        archive.filelist[-1].compress_type = zipfile.ZIP_DEFLATED
        archive.filelist[-1].file_size = 640 << 23
        archive.writestr("archive/version", "3")


def _overlapping(path: Path) -> None:
    """10,000 names of one record of 8 MB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _saved()[:40])
        archive.writestr("archive/data/0", bytes(8 << 20))
        last = archive.infolist()[-1]
        for number in range(10_000):
            twin = zipfile.ZipInfo(f"archive/data/{number + 1}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, field, getattr(last, field))
            archive.filelist.append(twin)


ARCHIVES: dict[str, Make] = {
    "a program of TorchScript": _script,
    "packed": _again(lambda z, n, d: z.writestr(n, d, zipfile.ZIP_DEFLATED)),
    "packed with bzip2": _again(lambda z, n, d: z.writestr(n, d, zipfile.ZIP_BZIP2)),
    "packed with LZMA": _again(lambda z, n, d: z.writestr(n, d, zipfile.ZIP_LZMA)),
    "5 GB of a pickle in 5 MB": _bomb,
    "one name twice but for capitals": _again(_doubled),
    "one record of 10,000 names": _overlapping,
    "a picture in it alone": lambda p: zipfile.ZipFile(p, "w").writestr("a.png", b"x"),
    "nothing in it": lambda p: zipfile.ZipFile(p, "w").close(),
    "without its numbers": _again(lambda z, n, d: "/data/" in n or z.writestr(n, d)),
    "without its pickle": _again(lambda z, n, d: n.endswith("pkl") or z.writestr(n, d)),
    "big-endian, it says": _again(
        lambda z, n, d: z.writestr(n, b"big" if n.endswith("byteorder") else d)
    ),
    "of a byte order unknown": _again(
        lambda z, n, d: z.writestr(n, b"\x1b[31m" if n.endswith("byteorder") else d)
    ),
    "two folders": _again(
        lambda z, n, d: (z.writestr(n, d), z.writestr(f"other/{n.partition('/')[2]}", d))
    ),
    "a pickle in capitals": _again(
        lambda z, n, d: z.writestr(n.upper() if n.endswith("pkl") else n, d)
    ),
    "records cut short": _again(lambda z, n, d: z.writestr(n, d[: len(d) // 2])),
    "a record that leaves its folder": _again(
        lambda z, n, d: z.writestr(n.replace("/data/", "/data/../../"), d)
    ),
    "a folder of 60,000 letters": _again(
        lambda z, n, d: z.writestr(f"{'f' * 60_000}/{n.partition('/')[2]}", d)
    ),
    "200,000 records": zipped(b"\x80\x02}.", *((f"data/{n}", b"") for n in range(200_000))),
    "encrypted, it says": _bytes(
        lambda d: bytes(d).replace(b"PK\x01\x02\x00\x00", b"PK\x01\x02\x01\x00")
    ),
    "records without their marks": _bytes(
        lambda d: bytes(d).replace(b"PK\x03\x04a", b"PK\x03\x05a")
    ),
    "a directory elsewhere": _bytes(_set(6, struct.pack("<I", 77))),
    "a directory behind the end": _bytes(_set(6, b"\xfe\xff\xff\x7f")),
    "a directory of 4 GB": _bytes(_set(10, b"\xfe\xff\xff\xff")),
    "65,535 records, it says": _bytes(_set(14, b"\xff\xff\xff\xff")),
    "a second disk": _bytes(_set(18, b"\x01\x00")),
    "a comment that is not there": _bytes(_set(2, b"\xff\xff")),
    "a zip64 end elsewhere": _bytes(_set(22 + 12, b"\x07" * 8)),
    "a zip64 directory elsewhere": _bytes(_set(22 + 20 + 8, b"\x07" * 8)),
    "without its end": _bytes(lambda d: d[:-22]),
    "cut in the middle": _bytes(lambda d: d[: len(d) // 2]),
    "a byte behind the end": _bytes(lambda d: d + b"x"),
    "2 kB before it": _bytes(lambda d: b"#!/bin/sh\n".ljust(2048) + d),
    "two directories": _decoy,
    "twice": _bytes(lambda d: d + d),
}


HARMLESS = {"a second disk"}  # no reader looks at it


def archives(_: Workshop) -> Iterator[Case]:
    """Zip files that torch did not write."""
    for number, (name, make) in enumerate(ARCHIVES.items()):
        kind = ("clip-vis-mini", "tracker", "clip", "tokens")[number % 4]
        loads = None if name in HARMLESS else False
        yield from strange_file(name, kind, "weights.pth", make, loads=loads)


def _safetensors(header: Any, body: bytes = bytes(64)) -> Make:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _one(**fields: Any) -> Make:
    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **fields}
    return _safetensors({"weight_hh_l0": {k: v for k, v in entry.items() if v is not None}})


HEADERS: dict[str, Make] = {
    **{f"shape {s}": _one(shape=s) for s in ([], [16], [-4, -4], [4.0, 4], ["4"], None, 16)},
    **{f"shape {s}": _one(shape=s) for s in ([2**32, 2**32], [0, 2**63], [1] * 5000 + [16])},
    **{f"type {t}": _one(dtype=t) for t in ("F64", "f32", "", None, 3, "X" * 10_000, "F8_E4M3")},
    **{f"type {t}": _one(dtype=t) for t in ("I64", "BOOL", "C64", "F4", "\x1b[31m")},
    **{f"at {o}": _one(data_offsets=o) for o in ([64, 128], [0, 2**40], [64, 0], [0], None, "0")},
    **{f"at {o}": _one(data_offsets=o) for o in ([-64, 0], [0, 64, 64], [0.0, 64.0], [1, 65])},
    "a hole": _safetensors(
        {f"{n}": {"dtype": "F32", "shape": [4], "data_offsets": [n, n + 16]} for n in (0, 48)}
    ),
    "two at one place": _safetensors(
        {n: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for n in "ab"}
    ),
    "one key twice": _safetensors(
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},'
        b'"a":{"dtype":"I32","shape":[16],"data_offsets":[0,64]}}'
    ),
    "a list": _safetensors([1, 2]),
    "nothing": _safetensors({}, b""),
    "metadata alone": _safetensors({"__metadata__": {"a": "b"}}, b""),
    "metadata of numbers": _safetensors({"__metadata__": {"a": 3}}),
    "metadata deep": _safetensors(b'{"__metadata__":' + b'{"a":' * 100_000),
    "metadata of 3 MB": _safetensors({"__metadata__": {"a": "x" * 3_000_000}}),
    "brackets": _safetensors(b"{" + b"[" * 1_000_000),
    "300,000 tensors without a number": _safetensors(
        {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(300_000)},
        b"",
    ),
    "a key of 1 MB": _safetensors(
        {"k" * 1_000_000: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}
    ),
    "half of a pair in a key": _safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'
    ),
    "bytes that are no text": _safetensors(b'{"\xff\xfe":{}}'),
    "a header of 1 GB, it says": lambda p: p.write_bytes(struct.pack("<Q", 1 << 30) + b"{}"),
    "a header of 2**63": lambda p: p.write_bytes(b"\xff" * 8 + b"{}"),
    "40 MB of spaces": _safetensors(b"{}".ljust(40_000_000)),
    "no header": lambda p: p.write_bytes(struct.pack("<Q", 0)),
    "cut in its header": lambda p: p.write_bytes(struct.pack("<Q", 500) + b'{"a":'),
    "torch's, by its name": zipped(b"\x80\x02}."),
}


def safetensors_headers(_: Workshop) -> Iterator[Case]:
    """Headers that the library did not write."""
    for number, (name, make) in enumerate(HEADERS.items()):
        kind = ("tracker", "clip-vis-mini", "adapter", "ovformer-mini")[number % 4]
        yield from strange_file(name, kind, "weights.safetensors", make)


def _index(path: Path) -> None:
    path.write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-2.safetensors"}})
    )


PLACES: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "nothing": lambda _: None,
    "empty": lambda p: p.write_bytes(b""),
    "a byte": lambda p: p.write_bytes(b"\x80"),
    "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
    "/dev/stdin": lambda p: p.symlink_to("/dev/stdin"),
    "/proc/self/mem": lambda p: p.symlink_to("/proc/self/mem"),
    "a link to itself": lambda p: p.symlink_to(p),
    "a link to nothing": lambda p: p.symlink_to("/nowhere/at/all"),
    "a hole of 1 TB": lambda p: (p.write_bytes(b""), os.truncate(p, 10**12)),
    "the list of a checkpoint in parts": _index,
}


def places(_: Workshop) -> Iterator[Case]:
    """What stands under the name is no file, or none of weights; for every option of weights."""
    for name, make in PLACES.items():
        for kind in ("inspect", "clip-vis-mini", "beside", *PARTS):

            def prepare(folder: Path, kind: str = kind, make: Make = make) -> Sequence[str | Path]:
                make(folder / "weights.pth")
                if kind == "inspect":
                    return ["inspect", "weights.pth"]
                if kind == "beside":
                    file = FOLDER / "ovformer-mini.safetensors"
                    clip = ["--clip", "weights.pth", "-o", "out"]
                    return ["export", "ovformer-mini", "--checkpoint", file, *clip]
                return used(kind, "weights.pth", folder)

            # a file of the other byte order is a good one; of most parts its numbers are absurd
            codes = {0, 2} if name == "big-endian, it says" else {2}
            yield Case(f"{kind}: {name}", prepare, codes=frozenset(codes))
    for kind in ("proposal", "clip", "adapter", "tracker", "tokens"):

        def linked(folder: Path, kind: str = kind) -> Sequence[str | Path]:
            written(good(kind), folder / "real.pth", kind)
            (folder / "weights.pth").symlink_to("real.pth")
            return used(kind, "weights.pth", folder)

        writes = frozenset({"out.safetensors"})
        yield Case(f"{kind}: a link to a good file", linked, writes, codes=frozenset({0}))


def misnamed(_: Workshop) -> Iterator[Case]:
    """Good files under other names: their bytes tell what they are."""
    forms = (".pth", ".pt", ".safetensors")
    for kind in ("clip-vis-mini", "ovformer-mini", "proposal", "clip", "tracker", "tokens"):
        for form in forms:
            for name in ("w.safetensors", "w.pth", "w.bin", "w.ckpt", "w", "w.pkl"):

                def make(path: Path, kind: str = kind, form: str = form) -> None:
                    aside = path.with_name(f"aside{form}")
                    written(good(kind), aside, kind)
                    shutil.move(aside, path)

                yield from strange_file(f"{form} by another name", kind, name, make, loads=True)


ROWS = {
    "pickles": pickles,
    "archives": archives,
    "safetensors headers": safetensors_headers,
    "places of weights": places,
    "misnamed weights": misnamed,
}
