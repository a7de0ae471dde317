"""From an FP32 graph and ranges to one whose products ONNX Runtime computes in INT8 on a CPU.

Where pairs stand says :mod:`.cpu_plan`. Activations are uint8 with a zero point, x = s (q - z),
since the kernels of x86 want uint8 with INT8 weights, and a Relu before a pair vanishes where z is
0. Weights are symmetric, with a scale s_w for each output channel. A bias is INT32 in steps of
s s_w, the accumulator's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, version_converter

from openvis_rt.calib.cpu_plan import CpuPlan, Limits, Linear, cpu_plan_within
from openvis_rt.calib.placement import products_of
from openvis_rt.calib.qdq import OPSET, channel_axis, refuse_quantised
from openvis_rt.calib.written_nodes import WrittenNodes
from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["cpu_quantised"]

_LEVELS = 127  # of a weight
_STEPS = 255  # of an activation
_LEAST = 1e-30  # of a scale: the product of two is a float32 above 0 still
_MOST_BIAS = 2.0**31 - 256

Floats = npt.NDArray[np.float32]


def cpu_quantised(
    model: onnx.ModelProto, products: Iterable[int], limits: Limits
) -> onnx.ModelProto:
    """The graph with some of its products in INT8 and the rest in FP32.

    Args:
        model: FP32, with a shape for every tensor; it is not changed.
        products: places of nodes, of :func:`~openvis_rt.calib.placement.products_of`; those of
            :func:`cpu_plan_within` become INT8.
        limits: of the tensors of :func:`cpu_activations_of`; those of numbers that are all 0 are
            left out.

    Returns:
        a graph of opset 19, its nodes in order.

    Raises:
        InputError: the graph has Q/DQ pairs already, a node is no product, or none has its limits.
    """
    refuse_quantised(model)
    work = version_converter.convert_version(model, OPSET)
    view = GraphView(work.graph)
    if strangers := sorted(set(products) - set(products_of(view))):
        raise InputError(f"nodes {strangers[:3]} of the graph are no products with a weight")
    writer = _Writer(view, work.graph, cpu_plan_within(view, products, limits), limits)
    for index in range(len(view.nodes)):
        writer.write(index)
    writer.finish()
    return onnx.shape_inference.infer_shapes(work)


class _Writer(WrittenNodes):
    """Writes the nodes of a graph again, with pairs and integer weights.

    Args:
        view: of the graph as it is.
        graph: is changed by :meth:`finish`.
        plan: what becomes INT8.
        limits: of all tensors of the plan.
    """

    def __init__(
        self, view: GraphView, graph: onnx.GraphProto, plan: CpuPlan, limits: Limits
    ) -> None:
        super().__init__()
        self._view, self._graph, self._plan = view, graph, plan
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: v.type.tensor_type.shape.dim for v in values}
        pools = {i: e for i, e in plan.ends.items() if view.nodes[i].op_type == "MaxPool"}
        self._steps = {n: _step(*limits[n]) for n in plan.tensors}
        for index, end in pools.items():  # it moves numbers, and is fused where both pairs agree
            self._steps[end] = self._steps[view.nodes[index].input[0]]
        self._pairs = {end: end for end in plan.ends.values()}
        self._rows: dict[str, str] = {}
        self._written: set[int] = set()

    def write(self, index: int) -> None:
        """Write a node, unless it was written with one before it."""
        if index in self._written:
            return
        node = onnx.NodeProto()
        node.CopyFrom(self._view.nodes[index])
        if index in self._plan.linears:
            self._write_linear(node, self._plan.linears[index])
            return
        if index in self._plan.products:
            self._make_integer(node)
        self.nodes.append(node)
        end = self._plan.ends.get(index)
        if end is not None:
            self._write_end(node, end)

    def finish(self) -> None:
        """Put nodes and constants into the graph, without weights that nothing reads now."""
        read = {name for node in self.nodes for name in node.input}
        read |= {value.name for value in (*self._graph.input, *self._graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        ours = ("Reshape", "DequantizeLinear")  # written for readers that may read another form
        nodes = [n for n in self.nodes if n.op_type not in ours or n.output[0] in read]
        made = {name for node in nodes for name in node.output}
        types = [value for value in self._graph.value_info if value.name in made]
        for field, items in (
            ("node", nodes),
            ("initializer", [*kept, *self.constants]),
            ("value_info", types),
        ):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(items)

    def _make_integer(self, node: onnx.NodeProto) -> None:
        """Let a product read a pair, an INT8 weight and an INT32 bias."""
        source, weight, *rest = node.input
        node.input[0] = self._pair(source)
        has_bias = bool(rest) and rest[0] in self._view.constants
        bias = self._array(rest[0]) if has_bias else None
        wide = self._array(weight)
        axis = channel_axis(node, wide.ndim)
        names = self._integers(node.output[0], wide, axis, self._steps[source][0], bias)
        for place, name in enumerate(names, 1):
            node.input[place] = name

    def _write_end(self, node: onnx.NodeProto, end: str) -> None:
        """Write a Relu that is fused with a node, and the pair whose output has the old name."""
        if node.output[0] != end:
            relu = self._view.producer[end]
            self._written.add(relu)
            node = onnx.NodeProto()
            node.CopyFrom(self._view.nodes[relu])
            self.nodes.append(node)
        node.output[0] = f"{end}.exact"
        self._quantise(node.output[0], end, end)

    def _write_linear(self, node: onnx.NodeProto, linear: Linear) -> None:
        """Write a MatMul, the addition of its bias and a Relu as a Gemm of rows, or a Conv."""
        source, weight = node.input
        wide, step = self._array(weight), self._steps[source][0]
        bias = None if linear.bias is None else self._array(linear.bias)
        self._written |= {index for index in (linear.add, linear.relu) if index is not None}
        if linear.relu is None:
            integers = self._integers(linear.out, wide, 1, step, bias)
            made = f"{linear.out}.rows"
            self.add("Gemm", [self._pair_of_rows(source), *integers], made, node.name)
        else:
            integers = self._integers(linear.out, wide.T[:, :, None, None], 0, step, bias)
            made = self._convolved_rows(source, integers, node.name, linear)
        self.reshape(made, linear.end, _sizes(linear.end, self._shapes[linear.end]))

    def _convolved_rows(self, source: str, integers: list[str], name: str, linear: Linear) -> str:
        """Write a product of rows as a Conv of 1x1 with its Relu; the name of its pair of rows.

        ONNX Runtime's convolution of rows takes 0.4 of its Gemm's time where it makes integers. It
        stands between transpositions of integers, which ONNX Runtime takes away again.
        """
        end, out = linear.end, linear.out
        rows, width = self._pair_of_rows(source), self._shapes[source][-1].dim_value
        self.reshape(f"{rows}.uint8", f"{out}.places", [1, -1, 1, width])
        self.transpose(f"{out}.places", f"{out}.columns", [0, 3, 1, 2])
        self.dequantise(f"{out}.columns", f"{out}.read", rows)
        self.add("Conv", [f"{out}.read", *integers], f"{out}.convolved", name)
        self.add("Relu", [f"{out}.convolved"], f"{end}.exact", f"{end}:relu")
        made = self._rows[end] = f"{end}.rows"
        scale = self._step_of(made, end)
        self.add("QuantizeLinear", [f"{end}.exact", *scale], f"{end}.columns", f"{made}:quantise")
        self.transpose(f"{end}.columns", f"{end}.places", [0, 2, 3, 1])
        self.reshape(f"{end}.places", f"{made}.uint8", [-1, self._shapes[end][-1].dim_value])
        self.dequantise(f"{made}.uint8", made, made)
        return made

    def _pair(self, name: str) -> str:
        """The name of an activation behind its pair."""
        if name not in self._pairs:
            self._pairs[name] = f"{name}.dequantised"
            self._quantise(name, self._pairs[name], name)
        return self._pairs[name]

    def _pair_of_rows(self, name: str) -> str:
        """The same, as float32 [rows, channels]."""
        if name not in self._rows:
            width = self._shapes[name][-1].dim_value
            self.reshape(name, f"{name}.as_rows", [-1, width])
            self._rows[name] = f"{name}.rows"
            self._quantise(f"{name}.as_rows", self._rows[name], name)
        return self._rows[name]

    def _quantise(self, source: str, made: str, tensor: str) -> None:
        """Write a pair with a tensor's scale and zero point."""
        inputs = self._step_of(made, tensor)
        self.add("QuantizeLinear", [source, *inputs], f"{made}.uint8", f"{made}:quantise")
        self.dequantise(f"{made}.uint8", made, made)

    def _step_of(self, made: str, tensor: str) -> list[str]:
        """Names of the scale and zero point of a pair that is written for a tensor."""
        scale, zero = self._steps[tensor]
        return self.step(made, np.array(scale, np.float32), np.array(zero, np.uint8))

    def _integers(
        self, product: str, wide: Floats, axis: int, step: float, bias: Floats | None
    ) -> list[str]:
        """Names of a product's INT8 weight and INT32 bias, behind their DequantizeLinear."""
        others = tuple(a for a in range(wide.ndim) if a != axis)
        scales = np.maximum(np.abs(wide).max(others).astype(np.float64) / _LEVELS, _LEAST)
        if bias is not None:  # a channel of tiny weights: its bias would not fit the accumulator
            scales = np.maximum(scales, np.abs(bias) / (step * _MOST_BIAS))
        steps = scales.astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(wide.ndim)]
        stored = np.clip(np.rint(wide / steps.reshape(shape)), -_LEVELS, _LEVELS)
        names = [self._stored(f"{product}.weight", stored.astype(np.int8), steps, axis)]
        if bias is not None:
            accumulated = (np.float32(step) * steps).astype(np.float32)
            count = np.rint(bias.astype(np.float64) / accumulated).astype(np.int32)
            names.append(self._stored(f"{product}.bias", count, accumulated, 0))
        return names

    def _stored(
        self, name: str, integers: npt.NDArray[np.generic], steps: Floats, axis: int
    ) -> str:
        inputs = [
            self.constant(f"{name}.{integers.dtype}", integers),
            self.constant(f"{name}.scale", steps),
            self.constant(f"{name}.zero", np.zeros(steps.shape, integers.dtype)),
        ]
        self.add("DequantizeLinear", inputs, name, f"{name}:dequantise")
        self.nodes[-1].attribute.append(helper.make_attribute("axis", axis))
        return name

    def _array(self, constant: str) -> Floats:
        return numpy_helper.to_array(self._view.constants[constant]).astype(np.float32)


def _step(low: float, high: float) -> tuple[float, int]:
    """The scale and zero point of uint8 for numbers from low to high; 0 is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / _STEPS, _LEAST)))
    return scale, round(-low / scale)


def _sizes(name: str, dims: Iterable[onnx.TensorShapeProto.Dimension]) -> list[int]:
    """Of a tensor, for Reshape: -1 for the one that is a symbol."""
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
    if sizes.count(-1) > 1:
        raise InputError(f"{name!r} has {sizes.count(-1)} sizes that no number stands for")
    return sizes
