"""From an FP32 graph and ranges to a graph with INT8 products: explicit Q/DQ pairs.

Activations get a QuantizeLinear and a DequantizeLinear each, shared by all that read them; weights
are stored as INT8 with a scale for each output channel, behind a DequantizeLinear. Biases stay as
they are, and nothing is quantised that no INT8 product or fused residual addition reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import version_converter

from openvis_rt.calib.placement import products_of
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["activations_of", "quantised", "residuals_of"]

_OPSET = 19  # the first whose Q and DQ take FP16; 20 renames GridSample's modes
_LEVELS = 127


def activations_of(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Tensors that are quantised where these products are INT8, each once, in the file's order."""
    products = tuple(products)
    names = [view.nodes[index].input[0] for index in products]
    return tuple(dict.fromkeys([*names, *residuals_of(view, products)]))


def residuals_of(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Of an addition of two INT8 convolutions, the one that TensorRT does not fuse with it.

    It is the shortcut: the one that reads what another product reads as well.
    """
    made = {view.nodes[index].output[0]: index for index in products}
    read = [view.nodes[index].input[0] for index in made.values()]
    found = []
    for node in view.nodes:
        if node.op_type == "Add" and all(name in made for name in node.input):
            shared = [n for n in node.input if read.count(view.nodes[made[n]].input[0]) > 1]
            found.append(shared[-1] if shared else node.input[-1])
    return tuple(dict.fromkeys(found))


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
        InputError: the graph has Q/DQ pairs already, a node is no product, or a range is missing.
        DependencyError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    except ImportError as exc:
        raise DependencyError("onnxruntime", "calib") from exc
    refuse_quantised(model)
    work = version_converter.convert_version(model, _OPSET)
    view = GraphView(work.graph)
    chosen = tuple(products)
    if strangers := set(chosen) - set(products_of(view)):
        raise InputError(f"nodes {sorted(strangers)[:3]} of the graph are no products with a weight")
    names = activations_of(view, chosen)
    if missing := [name for name in names if not ranges.get(name, 0.0) > 0.0]:
        raise InputError(f"no range is known of {missing[0]!r} and {len(missing) - 1} other tensors")
    limits = {name: np.float32(ranges[name]) for name in names}
    data = {name: TensorData(lowest=-limit, highest=limit) for name, limit in limits.items()}
    writer = QDQQuantizer(
        work,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[view.nodes[index].name for index in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1, "Gemm": 1},
        },
    )
    for name in residuals_of(view, chosen):
        writer.quantize_activation_tensor(name)
    writer.quantize_model()
    writer.model.topological_sort()
    done: onnx.ModelProto = writer.model.model
    return onnx.shape_inference.infer_shapes(done)


def refuse_quantised(model: onnx.ModelProto) -> None:
    """Refuse a graph that is INT8 already.

    Raises:
        InputError: it has a QuantizeLinear or DequantizeLinear.
    """
    pairs = sum(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)
    if pairs:
        raise InputError(
            f"the graph has {pairs} QuantizeLinear and DequantizeLinear nodes already; calibrate the "
            "FP32 graph that it was made of"
        )
