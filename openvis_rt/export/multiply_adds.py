"""Multiply-adds of an ONNX graph, counted from shapes.

Counted is every Conv, ConvTranspose, Gemm, MatMul and Einsum of two operands, with the sizes that
shape inference finds when every dynamic axis has its number. Not counted: norms, softmax,
activations, interpolation, and sampling in deformable attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from openvis_rt.errors import BundleError

__all__ = ["multiply_adds", "multiply_adds_by_node"]


def multiply_adds(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of a graph; see :func:`multiply_adds_by_node`."""
    return sum(multiply_adds_by_node(model, sizes))


def multiply_adds_by_node(model: onnx.ModelProto, sizes: Mapping[str, int]) -> list[int]:
    """Multiply-adds of each node of a graph, in the file's order; the model is changed.

    Args:
        model: its inputs and outputs have numbers or symbols as axes.
        sizes: a number for each symbol.

    Raises:
        BundleError: the shape of a product is not known.
    """
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return [_of_node(node, shapes) for node in graph.node]


def _of_node(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """Elements of the output times the terms of each."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"):
        return 0
    names = (*node.input[:2], node.output[0])
    first, second, out = (shapes.get(name, []) for name in names)
    if not all(first) or not all(second) or not all(out) or not (first and second and out):
        raise BundleError(
            f"the operations of {node.op_type} {node.name!r} cannot be counted: its shapes "
            f"{first} x {second} -> {out} follow from data"
        )
    if node.op_type == "Einsum":
        return _of_einsum(node, first, second)
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])  # [out, in / groups, kh, kw]
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])  # [in, out / groups, kh, kw]
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * first[-2 if turned else -1]


def _of_einsum(node: onnx.NodeProto, first: list[int], second: list[int]) -> int:
    equation: Any = next(a.s for a in node.attribute if a.name == "equation").decode()
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise BundleError(f"the operations of the Einsum {equation!r} cannot be counted")
    sizes = dict(zip(terms[0], first, strict=True)) | dict(zip(terms[1], second, strict=True))
    return math.prod(sizes.values())
