"""What each block of the quantised graphs costs and saves; blocks are ranked by it.

The cost of a block is measured with this block alone in INT8, as TensorRT gets it, and all else in
FP32: the noise that it leaves in the outputs. Noises of independent roundings add, so blocks are
ranked by

    10^(-SQNR / 10) / share of the multiply-adds            the cheapest first

What a mix of blocks costs is not added up from this: :mod:`openvis_rt.calib.mix` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.accuracy import DataSet
from openvis_rt.calib.blocks import Block, read_anything, with_blocks
from openvis_rt.calib.int8_graphs import Int8Graph, int8_beside_fp32, int8_graphs
from openvis_rt.calib.measuring import SQNR, Reference
from openvis_rt.calib.ranges import Calibration, Measured
from openvis_rt.calib.saved_results import SavedResults
from openvis_rt.calib.sensitivity_record import BlockCost
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.systems.graphs import INT8, INT8_FP32

__all__ = ["Study", "noise_of", "ranked", "sqnr_of"]

_ALONE = "alone"

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """What all measurements of a calibration's mixes share.

    Attributes:
        bundle: that is calibrated.
        calibration: with all products.
        precisions: that the bundle gets.
        reference: what its FP32 graphs make of the windows that were held out.
        data: that mixes are evaluated on; None for none.
        saved: takes each result when it is there.
        threads: that compute one graph; None for the library's choice.
        progress, warn: told what is done, and what does not stop the work.
    """

    bundle: Bundle
    calibration: Calibration
    precisions: tuple[str, ...]
    reference: Reference
    data: DataSet | None
    saved: SavedResults
    threads: int | None
    progress: Progress
    warn: Warn

    @property
    def beside_fp32(self) -> str:
        """In what blocks alone are measured: INT8 with all else in FP32.

        It has the products of ``int8``, or of ``int8-fp32`` where only that is made.
        """
        return _ALONE if INT8 in self.precisions else INT8_FP32

    def graphs(self, blocks: Sequence[Block], precision: str) -> list[Int8Graph]:
        """The graphs with these blocks in INT8; none for no block.

        Args:
            blocks: that are INT8.
            precision: one that the bundle gets, or :attr:`beside_fp32`.
        """
        calibration = with_blocks(self.calibration, blocks)
        if precision == _ALONE:
            return list(int8_beside_fp32(self.bundle, calibration))
        return [graph for _, graph in int8_graphs(self.bundle, calibration, [precision])]

    def measured(self, blocks: Sequence[Block], precision: str, what: str) -> tuple[Measured, ...]:
        """How close the outputs are with these blocks in INT8."""

        def compute() -> list[object]:
            graphs = self.graphs(blocks, precision)
            return [json_from_record(m) for m in self.reference.measured(graphs, precision, what)]

        found = self.saved.result(f"outputs, {precision}: {_names(blocks)}", compute)
        return tuple(record_from_json(Measured, one) for one in found)

    def ap(self, blocks: Sequence[Block], precision: str, what: str) -> float:
        """AP in percent with these blocks in INT8; with none of them that of the bundle itself."""
        data = self.data
        assert data is not None

        def compute() -> float:
            return data.ap(
                self.bundle,
                self.graphs(blocks, precision),
                precision,
                self.saved.folder,
                threads=self.threads,
                progress=lambda text, done, total: self.progress(
                    f"evaluating {what}: {text}", done, total
                ),
                warn=self.warn,
            )

        name = f"AP, {data.sha256}, {precision}: {_names(blocks)}"
        return float(self.saved.result(name, compute))


def ranked(
    study: Study, blocks: Sequence[Block], *, with_ap: bool
) -> list[tuple[Block, BlockCost]]:
    """Blocks and their costs, the cheapest first; those that read nothing but zeros are left out.

    Args:
        study: what is measured, and how.
        blocks: of all graphs that are quantised.
        with_ap: measure AP of each block as well, by evaluations that last.
    """
    blocks = [block for block in blocks if read_anything(block, study.calibration)]
    found = []
    for number, block in enumerate(blocks, 1):
        what = f"{block.name} alone, block {number} of {len(blocks)}"
        measured = study.measured([block], study.beside_fp32, what)
        ap = study.ap([block], study.beside_fp32, what) if with_ap else None
        cost = BlockCost(
            block.graph,
            block.name,
            len(block.products),
            block.multiply_adds,
            block.share,
            block.weight_bytes,
            noise_of(measured, block.graph),
            measured,
            ap,
            chosen=True,
        )
        found.append((block, cost))
    return sorted(found, key=lambda pair: pair[1].noise_per_share)


def sqnr_of(measured: Sequence[Measured], output: str) -> float:
    """Median SQNR of an output in dB; infinite where it is the same as FP32's.

    Raises:
        StopIteration: there is no such output.
    """
    value = next(m.median for m in measured if m.output == output and m.measure == SQNR)
    return math.inf if value is None else value


def noise_of(measured: Sequence[Measured], graph: str) -> float:
    """Power of the noise over that of the signal, of the output of a graph that is judged.

    It is ``mask_logits`` where the graph gives them, else the worst of its outputs.
    """
    own = [m for m in measured if m.graph == graph and m.measure == SQNR]
    judged = [m for m in own if m.output == "mask_logits"] or own
    return max((10 ** (-m.median / 10) for m in judged if m.median is not None), default=0.0)


def _names(blocks: Sequence[Block]) -> str:
    return ", ".join(f"{block.graph} {block.name}" for block in blocks)
