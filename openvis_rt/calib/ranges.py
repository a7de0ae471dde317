"""The record of a calibration: ranges of tensors, and what they were measured on, as JSON.

``calibration/ranges.json`` of a bundle. With it the INT8 graphs can be made again, also by another
method, without the frames. It is of certain graphs, known by the SHA-256 of their files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openvis_rt.calib.frames import Source
from openvis_rt.calib.histograms import METHODS, Histogram, Method, range_of
from openvis_rt.errors import InputError
from openvis_rt.records import json_from_record

__all__ = [
    "FOLDER",
    "RECORD",
    "BlockPlacement",
    "Calibration",
    "GraphRanges",
    "Measure",
    "Measured",
    "TensorRange",
    "ranges_from",
]

FOLDER = "calibration"
RECORD = f"{FOLDER}/ranges.json"
Measure = Literal["SQNR dB", "bits that differ", "median IoU"]
_SCHEMA = 3


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

    def __post_init__(self) -> None:
        """Refuse what no histogram gives.

        Raises:
            InputError: limits that leave 0 out, or ranges that are not one for each method, above 0
                and no larger than what was seen.
        """
        if not self.lowest <= 0 <= self.highest:
            raise InputError(
                f"lowest and highest are of the numbers that were seen and 0, so 0 lies between "
                f"them; found {self.lowest:g} and {self.highest:g}"
            )
        ranges, largest = self.by_method, self.largest
        if set(ranges) != (set(METHODS) if largest else set()) or not all(
            0 < reach <= largest for reach in ranges.values()
        ):
            raise InputError(
                f"the ranges are not one for each method, above 0 and up to {largest:g}, the "
                "largest number that was seen"
            )
        if ranges and ranges["max"] != largest:
            raise InputError(
                f"the range by max is {ranges['max']:g}, and the largest number that was seen is "
                f"{largest:g}; they are the same in every calibration"
            )

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

    def __post_init__(self) -> None:
        """Refuse numbers that no block has.

        Raises:
            InputError: a share outside of 0..1, or more products left than there are.
        """
        if not 0 <= self.share <= 1:
            raise InputError(f"a share of the multiply-adds is from 0 to 1; found {self.share:g}")
        for precision, reasons in self.left.items():
            counts = reasons.values()
            if min(counts, default=0) < 0 or sum(counts) > self.products:
                raise InputError(
                    f"of {self.products} products {sum(counts)} are said not to be {precision}"
                )

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
    measure: Measure
    median: float | None
    worst: float | None

    def __post_init__(self) -> None:
        """Refuse what is no share.

        Raises:
            InputError: a share of bits or of masks outside of 0..1.
        """
        shares = () if self.measure == "SQNR dB" else (self.median, self.worst)
        if not all(share is not None and 0 <= share <= 1 for share in shares):
            raise InputError(
                f"{self.measure} is a share, from 0 to 1; found {self.median} and {self.worst}"
            )

    @property
    def place(self) -> tuple[str, str, str]:
        """What was measured, without the result."""
        return self.graph, self.output, self.measure


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
            InputError: another schema, no frames, or other outputs that were measured in one
                precision than in another.
        """
        if self.schema != _SCHEMA:
            raise InputError(f"schema {self.schema} is not known here, only {_SCHEMA}")
        for name, least in (("frames", 1), ("held_out", 0), ("stride", 1), ("seed", 0)):
            if (found := getattr(self, name)) < least:
                raise InputError(f"{name} is {least} or more; found {found}")
        places = {tuple(one.place for one in every) for every in self.measured.values()}
        if len(places) > 1:
            raise InputError("not the same outputs were measured in each precision")

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
