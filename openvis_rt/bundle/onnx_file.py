"""What must be known of an ONNX file before a library opens it, read from its bytes.

An ONNX file may say that a tensor lies in another file, by any path: that file is no part of what
the manifest's digest covers, and a library would read it. The runtime has no onnx, so the few
fields that tell are found in the protocol buffer itself (onnx.proto of ONNX 1.x; field numbers
never change). Nothing is copied: fields that do not matter are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["external_tensor"]

_MODEL = {7: "graph", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION = {7: "node"}
_NODE = {5: "attribute"}
_ATTRIBUTE = {
    5: "tensor",
    6: "graph",
    10: "tensor",
    11: "graph",
    22: "sparse",
    23: "sparse",
}
_SPARSE = {1: "tensor", 2: "tensor"}
_BELOW = {
    "model": _MODEL,
    "graph": _GRAPH,
    "function": _FUNCTION,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "sparse": _SPARSE,
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_DEEPEST = 64  # messages inside of messages; an `If` in an `If` takes four


def external_tensor(data: bytes) -> str | None:
    """The name of a tensor whose numbers lie outside of the file; None if there is none.

    Args:
        data: an ONNX file.

    Raises:
        ValueError: the bytes are no protocol buffer.
    """
    return _external(memoryview(data), "model", 0)


def _external(message: memoryview, kind: str, depth: int) -> str | None:
    if depth > _DEEPEST:
        raise ValueError(f"graphs lie more than {_DEEPEST} messages deep in each other")
    if kind == "tensor":
        return _external_name(message)
    below = _BELOW[kind]
    for field, value in _fields(message):
        if field in below and isinstance(value, memoryview):
            found = _external(value, below[field], depth + 1)
            if found is not None:
                return found
    return None


def _external_name(tensor: memoryview) -> str | None:
    name, external = "", False
    for field, value in _fields(tensor):
        if field == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value[:200]).decode("utf-8", "replace")
        external = external or field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value != 0)
    return name if external else None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
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
        yield field, message[at : at + length]
        at += length


def _length(message: memoryview, at: int, wire: int) -> tuple[int, int]:
    if wire != 2:
        raise ValueError(f"there is no field of type {wire}")
    return _varint(message, at)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number is cut short")
