"""What may stand in a small file's place: other kinds of file, other texts, other fields."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

__all__ = ["Put", "changed_bytes", "changed_fields", "no_files", "texts"]

Put = Callable[[Path], object]
"""Writes the strange file at a place where nothing stands."""

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 10**12, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), float("-inf"), "", "x", "\x1b[31mred\x07", "\u202etxt.exe", "\ud800", "\0"),
    *("x" * 100_000, "../../etc/passwd", "1" * 5_000, "{}%s", [], {}, [[]], {"a": 1}, [None] * 9),
)


def no_files() -> Iterator[tuple[str, Put]]:
    """What is no regular file, or none that may be read."""
    yield "nothing", lambda path: None
    yield "a pipe", os.mkfifo
    yield "a folder", Path.mkdir
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    yield "a link to nothing", lambda path: path.symlink_to("nowhere")
    for device in ("/dev/zero", "/dev/full", "/proc/self/mem"):
        yield f"a link to {device}", lambda path, to=device: path.symlink_to(to)


def texts(good: bytes) -> Iterator[tuple[str, Put]]:
    """Texts around JSON or lines of names."""
    text = good.decode()
    found: dict[str, bytes] = {
        "empty": b"",
        "17 MB of blanks": b" " * (17 << 20),
        "17 MB of blanks and the text": b" " * (17 << 20) + good,
        "100,000 brackets": b"[" * 100_000,
        "100,000 brackets, closed": b"[" * 100_000 + b"]" * 100_000,
        "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "10,000 digits": b"1" * 10_000,
        "10,000 digits in a list": b"[" + b"1" * 10_000 + b"]",
        "1e999": b"1e999",
        "NaN": b"NaN",
        "-Infinity in a list": b"[-Infinity]",
        "null": b"null",
        "a string": b'"x"',
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "two byte order marks": b"\xef\xbb\xbf" * 2 + good,
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without a mark": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32"),
        "CRLF": text.replace("\n", "\r\n").encode(),
        "a lone CR": text.replace("\n", "\r").encode(),
        "half a letter at the end": good + b"\xc3",
        "an encoded surrogate": good[:1] + b"\xed\xa0\x80" + good[1:],
        "an escaped surrogate": b'["\\ud800"]',
        "ESC before it": b"\x1b[2J" + good,
        "bidi letters before it": "\u202e\u2066".encode() + good,
        "a zero byte before it": b"\0" + good,
        "a zero byte after it": good + b"\0",
        "twice": good + good,
        "a comma after it": good.rstrip() + b",",
        "the first third": good[: len(good) // 3],
        "all but the last letter": good.rstrip()[:-1],
        "pickle": b"\x80\x04cos\nsystem\n.",
        "zip": b"PK\x03\x04" + bytes(64),
    }
    for name, data in found.items():
        yield name, lambda path, data=data: path.write_bytes(data)
    if text.lstrip().startswith("{") and (
        keys := list(json.JSONDecoder().raw_decode(text.lstrip())[0])
    ):
        doubled = text.lstrip().replace("{", "{" + json.dumps(keys[0]) + ": null, ", 1)
        yield "a key twice", lambda path: path.write_text(doubled)
        doubled_at_end = text.rstrip()[:-1] + ", " + json.dumps(keys[-1]) + ": []}"
        yield "another key twice", lambda path: path.write_text(doubled_at_end)


def changed_fields(good: Any, count: int) -> Iterator[tuple[str, Put]]:
    """Every field in turn removed, and with one strange value after the other."""
    every = _interleaved(list(_places(good, ())))
    for where, value in islice(every, count):
        data = copy.deepcopy(good)
        holder = data
        for key in where[:-1]:
            holder = holder[key]
        if value is _REMOVED:
            del holder[where[-1]]
        else:
            holder[where[-1]] = copy.deepcopy(value)
        shown = "removed" if value is _REMOVED else repr(value)[:30]
        text = json.dumps(data).encode("utf-8", "surrogatepass")
        name = f"{'.'.join(map(str, where))}: {shown}"
        yield name, lambda path, text=text: path.write_bytes(text)


def changed_bytes(good: bytes, count: int) -> Iterator[tuple[str, Put]]:
    """Cut off, and with bits flipped, at places all over the file."""
    for number in range(count):
        at = number * len(good) // count
        if number % 3:
            data = good[:at] + bytes([good[at] ^ 1 << number % 8]) + good[at + 1 :]
            yield f"bit {number % 8} of byte {at}", lambda p, data=data: p.write_bytes(data)
        else:
            yield f"cut off at {at}", lambda p, at=at: p.write_bytes(good[:at])


_REMOVED = object()


def _places(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 2))
    for key in keys:
        yield (*above, key)
        yield from _places(value[key], (*above, key))


def _interleaved(places: list[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each place with each value once; every place comes before any comes again."""
    values = (_REMOVED, *VALUES)
    for turn in range(len(values)):
        for number, where in enumerate(places):
            yield where, values[(turn + number) % len(values)]
