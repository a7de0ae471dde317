"""An FP32 graph to a strongly typed FP16 one: every operator's floats have one type.

Each node computes in one of two types: FP32 if :data:`~openvis_rt.export.fp16.keeps.KEEPS` finds
it, else FP16. A tensor has the type of the node that makes it, and one Cast, shared by everyone, if
somebody needs it in the other. Operators that only move numbers have no opinion: they carry FP32 if
they get FP32 and somebody behind them wants it, so no value is rounded on its way between two kept
nodes; but where an entry says so, the result of a kept node is rounded. Constants are stored in the
type in which they are used, in both if both are.

Why not ``onnxruntime.transformers.float16``: tried with onnxruntime 1.31 and the same list, it
 - rounds every kept node's result to FP16, also between two kept nodes (51 such places in the
   `propose` of a two-layer model), so the sampling coordinates and mask logits that it was told to
   keep are rounded after each step all the same;
 - stores a constant that kept and other nodes share as FP16 for both;
 - moves weights beyond 65504 to 65504, and those below 6e-8 up to 6e-8, without a word;
 - leaves its Casts at the end of the node list, an order that ONNX's checker refuses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openvis_rt.errors import InputError
from openvis_rt.export.fp16.keeps import KEEPS, MOVES, GraphView, Keep
from openvis_rt.systems.graphs import HALF_TENSORS, GraphSpec, TensorSpec

__all__ = ["Fp16Graph", "fp16_from_fp32", "fp16_spec"]

_SHORT: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
_FP32_INPUTS = {"Resize": (2,)}
"""Inputs that ONNX defines as FP32 whatever the operator's type: Resize's scales."""


@dataclass(frozen=True)
class Fp16Graph:
    """What :func:`fp16_from_fp32` makes.

    Attributes:
        model: the graph.
        spec: its tensors with the types that they have now.
        kept: for each entry of the list, how many nodes compute in FP32 because of it.
    """

    model: onnx.ModelProto
    spec: GraphSpec
    kept: dict[str, int]


def fp16_spec(spec: GraphSpec) -> GraphSpec:
    """The same graph with the types that its inputs and outputs have in FP16."""

    def halved(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, dtype="float16") if tensor.name in HALF_TENSORS else tensor

    return replace(
        spec, inputs=tuple(map(halved, spec.inputs)), outputs=tuple(map(halved, spec.outputs))
    )


def fp16_from_fp32(
    model: onnx.ModelProto, spec: GraphSpec, keeps: Sequence[Keep] = KEEPS
) -> Fp16Graph:
    """Convert a graph to FP16.

    Args:
        model: as :func:`openvis_rt.export.onnx_export.onnx_from_module` returns it, with a type for
            every tensor; it is not changed.
        spec: its inputs and outputs.
        keeps: what stays FP32.

    Raises:
        InputError: a weight that FP16 cannot hold.
    """
    half = fp16_spec(spec)
    view = GraphView(model.graph)
    untyped = {name for node in view.nodes for name in node.output if name} - view.types.keys()
    assert not untyped, f"no type is known of {sorted(untyped)[:3]}"
    found = {keep.name: keep.find(view) for keep in keeps}
    kept: set[int] = set().union(*found.values())
    rounded: set[int] = set().union(*(found[keep.name] for keep in keeps if keep.rounded))
    writer = _Writer(view, half, _node_types(view, kept, rounded, half), rounded)
    result = onnx.ModelProto()
    result.ir_version, result.producer_name = model.ir_version, model.producer_name
    result.opset_import.extend(model.opset_import)
    result.graph.CopyFrom(writer.graph(model.graph))
    return Fp16Graph(result, half, {name: len(nodes) for name, nodes in found.items() if nodes})


def _node_types(view: GraphView, kept: set[int], rounded: set[int], spec: GraphSpec) -> list[int]:
    """The type in which each node computes: FLOAT or FLOAT16; of no meaning where it has none."""
    wide = _wanted_wide(view, kept, spec)
    native: dict[str, int] = {t.name: _ONNX_TYPES[t.dtype] for t in spec.inputs}
    types: list[int] = []
    for index, node in enumerate(view.nodes):
        inputs = {native.get(name) for name in node.input if view.is_float(name)}
        wanted = not wide.isdisjoint(node.output)
        if index in kept:
            is_wide = True
        elif node.op_type == "Cast" and inputs:  # of a float to something else: as it comes
            is_wide = TensorProto.FLOAT in inputs
        elif node.op_type in MOVES or node.op_type == "Cast":
            is_wide = wanted and (TensorProto.FLOAT in inputs or inputs <= {None})
        else:
            is_wide = False
        types.append(TensorProto.FLOAT if is_wide else TensorProto.FLOAT16)
        made = TensorProto.FLOAT16 if index in rounded else types[-1]
        native.update((name, made) for name in node.output if view.is_float(name))
    return types


def _wanted_wide(view: GraphView, kept: set[int], spec: GraphSpec) -> set[str]:
    """Tensors that a kept node or an FP32 output uses, some moves later or at once."""
    wide = {t.name for t in spec.outputs if t.dtype == "float32"}
    for index in reversed(range(len(view.nodes))):
        node = view.nodes[index]
        if index in kept or (node.op_type in MOVES and not wide.isdisjoint(node.output)):
            wide.update(filter(view.is_float, node.input))
    return wide


_ONNX_TYPES: dict[str, int] = {
    name: helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in ("float32", "float16", "uint8", "int64", "bool")
}


class _Writer:
    """Writes the nodes again, each with inputs of its own type."""

    def __init__(
        self, view: GraphView, spec: GraphSpec, types: list[int], rounded: set[int]
    ) -> None:
        self._view, self._types, self._rounded = view, types, rounded
        # the type whose version of a tensor has the tensor's own name
        self._named: dict[str, int] = {
            t.name: _ONNX_TYPES[t.dtype] for t in (*spec.inputs, *spec.outputs)
        }
        self._made: dict[str, set[int]] = defaultdict(set)
        for tensor in spec.inputs:
            self._made[tensor.name].add(_ONNX_TYPES[tensor.dtype])
        self._nodes: list[onnx.NodeProto] = []
        self._sums: set[str] = set()  # tensors that are rounded from a sum in FP32
        self._use = self._constant_types()

    def graph(self, old: onnx.GraphProto) -> onnx.GraphProto:
        """The whole graph."""
        for index, (node, kind) in enumerate(zip(self._view.nodes, self._types, strict=True)):
            self._write(node, kind, rounded=index in self._rounded)
        for value in old.output:  # an output that is made in the other type
            if self._view.is_float(value.name):
                self._version(value.name, self._named[value.name])
        graph = helper.make_graph(
            self._nodes, old.name, self._ports(old.input), self._ports(old.output)
        )
        graph.initializer.extend(self._initializers(old))
        graph.value_info.extend(self._value_infos(old))
        return graph

    def _constant_types(self) -> dict[str, set[int]]:
        use: dict[str, set[int]] = defaultdict(set)
        for node, kind in zip(self._view.nodes, self._types, strict=True):
            for place, name in enumerate(node.input):
                if name in self._view.constants and self._view.is_float(name):
                    use[name].add(_input_type(node, place, kind))
        return use

    def _name(self, tensor: str, kind: int) -> str:
        """Of a float tensor's version of this type."""
        if tensor in self._use:
            own = TensorProto.FLOAT if TensorProto.FLOAT in self._use[tensor] else kind
        else:
            own = self._named.setdefault(tensor, kind)
        return tensor if kind == own else f"{tensor}.{_SHORT[kind]}"

    def _write(self, node: onnx.NodeProto, kind: int, *, rounded: bool) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name and self._view.is_float(name):
                new.input[place] = self._version(name, _input_type(node, place, kind))
        casts = []
        for place, name in enumerate(node.output):
            if not (name and self._view.is_float(name)):
                continue
            made = TensorProto.FLOAT16 if rounded else kind
            new.output[place] = self._name(name, made)
            self._made[name].add(made)
            if rounded:
                casts.append(_cast(f"{name}.sum", new.output[place], made))
                self._sums.add(name)
                new.output[place] = f"{name}.sum"
        if node.op_type == "Cast" and self._view.is_float(node.output[0]):
            _set_target(new, kind)
        self._nodes += [new, *casts]

    def _version(self, tensor: str, kind: int) -> str:
        """The name of a tensor in this type, cast from its other one if it has not been yet."""
        name = self._name(tensor, kind)
        if tensor not in self._use and kind not in self._made[tensor]:
            [other] = self._made[tensor]
            self._nodes.append(_cast(self._name(tensor, other), name, kind))
            self._made[tensor].add(kind)
        return name

    def _ports(self, values: Sequence[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
        return [_retyped(v, v.name, self._named[v.name]) for v in values]

    def _initializers(self, old: onnx.GraphProto) -> list[onnx.TensorProto]:
        out = []
        for tensor in old.initializer:
            if tensor.name not in self._use:
                out.append(tensor)
                continue
            for kind in sorted(self._use[tensor.name]):
                name = self._name(tensor.name, kind)
                out.append(tensor if kind == TensorProto.FLOAT else _halved(tensor, name))
        return out

    def _value_infos(self, old: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
        ports = {v.name for v in (*old.input, *old.output)}
        out = []
        for value in (*old.value_info, *old.input, *old.output):
            if not self._view.is_float(value.name):
                out += [value] if value.name not in ports else []
                continue
            kinds = self._made.get(value.name, set())  # none of a constant
            named = {self._name(value.name, kind): kind for kind in sorted(kinds)}
            if value.name in self._sums:
                named[f"{value.name}.sum"] = TensorProto.FLOAT
            out += [_retyped(value, n, kind) for n, kind in named.items() if n not in ports]
        return out


def _input_type(node: onnx.NodeProto, place: int, kind: int) -> int:
    return TensorProto.FLOAT if place in _FP32_INPUTS.get(node.op_type, ()) else kind


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}:cast", to=kind)


def _set_target(cast: onnx.NodeProto, kind: int) -> None:
    for attribute in cast.attribute:
        if attribute.name == "to":
            attribute.i = kind


def _retyped(value: onnx.ValueInfoProto, name: str, kind: int) -> onnx.ValueInfoProto:
    out = onnx.ValueInfoProto()
    out.CopyFrom(value)
    out.name, out.type.tensor_type.elem_type = name, kind
    return out


def _halved(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """A constant rounded to the nearest FP16; numbers below 3e-8 become 0, as IEEE 754 rounds.

    Raises:
        InputError: a number is beyond 65504, or a constant of one number, such as an epsilon to
            divide by, would become 0.
    """
    wide = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore", under="ignore"):
        half = wide.astype(np.float16)
    if not np.isfinite(half).all():
        worst = float(wide.flat[int(np.abs(wide).argmax())])
        raise InputError(
            f"the weight {tensor.name!r} holds {worst:g}, and FP16 ends at 65504: this model "
            "cannot be converted to FP16. Export it with --precision fp32."
        )
    if half.size == 1 and wide.any() and not half.any():
        raise InputError(
            f"the constant {tensor.name!r} is {float(wide.flat[0]):g}, which FP16 takes for 0: "
            "this model cannot be converted to FP16. Export it with --precision fp32."
        )
    return numpy_helper.from_array(half, name)
