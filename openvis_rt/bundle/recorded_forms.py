"""What a recorded reference says of its calls, and how their values are made of what is stored.

Inputs of later graphs are PyTorch's own outputs rounded to FP16, and what is recorded of a graph is
its answer to the rounded ones, so nothing is lost. Of a large output 16,384 values are kept, which
tell a signal-to-noise ratio to a tenth of a dB, and of a few queries every bit of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openvis_rt.systems.system import Score, Tracker

__all__ = ["SAMPLE", "Call", "Form", "Record", "Stored", "Value", "packed", "sample_of"]

SAMPLE = 16_384
"""Values that are kept of a large output."""
_STEP = 2_654_435_761  # odd, near 2^32 / golden ratio: positions spread over an array of any size
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


def sample_of(array: Array) -> Array:
    """The values of an array that are kept of it, flat: all if they are few, or 16,384."""
    flat = array.reshape(-1)
    if flat.size <= SAMPLE:
        return flat
    return flat[(np.arange(SAMPLE, dtype=np.int64) * _STEP) % flat.size]


def packed(rows: Array) -> Image8:
    """Bits of a bool or 0/1 array, uint8 [rows, bytes]."""
    return np.packbits(rows.reshape(len(rows), -1).astype(np.bool_), axis=1)
