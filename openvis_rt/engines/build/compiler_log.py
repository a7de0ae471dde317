"""What a compiler made of a graph: its kernels, counted from what it says while it compiles.

TensorRT-RTX compiles on a machine without a GPU and, with a verbose logger and detailed profiling
verbosity, says at the end which kernels the plan launches, one a line,

    Name: ..., LayerType: gemm, Inputs: [ { Name: ..., Dimensions: [1,100,256], Strides: [...],
    StrideOrder: [...], Datatype: Half, Format: ... }, ...], Constants: [...], Outputs: [...],
    TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: ...]

and how much memory activations and weights take. Nothing of it is documented, so the figures serve
to compare two graphs that one version of the library compiles, and to know where to look; the proof
of a precision is the typed network (:mod:`openvis_rt.engines.build.layers`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["CompilerLog", "CompilerReport", "Kernel", "Operand", "kernels_of", "report_of"]

_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>[^,]*), StreamId"
)
_OPERAND = re.compile(
    r"Name: (?P<name>[^,]*), Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<type>\w+)"
)
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
_SYNCHRONISATION = ("signal", "wait")
_PRODUCTS = ("gemm", "correlation")
_BYTES = {
    **dict.fromkeys(("Float", "Int32"), 4),
    **dict.fromkeys(("Half", "BFloat16"), 2),
    **dict.fromkeys(("Int8", "UInt8", "Bool", "FP8"), 1),
    "Int64": 8,
}
_MOVES = {"Resh", "Tran", "Move", "Cast", "Conc", "Slic"}


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes.

    Attributes:
        name: the compiler's.
        shape: its sizes; a dynamic one is -1.
        dtype: as the compiler names it, such as ``Half``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Of a dynamic size 1 is counted."""
        return math.prod(max(1, size) for size in self.shape)

    @property
    def bytes(self) -> int:
        """Its size, or a lower bound of it."""
        return self.elements * _BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class Kernel:
    """One launch of the compiled plan.

    Attributes:
        name: the compiler's; it begins with the ONNX node's name where there is one.
        kind: its layer type, such as ``gemm``, ``correlation`` (a convolution) or ``kgen``.
        tactic: says what is fused in it, such as ``__myl_CastMulAdd_0x3c..``.
        inputs: what it reads and another kernel, or the caller, has written.
        constants: what it reads of the weights.
        outputs: what it writes.
    """

    name: str
    kind: str
    tactic: str
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    outputs: tuple[Operand, ...]

    @property
    def bytes(self) -> int:
        """What it moves if it reads every tensor once and nothing is in a cache."""
        sizes: dict[str, int] = {}  # a tensor that is read in two places is named twice
        for operand in (*self.inputs, *self.constants, *self.outputs):
            sizes[operand.name] = max(operand.bytes, sizes.get(operand.name, 0))
        return sum(sizes.values())

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product or a convolution, alone or with what is fused to it."""
        if self.kind == "runtime_fusion":
            return bool(self._weights)
        return self.kind in _PRODUCTS

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is two products with the softmax between them."""
        return "mha" in self.tactic.lower()

    @property
    def is_copy(self) -> bool:
        """Whether it does nothing but move numbers: transposed, joined, or in another type."""
        words = re.findall("[A-Z][a-z]*", self.tactic.removeprefix("__myl_").partition("_0x")[0])
        return self.tactic.startswith("__myl_") and bool(words) and _MOVES.issuperset(words)

    @property
    def flop(self) -> int:
        """Of a product: two for each multiplication with an addition; 0 of anything else."""
        if not (self.is_product and self.outputs and self.inputs):
            return 0
        out, first = self.outputs[0], self.inputs[0]
        if not self._weights:
            return 2 * out.elements * max(1, first.shape[-1])
        if self.kind == "correlation":
            return 2 * out.elements * math.prod(self._weights[0].shape[1:])
        # [M, K] [K, N] in whatever order: K^2 = MK KN / MN
        weights = max(c.elements for c in self._weights)
        return 2 * out.elements * math.isqrt(first.elements * weights // out.elements)

    @property
    def _weights(self) -> tuple[Operand, ...]:
        """Constants of two or more long axes."""
        return tuple(c for c in self.constants if sum(size > 1 for size in c.shape) > 1)


@dataclass(frozen=True)
class CompilerReport:
    """A compiled graph in numbers; less is better in each, but for fused attentions.

    Attributes:
        kernels: launches of one run.
        fp32_products: matrix products and convolutions whose first operand is FP32; TF32 is off.
        fp32_gflop: what these compute, 10^9 operations.
        fused_attentions: attentions that are one kernel.
        int8_kernels: those that read INT8.
        copies: kernels that only move numbers.
        traffic_bytes: over all kernels, each operand once, as if nothing stayed in a cache.
        activation_bytes: device memory beside the weights.
        weight_bytes: device memory of the weights, with constants that were folded.
    """

    kernels: int
    fp32_products: int
    fp32_gflop: float
    fused_attentions: int
    int8_kernels: int
    copies: int
    traffic_bytes: int
    activation_bytes: int
    weight_bytes: int


@dataclass
class CompilerLog:
    """Keeps of everything that a compiler says what :func:`report_of` needs.

    Where one build compiles for several targets, the first target's kernels are kept.
    """

    layers: str = ""
    memory: dict[str, int] = field(default_factory=dict)

    def hear(self, message: str) -> None:
        """One message of the library, of whatever severity."""
        if message.startswith("Layers:"):
            self.layers = self.layers or message
        elif found := _MEMORY.search(message):
            self.memory.setdefault(found[1], int(found[2]))


def report_of(log: CompilerLog) -> CompilerReport | None:
    """The numbers; None where the library told of no kernels, as TensorRT for a GPU does."""
    kernels = list(kernels_of(log.layers.splitlines()))
    if not kernels:
        return None
    wide = [k for k in kernels if k.is_product and k.inputs and k.inputs[0].dtype == "Float"]
    return CompilerReport(
        kernels=len(kernels),
        fp32_products=len(wide),
        fp32_gflop=round(sum(k.flop for k in wide) / 1e9, 3),
        fused_attentions=sum(k.is_fused_attention for k in kernels),
        int8_kernels=sum(any(o.dtype == "Int8" for o in k.inputs) for k in kernels),
        copies=sum(k.is_copy for k in kernels),
        traffic_bytes=sum(k.bytes for k in kernels),
        activation_bytes=log.memory.get("Activation", 0),
        weight_bytes=log.memory.get("Weights", 0),
    )


def kernels_of(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels among the lines, in the order of launch; synchronisation is left out."""
    for line in lines:
        found = _KERNEL.match(line)
        if found and found["kind"] not in _SYNCHRONISATION:
            yield Kernel(
                found["name"],
                found["kind"],
                found["tactic"],
                _operands(found["inputs"]),
                _operands(found["constants"] or ""),
                _operands(found["outputs"]),
            )


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(_operand(found) for found in _OPERAND.finditer(text))


def _operand(found: re.Match[str]) -> Operand:
    sizes: Sequence[str] = found["dims"].split(",") if found["dims"] else ()
    return Operand(found["name"], tuple(map(int, sizes)), found["type"])
