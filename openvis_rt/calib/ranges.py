"""The record of a calibration: ranges of tensors, and what they were measured on, as JSON.

``calibration/ranges.json`` of a bundle. With it the INT8 graphs can be made again, also by another
method, without the frames. It is of certain graphs, known by the SHA-256 of their files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.frames import Source
from openvis_rt.calib.histograms import METHODS, Histogram, Method, range_of
from openvis_rt.errors import InputError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.records import json_from_record, record_from_json

__all__ = [
    "FOLDER",
    "RECORD",
    "BlockPlacement",
    "Calibration",
    "GraphRanges",
    "Measured",
    "TensorRange",
    "calibration_file",
    "ranges_from",
    "read_calibration",
    "refuse_foreign",
]

FOLDER = "calibration"
RECORD = f"{FOLDER}/ranges.json"
_SCHEMA = 3
_LARGEST = 256 << 20  # bytes; those of the largest models have 2 MB


@dataclass(frozen=True)
class TensorRange:
    """How far INT8 reaches for one tensor.

    Attributes:
        lowest, highest: of the numbers that were seen and 0.
        by_method: the range by each of :data:`~openvis_rt.calib.histograms.METHODS`, above 0; empty
            where ``largest`` is 0.
    """

    lowest: float
    highest: float
    by_method: dict[str, float]

    @property
    def largest(self) -> float:
        """Magnitude that was seen; 0 of a tensor that was never anything else."""
        return max(-self.lowest, self.highest)

    def limits(self, method: str) -> tuple[float, float]:
        """Of the numbers that uint8 with a zero point covers: those that were seen in the range."""
        reach = self.by_method[method]
        return max(self.lowest, -reach), min(self.highest, reach)


@dataclass(frozen=True)
class BlockPlacement:
    """What of one block of a graph is INT8.

    Attributes:
        name: of the block, such as ``backbone.res3``.
        products: how many products of an activation and a weight it has.
        share: of the graph's multiply-adds, 0..1, of all these products.
        left: by precision the products that are not INT8: how many for each reason.
    """

    name: str
    products: int
    share: float
    left: dict[str, dict[str, int]]

    def quantised(self, precision: str) -> int:
        """How many of its products are INT8."""
        return self.products - sum(self.left[precision].values())


@dataclass(frozen=True)
class GraphRanges:
    """One graph.

    Attributes:
        sha256: of its FP32 file.
        products: that become INT8, by the names of their outputs, which a file has once.
        tensors: the activations that have pairs for TensorRT or on a CPU.
        blocks: all products of the graph by blocks, in the file's order, as they are in the graphs
            that were made; empty before.
    """

    sha256: str
    products: tuple[str, ...]
    tensors: dict[str, TensorRange]
    blocks: tuple[BlockPlacement, ...] = ()


@dataclass(frozen=True)
class Measured:
    """How close one output is to the FP32 graph's, on windows that were not calibrated on.

    Attributes:
        graph, output: names.
        measure: ``SQNR dB``, ``bits that differ`` (a share), or ``median IoU`` of masks.
        median, worst: over the windows; None for an infinite ratio.
    """

    graph: str
    output: str
    measure: str
    median: float | None
    worst: float | None


@dataclass(frozen=True)
class Calibration:
    """A calibration.

    Attributes:
        variant: the model's.
        checkpoint: where its weights came from, as in the manifest.
        method: by which the bundle's INT8 graphs were made.
        graphs: by name.
        sources: of the frames.
        frames, held_out: windows that were calibrated and measured on.
        window_length: frames of a window.
        stride, seed: as they were asked for.
        measured: by precision.
        tools: versions.
        schema: of this JSON.
    """

    variant: str
    checkpoint: dict[str, object]
    method: Method
    graphs: dict[str, GraphRanges]
    sources: tuple[Source, ...]
    frames: int
    held_out: int
    window_length: int
    stride: int
    seed: int
    measured: dict[str, tuple[Measured, ...]]
    tools: dict[str, str]
    schema: int = _SCHEMA

    def __post_init__(self) -> None:
        """Refuse what no calibration has.

        Raises:
            InputError: another schema, or ranges that are missing or not above 0.
        """
        if self.schema != _SCHEMA:
            raise InputError(f"schema {self.schema} is not known here, only {_SCHEMA}")
        for graph in self.graphs.values():
            for name, tensor in graph.tensors.items():
                wanted = set(METHODS) if tensor.largest else set()
                if (
                    set(tensor.by_method) != wanted
                    or min(tensor.by_method.values(), default=1) <= 0
                ):
                    raise InputError(f"the ranges of {name!r} are not one above 0 for each method")

    def write(self, path: Path) -> None:
        """Write the JSON; every number is read again as it is."""
        path.write_text(json.dumps(json_from_record(self), indent=1) + "\n", encoding="utf-8")


def ranges_from(histograms: Mapping[str, Histogram]) -> dict[str, TensorRange]:
    """Ranges by every method."""
    found = {}
    for name, histogram in histograms.items():
        methods = METHODS if histogram.largest else ()
        by_method: dict[str, float] = {m: range_of(histogram, m) for m in methods}
        found[name] = TensorRange(histogram.lowest, histogram.highest, by_method)
    return found


def calibration_file(names: Iterable[str]) -> str | None:
    """Of a bundle's files the one that holds its calibration; None if there is none."""
    stem, suffix = RECORD.rsplit(".", 1)
    found = [n for n in names if n.startswith(f"{stem}.") and n.endswith(f".{suffix}")]
    return max(found, default=None)


def read_calibration(bundle: Bundle) -> Calibration:
    """The calibration that a bundle holds.

    Raises:
        InputError: it holds none, a damaged one, or one of other graphs or another checkpoint.
    """
    name = calibration_file(bundle.manifest.files)
    if name is None:
        raise InputError(
            f"{bundle.path} has no recorded calibration; `openvis calibrate` with videos makes one"
        )
    path = bundle.path / name
    try:
        data = bundle.read_file(name, _LARGEST)
        found = record_from_json(Calibration, json_from_bytes(data, str(path)))
    except InputError as exc:
        raise InputError(f"{path} is no calibration ({exc}). Calibrate the bundle anew.") from exc
    refuse_foreign(found, bundle)
    return found


def refuse_foreign(calibration: Calibration, bundle: Bundle) -> None:
    """Refuse a calibration that was not made of a bundle's own graphs.

    Raises:
        InputError: another model, checkpoint or graph; the message says which.
    """
    manifest = bundle.manifest
    mend = "Ranges hold for the weights that they were measured with: calibrate this bundle itself."
    for what, theirs, ours in (
        ("the model", calibration.variant, manifest.variant),
        ("the checkpoint", calibration.checkpoint, manifest.checkpoint),
    ):
        if theirs != ours:
            raise InputError(
                f"the calibration is of {what} {theirs}, and {bundle.path} has {ours}. {mend}"
            )
    for name, graph in calibration.graphs.items():
        ours = bundle.graph_sha256(name) if name in bundle.graphs else "no such graph"
        if graph.sha256 != ours:
            raise InputError(
                f"the calibration is of another graph {name!r}: its FP32 file had sha256 "
                f"{graph.sha256[:16]}, and that of {bundle.path} is {ours[:16]}. {mend}"
            )
