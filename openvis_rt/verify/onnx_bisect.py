"""The first node of a graph whose error jumps, beside a graph that is known to be right.

Both graphs run in ONNX Runtime on the same inputs, and every tensor of the same name is compared.
A node's jump is what it adds to the error of its inputs: the least SQNR of its inputs less that of
its output, where more than float rounding leaves counts as rounding. Convolutions of a sound FP16
graph jump by 10 dB where the first rounding arises; a wrong weight or an overflow by 40 and more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.compare.differences import sqnr
from openvis_rt.engines.rewrites.grid_sample import replace_grid_sample
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.systems.graphs import QUANTISED
from openvis_rt.verify.checks import Check
from openvis_rt.verify.onnx_rewritten import RewrittenGraphs
from openvis_rt.verify.reference import Reference

if TYPE_CHECKING:
    from openvis_rt.models.network import Network

__all__ = ["Jump", "bisect_check", "bisect_graphs", "fresh_graph"]

Array = npt.NDArray[np.generic]

_AT_ONCE = 150  # tensors that one run returns: a large graph's do not all fit into memory
_ROUNDING = {"fp32": 120.0, "fp16": 70.0, **dict.fromkeys(QUANTISED, 35.0)}
"""dB that rounding of one layer leaves."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Jump:
    """A node whose error jumps.

    Attributes:
        node, operator: its name and type.
        output: the tensor that departs.
        before, after: SQNR of its worst input and of the output, dB; infinite is equality.
        note: what is different about the node itself, such as a weight; empty if nothing is.
    """

    node: str
    operator: str
    output: str
    before: float
    after: float
    note: str = ""


def bisect_graphs(
    suspect: onnx.ModelProto,
    trusted: onnx.ModelProto,
    inputs: Mapping[str, Array],
    precision: str,
    most: int = 3,
) -> list[Jump]:
    """The nodes of ``suspect`` whose error jumps most, in the order in which they run.

    Args:
        suspect: the graph that departs. An input of another type is cast.
        trusted: a graph that does not, with the same names of tensors: the FP32 graph that an FP16
            one was made from, or a fresh export.
        inputs: of a call that departs, by name.
        precision: of the suspect, which decides how much of an error is rounding.
        most: nodes that are returned.

    Raises:
        InputError: the two graphs have no names in common.
        DependencyError: ONNX Runtime is not installed.
    """
    wanted = [name for name in _tensors(trusted) if name in _tensors(suspect)]
    if not wanted:
        raise InputError("the two graphs have no tensor of the same name, so none can be compared")
    ratios: dict[str, float] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        names = wanted[start : start + _AT_ONCE]
        ours, theirs = (_values(graph, names, inputs) for graph in (suspect, trusted))
        ratios |= {
            name: _ratio(ours[name], theirs[name]) for name in names if name in ours.keys() & theirs
        }
    jumps = list(_jumps(suspect, ratios, _ROUNDING.get(precision, _ROUNDING["fp16"])))
    largest = sorted(jumps, key=lambda jump: jump.after - jump.before)[:most]
    notes = _changed_constants(suspect, trusted)
    return [
        replace(jump, note=notes.get(jump.node, ""))
        for jump in jumps
        if jump in largest or jump.node in notes
    ]


def _jumps(graph: onnx.ModelProto, ratios: Mapping[str, float], most: float) -> Iterator[Jump]:
    """Nodes that add more than 3 dB to their inputs' error, in the order in which they run.

    A tensor without a partner, such as what a cast gives, has the error of what it is made of.
    """
    known = dict(ratios)
    for node in graph.graph.node:
        before = min((known.get(name, math.inf) for name in node.input if name), default=math.inf)
        for output in node.output:
            if output not in ratios:
                known[output] = before
                continue
            after, start = ratios[output], min(before, most)
            if (
                start - after > 3.0 and node.op_type != "Cast"
            ):  # of bits, whose error has no measure
                yield Jump(node.name or output, node.op_type, output, before, after)


def _values(
    model: onnx.ModelProto, names: list[str], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Tensors of a graph, by name."""
    try:
        import onnxruntime
    except ImportError as exc:
        raise DependencyError("onnxruntime", "cpu") from exc
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.graph.output[:]
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors come as exceptions
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        marked.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    initial = {tensor.name for tensor in model.graph.initializer}
    types = {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.graph.input
        if value.name in inputs or value.name not in initial
    }
    given = {name: inputs[name].astype(kind) for name, kind in types.items()}
    found = session.run(names, given)
    return {
        name: value
        for name, value in zip(names, found, strict=True)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
    }


def _tensors(model: onnx.ModelProto) -> dict[str, None]:
    """Names of everything that a node of the graph gives, in order."""
    return {name: None for node in model.graph.node for name in node.output if name}


def _ratio(found: Array, wanted: Array) -> float:
    """SQNR in dB; minus infinity for NaN, infinity or another shape where the other has none."""
    if found.shape != wanted.shape:
        return -math.inf
    good = np.isfinite(wanted.astype(np.float64))
    if not np.isfinite(found.astype(np.float64)[good]).all():
        return -math.inf
    return sqnr(found[good], wanted[good])


def _changed_constants(suspect: onnx.ModelProto, trusted: onnx.ModelProto) -> dict[str, str]:
    """By node of the suspect, which of its weights is another than the trusted graph's."""
    theirs = {t.name: t for t in trusted.graph.initializer}
    changed = {}
    for tensor in suspect.graph.initializer:
        other = theirs.get(tensor.name)
        if other is None or tensor.raw_data == other.raw_data:
            continue
        ours, wanted = (numpy_helper.to_array(t).astype(np.float32) for t in (tensor, other))
        same_shape = ours.shape == wanted.shape
        far = np.abs(ours - wanted) > 2e-3 * np.abs(wanted) + 1e-6 if same_shape else None
        if far is None or far.any():
            count = "all" if far is None else int(far.sum())
            changed[tensor.name] = f"{count} of the numbers in {tensor.name} are others"
    return {
        node.name or node.output[0]: changed[name]
        for node in suspect.graph.node
        for name in node.input
        if name in changed
    }


def bisect_check(
    bundle: Bundle, check: Check, reference: Reference, model: Network | None
) -> list[Jump]:
    """The nodes whose error jumps, of the graph that a check says departs.

    An FP32 graph is held against a fresh export of the model, a narrower one against the bundle's
    FP32 graph, and the graphs as built against those that they were made from.

    Raises:
        InputError: the check is of no graph, or there is nothing to hold it against.
    """
    graph = {"class names": "text"}.get(check.stage, check.stage)
    call = next((c for c in reference.record.calls if c.graph == graph), None)
    if call is None:
        raise InputError(f"{check.stage} is no graph, so there is no node to look for in it")
    call = next(
        (c for c in reference.record.calls if (c.graph, c.point) == (graph, check.point)), call
    )
    precision = next(p for p in bundle.manifest.graphs if check.contender.endswith(f", {p})"))
    suspect = onnx.load_from_string(bundle.read_graph(graph, precision))
    if check.contender.startswith(RewrittenGraphs.name):
        trusted, suspect = suspect, replace_grid_sample(suspect)
    elif bundle.graph(graph, precision).precision != "fp32":
        trusted = onnx.load_from_string(bundle.read_graph(graph, "fp32"))
    elif model is not None:
        trusted = fresh_graph(bundle, model, graph)
    else:
        raise InputError(
            f"the FP32 graph {graph} departs, and only PyTorch is more trusted than it: give "
            "--checkpoint FILE (or --random-weights SEED) to bisect it"
        )
    given = reference.inputs(call)
    return bisect_graphs(suspect, trusted, given, bundle.graph(graph, precision).precision)


def fresh_graph(bundle: Bundle, model: Network, graph: str) -> onnx.ModelProto:
    """The FP32 graph of a bundle, exported anew from its model; this alone needs PyTorch."""
    from openvis_rt.export.bundle import sized_graphs
    from openvis_rt.export.graph_module import graph_modules
    from openvis_rt.export.masks import masks_graph
    from openvis_rt.export.onnx_export import OPSET, onnx_from_module

    rule = bundle.manifest.preprocess
    specs, padded = sized_graphs(model, rule.network_size, rule.source_size)
    if graph == "masks":
        frame = rule.source_size or rule.network_size
        return masks_graph(
            specs[graph],
            padded_size=padded,
            network_size=rule.network_size,
            frame_size=frame,
            opset=OPSET,
        )
    modules = graph_modules(model, padded, rule.network_size, rule.source_size)
    return onnx_from_module(modules[graph], specs[graph])
