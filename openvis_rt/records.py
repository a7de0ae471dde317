"""Dataclasses to and from JSON, once for every file of this project that describes something.

    dataclass                     an object
    NamedTuple, tuple, list       an array
    dict[str, X]                  an object
    X | Y, Literal                the first form that fits, one of the values
    float                         a finite number; a whole number is taken for one
    int, str, bool, None          themselves; true and false are no numbers
    Any                           whatever JSON has

A file may hold anything, so every value is checked against the field's annotation, and a wrong one
is named by its path, such as ``graphs.fp32.propose.spec.inputs[0].shape[1]``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import reprlib
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from openvis_rt.errors import InputError, RecordError

__all__ = ["check_fields", "json_from_record", "record_from_json"]

T = TypeVar("T")

_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


def json_from_record(record: object) -> dict[str, Any]:
    """A dataclass as JSON types: tuples become lists, nested dataclasses become dicts.

    Raises:
        RecordError: a value has no form in JSON, such as NaN, a path or an array.
    """
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        raise TypeError(f"a dataclass is needed, found {record!r}")
    encoded: dict[str, Any] = _encoded(record, "")
    return encoded


def record_from_json(kind: type[T], data: object, *, strict: bool = True) -> T:
    """Inverse of :func:`json_from_record`.

    Args:
        kind: the dataclass.
        data: what ``json.loads`` gave. A field that it lacks has the dataclass's default.
        strict: refuse fields that the dataclass does not have; else they are passed over, at every
            level, as a newer minor version of a format wants it.

    Raises:
        RecordError: a value is of another type than its field, a field without a default is
            missing, or one is unknown; or the dataclass itself refused its values.
    """
    record: T = _Decoder(strict=strict).value(kind, data, "")
    return record


def check_fields(record: object) -> None:
    """Hold the fields of a dataclass against their annotations, for a ``__post_init__``.

    Raises:
        RecordError: a value is of another type than its field.
    """
    decoder = _Decoder(strict=True)
    of_record: Any = type(record)
    for name, kind in _annotations(of_record).items():
        decoder.value(kind, _encoded(getattr(record, name), name), name)


class _OtherFormError(RecordError):
    """The value is not of the wanted kind at all; another member of a union may take it."""

    def __init__(self, kind: Any, data: object, path: str) -> None:
        super().__init__(path, f"{_words(kind)} is needed, found {reprlib.repr(data)}")


@functools.cache
def _annotations(kind: Any) -> dict[str, Any]:
    """Field names and types, in order, of a dataclass or a NamedTuple."""
    hints = get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _encoded(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(path, f"a finite number is needed, found {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_encoded(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            _checked_key(key, path): _encoded(item, _below(path, key))
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _encoded(getattr(value, field.name), _below(path, field.name))
            for field in dataclasses.fields(value)
        }
    raise RecordError(path, f"{type(value).__name__} has no form in JSON")


class _Decoder:
    """One reading; every method takes the wanted kind, the JSON, and the path to it."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._by_origin = {
            Union: self._member,
            types.UnionType: self._member,
            Literal: _choice,
            dict: self._dict,
            list: self._list,
            tuple: self._tuple,
        }

    def value(self, kind: Any, data: object, path: str) -> Any:
        """What a value is in Python."""
        decode = self._by_origin.get(get_origin(kind))
        if decode is None and dataclasses.is_dataclass(kind):
            decode = self._dataclass
        elif decode is None and hasattr(kind, "_fields"):
            decode = self._named_tuple
        return (decode or _plain)(kind, data, path)

    def _dataclass(self, kind: Any, data: object, path: str) -> Any:
        if not isinstance(data, dict):
            raise _OtherFormError(kind, data, path)
        values = {}
        for field in dataclasses.fields(kind):
            place = _below(path, field.name)
            if field.name in data:
                values[field.name] = self.value(
                    _annotations(kind)[field.name], data[field.name], place
                )
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise RecordError(place, "this field is missing")
        unknown = sorted(str(name) for name in data if name not in _annotations(kind))
        if unknown and self._strict:
            raise RecordError(_below(path, unknown[0]), "this field is not known here")
        try:
            return kind(**values)
        except (InputError, ValueError) as exc:  # its own rules, such as a range
            raise RecordError(path, str(exc)) from exc

    def _named_tuple(self, kind: Any, data: object, path: str) -> Any:
        wanted = _annotations(kind)
        items = _checked_list(kind, data, path, len(wanted))
        return kind(
            *(
                self.value(of_item, item, _below(path, name))
                for (name, of_item), item in zip(wanted.items(), items, strict=True)
            )
        )

    def _tuple(self, kind: Any, data: object, path: str) -> tuple[Any, ...]:
        kinds = get_args(kind)
        if kinds[1:] == (...,):
            return tuple(self._list(kind, data, path))
        items = _checked_list(kind, data, path, len(kinds))
        return tuple(
            self.value(of_item, item, f"{path}[{index}]")
            for index, (of_item, item) in enumerate(zip(kinds, items, strict=True))
        )

    def _list(self, kind: Any, data: object, path: str) -> list[Any]:
        items = _checked_list(kind, data, path)
        of_item = get_args(kind)[0]
        return [self.value(of_item, item, f"{path}[{i}]") for i, item in enumerate(items)]

    def _dict(self, kind: Any, data: object, path: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise _OtherFormError(kind, data, path)
        of_item = get_args(kind)[1]
        return {
            _checked_key(key, path): self.value(of_item, item, _below(path, key))
            for key, item in data.items()
        }

    def _member(self, kind: Any, data: object, path: str) -> Any:
        for member in get_args(kind):
            try:
                return self.value(member, data, path)
            except _OtherFormError as exc:
                if exc.path != path:  # it has this form, and is wrong further inside
                    raise
        raise _OtherFormError(kind, data, path)


def _choice(kind: Any, data: object, path: str) -> Any:
    for choice in get_args(kind):
        if type(choice) is type(data) and choice == data:
            return choice
    raise _OtherFormError(kind, data, path)


def _plain(kind: Any, data: object, path: str) -> Any:
    if kind is Any:
        return _encoded(data, path)
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(data)):
                return number
    elif isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    raise _OtherFormError(kind, data, path)


def _checked_list(kind: Any, data: object, path: str, length: int | None = None) -> list[Any]:
    if not isinstance(data, list):
        raise _OtherFormError(kind, data, path)
    if length is not None and len(data) != length:
        raise RecordError(path, f"{length} values are needed, found {len(data)}")
    return data


def _checked_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise RecordError(path, f"the keys of an object are strings, found {key!r}")
    return key


def _below(path: str, name: object) -> str:
    if not str(name).isidentifier():
        return f"{path}[{str(name)!r}]"
    return f"{path}.{name}" if path else str(name)


def _words(kind: Any) -> str:
    """The kind in words, for "... is needed"."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in get_args(kind))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if dataclasses.is_dataclass(kind):
        return "an object"
    return _WORDS.get(origin or kind, "a list")
