"""The recorded calls of a bundle's graphs: PyTorch's inputs and outputs, on real pictures.

    reference/reference.json  what was recorded: every call of every graph, tracker, score, names
    reference/arrays.npz      inputs and outputs of the calls, and what the tracker was given
    reference/frames/*.png    the frames of the sequence, as the graphs take them

Inputs of later graphs are PyTorch's own outputs rounded to FP16, and what is recorded of a graph is
its answer to the rounded ones, so nothing is lost. Of a large output 16,384 values are kept, which
tell a signal-to-noise ratio to a tenth of a dB, and of a few queries every bit of the masks.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BundleError, InputError, RecordError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.records import record_from_json
from openvis_rt.systems.system import Score, Tracker

__all__ = [
    "ARRAYS",
    "DAMAGES",
    "FOLDER",
    "RECORD",
    "Call",
    "Form",
    "Record",
    "Stored",
    "Value",
    "damaged",
    "frame_name",
    "packed",
    "read_calls",
    "sample_of",
]

FOLDER = "reference"
RECORD, ARRAYS = f"{FOLDER}/reference.json", f"{FOLDER}/arrays.npz"
DAMAGES = (
    *(RecordError, InputError, ValueError, OSError, KeyError, IndexError, TypeError, EOFError),
    *(MemoryError, RecursionError, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)
"""What reading a damaged record raises."""
_SAMPLE = 16_384  # values of a large output
_STEP = 2_654_435_761  # odd, near 2^32 / golden ratio: positions spread over an array of any size
_LONGEST_AXIS = 1 << 16  # of a dynamic axis
_LARGEST_RECORD = 64 << 20  # bytes
_EMPTY = -1.0  # logit of a mask without a pixel

Array = npt.NDArray[np.generic]
Image8 = npt.NDArray[np.uint8]
Form = Literal["whole", "bits", "sample", "frames", "tiled", "head"]


@dataclass(frozen=True)
class Value:
    """An array of a call, and how it is kept.

    Attributes:
        form: ``whole``: its rows stand in the stored array, from row ``start`` on. ``bits``: the
            same, of a bool or 0/1 array, each row packed. ``sample``: the values at
            :func:`sample_of`'s places. ``frames``: the recorded frames from ``start`` on.
            ``tiled``: the stored rows again and again. ``head``: the stored rows, and after them
            rows of -1.
        key: of the stored array; empty for frames.
        dtype, shape: of the value that the graph takes or gives.
        start: the first row.
    """

    form: Form
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True)
class Call:
    """One call of one graph.

    Attributes:
        graph: its name.
        point: which sizes of the dynamic axes it stands for, such as ``T=3``; calls of one graph
            and point are of different pictures.
        inputs, outputs: by tensor name.
        masks: the bits ``mask_logits > 0`` of the first queries, where the graph gives them.
    """

    graph: str
    point: str
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    masks: Value | None = None


@dataclass(frozen=True)
class Record:
    """What ``reference.json`` says.

    Attributes:
        checkpoint: of the weights that PyTorch had, as in the bundle's manifest.
        tools: versions of what recorded it.
        tracker, score, prompts, detections: of the bundle when it was recorded.
        names: class names of the sequence, with their synonyms.
        rows: rows of each class.
        frames: of the sequence.
        calls: of the graphs, in the order in which a frame meets them.
        detected: the video's detections from the recorded outputs: track, class from 0, score.
    """

    checkpoint: dict[str, Any]
    tools: dict[str, str]
    tracker: Tracker
    score: Score
    prompts: tuple[str, ...]
    detections: int
    names: tuple[str, ...]
    rows: list[int]
    frames: int
    calls: tuple[Call, ...]
    detected: list[tuple[int, int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Stored:
    """Frames and arrays that values are made of.

    Attributes:
        frames: uint8 [H, W, 3] each, in the order of the sequence.
        arrays: by key.
    """

    frames: list[Image8]
    arrays: dict[str, Array]

    def value(self, value: Value) -> Array:
        """A value as the graph takes or gives it; of a ``sample`` the sampled values, flat."""
        if value.form == "frames":
            return np.stack(self.frames[value.start : value.start + value.shape[0]])
        stored = self.arrays[value.key]
        if value.form == "sample":
            return stored
        rows = value.shape[0]
        if value.form == "tiled":
            return stored[np.arange(rows) % len(stored)].astype(value.dtype)
        if value.form == "head":
            out = np.full(value.shape, _EMPTY, value.dtype)
            out[: len(stored)] = stored
            return out
        stored = stored[value.start : value.start + rows]
        if value.form == "bits":
            stored = np.unpackbits(
                stored.astype(np.uint8), axis=1, count=int(np.prod(value.shape[1:]))
            )
        return stored.reshape(value.shape).astype(value.dtype)

    def inputs(self, call: Call) -> dict[str, Array]:
        """The inputs of a call by name."""
        return {name: self.value(value) for name, value in call.inputs.items()}


def read_calls(bundle: Bundle) -> tuple[Record, Stored] | None:
    """The recorded calls of a bundle's graphs, checked against their specs; None without a record.

    Raises:
        BundleError: the record is damaged.
    """
    if RECORD not in bundle.manifest.files:
        return None
    try:
        record = record_from_json(Record, _json(bundle), strict=False)
        arrays = _read_arrays(bundle.read_file(ARRAYS))
        frames = [_read_frame(bundle.read_file(frame_name(i))) for i in range(record.frames)]
        _check_calls(bundle, record, arrays)
    except DAMAGES as exc:
        raise damaged(bundle, exc) from exc
    return record, Stored(frames, arrays)


def damaged(bundle: Bundle, error: BaseException) -> BundleError:
    """What is told of a damaged record."""
    return BundleError(
        f"the reference in {bundle.path} is damaged ({error!r}); export the bundle again"
    )


def _check_calls(bundle: Bundle, record: Record, arrays: Mapping[str, Array]) -> None:
    """ValueError or KeyError if a call is missing, or is none of this bundle's graphs."""
    if missing := set(bundle.graphs) - {call.graph for call in record.calls}:
        raise ValueError(f"no call of the graph {min(missing)}")
    precision = next(iter(bundle.manifest.graphs))
    for call in record.calls:
        spec = bundle.graph(call.graph, precision).spec
        inputs = {t.name: t for t in (*spec.inputs, *spec.overridable)}
        outputs = {t.name: t for t in spec.outputs}
        if not {t.name for t in spec.inputs} <= call.inputs.keys() <= inputs.keys():
            raise ValueError(f"a call of {call.graph} has other inputs than the graph")
        if call.outputs.keys() != outputs.keys():
            raise ValueError(f"a call of {call.graph} has other outputs than the graph")
        for name, value in (*call.inputs.items(), *call.outputs.items()):
            _check_value(value, {**inputs, **outputs}[name].shape, arrays)


def _check_value(value: Value, shape: tuple[int | str, ...], arrays: Mapping[str, Array]) -> None:
    """ValueError or KeyError if a value is not what its tensor's fixed sizes say."""
    fits = len(value.shape) == len(shape) and all(
        0 < ours <= _LONGEST_AXIS and (isinstance(theirs, str) or ours == theirs)
        for ours, theirs in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"a value of shape {list(value.shape)} for a tensor of {list(shape)}")
    if value.form != "frames" and not arrays[value.key].size:
        raise ValueError(f"the array {value.key} is empty")


def sample_of(array: Array) -> Array:
    """The values of an array that are kept of it, flat: all if they are few, or 16,384."""
    flat = array.reshape(-1)
    if flat.size <= _SAMPLE:
        return flat
    return flat[(np.arange(_SAMPLE, dtype=np.int64) * _STEP) % flat.size]


def packed(rows: Array) -> Image8:
    """Bits of a bool or 0/1 array, uint8 [rows, bytes]."""
    return np.packbits(rows.reshape(len(rows), -1).astype(np.bool_), axis=1)


def frame_name(index: int) -> str:
    """Name in the bundle of a frame."""
    return f"{FOLDER}/frames/{index:05d}.png"


def _json(bundle: Bundle) -> Any:
    return json_from_bytes(bundle.read_file(RECORD, _LARGEST_RECORD), str(bundle.path / RECORD))


def _read_arrays(data: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_frame(data: bytes) -> Image8:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
