"""PyTorch's answers in a bundle, which `openvis verify` compares with: made by a stranger."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from contents import Put, changed_bytes, changed_fields, texts
from court import Case, Outcome
from PIL import Image
from sealing import replaced
from workshop import Workshop

__all__ = ["ROWS"]

RECORD, ARRAYS = "reference/reference.json", "reference/arrays.npz"
RESULTS, FRAME = "reference/results.jsonl", "reference/frames/00003.png"
ARGUMENTS = ("verify", "bundle", "--backend", "onnxruntime", "--json")
REFUSED, ANY = frozenset({2}), frozenset({0, 2, 4})  # 4: PyTorch answered otherwise, it says
SCORES = ("embeddings", "class_scores")

Arrays = dict[str, Any]
Change = Callable[[Arrays], object]


class _Recorded:
    """A bundle with answers, whose files are changed one at a time."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.bundle = workshop, workshop.recorded
        self.record = json.loads((self.bundle / RECORD).read_text())
        with np.load(self.bundle / ARRAYS) as file:
            self.arrays: Arrays = dict(file)

    def case(self, name: str, file: str, data: bytes, codes: frozenset[int] = REFUSED) -> Case:
        """Other bytes in the place of a file."""
        return self.put(name, file, lambda path: path.write_bytes(data), codes)

    def put(self, name: str, file: str, put: Put, codes: frozenset[int] = REFUSED) -> Case:
        """As :meth:`case`, of something that writes a file."""

        def make(folder: Path) -> tuple[str, ...]:
            put(folder / "aside")
            self.workshop.linked(folder, self.bundle)
            replaced(folder / "bundle", file, (folder / "aside").read_bytes())
            (folder / "aside").unlink()
            return ARGUMENTS if codes is REFUSED else (*ARGUMENTS, "--no-video")

        check = _says_what_to_do if codes is REFUSED else lambda *_: None
        return Case(name, make, frozenset({"bundle"}), codes, check=check)

    def with_arrays(self, name: str, change: Change, codes: frozenset[int] = REFUSED) -> Case:
        """Changed arrays, packed when the case is made."""

        def put(path: Path) -> None:
            arrays = dict(self.arrays)
            change(arrays)
            path.write_bytes(_packed(arrays))

        return self.put(name, ARRAYS, put, codes)

    def with_record(self, name: str, change: Callable[[Any], object]) -> Case:
        """A changed record."""
        record = copy.deepcopy(self.record)
        change(record)
        codes = ANY if "'form'" in name else REFUSED  # a few rows are the same in two forms
        return self.case(name, RECORD, json.dumps(record).encode(), codes)

    def with_all_that_is_allowed(self) -> Case:
        """The most prompts, classes and calls, and little in the files."""
        record, arrays = copy.deepcopy(self.record), dict(self.arrays)
        arrays["tokens"] = np.ones((512, 77), np.int64)
        for call in record["calls"]:
            large = {"text": ("tokens", [512, 77]), "classify": ("text_embeddings", [512, 128])}
            if call["graph"] in large:
                name, shape = large[call["graph"]]
                call["inputs"][name]["shape"] = shape
                [(name, value)] = [(n, v) for n, v in call["outputs"].items() if n in SCORES]
                width = value["shape"][1] if name == "embeddings" else 512
                rows = 512 if name == "embeddings" else value["shape"][0]
                value |= {"shape": [rows, width], "form": "sample"}
                arrays[value["key"]] = np.zeros(min(rows * width, 16_384), np.float32)
        record["calls"] = [call for call in record["calls"] for _ in range(16)][:256]

        def make(folder: Path) -> tuple[str, ...]:
            self.workshop.linked(folder, self.bundle)
            replaced(folder / "bundle", RECORD, json.dumps(record).encode())
            replaced(folder / "bundle", ARRAYS, _packed(arrays))
            return (*ARGUMENTS, "--no-video")

        return Case("all that is allowed", make, frozenset({"bundle"}), frozenset({4}))


def _says_what_to_do(_folder: Path, outcome: Outcome) -> str | None:
    said = " ".join(outcome.stderr.split())
    words = ("is damaged", "export the bundle again")
    return None if all(w in said for w in words) else f"it says {said[-300:]!r}"


def arrays(workshop: Workshop) -> Iterator[Case]:
    """Each kind of array missing, of other types and shapes, and with other numbers; and bombs."""
    recorded = _Recorded(workshop)
    kinds = ("embeddings", "tokens", "features/1", "pool_mask/1", "mask_logits/1/8", "selected")
    kinds += ("picture_size", "frame_size", "order", "hard_order", "hard/queries")
    kinds += tuple(f"output/3/{name}" for name in ("queries", "class_scores", "mask_area"))
    kinds += ("call/2/mask_logits", "call/2/pool_mask", "call/2/masks", "call/8/masks")
    for key in kinds:
        for name, change in _other_arrays():

            def changed(arrays: Arrays, key: str = key, change: Any = change) -> None:
                value = change(arrays.pop(key))
                if value is not None:
                    arrays[key] = value

            # its rows below the first ones are empty masks, however few they are
            few = key == "mask_logits/1/8" and name == "the first row"
            yield recorded.with_arrays(f"{key}: {name}", changed, ANY if few else REFUSED)
    yield from _other_numbers(recorded)
    yield from _more_arrays(recorded)
    good = (recorded.bundle / ARRAYS).read_bytes()
    for name, put in changed_bytes(good, 60):  # of a header, some bits say nothing
        yield recorded.put(name, ARRAYS, put, ANY)


def _other_arrays() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    yield "missing", lambda _: None
    yield "the first row", lambda v: v[:1] if len(v) > 1 else v[:0]
    yield "no row", lambda v: v[:0]
    yield "one axis more", lambda v: v[..., None]
    yield "a number", lambda v: v.ravel()[0]
    yield "narrower", lambda v: v[..., :-1]
    yield "large", lambda v: np.zeros((300_000, *v.shape[1:]), v.dtype)
    for dtype in ("<f8", "<c8", "U3", "<M8[s]", "?"):
        yield f"as {dtype}", lambda v, to=dtype: v.astype("i8" if "M" in to else v.dtype).astype(to)


def _other_numbers(recorded: _Recorded) -> Iterator[Case]:
    numbers = {"order": (-1, 20, 2**62), "hard_order": (-1, 12), "selected": (-1, 20, 5_000)}
    numbers |= {"tokens": (-1, 60_000), "frame_size": (0, -1, 30_000), "picture_size": (0, 30_000)}
    floats = ("embeddings", "hard/queries", "output/0/queries", "output/9/class_scores")
    every = numbers | dict.fromkeys(floats, (np.nan, np.inf, 1e38))
    for key, values in every.items():
        for value in values:
            yield recorded.with_arrays(
                f"{key} of {value:g}",
                lambda a, key=key, value=value: a.update({key: _filled(a[key], value)}),
            )
    for key in ("call/2/queries", "call/2/mask_logits", "features/1", "mask_logits/1/8"):
        for value in (np.nan, np.inf, -6e4):
            yield recorded.with_arrays(
                f"{key} of {value}",
                lambda a, key=key, value=value: a.update({key: _filled(a[key], value)}),
                ANY,
            )
    for key in ("output/0/mask_iou", "output/0/object_logits", "output/0/class_scores"):
        for value in (-1.0, -1e8, 1e8):
            yield recorded.with_arrays(
                f"{key} of {value}",
                lambda a, key=key, value=value: a.update({key: _filled(a[key], value)}),
                ANY,
            )


def _filled(array: Any, value: float) -> Any:
    with np.errstate(over="ignore"):
        return np.full(array.shape, value).astype(array.dtype)


def _more_arrays(recorded: _Recorded) -> Iterator[Case]:
    more = ("output/x", "output/a/b", "output/99/q", "output/99/queries", "zzz", "hard/areas")
    for key in (*more, "../../x", "\x1b[31m", "x" * 60_000):
        yield recorded.with_arrays(
            f"one more, {key[:20]!r}", lambda a, key=key: a.update({key: a["order"]})
        )
    small = {f"{number}": np.zeros(1, "u1") for number in range(70_000)}
    yield recorded.with_arrays("70,000 more", lambda a: a.update(small))
    for key in ("zzz", "order", "embeddings"):
        yield recorded.put(f"3 GiB of zeros as {key}", ARRAYS, partial(_bomb, recorded.arrays, key))
    for size in (2**31, 2**40, 2**62):
        header = {"descr": "<f2", "fortran_order": False, "shape": (20, size, 96)}
        yield recorded.put(
            f"a header of {size}",
            ARRAYS,
            partial(_claimed, recorded.arrays, "hard/queries", header),
        )
    for name, text in (("no dict", "1"), ("deep", "(" * 3_000), ("python", "exit()"), ("", "")):
        yield recorded.put(
            f"a header of {name}", ARRAYS, partial(_claimed, recorded.arrays, "order", text)
        )
    twice = io.BytesIO(_packed(recorded.arrays))
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("order.npy ", b"")
        archive.writestr("order.NPY", b"")
    yield recorded.case("names that are almost the same", ARRAYS, twice.getvalue())
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        data = _packed(recorded.arrays, method)
        yield recorded.case(f"packed by method {method}", ARRAYS, data, ANY)
    yield recorded.case("no archive", ARRAYS, b"\x93NUMPY\x01\x00")
    yield recorded.case("an empty file", ARRAYS, b"")


def _packed(arrays: Arrays, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for key, value in arrays.items():
            file = io.BytesIO()
            np.save(file, value)
            archive.writestr(f"{key}.npy", file.getvalue())
    return buffer.getvalue()


def _bomb(arrays: Arrays, key: str, path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (3 << 30,)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, value in arrays.items():
            if name != key:
                file = io.BytesIO()
                np.save(file, value)
                archive.writestr(f"{name}.npy", file.getvalue())
        with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
            # its stub has no type for the header, which is a plain dict
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for _ in range(3 << 6):
                file.write(bytes(1 << 24))


def _claimed(arrays: Arrays, key: str, header: Any, path: Path) -> None:
    """An array whose header says something else than it has."""
    file = io.BytesIO()
    if isinstance(header, str):
        text = header.encode() + b"\n"
        file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    else:
        np.lib.format.write_array_header_1_0(file, header)
    file.write(bytes(4_000))
    path.write_bytes(_packed({name: value for name, value in arrays.items() if name != key}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{key}.npy", file.getvalue())


def records(workshop: Workshop) -> Iterator[Case]:
    """Every field of the record removed and changed, and values that are kept otherwise."""
    recorded = _Recorded(workshop)
    for name, change in _other_records():
        yield recorded.with_record(name, change)
    yield recorded.with_all_that_is_allowed()
    text = json.dumps(recorded.record, indent=1).encode()
    for name, put in texts(text):
        yield recorded.put(name, RECORD, put, ANY)
    small = {**recorded.record, "calls": _one_of_each(recorded.record["calls"])}
    for name, put in changed_fields(small, 400):
        yield recorded.put(name, RECORD, put, ANY)


def _one_of_each(calls: list[Any]) -> list[Any]:
    first = {call["graph"]: call for call in reversed(calls)}
    return [*first.values(), *(call for call in calls if call not in first.values())]


def _call(record: Any, graph: str, part: str, name: str) -> Any:
    return next(call for call in record["calls"] if call["graph"] == graph)[part][name]


def _other_records() -> Iterator[tuple[str, Callable[[Any], object]]]:
    places = [("text", "inputs", "tokens"), ("text", "outputs", "embeddings")]
    places += [("propose", "inputs", "frames"), ("propose", "outputs", "mask_logits")]
    places += [("classify", "inputs", "features"), ("classify", "inputs", "text_embeddings")]
    places += [("masks", "inputs", "mask_logits"), ("masks", "inputs", "frame_size")]
    values = [{"form": form} for form in ("whole", "bits", "sample", "frames", "tiled", "head")]
    values += [{"dtype": d} for d in ("zz", "M8[s]", "object", "float64", "U9")]
    values += [{"start": s} for s in (-1, 10**6, 2**70)]
    values += [{"shape": s} for s in ([], [65_536, 4_000], [0], [10**12], [-1, 3])]
    values += [{"key": k} for k in ("nowhere", "order", "", "output/0/queries")]
    for place in places:
        for change in values:
            shown = ".".join(place)

            def changed(record: Any, place: Any = place, change: Any = change) -> bool:
                value = _call(record, *place)
                before = dict(value)
                value.update(change)
                frames = before["form"] == "frames" and "key" in change  # which have none
                if frames or before == value:
                    value["shape"] = [*value["shape"], 9]
                return True

            yield f"{shown}: {change}", changed
    yield "masks of another array", lambda r: _masks(r, {"key": "order", "shape": [1, 1]})
    yield "masks of no array", lambda r: _masks(r, {"key": "nokey"})
    yield "masks of many", lambda r: _masks(r, {"shape": [21, 1, 16, 24]})
    yield "names, three", lambda r: r.update(names=["a"] * 3)
    yield "names, one more", lambda r: r.update(names=[*r["names"], "zz"])
    yield "names with other synonyms", lambda r: r.update(names=["a, b", "c", "d", "e", "f"])
    yield "rows, one", lambda r: r.update(rows=[1])
    yield "rows below 0", lambda r: r.update(rows=[-1] * len(r["rows"]))
    yield "rows of thousands", lambda r: r.update(rows=[10**9] * len(r["rows"]))
    yield "detected of no track", lambda r: r.update(detected=[[-1, 0, 1.0]])
    yield "detected of no class", lambda r: r.update(detected=[[0, 99, 1.0]])
    yield "frames, 0", lambda r: r.update(frames=0)
    yield "frames, one more", lambda r: r.update(frames=r["frames"] + 1)
    yield "frames, one less", lambda r: r.update(frames=r["frames"] - 1)
    yield "frames, many", lambda r: r.update(frames=10**9)
    yield "no calls", lambda r: r.update(calls=[])
    yield "100 times as many calls", lambda r: r.update(calls=r["calls"] * 100)
    yield "other tokens", lambda r: r["tracker"].update(tokens=["mask_area"])
    yield "a point in red", lambda r: r["calls"][0].update(point="\x1b[31mT")


def _masks(record: Any, change: Any) -> None:
    for call in record["calls"]:
        if call["masks"]:
            call["masks"].update(change)


def sequences(workshop: Workshop) -> Iterator[Case]:
    """Results and frames of the recorded video."""
    recorded = _Recorded(workshop)
    good = (recorded.bundle / RESULTS).read_bytes()
    lines = good.splitlines(keepends=True)
    found = {
        "no line": b"",
        "a line less": b"".join(lines[:-1]),
        "a line twice": good + lines[-1],
        "in another order": b"".join(lines[::-1]),
        "no JSON": b"{\n" * 10,
        "lists": b"[]\n" * 10,
        "deep": b"[" * 100_000 + b"\n",
        "65 MiB": b" " * (65 << 20),
        "a million lines": lines[0] * 100 + b"{}\n" * 1_000_000,
        "of other frames": good.replace(b"[64, 96]", b"[96, 64]"),
    }
    for name, data in found.items():
        yield recorded.case(f"results, {name}", RESULTS, data)
    for name, put in changed_bytes(good, 30):
        yield recorded.put(f"results, {name}", RESULTS, put, ANY)
    for size in ((1, 1), (96, 65), (9_000, 9_000)):
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            Image.new("RGB", size).save(file, kind)
            yield recorded.case(f"a frame, {kind} of {size}", FRAME, file.getvalue())
    picture = (recorded.bundle / FRAME).read_bytes()
    for name, put in changed_bytes(picture, 30):
        yield recorded.put(f"a frame, {name}", FRAME, put, ANY)
    for mode in ("1", "L", "P", "RGBA", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (96, 64)).save(file, "PNG")
        yield recorded.case(f"a frame, {mode}", FRAME, file.getvalue(), ANY)


ROWS = {
    "reference arrays": arrays,
    "reference records": records,
    "reference sequences": sequences,
}
FEW = dict.fromkeys(ROWS, 0)  # in CI tests/fuzz/test_references.py has some of each
