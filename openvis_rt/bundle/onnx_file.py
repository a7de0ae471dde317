"""What must be known of an ONNX file before a library opens it, read from its bytes.

An ONNX file may say that a tensor lies in another file, by any path: that file is no part of what
the manifest's digest covers, and a library would read it. It may name operators of somebody's own,
hide them in a function, or hold a graph inside of a node, which a `Loop` runs for ever. What
`openvis export` and `openvis calibrate` write has none of these. The runtime has no onnx, so the
few fields that tell are found in the protocol buffer itself (onnx.proto of ONNX 1.x; field numbers
never change). Nothing is copied: fields that do not matter are stepped over. A file is read where
its fields are, and not mapped into memory: of a map, what somebody cuts off ends the process.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["refused_part"]

# messages inside of messages, by field number; none of them is inside of itself
_BELOW = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse"}
    | {23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_NODE_TYPE, _NODE_DOMAIN = 4, 7
_FUNCTION_NAME = 1
_STANDARD = (b"", b"ai.onnx")  # two names of ONNX's own operators
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_LONGEST = 200  # bytes of a name that are shown
_BLOCK = 1 << 16  # bytes that are read of a file at once


class _Part:
    """Bytes of an open file, from one place up to another, read when they are asked for."""

    def __init__(self, file: BinaryIO, begin: int, end: int, block: list[tuple[int, bytes]]):
        self._file, self._begin, self._end = file, begin, end
        self._block = block  # the last one that was read, which all parts of a file share

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, at: int) -> int:
        place = self._begin + at
        start, held = self._block[0]
        if not 0 <= place - start < len(held):
            held, start = self._read(place, _BLOCK), place
            self._block[0] = start, held
        return held[place - start]

    def part(self, begin: int, end: int) -> _Part:
        return _Part(self._file, self._begin + begin, self._begin + end, self._block)

    def head(self, count: int) -> bytes:
        return self._read(self._begin, min(count, len(self))) if len(self) else b""

    def _read(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        found = self._file.read(count)
        if not found:
            raise ValueError("it became shorter while it was read")
        return found


def refused_part(data: bytes | BinaryIO) -> str | None:
    """What a graph has that no graph of a bundle may have, as words behind "the file"; else None.

    That is: a tensor in another file, an operator that is not ONNX's own, a function, or a node
    with a graph inside (`Loop`, `Scan`, `If`).

    Args:
        data: an ONNX file, or its bytes; it is only read.

    Raises:
        ValueError: the bytes are no protocol buffer.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    return _refused(_Part(file, 0, file.seek(0, io.SEEK_END), [(0, b"")]), "model")


def _refused(message: _Part, kind: str) -> str | None:
    if kind == "tensor":
        return _refused_tensor(message)
    if kind == "function":
        return f"defines the function {_name(message, _FUNCTION_NAME)!r}"
    if kind == "node" and (found := _refused_operator(message)):
        return found
    below = _BELOW[kind]
    for field, value in _fields(message):
        if field not in below or isinstance(value, int):
            continue
        if below[field] == "subgraph":
            return "has a graph inside"
        if found := _refused(value, below[field]):
            operator = f"operator {_name(message, _NODE_TYPE)!r} " if kind == "node" else ""
            return f"has {operator}that {found}" if found == "has a graph inside" else found
    return None


def _refused_operator(node: _Part) -> str | None:
    domains = [value for field, value in _fields(node) if field == _NODE_DOMAIN]
    if all(isinstance(d, _Part) and d.head(_LONGEST) in _STANDARD for d in domains):
        return None
    operator, domain = _name(node, _NODE_TYPE), _name(node, _NODE_DOMAIN)
    return f"needs the operator {operator!r} of {domain!r}, which is not ONNX's own"


def _refused_tensor(tensor: _Part) -> str | None:
    for field, value in _fields(tensor):
        if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0):
            name = _name(tensor, _TENSOR_NAME)
            return f"keeps the numbers of {name!r} in another file, which no digest covers"
    return None


def _name(message: _Part, wanted: int) -> str:
    """A field of text, the last one of its number, as protocol buffers have it."""
    name = ""
    for field, value in _fields(message):
        if field == wanted and isinstance(value, _Part):
            name = value.head(_LONGEST).decode("utf-8", "replace")
    return name


def _fields(message: _Part) -> Iterator[tuple[int, int | _Part]]:
    """The fields of a message: a number, or the bytes of what has a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield field, number
            continue
        length, at = {1: (8, at), 5: (4, at)}.get(wire) or _length(message, at, wire)
        if at + length > len(message):
            raise ValueError("a field reaches beyond its message")
        yield field, message.part(at, at + length)
        at += length


def _length(message: _Part, at: int, wire: int) -> tuple[int, int]:
    if wire != 2:
        raise ValueError(f"there is no field of type {wire}")
    return _varint(message, at)


def _varint(message: _Part, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number is cut short")
