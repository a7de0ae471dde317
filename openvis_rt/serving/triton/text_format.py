"""Protobuf's text format, as far as a ``config.pbtxt`` needs it; no library.

written((("name", "openvis"), ("input", [(("name", "frame"), ("dims", [-1, -1, 3]))])))

name: "openvis"
input {
  name: "frame"
  dims: [-1, -1, 3]
}
"""

from __future__ import annotations

from typing import Any

__all__ = ["Message", "Word", "written"]

Message = tuple[tuple[str, Any], ...]
"""Fields in order. A value is a number, a bool, a string, a :class:`Word`, a message (a tuple of
fields), a list of numbers, or a list of messages, of which each becomes a field of that name."""


class Word(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


def written(message: Message, indent: str = "") -> str:
    """A message in text format, each field on a line."""
    return "".join(_field(name, value, indent) for name, value in message)


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, tuple):
        return f"{indent}{name} {{\n{written(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return "".join(_field(name, one, indent) for one in value)
    if isinstance(value, list):
        return f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n"
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """In ASCII; other bytes of its UTF-8 are octal escapes, which all versions read."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
