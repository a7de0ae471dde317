"""Which blocks of a graph became INT8, which products stayed as they were, and why.

It is read from the graphs that were made, so that ``openvis inspect`` tells what is in the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.blocks import operations_of
from openvis_rt.calib.int8_graphs import Int8Graph, fp32_graph
from openvis_rt.calib.placement import block_of, place, products_of
from openvis_rt.calib.ranges import BlockPlacement, Calibration
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["with_placements"]

_COSTS = "beyond the bound"  # the mix was picked without it
_ZEROS = "only zeros"  # its input, or on a CPU its output, was 0 on all frames


def with_placements(
    calibration: Calibration, bundle: Bundle, made: Mapping[str, Sequence[Int8Graph]]
) -> Calibration:
    """A calibration with what became of each block of its graphs.

    Args:
        calibration: that the graphs were made by.
        bundle: whose FP32 graphs they were made of.
        made: by precision the INT8 graphs.

    Raises:
        BundleError: the shape of a product follows from data, so it cannot be counted.
    """
    every = {
        (p, graph.graph): frozenset(graph.products) for p, own in made.items() for graph in own
    }
    graphs = {
        name: replace(
            ranges,
            blocks=_blocks(
                bundle,
                name,
                frozenset(ranges.products),
                {precision: every[precision, name] for precision in made},
            ),
        )
        for name, ranges in calibration.graphs.items()
    }
    return replace(calibration, graphs=graphs)


def _blocks(
    bundle: Bundle, name: str, picked: frozenset[str], quantised: Mapping[str, frozenset[str]]
) -> tuple[BlockPlacement, ...]:
    """The blocks of one graph, given its products that were picked and those that are INT8."""
    model = fp32_graph(bundle, name)
    view = GraphView(model.graph)
    operations = operations_of(model, bundle.manifest.window_length)
    left = place(view).left
    parts: dict[str, list[int]] = {}
    for index in products_of(view):
        parts.setdefault(block_of(view.module(index)), []).append(index)

    def reason(index: int) -> str:
        return left.get(index) or (_ZEROS if view.nodes[index].output[0] in picked else _COSTS)

    return tuple(
        BlockPlacement(
            part,
            len(nodes),
            sum(operations[i] for i in nodes) / sum(operations),
            {
                precision: dict(
                    Counter(reason(i) for i in nodes if view.nodes[i].output[0] not in outputs)
                )
                for precision, outputs in quantised.items()
            },
        )
        for part, nodes in parts.items()
    )
