"""Parts of an INT8 graph that stay FP32, as ONNX Runtime computes them faster on a CPU.

Each rewriting is the same sum in another order, and finds its nodes by what they are connected to:

    masks for attention    resize(q F) = q resize(F), since both are linear, one in the channels and
                           the other in the cells: the mask features are resized once for each
                           size, instead of the logits of every query in every layer
    deformable attention   sum over concat(s_1 .. s_L) w = sum over s_1 w_1 + .. + sum over s_L w_L:
                           the samples of the levels are not copied together
    short divisors         a constant of two numbers, which a point of many is divided by, is stored
                           for all points of a cell: ONNX Runtime repeats short vectors slowly
    normed sums            the sum that LayerNormalization reads has one axis more, so that ONNX
                           Runtime does not make SkipLayerNormalization of both, which is slower
                           than the two (1.32, docs/int8.md)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["cpu_rewritten"]

_SHORT = 16  # numbers of a vector


def cpu_rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the parts above are rewritten; what is not found stays as it is.

    Args:
        model: with a shape for every tensor that is rewritten. Its inputs and outputs stay.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rewriter = _Rewriter(result.graph)
    nodes = [made for index in range(len(result.graph.node)) for made in rewriter.nodes(index)]
    outputs = {value.name for value in result.graph.output}
    kept = _needed(nodes, outputs)
    read = {name for node in kept for name in node.input} | outputs
    made = {name for node in kept for name in node.output}
    constants = [*result.graph.initializer, *rewriter.constants]
    for field, items in (
        ("node", kept),
        ("initializer", [tensor for tensor in constants if tensor.name in read]),
        ("value_info", [value for value in result.graph.value_info if value.name in made]),
    ):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(items)
    return onnx.shape_inference.infer_shapes(result)


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Without nodes that only the replaced ones have read."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    return kept[::-1]


class _Rewriter:
    """Gives for each node of a graph what stands in its place.

    Attributes:
        constants: that the new nodes read.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._view = GraphView(graph)
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: _numbers(v.type.tensor_type.shape) for v in values}
        self._resized: dict[tuple[str, tuple[int, ...]], str] = {}
        self.constants: list[onnx.TensorProto] = []

    def nodes(self, index: int) -> Iterator[onnx.NodeProto]:
        """The node itself, or others that make the same."""
        node = self._view.nodes[index]
        if node.op_type == "Resize" and (found := self._masks(node)) is not None:
            yield from self._resized_features(node, *found)
        elif node.op_type == "ReduceSum" and (mul := self._weighted_levels(node)) is not None:
            yield from self._sums(node, mul)
        elif node.op_type == "Div" and (wide := self._wide_divisor(node)) is not None:
            yield from self._divided(node, wide)
        elif node.op_type == "LayerNormalization" and self._normed_sum(node):
            yield from self._one_axis_more(node)
        else:
            yield node

    def _masks(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, str] | None:
        """The product whose logits alone a Resize reads, and the features before they were flat."""
        logits = self._made_by(node.input[0], "Reshape")
        product = None if logits is None else self._made_by(logits.input[0], "MatMul")
        flat = None if product is None else self._made_by(product.input[1], "Reshape")
        if logits is None or product is None or flat is None or len(node.input) < 4:
            return None
        if not all(self._read_once(name) for name in (node.input[0], logits.input[0])):
            return None
        features, out, cells = (
            self._shapes.get(name) for name in (flat.input[0], node.input[0], flat.output[0])
        )
        sizes = self._constant_of(node.input[3])
        if features is None or out is None or cells is None or sizes is None:
            return None
        same = len(features) == len(out) == 4 and features[2:] == out[2:]
        rows = cells == (features[0], features[1], features[2] * features[3])
        if not same or not rows or features[0] != out[0] or tuple(sizes[:2]) != out[:2]:
            return None
        return product, flat.input[0]

    def _resized_features(
        self, node: onnx.NodeProto, product: onnx.NodeProto, features: str
    ) -> Iterator[onnx.NodeProto]:
        batch, channels, *_ = self._shapes[features] or ()
        sizes = self._constant_of(node.input[3])
        assert sizes is not None
        height, width = (int(size) for size in sizes[2:])
        name = f"{features}.{height}x{width}"
        if (features, (height, width)) not in self._resized:
            resize = onnx.NodeProto()
            resize.CopyFrom(node)
            resize.name, resize.output[0], resize.input[0] = f"{name}:resize", name, features
            resize.input[3] = self._constant(f"{name}.sizes", [batch, channels, height, width])
            yield resize
            shape = self._constant(f"{name}.shape", [batch, channels, height * width])
            yield helper.make_node("Reshape", [name, shape], [f"{name}.flat"], f"{name}:reshape")
            self._resized[features, (height, width)] = f"{name}.flat"
        inputs, out = [product.input[0], f"{name}.flat"], node.output[0]
        yield helper.make_node("MatMul", inputs, [f"{out}.flat"], f"{out}:product")
        yield helper.make_node("Reshape", [f"{out}.flat", node.input[3]], [out], f"{out}:reshape")

    def _weighted_levels(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The product that a sum over the last axis reads, of levels' samples and weights."""
        mul = self._made_by(node.input[0], "Mul")
        levels = None if mul is None else self._made_by(mul.input[0], "Concat")
        if mul is None or levels is None or len(node.input) < 2:
            return None
        shapes = [self._shapes.get(name) for name in (*levels.input, mul.input[1])]
        axes = self._constant_of(node.input[1])
        if axes is None or any(shape is None or shape[-1] < 1 for shape in shapes):
            return None
        rank = len(shapes[0] or ())
        sampled = all(self._made_by(name, "GridSample") is not None for name in levels.input)
        last = [int(a) % rank for a in axes] == [rank - 1] == [_attribute(levels, "axis", 0) % rank]
        kept = self._read_once(node.input[0]) and self._read_once(mul.input[0])
        widths = [shape[-1] for shape in shapes if shape is not None]
        fits = sum(widths[:-1]) == widths[-1]
        return mul if sampled and last and kept and fits else None

    def _sums(self, node: onnx.NodeProto, mul: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        out, levels = node.output[0], self._view.nodes[self._view.producer[mul.input[0]]].input
        widths = [(self._shapes[name] or (0,))[-1] for name in levels]
        weights = [f"{out}.weights.{place}" for place in range(len(levels))]
        split = [mul.input[1], self._constant(f"{out}.widths", widths)]
        yield helper.make_node("Split", split, weights, f"{out}:split", axis=-1)
        parts = []
        for place, (level, weight) in enumerate(zip(levels, weights, strict=True)):
            product = f"{out}.product.{place}"
            yield helper.make_node("Mul", [level, weight], [product], product)
            reduce = onnx.NodeProto()
            reduce.CopyFrom(node)
            parts.append(f"{out}.sum.{place}")
            reduce.name, reduce.input[0], reduce.output[0] = parts[-1], product, parts[-1]
            yield reduce
        yield helper.make_node("Sum", parts, [out], node.name)

    def _wide_divisor(self, node: onnx.NodeProto) -> npt.NDArray[np.generic] | None:
        """A short constant vector, repeated for all axes of what it divides but the first two."""
        divisor, shape = self._constant_of(node.input[1]), self._shapes.get(node.input[0])
        if divisor is None or shape is None or divisor.ndim != 1 or min(shape[2:], default=0) < 1:
            return None
        short = len(divisor) == shape[-1] < _SHORT
        return np.broadcast_to(divisor, shape[2:]).copy() if short and len(shape) > 3 else None

    def _divided(
        self, node: onnx.NodeProto, divisor: npt.NDArray[np.generic]
    ) -> Iterator[onnx.NodeProto]:
        name = f"{node.output[0]}.divisor"
        self.constants.append(numpy_helper.from_array(divisor, name))
        yield helper.make_node("Div", [node.input[0], name], [node.output[0]], node.name)

    def _normed_sum(self, node: onnx.NodeProto) -> bool:
        """Whether a sum is normed over its last axis."""
        shape = self._shapes.get(node.input[0])
        if self._made_by(node.input[0], "Add") is None or shape is None:
            return False
        return _attribute(node, "axis", -1) in (-1, len(shape) - 1) and len(node.output) == 1

    def _one_axis_more(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        source, out = node.input[0], node.output[0]
        axes = self._constant(f"{out}.axes", [0])
        yield helper.make_node("Unsqueeze", [source, axes], [f"{out}.wide"], f"{out}:unsqueeze")
        norm = onnx.NodeProto()
        norm.CopyFrom(node)
        norm.input[0], norm.output[0] = f"{out}.wide", f"{out}.normed"
        kept = [a for a in node.attribute if a.name != "axis"]  # the default is the last one
        norm.ClearField("attribute")
        norm.attribute.extend(kept)
        yield norm
        yield helper.make_node("Squeeze", [f"{out}.normed", axes], [out], f"{out}:squeeze")

    def _made_by(self, name: str, op: str) -> onnx.NodeProto | None:
        index = self._view.producer.get(name)
        node = None if index is None else self._view.nodes[index]
        return node if node is not None and node.op_type == op else None

    def _read_once(self, name: str) -> bool:
        return name not in self._view.outputs and len(self._view.consumers.get(name, [])) == 1

    def _constant_of(self, name: str) -> npt.NDArray[np.generic] | None:
        tensor = self._view.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _constant(self, name: str, values: list[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name


def _numbers(shape: onnx.TensorShapeProto) -> tuple[int, ...]:
    """Sizes; -1 for one that is a symbol."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in shape.dim)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
