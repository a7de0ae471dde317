"""The recorded calls of a bundle's graphs: PyTorch's inputs and outputs, on real pictures.

    reference/reference.json  what was recorded: every call of every graph, tracker, score, names
    reference/arrays.npz      inputs and outputs of the calls, and what the tracker was given
    reference/frames/*.png    the frames of the sequence, as the graphs take them

They come from whoever made the bundle, so all of it is checked here, before anything is computed:
the record against the graphs' specs, and the arrays and frames against both.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.bundle.recorded_arrays import check_numbers, read_arrays
from openvis_rt.bundle.recorded_forms import Record, Stored
from openvis_rt.bundle.recorded_needs import LARGEST, frame_size, needs_of
from openvis_rt.errors import BundleError, InputError, RecordError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.records import record_from_json

__all__ = [
    "ARRAYS",
    "DAMAGES",
    "FOLDER",
    "RECORD",
    "damaged",
    "frame_name",
    "read_calls",
    "read_part",
]

FOLDER = "reference"
RECORD, ARRAYS = f"{FOLDER}/reference.json", f"{FOLDER}/arrays.npz"
DAMAGES = (
    *(RecordError, InputError, ValueError, OSError, KeyError, IndexError, TypeError, EOFError),
    *(MemoryError, RecursionError, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
    *(AttributeError, ArithmeticError, SyntaxError),  # the last is Pillow's
)
"""What reading a damaged record raises."""
_LARGEST_RECORD, _LARGEST_ARCHIVE = 4 << 20, 512 << 20  # bytes

Image8 = npt.NDArray[np.uint8]


def read_calls(bundle: Bundle) -> tuple[Record, Stored] | None:
    """The recorded calls of a bundle's graphs, checked against their specs; None without a record.

    Every value of the record can be made of the arrays, and these are what the host and the graphs
    take.

    Raises:
        BundleError: the record is damaged, the manifest is not what an export writes, or the bundle
            was replaced since it was opened.
    """
    if RECORD not in bundle.manifest.files:
        return None
    check_contract(bundle.manifest)
    try:
        record = record_from_json(Record, _json(bundle), strict=False)
        arrays = read_arrays(read_part(bundle, ARRAYS, _LARGEST_ARCHIVE), needs_of(bundle, record))
        check_numbers(bundle, record, arrays)
        frames = _read_frames(bundle, record, sum(array.nbytes for array in arrays.values()))
    except BundleError:
        raise
    except DAMAGES as exc:
        raise damaged(bundle, exc) from exc
    return record, Stored(frames, arrays)


def read_part(bundle: Bundle, name: str, largest: int) -> bytes:
    """The bytes of a file of the record.

    Raises:
        ValueError: it is not listed, or has more bytes than such a file.
        BundleError: as :meth:`Bundle.read_file`.
    """
    entry = bundle.manifest.files.get(name)
    if entry is None or entry.bytes > largest:
        found = "is missing" if entry is None else f"has {entry.bytes} bytes"
        raise ValueError(f"{name} {found}; it has at most {largest}")
    return bundle.read_file(name)


def damaged(bundle: Bundle, error: BaseException) -> BundleError:
    """What is told of a damaged record."""
    return BundleError(
        f"the reference in {bundle.path} is damaged ({error!r:.500}); export the bundle again, or "
        "give --checkpoint to compare with PyTorch here"
    )


def frame_name(index: int) -> str:
    """Name in the bundle of a frame."""
    return f"{FOLDER}/frames/{index:05d}.png"


def _json(bundle: Bundle) -> Any:
    return json_from_bytes(read_part(bundle, RECORD, _LARGEST_RECORD), str(bundle.path / RECORD))


def _read_frames(bundle: Bundle, record: Record, beside: int) -> list[Image8]:
    """The frames; ``beside`` is how many bytes the arrays have."""
    height, width = frame_size(bundle)
    size = 3 * height * width
    if record.frames * size + beside > LARGEST:
        raise ValueError(f"frames and arrays would have more than {LARGEST >> 20} MiB")
    frames = []
    for index in range(record.frames):
        data = read_part(bundle, frame_name(index), 2 * size + (1 << 20))
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise ValueError(f"frame {index} is of {image.size}, and not {(width, height)}")
            frames.append(np.asarray(image.convert("RGB")))
    return frames
