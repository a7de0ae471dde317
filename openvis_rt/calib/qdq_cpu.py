"""From an FP32 graph and ranges to one whose products ONNX Runtime computes in INT8 on a CPU.

Where pairs stand says :mod:`.cpu_plan`. Activations are uint8 with a zero point, x = s (q - z),
since the kernels of x86 want uint8 with INT8 weights, and a Relu before a pair vanishes where z is
0. Weights are symmetric, with a scale s_w for each output channel. A bias is INT32 in steps of
s s_w, the accumulator's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, version_converter

from openvis_rt.calib.cpu_plan import CpuPlan, Linear
from openvis_rt.calib.placement import products_of
from openvis_rt.calib.qdq import OPSET, channel_axis, refuse_quantised
from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["cpu_activations_of", "cpu_plan_within", "cpu_quantised"]

_LEVELS = 127  # of a weight
_STEPS = 255  # of an activation
_LEAST = 1e-30  # of a scale: the product of two is a float32 above 0 still
_MOST_BIAS = 2.0**31 - 256

Floats = npt.NDArray[np.float32]
Limits = Mapping[str, tuple[float, float]]
"""By tensor its lowest and highest number that INT8 covers."""


def cpu_activations_of(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Tensors that have a pair where these products are INT8, each once, in the file's order."""
    return CpuPlan(view, frozenset(products)).tensors


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


def cpu_plan_within(view: GraphView, products: Iterable[int], limits: Limits) -> CpuPlan:
    """The plan of those of some products whose input and output have limits.

    Raises:
        InputError: none has.
    """
    plan = CpuPlan(view, frozenset(products))
    while lacking := set(plan.tensors) - limits.keys():
        kept = frozenset(i for i in plan.products if lacking.isdisjoint(plan.beside(i)))
        if not kept or kept == plan.products:
            raise InputError(
                f"no range is known of {len(lacking)} tensors, such as {min(lacking)!r}: they were "
                "not calibrated. Calibrate this graph anew."
            )
        plan = CpuPlan(view, kept)
    return plan


class _Writer:
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
        self._view, self._graph, self._plan = view, graph, plan
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: v.type.tensor_type.shape.dim for v in values}
        pools = {i: e for i, e in plan.ends.items() if view.nodes[i].op_type == "MaxPool"}
        self._steps = {n: _step(*limits[n]) for n in plan.tensors}
        for index, end in pools.items():  # it moves numbers, and is fused where both pairs agree
            self._steps[end] = self._steps[view.nodes[index].input[0]]
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
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
        self._nodes.append(node)
        end = self._plan.ends.get(index)
        if end is not None:
            self._write_end(node, end)

    def finish(self) -> None:
        """Put nodes and constants into the graph, without weights that nothing reads now."""
        read = {name for node in self._nodes for name in node.input}
        read |= {value.name for value in (*self._graph.input, *self._graph.output)}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        nodes = [n for n in self._nodes if n.op_type != "Reshape" or n.output[0] in read]
        made = {name for node in nodes for name in node.output}
        types = [value for value in self._graph.value_info if value.name in made]
        for field, items in (
            ("node", nodes),
            ("initializer", [*kept, *self._constants]),
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
        axis = channel_axis(node, len(self._view.constants[weight].dims))
        names = self._integers(node.output[0], weight, axis, self._steps[source][0], bias)
        for place, name in enumerate(names, 1):
            node.input[place] = name

    def _write_end(self, node: onnx.NodeProto, end: str) -> None:
        """Write a Relu that is fused with a node, and the pair whose output has the old name."""
        if node.output[0] != end:
            relu = self._view.producer[end]
            self._written.add(relu)
            node = onnx.NodeProto()
            node.CopyFrom(self._view.nodes[relu])
            self._nodes.append(node)
        node.output[0] = f"{end}.exact"
        self._quantise(node.output[0], end, end)

    def _write_linear(self, node: onnx.NodeProto, linear: Linear) -> None:
        """Write a MatMul, the addition of its bias and a Relu as a Gemm of rows."""
        source, weight = node.input
        bias = None if linear.bias is None else self._array(linear.bias)
        integers = self._integers(linear.out, weight, 1, self._steps[source][0], bias)
        made = f"{linear.out}.rows"
        self._add("Gemm", [self._pair_of_rows(source), *integers], made, node.name)
        self._written |= {index for index in (linear.add, linear.relu) if index is not None}
        if linear.relu is not None:
            self._add("Relu", [made], f"{linear.end}.exact", f"{linear.end}:relu")
            made = self._rows[linear.end] = f"{linear.end}.rows"
            self._quantise(f"{linear.end}.exact", made, linear.end)
        self._reshape(made, linear.end, _sizes(linear.end, self._shapes[linear.end]))

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
            self._reshape(name, f"{name}.as_rows", [-1, width])
            self._rows[name] = f"{name}.rows"
            self._quantise(f"{name}.as_rows", self._rows[name], name)
        return self._rows[name]

    def _quantise(self, source: str, made: str, tensor: str) -> None:
        """Write a pair with a tensor's scale and zero point."""
        scale, zero = self._steps[tensor]
        inputs = [
            self._constant(f"{made}.scale", np.array(scale, np.float32)),
            self._constant(f"{made}.zero", np.array(zero, np.uint8)),
        ]
        self._add("QuantizeLinear", [source, *inputs], f"{made}.uint8", f"{made}:quantise")
        self._add("DequantizeLinear", [f"{made}.uint8", *inputs], made, f"{made}:dequantise")

    def _integers(
        self, product: str, weight: str, axis: int, step: float, bias: Floats | None
    ) -> list[str]:
        """Names of a product's INT8 weight and INT32 bias, behind their DequantizeLinear."""
        wide = self._array(weight)
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
            self._constant(f"{name}.{integers.dtype}", integers),
            self._constant(f"{name}.scale", steps),
            self._constant(f"{name}.zero", np.zeros(steps.shape, integers.dtype)),
        ]
        self._add("DequantizeLinear", inputs, name, f"{name}:dequantise")
        self._nodes[-1].attribute.append(helper.make_attribute("axis", axis))
        return name

    def _reshape(self, source: str, made: str, sizes: list[int]) -> None:
        shape = self._constant(f"{made}.shape", np.array(sizes, np.int64))
        self._add("Reshape", [source, shape], made, f"{made}:reshape")

    def _add(self, op: str, inputs: list[str], made: str, name: str) -> None:
        self._nodes.append(helper.make_node(op, inputs, [made], name))

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
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
