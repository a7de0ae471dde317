"""What an FP16 graph computes in FP32 all the same, and why: one table, :data:`KEEPS`.

An entry finds its nodes in the graph: by operator, by the module that they were traced in (the
path before the ``/`` of a node's name, as :mod:`openvis_rt.export.onnx_export` writes it), or by
what they are computed from. It finds them in the FP16 graph as well, so that a finished file can be
checked: :func:`narrowed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

__all__ = ["KEEPS", "MOVES", "GraphView", "Keep", "narrowed"]

MOVES = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that move numbers and never change one."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class GraphView:
    """A graph's dataflow. Nodes are named by their place in it.

    Attributes:
        nodes: in the file's order, in which producers come first.
        types: ONNX element type of every tensor.
        constants: initializers by name.
        outputs: names of the graph's outputs.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.constants = {t.name: t for t in graph.initializer}
        self.outputs = frozenset(value.name for value in graph.output)
        self.types = {
            v.name: v.type.tensor_type.elem_type
            for v in (*graph.input, *graph.value_info, *graph.output)
        } | {t.name: t.data_type for t in graph.initializer}
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(i)

    def module(self, index: int) -> str:
        """Path of the module in which a node was traced; empty for the graph's own wrapper."""
        path: str = self.nodes[index].name.rpartition("/")[0]
        return path

    def is_float(self, tensor: str) -> bool:
        """Whether it is FP32 or FP16."""
        return self.types.get(tensor) in _FLOATS

    def downstream(self, seeds: Iterable[int], until: Sequence[str] = ()) -> set[int]:
        """The seeds and every node that floats reach from them; ``until`` names ops to stop at."""
        found = set(seeds)
        queue = list(found)
        while queue:
            for name in filter(self.is_float, self.nodes[queue.pop()].output):
                new = [i for i in self.consumers.get(name, []) if i not in found]
                new = [i for i in new if self.nodes[i].op_type not in until]
                found.update(new)
                queue += new
        return found

    def upstream(self, tensor: str, until: Sequence[str]) -> set[int]:
        """Every node that a tensor is computed by, back to the ops ``until``, without them."""
        found: set[int] = set()
        queue = [tensor]
        while queue:
            index = self.producer.get(queue.pop())
            if index is None or index in found or self.nodes[index].op_type in until:
                continue
            found.add(index)
            queue += filter(self.is_float, self.nodes[index].input)
        return found


Finder = Callable[[GraphView], set[int]]


@dataclass(frozen=True)
class Keep:
    """One entry of the list.

    Attributes:
        name: for people, and for leaving it out.
        find: its nodes in a graph; none where a graph has nothing of the kind.
        what: which nodes these are.
        reason: why they are not converted.
        rounded: their results become FP16 at once. Such a product has FP16 operands and an FP16
            result, and its sum is FP32: a compiler for tensor cores makes one FP16 kernel of the
            Casts and the product, and must not sum in FP16 as it may in a product of FP16 type.
    """

    name: str
    find: Finder
    what: str
    reason: str
    rounded: bool = False


def _ops(*types: str, module: str = r".*") -> Finder:
    """Nodes of these operators whose module's path matches."""

    def find(view: GraphView) -> set[int]:
        return {
            i
            for i, node in enumerate(view.nodes)
            if node.op_type in types and re.fullmatch(module, view.module(i))
        }

    return find


def _after(seeds: Finder, *until: str) -> Finder:
    """The seeds and everything that is made from them, up to these operators."""
    return lambda view: view.downstream(seeds(view), until)


def _from_frames(view: GraphView) -> set[int]:
    inputs = ("frames", "pictures")  # of `propose` and `classify`, and of `embed`
    return view.downstream([i for n in inputs for i in view.consumers.get(n, [])], ("Conv",))


def _position_sums(view: GraphView) -> set[int]:
    """Additions of a constant of two long axes, cells by channels."""

    def is_table(name: str) -> bool:
        tensor = view.constants.get(name)
        return tensor is not None and sum(d > 1 for d in tensor.dims) > 1

    adds = _ops("Add", module=r".*\.encoder\.layers\.\d+|.*\.predictor")(view)
    return {i for i in adds if any(map(is_table, _uncast(view, view.nodes[i].input)))}


def _uncast(view: GraphView, names: Iterable[str]) -> list[str]:
    """The tensors, or what they were cast from."""
    made = ((n, view.producer.get(n)) for n in names)
    return [
        n if i is None or view.nodes[i].op_type != "Cast" else view.nodes[i].input[0]
        for n, i in made
    ]


def _sampling(view: GraphView) -> set[int]:
    sites = _ops("GridSample")(view)
    grids = [view.upstream(view.nodes[i].input[1], ("MatMul", "Gemm")) for i in sites]
    return sites.union(*grids)


def _window_positions(view: GraphView) -> set[int]:
    """Waves that are computed in the graph, what they are made of, and their sums with others."""
    waves = _ops("Sin", "Cos")(view)
    angles = [view.upstream(view.nodes[i].input[0], ()) for i in waves]
    return view.downstream(waves, ("MatMul", "Gemm")).union(*angles)


def _in_crops(view: GraphView) -> set[int]:
    """What a module called ``crops`` computes."""
    return {i for i in range(len(view.nodes)) if re.fullmatch(r"(.*\.)?crops", view.module(i))}


_mask_product = _ops("MatMul", module=r".*\.predictor")


def _from_mask_logits(view: GraphView) -> set[int]:
    product = _mask_product(view)
    return view.downstream(product) - product


KEEPS: tuple[Keep, ...] = (
    Keep(
        "picture",
        _from_frames,
        "everything between the frame's bytes and the first convolution",
        "FP16 holds the mean grey level 122.77 as 122.75 and shifts every pixel. A graph that "
        "resizes rounds to whole levels, which needs more than FP16's 11 bits.",
    ),
    Keep(
        "crops",
        _in_crops,
        "masks on the frame's pixels, their boxes, and the weights of the crops",
        "As for mask decisions; and FP16 counts pixels to 2048, and half of one to 1024.",
    ),
    Keep(
        "layer norm",
        _ops("LayerNormalization"),
        "LayerNormalization",
        "A variance is a mean of squares: FP16 overflows from a number of 256 on, and loses the "
        "difference of large ones.",
    ),
    Keep(
        "group norm",
        _ops("InstanceNormalization"),
        "InstanceNormalization, as GroupNorm is exported",
        "As for layer norm, and the sums run over whole feature maps, 200 000 numbers at 480x864.",
    ),
    Keep(
        "softmax",
        _ops("Softmax"),
        "Softmax, in attention, in CLIP's pooling and over the classes",
        "Thousands of exponentials are summed, most of them below FP16's smallest number. The bias "
        "before it is 0 or -1e4, exact in FP16, so its addition is FP16.",
    ),
    Keep(
        "positions",
        _position_sums,
        "additions of a sine position table, and the table",
        "At the table's low frequencies neighbouring cells differ by less than FP16 resolves.",
    ),
    Keep(
        "window positions",
        _window_positions,
        "the sine table of a window's frames, which depends on their number, and its additions",
        "As for positions; and an angle of 2 pi has steps of 2^-8 in FP16.",
    ),
    Keep(
        "sampling points",
        _sampling,
        "GridSample, and its grid back to the product that makes the offsets",
        "A coordinate near 1 has steps of 2^-11 in FP16: 0.03 pixels of a map 108 wide, 0.12 of "
        "one 480 wide.",
    ),
    Keep(
        "mask product",
        _mask_product,
        "the sum of mask embeddings times mask features; operands and result are FP16",
        "256 products of both signs make a logit, and its sign is the mask. Rounding the sum to "
        "FP16 turns no sign, and makes 0 only of what is below 3e-8.",
        rounded=True,
    ),
    Keep(
        "mask decisions",
        _from_mask_logits,
        "everything made from mask logits: resizing, thresholds, sigmoid, mass",
        "Resizing in FP16 may move a logit across 0, and one attention bit that flips moves the "
        "queries of its frame. What follows a decision is 0 or -1e4, exact in FP16.",
    ),
    Keep(
        "sums over a frame",
        _after(_ops("ReduceSum", "ReduceMean", module=""), "MatMul", "Gemm", "Add"),
        "counts of pixels and means over them, up to the next product or sum",
        "FP16 counts to 2048 and sums to 65504; a map has more cells.",
    ),
    Keep(
        "class scores",
        _after(_ops("ReduceL2")),
        "L2 norm, cosine similarity, temperature and what follows",
        "A norm squares; the temperature multiplies the cosine's rounding by 100; FP16 has no "
        "1e-12 to divide by in place of 0.",
    ),
    Keep(
        "head scores",
        _ops("Sigmoid", module=""),
        "the sigmoid that makes `mask_iou`",
        "A score that is read and multiplied: near 1, FP16 has steps of 5e-4.",
    ),
)
"""Every computation of an FP16 graph that is done in FP32."""


def narrowed(model: onnx.ModelProto, keeps: Sequence[Keep] = KEEPS) -> dict[str, list[str]]:
    """For each entry that a graph does not honour, the names of its nodes that compute in FP16."""
    view = GraphView(model.graph)
    out = {}
    for keep in keeps:
        nodes = (view.nodes[i] for i in sorted(keep.find(view)))
        halves = [node.name for node in nodes if _computes_in_fp16(view, node)]
        if halves:
            out[keep.name] = halves
    return out


def _computes_in_fp16(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.op_type in MOVES or node.op_type == "Cast":
        return False
    types = {view.types.get(name) for name in (*node.input, *node.output)}
    return TensorProto.FLOAT16 in types
