"""Which arrays a recorded reference has, of what types and shapes: before any of them is read.

A record says it of the graphs' calls, and the graphs' specs say what such a call can be; what the
tracker was given follows from the specs and from the numbers of frames, names and windows. Dynamic
axes have bounds, so that a record of a few kilobytes asks for nothing large.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded_forms import SAMPLE, Call, Record, Value
from openvis_rt.systems.graphs import CONTEXT_LENGTH, GraphSpec, TensorSpec, masks_per_run

__all__ = ["LARGEST", "Need", "frame_size", "needs_of"]

LARGEST = 768 << 20
"""Bytes of all frames and arrays of a reference."""
_LARGEST_VALUE = 512 << 20  # bytes
_MOST_FRAMES, _MOST_CALLS = 128, 256
_MOST_ROWS = 512  # of names and prompts
_MOST_HARD = 64  # steps, and objects, of the tokens that are hard to follow
_POINT = re.compile(r"[A-Za-z]+=\d{1,6}( [A-Za-z]+=\d{1,6})*", re.ASCII)
_FLOATS = frozenset({"float16", "float32"})
_GIVEN = frozenset({"whole", "bits", "frames", "tiled", "head"})
_FROM_THE_FIRST = frozenset({"sample", "tiled", "head"})
_FOUND = frozenset({"whole", "bits", "sample"})


@dataclass(frozen=True)
class Need:
    """What an array must be.

    Attributes:
        dtypes: numpy's names of the types that it may have.
        least, most: the range of each axis.
    """

    dtypes: frozenset[str]
    least: tuple[int, ...]
    most: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The most that it can have."""
        return math.prod(self.most) * max((np.dtype(d).itemsize for d in self.dtypes), default=0)

    def check(self, key: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        """ValueError if an array of that type and shape is not what is needed."""
        fits = len(shape) == len(self.most) and all(
            least <= found <= most
            for least, found, most in zip(self.least, shape, self.most, strict=True)
        )
        if not fits or not any(np.dtype(dtype) == np.dtype(name) for name in self.dtypes):
            raise ValueError(
                f"the array {key[:100]!r} is {dtype} {list(shape)}; needed is "
                f"{' or '.join(sorted(self.dtypes))} {_axes(self.least, self.most)}"
            )

    def both(self, other: Need) -> Need:
        """What is needed where both are; ValueError where nothing can be."""
        if len(self.most) == len(other.most):
            least = tuple(map(max, self.least, other.least))
            most = tuple(map(min, self.most, other.most))
            dtypes = self.dtypes & other.dtypes
            if dtypes and all(low <= high for low, high in zip(least, most, strict=True)):
                return Need(dtypes, least, most)
        raise ValueError("two values of different types or sizes share an array")


def needs_of(bundle: Bundle, record: Record) -> dict[str, Need]:
    """Every array of a record by its key.

    Raises:
        ValueError: a call is missing, or none of this bundle's graphs; a value is not of its
            tensor's type and sizes, or larger than anything that is recorded; or the sequence is
            not of this bundle's model.
    """
    _check_numbers(bundle, record)
    needs: dict[str, Need] = {}
    for call in record.calls:
        for key, need in _of_call(bundle, record, call):
            needs[key] = needs[key].both(need) if key in needs else need
    for key, need in _of_sequence(bundle, record):
        needs[key] = needs[key].both(need) if key in needs else need
    return needs


def frame_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the recorded frames: those that `propose` takes."""
    height, width = _spec(bundle, "propose").inputs[0].shape[1:3]
    return int(height), int(width)


def _check_numbers(bundle: Bundle, record: Record) -> None:
    if missing := set(bundle.graphs) - {call.graph for call in record.calls}:
        raise ValueError(f"no call of the graph {min(missing)}")
    if not 1 <= record.frames <= _MOST_FRAMES or len(record.calls) > _MOST_CALLS:
        raise ValueError(
            f"{record.frames} frames and {len(record.calls)} calls; there are 1 to {_MOST_FRAMES} "
            f"and at most {_MOST_CALLS}"
        )
    if record.tracker.tokens != bundle.manifest.tracker.tokens:
        raise ValueError(
            f"the tracker matched {record.tracker.tokens!s:.200}, and the bundle's matches "
            f"{bundle.manifest.tracker.tokens!s:.200}"
        )
    if len(record.rows) != len(record.names) or min(record.rows, default=0) < 1:
        raise ValueError(f"{len(record.names)} names have {str(record.rows)[:100]} rows")


def _of_call(bundle: Bundle, record: Record, call: Call) -> Iterator[tuple[str, Need]]:
    if call.graph not in bundle.graphs or not _POINT.fullmatch(call.point):
        raise ValueError(f"a call of {call.graph[:100]!r} at {call.point[:100]!r}")
    spec, limits, sizes = _spec(bundle, call.graph), _limits(bundle), dict[str, int]()
    inputs = {t.name: t for t in (*spec.inputs, *spec.overridable)}
    outputs = {t.name: t for t in spec.outputs}
    if not {t.name for t in spec.inputs} <= call.inputs.keys() <= inputs.keys():
        raise ValueError(f"a call of {call.graph} has other inputs than the graph")
    if call.outputs.keys() != outputs.keys():
        raise ValueError(f"a call of {call.graph} has other outputs than the graph")
    for given, tensors, forms in ((call.inputs, inputs, _GIVEN), (call.outputs, outputs, _FOUND)):
        for name, value in given.items():
            limit = _check_value(value, tensors[name], limits, sizes)
            if value.form not in forms:
                raise ValueError(f"{name} of {call.graph} is kept as {value.form}")
            if value.form == "frames":
                _check_frames(bundle, record, value)
            else:
                yield value.key, _of_value(value, limit)
    yield from _of_masks(call)


def _of_masks(call: Call) -> Iterator[tuple[str, Need]]:
    """The bits of the first masks."""
    logits, masks = call.outputs.get("mask_logits"), call.masks
    if (masks is None) != (logits is None):
        raise ValueError(f"a call of {call.graph} has masks without logits, or logits alone")
    if masks is None or logits is None:
        return
    fits = len(masks.shape) == len(logits.shape) and masks.shape[1:] == logits.shape[1:]
    if not fits or not 1 <= masks.shape[0] <= logits.shape[0]:
        raise ValueError(f"masks of shape {list(masks.shape)} of logits {list(logits.shape)}")
    if (masks.form, masks.dtype, masks.start) != ("bits", "bool", 0):
        raise ValueError("masks are kept as something else than bits")
    yield masks.key, _of_value(masks, masks.shape[0])


def _check_value(
    value: Value, tensor: TensorSpec, limits: Mapping[str, int], sizes: dict[str, int]
) -> int:
    """The most rows of a value; ValueError if it is not what its tensor and the other ones say."""
    shape = tuple(limits.get(d, 0) if isinstance(d, str) else d for d in tensor.shape)
    fits = len(value.shape) == len(shape) and all(
        0 < ours <= most and (sizes.setdefault(d, ours) if isinstance(d, str) else d) == ours
        for ours, most, d in zip(value.shape, shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{tensor.name} has the shape {list(value.shape)[:9]}, and needs {list(tensor.shape)}"
            f" with {sizes}, at most {list(shape)}"
        )
    if value.dtype not in _types(tensor.dtype):
        raise ValueError(f"{tensor.name} is {value.dtype[:20]!r}, and needs {tensor.dtype}")
    if math.prod(value.shape) * np.dtype(value.dtype).itemsize > _LARGEST_VALUE:
        raise ValueError(f"{tensor.name} has more than {_LARGEST_VALUE >> 20} MiB")
    if value.start < 0 or (value.start and value.form in _FROM_THE_FIRST):
        raise ValueError(f"{tensor.name} begins at row {value.start}")
    return shape[0]


def _check_frames(bundle: Bundle, record: Record, value: Value) -> None:
    if value.shape[1:] != (*frame_size(bundle), 3):
        raise ValueError(f"frames of {list(value.shape)}, and recorded are {frame_size(bundle)}")
    if value.start + value.shape[0] > record.frames:
        raise ValueError(f"frames from {value.start} on, and recorded are {record.frames}")


def _of_value(value: Value, limit: int) -> Need:
    """The array of a value that has at most ``limit`` rows."""
    rows, rest = value.shape[0], value.shape[1:]
    if value.form == "sample":
        count = min(SAMPLE, math.prod(value.shape))
        return Need(frozenset({value.dtype}), (count,), (count,))
    dtypes, first, most = _types(value.dtype), value.start + rows, limit
    if value.form == "bits":
        dtypes, rest = frozenset({"uint8"}), (math.ceil(math.prod(rest) / 8),)
    elif value.form == "tiled":
        first, most = 1, _MOST_ROWS
    elif value.form == "head":
        first, most = 1, rows
    if first > most:
        raise ValueError(f"rows up to {first}, and there are at most {most}")
    return Need(dtypes, (first, *rest), (most, *rest))


def _of_sequence(bundle: Bundle, record: Record) -> Iterator[tuple[str, Need]]:
    """What the host was given of the video, and what it made of that."""
    propose, classify = _spec(bundle, "propose"), _spec(bundle, "classify")
    given = {t.name: t for t in classify.inputs}
    read = {t.name: t for t in (*propose.outputs, *classify.outputs) if t.fetched}
    rows, length = sum(record.rows), bundle.manifest.window_length
    _check_classes(given, read, rows)
    queries = next(int(t.shape[0]) for t in propose.outputs if t.name == "mask_logits")
    windows = math.ceil(record.frames / length)
    yield "order", _exactly({"int64"}, windows, queries)
    yield "hard_order", Need(frozenset({"int64"}), (1, 1), (_MOST_HARD, _MOST_HARD))
    for name in record.tracker.tokens:
        if name not in read:
            raise ValueError(f"the host reads no {name[:100]!r} to match")
        width = int(read[name].shape[-1])
        yield f"hard/{name}", Need(_FLOATS, (1, 1, width), (_MOST_HARD, _MOST_HARD, width))
    for name, tensor in read.items():
        least, most = (
            tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
            for sizes in ({"K": rows, "T": 1}, {"K": rows, "T": length})
        )
        for window in range(windows):
            yield f"output/{window}/{name}", Need(frozenset({"float32"}), least, most)
    if "text_embeddings" in given:
        yield "embeddings", _exactly(_FLOATS, rows, int(given["text_embeddings"].shape[-1]))
    if "image_embeddings" in given and "embed" not in bundle.graphs:
        width = int(given["image_embeddings"].shape[-1])
        yield "image_embeddings", _exactly(_FLOATS, record.frames, width)


def _check_classes(
    given: Mapping[str, TensorSpec], read: Mapping[str, TensorSpec], rows: int
) -> None:
    """ValueError unless the classifier's rows are those of the names."""
    scores = read["class_scores"].shape[-1]
    needed = rows if "text_embeddings" in given else rows + 1  # the last is "no object"
    if scores not in ("K", needed) or (scores == "K" and rows > _MOST_ROWS):
        raise ValueError(f"{rows} rows of names, and the classifier has {scores}")


def _limits(bundle: Bundle) -> dict[str, int]:
    """The largest sizes of dynamic axes that are recorded."""
    height, width = frame_size(bundle)
    window = bundle.manifest.window_length
    limits = {"T": window, "n": masks_per_run(window), "L": CONTEXT_LENGTH}
    limits |= dict.fromkeys(("B", "K"), _MOST_ROWS)
    return limits | {"Hs": height, "Wb": math.ceil(width / 8)}


def _spec(bundle: Bundle, graph: str) -> GraphSpec:
    return bundle.graph(graph, next(iter(bundle.manifest.graphs))).spec


def _types(dtype: str) -> frozenset[str]:
    """What stands for a type: FP16 for FP32 and the other way round, as nothing is lost."""
    return _FLOATS if dtype in _FLOATS else frozenset({dtype})


def _exactly(dtypes: set[str] | frozenset[str], *shape: int) -> Need:
    return Need(frozenset(dtypes), shape, shape)


def _axes(least: tuple[int, ...], most: tuple[int, ...]) -> str:
    ranges = (str(a) if a == b else f"{a} to {b}" for a, b in zip(least, most, strict=True))
    return f"[{', '.join(ranges)}]"
