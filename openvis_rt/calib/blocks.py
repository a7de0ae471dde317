"""The blocks of graphs that are quantised as a whole, and what INT8 saves in each.

A block is all products of one part of a graph, such as ``backbone.res3``, by the names of the
modules that they were traced in (:func:`~openvis_rt.calib.placement.block_of`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from openvis_rt.calib.placement import block_of
from openvis_rt.calib.ranges import Calibration
from openvis_rt.export.fp16.keeps import GraphView
from openvis_rt.export.multiply_adds import multiply_adds_by_node
from openvis_rt.systems.graphs import masks_per_run

__all__ = ["Block", "blocks_of", "operations_of", "read_anything", "with_blocks"]

_CLASSES = 64  # rows of the text classifier, where `classify` is counted


@dataclass(frozen=True)
class Block:
    """Products of one part of a graph.

    Attributes:
        graph: its name.
        name: of the part.
        products: by the names of their outputs, in the file's order.
        inputs: the activations that they read.
        multiply_adds: of one window, from shapes.
        share: of the multiply-adds of all graphs that are quantised, 0..1.
        weight_bytes: of the weights in FP32; INT8 has a quarter of them, FP16 half.
    """

    graph: str
    name: str
    products: tuple[str, ...]
    inputs: frozenset[str]
    multiply_adds: int
    share: float
    weight_bytes: int


def blocks_of(
    models: Mapping[str, onnx.ModelProto],
    products: Mapping[str, Sequence[str]],
    window_length: int,
) -> list[Block]:
    """The blocks of graphs, in the order of the graphs and of their files.

    Args:
        models: FP32 graphs by name.
        products: that may become INT8, by the names of their outputs.
        window_length: frames of a window.

    Raises:
        BundleError: the shape of a product follows from data, so it cannot be counted.
    """
    counts = {name: operations_of(model, window_length) for name, model in models.items()}
    total = sum(map(sum, counts.values()))
    found = []
    for name, model in models.items():
        view = GraphView(model.graph)
        parts: dict[str, list[int]] = {}
        for output in products[name]:
            index = view.producer[output]
            parts.setdefault(block_of(view.module(index)), []).append(index)
        found += [
            _block(name, part, view, nodes, counts[name], total) for part, nodes in parts.items()
        ]
    return found


def operations_of(model: onnx.ModelProto, window_length: int) -> list[int]:
    """Multiply-adds of each node of a graph for one window, in the file's order.

    Raises:
        BundleError: as for :func:`blocks_of`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    sizes = {"T": window_length, "K": _CLASSES, "n": masks_per_run(window_length)}
    return multiply_adds_by_node(copy, sizes)


def _block(
    graph: str, name: str, view: GraphView, nodes: list[int], counts: list[int], total: int
) -> Block:
    weights = {view.nodes[i].input[1] for i in nodes}
    numbers = sum(math.prod(view.constants[weight].dims) for weight in weights)
    own = sum(counts[i] for i in nodes)
    return Block(
        graph,
        name,
        tuple(view.nodes[i].output[0] for i in nodes),
        frozenset(view.nodes[i].input[0] for i in nodes),
        own,
        own / total,
        4 * numbers,
    )


def read_anything(block: Block, calibration: Calibration) -> bool:
    """Whether the block ever read anything but zeros, so that there is something to quantise."""
    tensors = calibration.graphs[block.graph].tensors
    return any(tensors[name].largest for name in block.inputs)


def with_blocks(calibration: Calibration, blocks: Collection[Block]) -> Calibration:
    """A calibration whose products are those of some blocks, and no others.

    A graph that has none of the blocks is left out: it serves the INT8 precisions as it is.
    """
    kept = {(block.graph, product) for block in blocks for product in block.products}
    graphs = {
        name: replace(graph, products=tuple(p for p in graph.products if (name, p) in kept))
        for name, graph in calibration.graphs.items()
    }
    return replace(calibration, graphs={n: g for n, g in graphs.items() if g.products})
