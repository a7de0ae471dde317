"""Nodes and constants of a graph that is being written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["WrittenNodes"]


class WrittenNodes:
    """What was written of a graph so far.

    Attributes:
        nodes: in their order.
        constants: that they read, besides those of the graph that they are written from.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: Sequence[str], made: str, name: str) -> None:
        """Write a node of one output."""
        self.nodes.append(helper.make_node(op, inputs, [made], name))

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        """Write a constant; its name."""
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def reshape(self, source: str, made: str, sizes: Sequence[int]) -> None:
        """Write a Reshape; one of the sizes may be -1."""
        shape = self.constant(f"{made}.shape", np.array(sizes, np.int64))
        self.add("Reshape", [source, shape], made, f"{made}:reshape")

    def transpose(self, source: str, made: str, order: Sequence[int]) -> None:
        """Write a Transpose."""
        self.add("Transpose", [source], made, f"{made}:transpose")
        self.nodes[-1].attribute.append(helper.make_attribute("perm", order))

    def step(
        self, label: str, scale: npt.NDArray[np.generic], zero: npt.NDArray[np.generic]
    ) -> list[str]:
        """Write the scale and zero point of pairs; their names."""
        return [self.constant(f"{label}.scale", scale), self.constant(f"{label}.zero", zero)]

    def dequantise(self, source: str, made: str, pair: str) -> None:
        """Write a DequantizeLinear with the scale and zero point of a pair."""
        inputs = [source, f"{pair}.scale", f"{pair}.zero"]
        self.add("DequantizeLinear", inputs, made, f"{made}:dequantise")
