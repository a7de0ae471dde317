"""An emulation of an FP16 graph, which shows FP16's rounding on a machine without FP16 arithmetic.

ONNX Runtime has almost no FP16 kernels for CPUs. It computes such a graph in FP32 and drops the
rounding between one FP16 operator and the next: 2048 + 1 + 1 + 1 is 2048 in FP16, and it answers
2051 or 2052. Casts that stand in the file it keeps. So the emulation says everything in FP32 and
Casts:

    FP16:       y = op(a, b)
    emulation:  y = float(half(op(a, b)))        a, b: FP32 numbers that FP16 holds exactly

for each operator that computes; those that move numbers need no rounding. Inputs and outputs have
the types of the FP16 file.

What it does not show is what happens inside one operator: a product of matrices is summed in FP32
here, as TensorRT's tensor-core kernels mostly do for FP16 (a kernel that accumulates in FP16 would
be worse). Where a compiler fuses operators and keeps the value between them in FP32 (the bias after
a product, ReLU), the emulation rounds once more than the engine does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.export.fp16.keeps import MOVES

__all__ = ["fp16_emulation"]


def fp16_emulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """The emulation of a strongly typed FP16 graph; ``model`` is not changed.

    Args:
        model: with a type for every tensor, as
            :func:`openvis_rt.export.fp16.convert.fp16_from_fp32` makes it.

    Returns:
        a graph that computes in FP32, of the same inputs and outputs.
    """
    halves = _half_tensors(model.graph)
    ports = [v.name for v in (*model.graph.input, *model.graph.output) if v.name in halves]
    inner = {name: f"{name}.wide" for name in ports}  # their FP32 versions
    nodes: list[onnx.NodeProto] = []
    for value in model.graph.input:
        if value.name in inner:
            nodes.append(_cast(value.name, inner[value.name], TensorProto.FLOAT))
    for node in model.graph.node:
        nodes += _emulated_nodes(node, halves, inner)
    for value in model.graph.output:
        if value.name in inner:
            nodes.append(_cast(inner[value.name], value.name, TensorProto.FLOAT16))
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output)
    graph.initializer.extend(_widened(t) for t in model.graph.initializer)
    return helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )


def _emulated_nodes(
    node: onnx.NodeProto, halves: set[str], inner: dict[str, str]
) -> list[onnx.NodeProto]:
    """The node in FP32, and the rounding of what it computes."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[:] = [inner.get(name, name) for name in node.input]
    new.output[:] = [inner.get(name, name) for name in node.output]
    if node.op_type == "Cast" and node.output[0] in halves:
        del new.attribute[:]
        new.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    if node.op_type in MOVES:
        return [new]
    rounding: list[onnx.NodeProto] = []
    for place, name in enumerate(new.output):
        if node.output[place] in halves:
            new.output[place] = f"{name}.exact"
            rounding.append(_cast(f"{name}.exact", f"{name}.half", TensorProto.FLOAT16))
            rounding.append(_cast(f"{name}.half", name, TensorProto.FLOAT))
    return [new, *rounding]


def _half_tensors(graph: onnx.GraphProto) -> set[str]:
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    kinds |= {t.name: t.data_type for t in graph.initializer}
    untyped = {name for node in graph.node for name in node.output if name} - kinds.keys()
    assert not untyped, f"no type is known of {sorted(untyped)[:3]}"
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}:rounded", to=kind)


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
