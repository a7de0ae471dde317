"""Which nodes become integer kernels of ONNX Runtime on a CPU, and which tensors have pairs.

ONNX Runtime fuses what stands between pairs (QuantizeLinear, then DequantizeLinear), and takes an
integer kernel only then. So pairs stand at both ends of a product, other than in :mod:`.qdq`:

    convolution        pair, INT8 weight, INT32 bias -> Conv -> Relu -> pair   QLinearConv
    linear layer       rows of a pair, the same      -> Gemm, float            QGemm
      with a Relu      the same as a 1x1 convolution -> Conv -> Relu -> pair   QLinearConv
    residual addition  two pairs                     -> Add -> Relu -> pair    QLinearAdd
    pooling            pair                          -> AveragePool -> pair    QLinearAveragePool

Who reads the output of an integer kernel reads its pair; the float is nowhere. A float that a
product reads is read by others as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import GraphView

__all__ = ["CpuPlan", "Limits", "Linear", "cpu_activations_of", "cpu_plan_within"]

Limits = Mapping[str, tuple[float, float]]
"""By tensor its lowest and highest number that INT8 covers."""


@dataclass(frozen=True)
class Linear:
    """A MatMul of rows, and what is written with it: a Gemm, or a Conv where a Relu follows.

    Attributes:
        add, bias: the place of the addition that follows, and the constant that it adds; None
            where there is no such addition.
        out: what the product makes, with its bias.
        relu: the place of the Relu behind it, where a product reads that in turn; else None.
        end: what the last of these nodes makes.
    """

    add: int | None
    bias: str | None
    out: str
    relu: int | None
    end: str


class CpuPlan:
    """Which nodes become integer kernels, and which tensors have pairs.

    Attributes:
        products: places of nodes.
        linears: of them MatMuls by a matrix, which are written as Gemm or as Conv.
        ends: by the place of an integer kernel's node the tensor that it makes between pairs, which
            is its output, or the output of the Relu that alone reads it. A product of rows has none
            where its output is float.
        tensors: that have a pair, each once.
    """

    def __init__(self, view: GraphView, products: frozenset[int]) -> None:
        self._view, self.products = view, products
        self.linears: dict[int, Linear] = {}
        self.ends: dict[int, str] = {}
        self._read = list(dict.fromkeys(view.nodes[i].input[0] for i in sorted(products)))
        for index, node in enumerate(view.nodes):
            if index in products and node.op_type == "MatMul":
                linear = self._linear(node)
                if linear is not None:
                    self.linears[index] = linear
                if linear is not None and linear.relu is not None:
                    self.ends[index] = linear.end
            elif index in products or self._adds_or_pools(node):
                end, relu = self._end(node.output[0])
                if node.op_type != "Gemm" or relu is not None:
                    self.ends[index] = end
        self.tensors = tuple(dict.fromkeys([*self._read, *self.ends.values()]))

    def beside(self, index: int) -> set[str]:
        """Of the tensors that have a pair those that a product reads and makes."""
        return {self._view.nodes[index].input[0], self.ends.get(index, "")}

    def _adds_or_pools(self, node: onnx.NodeProto) -> bool:
        """An addition of two integer kernels' outputs, or a pooling of one for a product."""
        made = set(self.ends.values())
        if node.op_type == "Add":
            return made.issuperset(node.input)
        pools = node.op_type in ("AveragePool", "MaxPool")
        return pools and node.input[0] in made and node.output[0] in self._read

    def _linear(self, node: onnx.NodeProto) -> Linear | None:
        """A MatMul by a matrix, with its bias if it has one."""
        view, out, bias = self._view, node.output[0], None
        if len(view.constants[node.input[1]].dims) != 2:
            return None
        add = self._only_reader(out)
        if add is not None and view.nodes[add].op_type == "Add":
            constants = (name for name in view.nodes[add].input if name in view.constants)
            bias = next((name for name in constants if len(view.constants[name].dims) == 1), None)
        if add is None or bias is None:
            add = None
        else:
            out = view.nodes[add].output[0]
        end, relu = self._end(out)
        read = end in self._read
        return Linear(add, bias, out, relu if read else None, end if read else out)

    def _end(self, name: str) -> tuple[str, int | None]:
        """A tensor and None, or the output of the Relu that alone reads it, and its place."""
        reader = self._only_reader(name)
        if reader is None or self._view.nodes[reader].op_type != "Relu":
            return name, None
        return self._view.nodes[reader].output[0], reader

    def _only_reader(self, name: str) -> int | None:
        readers = self._view.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._view.outputs else None


def cpu_activations_of(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    """Tensors that have a pair where these products are INT8, each once, in the file's order."""
    return CpuPlan(view, frozenset(products)).tensors


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
