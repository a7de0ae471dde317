"""Masks as bits: eight pixels of a row become a byte on the device, so that an eighth is copied.

    masks bool [n, T, Hs, Ws] --zeros at the right, up to whole bytes--> [n, T, Hs, Wb, 8]
      --times 128, 64, ..., 1, and the sum--> uint8 [n, T, Hs, Wb], as ``np.packbits`` does it

Sums of these numbers are exact in FP32. TensorRT has neither shifts nor bitwise operators, and its
parser lists no bool for Pad; its headers from 10.3 to 11.1 allow no cast from bool to uint8. So
everything goes through FP32, which the compiler fuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["gives_masks", "pack_masks"]

_MASKS = "masks"
_CONSTANTS: dict[str, npt.NDArray[Any]] = {
    "seven": np.array([7], np.int64),
    "eight": np.array([8], np.int64),
    "no_pads": np.zeros(7, np.int64),
    "places": (2.0 ** np.arange(7, -1, -1)).astype(np.float32),
    "last": np.array([-1], np.int64),
}


def gives_masks(model: onnx.ModelProto) -> bool:
    """Whether it is the graph `masks`, as it is exported."""
    return any(
        value.name == _MASKS and value.type.tensor_type.elem_type == TensorProto.BOOL
        for value in model.graph.output
    )


def pack_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the graph `masks` that gives packed rows; another graph as it is.

    Args:
        model: of opset 18 or above.
    """
    if not gives_masks(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        node.output[:] = [_inner("bits") if name == _MASKS else name for name in node.output]
    result.graph.node.extend(_packing())
    result.graph.initializer.extend(
        numpy_helper.from_array(value, _inner(name)) for name, value in _CONSTANTS.items()
    )
    [masks] = (value for value in result.graph.output if value.name == _MASKS)
    masks.type.tensor_type.elem_type = TensorProto.UINT8
    width = masks.type.tensor_type.shape.dim[3]
    if width.HasField("dim_value"):
        width.dim_value = -(-width.dim_value // 8)
    else:
        width.dim_param = "Wb"
    return result


def _packing() -> list[onnx.NodeProto]:
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Shape", ["bits"], "rows", {"start": 0, "end": 3}),
        ("Shape", ["bits"], "width", {"start": 3, "end": 4}),
        ("Add", ["width", "seven"], "rounded_up", {}),
        ("Div", ["rounded_up", "eight"], "row_bytes", {}),
        ("Mul", ["row_bytes", "eight"], "columns", {}),
        ("Sub", ["columns", "width"], "missing", {}),
        ("Concat", ["no_pads", "missing"], "pads", {"axis": 0}),
        ("Cast", ["bits"], "ones", {"to": TensorProto.FLOAT}),
        ("Pad", ["ones", "pads"], "whole_bytes", {}),
        ("Concat", ["rows", "row_bytes", "eight"], "shape", {"axis": 0}),
        ("Reshape", ["whole_bytes", "shape"], "eights", {}),
        ("Mul", ["eights", "places"], "terms", {}),
        ("ReduceSum", ["terms", "last"], "sums", {"keepdims": 0}),
    ]
    nodes = [
        helper.make_node(kind, list(map(_inner, inputs)), [_inner(output)], **attributes)
        for kind, inputs, output, attributes in steps
    ]
    return [*nodes, helper.make_node("Cast", [_inner("sums")], [_MASKS], to=TensorProto.UINT8)]


def _inner(name: str) -> str:
    return f"packing/{name}"
