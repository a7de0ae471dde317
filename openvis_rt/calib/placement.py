"""Which products of a graph are computed in INT8, found by what they are connected to.

A product here is a Conv, or a MatMul or Gemm with a weight; attention's own products, of two
activations, are never one. Those that a frame's pixels reach are taken, except where a small error
costs more than the product:

    queries         what mask features have been multiplied into: the query decoder, and its heads
    where to look   sampling offsets of deformable attention, up to the grid that is sampled
    whom to attend  what a softmax weighs: queries, keys, and deformable attention's weights
    what is mixed   factors of a product of two activations: values, mask features
    what is normed  a product that nothing but a LayerNormalization reads, such as the stem and the
                    depthwise convolutions of ConvNeXt. The norm divides each place by its own
                    deviation, so it turns a small step at a dark place into a large error there.
    the picture     the first convolution, whose input is the picture itself, is taken; outputs that
                    are read as scores are not

The rules follow the dataflow. Names are read to tell people where a product is, and to group the
products in blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from openvis_rt.export.fp16.keeps import MOVES, GraphView
from openvis_rt.systems.graphs import HALF_TENSORS

__all__ = ["Placement", "block_of", "place", "products_of"]

_PRODUCTS = frozenset({"Conv", "MatMul", "Gemm"})
_WRAPPERS = frozenset({"model", "proposal", "sem_seg_head", "clip_model", "transformer", "norm"})
"""Modules that tell nobody where a product is."""
_COUNTED = ("layers", "stages")
_APART = MOVES | {"Add", "Sub", "Mul", "Div", "Cast", "Relu", "Gelu", "Erf", "Clip", "Sigmoid"}


@dataclass(frozen=True)
class Placement:
    """What of a graph is INT8.

    Attributes:
        products: places of nodes in the file's order.
        left: of the other products the reason.
    """

    products: tuple[int, ...]
    left: dict[int, str]


def products_of(view: GraphView) -> list[int]:
    """Conv, MatMul and Gemm of an activation and a weight, in the file's order."""
    return [
        index
        for index, node in enumerate(view.nodes)
        if node.op_type in _PRODUCTS
        and node.input[1] in view.constants
        and node.input[0] not in view.constants
        and view.is_float(node.input[0])
    ]


def place(view: GraphView) -> Placement:
    """The default placement of a graph; empty for one without pixels, such as `text`."""
    pixels = _downstream_of_inputs(view, ("frames", "pictures"))
    decoded = _query_decoder(view)
    chosen, left = [], {}
    for index in products_of(view):
        if index not in pixels:
            left[index] = "no pixels"
        elif index in decoded:
            left[index] = "query decoder"
        elif reason := _reason_to_leave(view, index):
            left[index] = reason
        else:
            chosen.append(index)
    return Placement(tuple(chosen), left)


def _downstream_of_inputs(view: GraphView, names: Iterable[str]) -> set[int]:
    return view.downstream([i for name in names for i in view.consumers.get(name, [])])


def _query_decoder(view: GraphView) -> set[int]:
    """Everything after the first product of mask features, and the heads of graphs without one."""
    product = view.producer.get("mask_logits")
    if product is None:
        return set()
    while view.nodes[product].op_type != "MatMul":
        product = view.producer[view.nodes[product].input[0]]
    features = _source(view, view.nodes[product].input[1])
    factors = {features}
    queue = [features]
    while queue:  # what only moves them, or brings them to a level's size
        for index in view.consumers.get(queue.pop(), []):
            if view.nodes[index].op_type in MOVES | {"Resize"}:
                queue += [name for name in view.nodes[index].output if name not in factors]
                factors.update(view.nodes[index].output)
    products = [
        index
        for name in factors
        for index in view.consumers.get(name, [])
        if view.nodes[index].op_type == "MatMul"
    ]
    return _all_after(view, products)


def _all_after(view: GraphView, nodes: Iterable[int]) -> set[int]:
    """The nodes and all that is made from them, also through what is no float, such as a mask."""
    found = set(nodes)
    queue = list(found)
    while queue:
        for name in view.nodes[queue.pop()].output:
            new = [i for i in view.consumers.get(name, []) if i not in found]
            found.update(new)
            queue += new
    return found


def _source(view: GraphView, tensor: str) -> str:
    """The tensor before it was moved."""
    while (index := view.producer.get(tensor)) is not None and view.nodes[index].op_type in MOVES:
        tensor = view.nodes[index].input[0]
    return tensor


def _reason_to_leave(view: GraphView, index: int) -> str:
    """Why a product stays as it is, by what its output comes to; empty if it need not."""
    if _is_normed_alone(view, index):
        return "what is normed"
    queue, seen = [*view.nodes[index].output], set()
    while queue:
        name = queue.pop()
        if name in view.outputs and name not in HALF_TENSORS:
            return "an output"
        for follower in view.consumers.get(name, []):
            node = view.nodes[follower]
            if node.op_type == "Softmax":
                return "whom to attend"
            if node.op_type == "GridSample" and node.input[1] == name:
                return "where to look"
            if node.op_type == "MatMul" and not any(n in view.constants for n in node.input):
                return "what is mixed"
            if follower not in seen and node.op_type in _APART:
                seen.add(follower)
                queue += node.output
    return ""


def _is_normed_alone(view: GraphView, index: int) -> bool:
    """Whether a LayerNormalization reads what a product makes, moved or not, and nobody else."""
    while True:
        readers = view.consumers.get(view.nodes[index].output[0], [])
        if len(readers) != 1:
            return False
        index = readers[0]
        kind: str = view.nodes[index].op_type
        if kind not in MOVES:
            return kind == "LayerNormalization"


def block_of(module: str) -> str:
    """The block of a module's path, for people, such as ``backbone.res3``, ``encoder.layers.0``.

    It is the path up to its first number, and the number where it counts layers or stages.
    """
    parts = [part for part in re.split(r"[./]", module) if part not in _WRAPPERS]
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1 if parts[place - 1] in _COUNTED else place])
    return ".".join(parts[:-1] or parts)
