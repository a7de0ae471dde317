"""Floating-point operations of a bundle's graphs, counted in the ONNX files.

Counted is every Conv, ConvTranspose, Gemm, MatMul and Einsum of two operands, at two operations a
multiply-add, with the sizes that shape inference finds when every dynamic axis has its number. Not
counted: norms, softmax, activations, interpolation, and sampling in deformable attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BundleError
from openvis_rt.systems.graphs import masks_per_run

__all__ = ["flops_of_bundle", "multiply_adds"]

_NETWORKS = ("propose", "embed", "classify")


def flops_of_bundle(
    bundle: Bundle, precision: str, classes: int, window_length: int | None = None
) -> dict[str, int]:
    """Operations of one window, by graph: `propose`, `embed` and `classify`.

    Args:
        bundle, precision: whose graphs.
        classes: rows of the text classifier, K.
        window_length: frames of the window, T; None for the bundle's.

    Raises:
        BundleError: a shape follows from data, so that a product cannot be counted.
    """
    length = window_length or bundle.manifest.window_length
    sizes = {"T": length, "K": classes, "n": masks_per_run(length)}
    names = [name for name in bundle.graphs if name in _NETWORKS]
    return {
        name: 2 * multiply_adds(onnx.load(bundle.graph_path(name, precision)), sizes)
        for name in names
    }


def multiply_adds(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Multiply-adds of a graph; the model is changed.

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
    return sum(_of_node(node, shapes) for node in graph.node)


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
