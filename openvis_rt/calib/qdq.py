"""From an FP32 graph and ranges to a graph with INT8 products: explicit Q/DQ pairs.

    activation x    QuantizeLinear -> DequantizeLinear, one pair for all products that read it
    weight          stored as INT8 with a scale for each output channel -> DequantizeLinear

INT8 is symmetric: x is about q s with q in -127 .. 127 and s = range / 127. Biases stay.
A residual addition behind a convolution reads the pair of its other operand, so that a compiler may
fuse it with the convolution; nothing else is quantised, and no pair stands alone.

Every scale is a number that FP16 holds, and 2^-24 or more, so that the same INT8 numbers serve
graphs of FP32 and of FP16. ``onnxruntime.quantization`` (QDQQuantizer, without bias and output
quantisation) places the same pairs, but takes scales that FP16 rounds, to 0 below 3e-8, and lets
every reader of a quantised activation read the pair, also the residual sums of an encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from openvis_rt.calib.placement import products_of
from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import GraphView

__all__ = [
    "OPSET",
    "activations_of",
    "channel_axis",
    "fp16_scales",
    "quantised",
    "refuse_quantised",
]

OPSET = 19
"""The first whose QuantizeLinear and DequantizeLinear take FP16; 20 renames GridSample's modes."""
_LEVELS = 127
_LEAST = 2.0**-24  # the smallest number above 0 in FP16

Floats = npt.NDArray[np.float32]


def activations_of(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Tensors that are quantised where these products are INT8, each once, in the file's order."""
    products = tuple(products)
    names = [view.nodes[index].input[0] for index in products]
    return tuple(dict.fromkeys([*names, *_shortcuts(view, products)]))


def quantised(
    model: onnx.ModelProto, products: Iterable[int], ranges: Mapping[str, float]
) -> onnx.ModelProto:
    """The graph with some of its products in INT8 and the rest in FP32.

    Args:
        model: FP32, with a type for every tensor; it is not changed.
        products: places of nodes, of :func:`~openvis_rt.calib.placement.products_of`.
        ranges: of every tensor of :func:`activations_of`, above 0.

    Returns:
        a graph of opset 19 with a type for every tensor, its nodes in order.

    Raises:
        InputError: the graph has Q/DQ pairs already, a node is no product, a range is missing, or
            the scale of a range or weight is beyond FP16.
    """
    refuse_quantised(model)
    work = version_converter.convert_version(model, OPSET)
    view = GraphView(work.graph)
    chosen = frozenset(products)
    if strangers := sorted(chosen - set(products_of(view))):
        raise InputError(f"nodes {strangers[:3]} of the graph are no products with a weight")
    names = activations_of(view, sorted(chosen))
    if missing := [name for name in names if not ranges.get(name, 0.0) > 0.0]:
        raise InputError(
            f"no range is known of {len(missing)} tensors, such as {missing[0]!r}: they were not "
            "calibrated. Calibrate this graph anew."
        )
    writer = _Writer(view, work.graph, chosen, {name: ranges[name] for name in names})
    for index in range(len(view.nodes)):
        writer.write(index)
    writer.finish()
    return onnx.shape_inference.infer_shapes(work)


def refuse_quantised(model: onnx.ModelProto) -> None:
    """Refuse a graph that is INT8 already.

    Raises:
        InputError: it has a QuantizeLinear or DequantizeLinear.
    """
    pairs = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    if pairs:
        raise InputError(
            f"the graph has {pairs} QuantizeLinear and DequantizeLinear nodes already; calibrate "
            "the FP32 graph that it was made of"
        )


def fp16_scales(ranges: npt.ArrayLike, name: str) -> Floats:
    """Steps of INT8 for ranges, as float32 numbers that FP16 holds: rounded up, at least 2^-24.

    Args:
        ranges: largest magnitudes, 0 or more, of any shape.
        name: of the tensor, for the message.

    Raises:
        InputError: a step is beyond 65504, where FP16 ends.
    """
    exact = np.maximum(np.asarray(ranges, np.float64) / _LEVELS, _LEAST)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
        above = np.nextafter(half, np.float16(np.inf))
        half = np.where(half.astype(np.float64) < exact, above, half)
    if not np.isfinite(half).all():
        raise InputError(
            f"{name!r} reaches {float(np.max(ranges)):g}, and INT8 with FP16 scales ends at "
            f"{_LEVELS * 65504}: its products cannot be quantised. Leave the graph out."
        )
    return half.astype(np.float32)


def _shortcuts(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Of an addition of two INT8 convolutions, the output that TensorRT does not fuse with it.

    It is the shortcut: the one whose convolution reads what another product reads as well.
    """
    made = {view.nodes[index].output[0]: index for index in products}
    read = [view.nodes[index].input[0] for index in made.values()]
    found = []
    for node in view.nodes:
        if node.op_type == "Add" and all(name in made for name in node.input):
            shared = [n for n in node.input if read.count(view.nodes[made[n]].input[0]) > 1]
            found.append(shared[-1] if shared else node.input[-1])
    return tuple(dict.fromkeys(found))


class _Writer:
    """Writes the nodes of a graph again, with the pairs that they read before them.

    Args:
        view: of the graph as it is.
        graph: is changed by :meth:`finish`.
        chosen: products that become INT8.
        ranges: of all activations that are quantised.
    """

    def __init__(
        self,
        view: GraphView,
        graph: onnx.GraphProto,
        chosen: frozenset[int],
        ranges: Mapping[str, float],
    ) -> None:
        self._view, self._graph, self._chosen, self._ranges = view, graph, chosen, ranges
        self._convolved = {
            view.nodes[i].output[0] for i in chosen if view.nodes[i].op_type == "Conv"
        }
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: v.type.tensor_type.shape for v in values}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[tuple[str, int | None], str] = {}
        self._constants: list[onnx.TensorProto] = []
        self._values: list[onnx.ValueInfoProto] = []

    def write(self, index: int) -> None:
        """Write a node, which reads pairs where it is a chosen product or a residual addition."""
        node = onnx.NodeProto()
        node.CopyFrom(self._view.nodes[index])
        if index in self._chosen:
            axis = channel_axis(node, len(self._view.constants[node.input[1]].dims))
            node.input[0] = self._activation(node.input[0])
            node.input[1] = self._weight(node.input[1], axis)
        elif node.op_type == "Add" and not self._convolved.isdisjoint(node.input):
            # the shortcut is read as INT8; the convolution that the sum is fused with is not
            for place, name in enumerate(node.input):
                if name in self._ranges:
                    node.input[place] = self._activation(name)
        self._nodes.append(node)

    def finish(self) -> None:
        """Put nodes, constants and types into the graph, without weights that nothing reads now."""
        read = {name for node in self._nodes for name in node.input}
        read |= {value.name for value in self._graph.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        for field, items in (("node", self._nodes), ("initializer", [*kept, *self._constants])):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(items)
        self._graph.value_info.extend(self._values)

    def _activation(self, name: str) -> str:
        """The name of an activation behind its pair."""
        if (name, None) not in self._made:
            scale = fp16_scales(self._ranges[name], name)
            inputs = self._scale(name, scale)
            shape = self._shapes.get(name)
            quantise = helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}.int8"])
            quantise.name = f"{name}:quantise"
            self._nodes.append(quantise)
            self._value(f"{name}.int8", TensorProto.INT8, shape)
            self._made[name, None] = self._dequantised(name, f"{name}.int8", inputs, None, shape)
        return self._made[name, None]

    def _weight(self, name: str, axis: int) -> str:
        """The name of a weight that is stored as INT8, behind its DequantizeLinear."""
        if (name, axis) not in self._made:
            wide = numpy_helper.to_array(self._view.constants[name]).astype(np.float32)
            others = tuple(a for a in range(wide.ndim) if a != axis)
            scales = fp16_scales(np.abs(wide).max(others), name)
            per_channel = scales.reshape([-1 if a == axis else 1 for a in range(wide.ndim)])
            stored = np.clip(np.rint(wide / per_channel), -_LEVELS, _LEVELS).astype(np.int8)
            is_first = not any(made == name for made, _ in self._made)
            label = name if is_first else f"{name}.{axis}"
            self._constants.append(numpy_helper.from_array(stored, f"{label}.int8"))
            inputs = self._scale(label, scales)
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, wide.shape)
            shape = value.type.tensor_type.shape
            self._made[name, axis] = self._dequantised(label, f"{label}.int8", inputs, axis, shape)
        return self._made[name, axis]

    def _scale(self, label: str, scale: Floats) -> list[str]:
        names = [f"{label}.scale", f"{label}.zero"]
        self._constants.append(numpy_helper.from_array(scale, names[0]))
        self._constants.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), names[1]))
        return names

    def _dequantised(
        self,
        label: str,
        source: str,
        inputs: list[str],
        axis: int | None,
        shape: onnx.TensorShapeProto | None,
    ) -> str:
        name = f"{label}.dequantised"
        node = helper.make_node(
            "DequantizeLinear", [source, *inputs], [name], f"{label}:dequantise"
        )
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(node)
        self._value(name, TensorProto.FLOAT, shape)
        return name

    def _value(self, name: str, kind: int, shape: onnx.TensorShapeProto | None) -> None:
        value = helper.make_tensor_value_info(name, kind, None)
        if shape is not None:
            value.type.tensor_type.shape.CopyFrom(shape)
        self._values.append(value)


def channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a product's weight that its output channels are on."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return rank - 1
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1
