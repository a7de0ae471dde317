"""The arrays of a recorded reference, read and checked.

``arrays.npz`` comes from whoever made the bundle, and a few bytes of it may unpack to gigabytes. So
it is known what is needed (:mod:`.recorded_needs`) before it is opened, and only that is unpacked:
an array that nobody needs, and one of another size, are refused by the archive's own directory.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded_forms import Record
from openvis_rt.bundle.recorded_needs import LARGEST, Need, frame_size

__all__ = ["check_numbers", "read_arrays"]

_END, _LOCATOR = 22, 20  # bytes of a zip's end without a comment, and of what is before a large one
_LARGEST_DIRECTORY = 1 << 20  # bytes; an array has 46 and its name in it
_HEADER = 1 << 12  # bytes of an array's type and shape
_TOKENS = 49_408  # of CLIP
_MOST = 1e9  # of a number that the host computes with, whose squares FP32 holds

Array = npt.NDArray[np.generic]


def read_arrays(data: bytes, needs: Mapping[str, Need]) -> dict[str, Array]:
    """The arrays of a ``.npz`` file.

    Args:
        data: of the file.
        needs: what each array must be, by its key.

    Raises:
        ValueError: it is damaged; an array is missing, not needed, or not what is needed.
    """
    try:
        _check_end(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive, needs)
            return {key: _array(archive, members[key], key, needs[key]) for key in needs}
    except Exception as exc:  # damaged headers end in almost any error of the library
        raise ValueError(f"arrays.npz: {str(exc)[:300] or type(exc).__name__}") from exc


def check_numbers(bundle: Bundle, record: Record, arrays: Mapping[str, Array]) -> None:
    """ValueError if an array of the right type and shape has numbers that nothing can be made of.

    What a graph gave may be any number, since it is only compared.
    """
    for key in ("order", "hard_order"):
        rows = arrays[key]
        if not (np.sort(rows, axis=1) == np.arange(rows.shape[1])).all():
            raise ValueError(f"a row of {key} does not give each track one query")
    for name in record.tracker.tokens:
        if arrays[f"hard/{name}"].shape[:2] != arrays["hard_order"].shape:
            raise ValueError(f"hard/{name} and hard_order have different numbers of tokens")
    for key, array in arrays.items():
        if key.startswith(("output/", "hard/")) or key in ("embeddings", "image_embeddings"):
            with np.errstate(invalid="ignore"):
                if not (np.abs(array.astype(np.float32)) <= _MOST).all():
                    raise ValueError(f"{key} has NaN, or a number beyond {_MOST:g}")
    for key, (least, most) in _ranges(bundle, record):
        # they are whole numbers by then, which their type does not say
        if not ((arrays[key] >= least) & (arrays[key] <= most)).all():  # type: ignore[operator]
            raise ValueError(f"{key[:100]!r} has numbers outside of {least} to {most}")


def _ranges(bundle: Bundle, record: Record) -> Iterator[tuple[str, tuple[int, object]]]:
    """The range of each array of whole numbers that a graph takes."""
    size = np.array(frame_size(bundle))
    for call in record.calls:
        for name, value in call.inputs.items():
            if name == "selected":
                yield value.key, (0, call.inputs["mask_logits"].shape[0] - 1)
            elif name == "tokens":
                yield value.key, (0, _TOKENS - 1)
            elif name in ("picture_size", "frame_size"):
                yield value.key, (1, size)


def _check_end(data: bytes) -> None:
    """ValueError unless the archive ends as a small one does, with a directory of a usual size."""
    end, before = data[-_END:], data[-_END - _LOCATOR : -_END]
    if not end.startswith(b"PK\x05\x06") or before.startswith(b"PK\x06\x07"):
        raise ValueError("it is no archive as numpy writes it, or cut short")
    if (size := int.from_bytes(end[12:16], "little")) > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory would have {size} bytes")


def _members(archive: zipfile.ZipFile, needs: Mapping[str, Need]) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by key, of which none is unpacked yet."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        key = member.filename.removesuffix(".npy")
        if key in found or key not in needs or key == member.filename:
            raise ValueError(f"{member.filename[:100]!r} is there twice, or nothing needs it")
        if member.file_size > needs[key].bytes + _HEADER:
            raise ValueError(f"{key[:100]!r} would have {member.file_size} bytes")
        found[key] = member
    if missing := needs.keys() - found.keys():
        raise ValueError(f"the array {min(missing)[:100]!r} is missing")
    if (total := sum(member.file_size for member in found.values())) > LARGEST:
        raise ValueError(f"its arrays would have {total} bytes, and at most {LARGEST} are read")
    return found


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, key: str, need: Need) -> Array:
    file = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{key[:100]!r} is of another version of the format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    need.check(key, dtype, shape)
    numbers = file.read()
    if len(numbers) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key[:100]!r} has {len(numbers)} bytes for {dtype} {list(shape)}")
    array = np.frombuffer(numbers, dtype).reshape(shape, order="F" if by_columns else "C")
    return np.array(array, order="C")
