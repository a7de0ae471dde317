"""Reading small files that anyone may have written: regular ones, of a bounded size, and JSON.

A name may lead to a pipe that never ends or a device that never stops; a text may nest brackets
until the reader's stack is full. Each is refused in words before it costs time or memory.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from openvis_rt.errors import InputError

__all__ = ["file_kind", "given_bytes", "given_file", "given_json", "json_from_bytes"]

_DEEPEST = 100  # brackets inside of brackets
_MIB = 1 << 20


def given_file(path: Path, error: type[InputError] = InputError) -> BinaryIO:
    """A regular file, opened to be read piece by piece; the caller closes it.

    Raises:
        InputError: of the type ``error``; there is no such file, it is no regular one (a directory,
            a pipe, a device), or it may not be read.
    """
    try:
        # a pipe without a writer would block
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    except (OSError, ValueError) as exc:  # a name with a zero byte is a ValueError
        raise error(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    raise error(f"{path} is no regular file but {file_kind(found.st_mode)}")


def given_bytes(path: Path, largest: int, error: type[InputError] = InputError) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file; symbolic links are followed.
        largest: the most bytes that such a file may have.
        error: what is raised.

    Raises:
        InputError: of the type ``error``; there is no such file, it is no regular one (a directory,
            a pipe, a device), it may not be read, or it is larger.
    """
    with given_file(path, error) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = file.read(largest + 1)
        except OSError as exc:
            raise error(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if len(data) > largest:
        raise error(f"{path} has {size} bytes; such a file has at most {largest / _MIB:.0f} MiB")
    return data


def given_json(path: Path, largest: int, error: type[InputError] = InputError) -> Any:
    """The value of a JSON file in UTF-8.

    Raises:
        InputError: of the type ``error``; as :func:`given_bytes` and :func:`json_from_bytes`.
    """
    return json_from_bytes(given_bytes(path, largest, error), str(path), error)


def json_from_bytes(data: bytes, name: str, error: type[InputError] = InputError) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte order mark.

    Args:
        data: the text.
        name: where it is from, for messages.
        error: what is raised.

    Raises:
        InputError: of the type ``error``; it is no JSON, holds NaN or a number that float64 has
            not, has a name twice in one object, or nests deeper than 100 brackets.
    """
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_no_number,
            parse_float=_finite,
            object_pairs_hook=_once_each,
        )
        if _is_deep(value):
            raise RecursionError(f"it nests more than {_DEEPEST} brackets")
    except (ValueError, RecursionError) as exc:
        raise error(f"{name} is no JSON: {exc}") from exc
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's values; of a name that is there twice, readers take either one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"an object has {counts.most_common(1)[0][0]!r} twice")
    return values


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def file_kind(mode: int) -> str:
    """What a file is that is no regular one, by ``st_mode``: words for a message."""
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for is_one, words in kinds if is_one(mode)), "something else")
