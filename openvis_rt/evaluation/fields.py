"""Reading JSON files and their fields, for files that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from openvis_rt.errors import InputError
from openvis_rt.evaluation.annotations import Category
from openvis_rt.geometry import LARGEST_FRAME_SIDE
from openvis_rt.given_files import given_json

__all__ = ["categories_from", "frame_side", "mean_area", "read_json", "whole_number"]

_LARGEST_FILE = 4 << 30  # bytes; UVO's dense annotations have 1.4 GB


def read_json(path: Path, what: str) -> Any:
    """A JSON file's value.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    try:
        return given_json(path, _LARGEST_FILE)
    except InputError as exc:
        raise InputError(f"the {what} {exc}") from exc


def whole_number(entry: dict[str, Any], name: str) -> int:
    """A field that is a whole number, of at most 64 bits.

    Raises:
        InputError: it is missing, or something else.
    """
    value = entry.get(name)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise InputError(f"the field {name!r} is a whole number; found {value!r:.60}")
    return value


def frame_side(entry: dict[str, Any], name: str) -> int:
    """A video's height or width in pixels.

    Raises:
        InputError: it is missing, or no number of pixels.
    """
    side = whole_number(entry, name)
    if not 0 < side <= LARGEST_FRAME_SIDE:
        raise InputError(f"a video has a {name} of {side} pixels")
    return side


def mean_area(areas: Iterable[float | None]) -> float:
    """The mean over the frames where there is anything; 0 if there is nothing."""
    seen = [area for area in areas if area]
    mean = float(np.mean(seen)) if seen else 0.0
    if not math.isfinite(mean) or mean < 0:
        raise InputError(f"areas are numbers of pixels; their mean is {mean}")
    return mean


def categories_from(entries: list[dict[str, Any]]) -> tuple[Category, ...]:
    """``[{"id", "name"}]`` in the order of the ids."""
    found = [Category(whole_number(entry, "id"), _text(entry["name"])) for entry in entries]
    return tuple(sorted(found, key=lambda category: category.id))


def _text(name: object) -> str:
    if not isinstance(name, str):
        raise InputError(f"the name of a category is a text; found {name!r:.60}")
    return name
