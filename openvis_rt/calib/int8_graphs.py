"""The INT8 graphs of a bundle, made of its FP32 graphs and recorded ranges.

int8         INT8 and FP16, strongly typed: for TensorRT, also RTX (:mod:`.qdq`)
int8-fp32    the same products in uint8 and INT8, and FP32: for CPUs (:mod:`.qdq_cpu`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import onnx

from openvis_rt.bundle.bundle import Bundle, GraphFile
from openvis_rt.calib.cpu_plan import cpu_activations_of, cpu_plan_within
from openvis_rt.calib.placement import place
from openvis_rt.calib.qdq import activations_of, quantised, refuse_quantised
from openvis_rt.calib.qdq_cpu import cpu_quantised
from openvis_rt.calib.ranges import Calibration, GraphRanges
from openvis_rt.errors import InputError
from openvis_rt.export.fp16.convert import fp16_from_fp32
from openvis_rt.export.fp16.keeps import GraphView
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import INT8, INT8_FP32

__all__ = [
    "Int8Graph",
    "fp32_graph",
    "int8_beside_fp32",
    "int8_graphs",
    "placed_products",
    "seen_tensors",
    "unquantised",
    "versions",
]


@dataclass(frozen=True)
class Int8Graph:
    """A graph in one of the two precisions.

    Attributes:
        graph: its name.
        model: the graph.
        file: how the manifest will list it.
        products: that are INT8 in it, by the names of their outputs in the FP32 graph.
    """

    graph: str
    model: onnx.ModelProto
    file: GraphFile
    products: tuple[str, ...]


def fp32_graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    """A bundle's FP32 graph.

    Raises:
        BundleError: the bundle does not hold it.
        InputError: it is quantised already.
    """
    model = onnx.load_from_string(bundle.read_graph(name, "fp32"))
    try:
        refuse_quantised(model)
    except InputError as exc:
        raise InputError(f"{bundle.graph_path(name, 'fp32')}: {exc}") from exc
    return model


def placed_products(model: onnx.ModelProto, graph: str) -> tuple[str, ...]:
    """The products that are quantised by default, by the names of their outputs.

    Raises:
        InputError: there are none.
    """
    view = GraphView(model.graph)
    placement = place(view)
    if not placement.products:
        reasons = ", ".join(sorted(set(placement.left.values()))) or "it has no products"
        raise InputError(
            f"nothing of the graph {graph!r} is to be quantised: {reasons}. Leave it out of --graph"
        )
    return _names(view, placement.products)


def seen_tensors(model: onnx.ModelProto, products: Sequence[str]) -> tuple[str, ...]:
    """The activations whose ranges are needed for these products, in either precision."""
    view = GraphView(model.graph)
    places = [view.producer[name] for name in products]
    return tuple(dict.fromkeys([*activations_of(view, places), *cpu_activations_of(view, places)]))


def int8_graphs(
    bundle: Bundle, calibration: Calibration, precisions: Sequence[str]
) -> Iterator[tuple[str, Int8Graph]]:
    """The graphs that a calibration is of.

    Args:
        bundle: its own.
        calibration: the ranges, and the method that is taken.
        precisions: of ``int8`` and ``int8-fp32``.

    Yields:
        a precision and a graph, each graph in all of the precisions.

    Raises:
        InputError: a range is missing, or a weight does not fit FP16.
    """
    for name, ranges in calibration.graphs.items():
        model = fp32_graph(bundle, name)
        view, method = GraphView(model.graph), calibration.method
        spec = bundle.graph(name, "fp32").spec
        if INT8_FP32 in precisions:
            known = {n: t.limits(method) for n, t in ranges.tensors.items() if t.largest}
            plan = cpu_plan_within(view, _recorded(view, ranges), known)
            wide = cpu_quantised(model, plan.products, known)
            file = GraphFile(f"{name}.{INT8_FP32}.onnx", INT8_FP32, spec)
            facts: dict[str, object] = {"int8": {"method": method, "products": len(plan.products)}}
            wide = _described(wide, model, file, facts)
            yield INT8_FP32, Int8Graph(name, wide, file, _names(view, plan.products))
        if INT8 in precisions:
            products, reach = _of_method(view, ranges, method)
            half = fp16_from_fp32(quantised(model, products, reach), spec)
            file = GraphFile(f"{name}.{INT8}.onnx", INT8, half.spec)
            facts = {
                "int8": {"method": method, "products": len(products)},
                "kept_in_fp32": half.kept,
            }
            narrow = _described(half.model, model, file, facts)
            yield INT8, Int8Graph(name, narrow, file, _names(view, products))


def int8_beside_fp32(bundle: Bundle, calibration: Calibration) -> Iterator[Int8Graph]:
    """The products of ``int8`` with all else in FP32, to measure what these products alone cost.

    Raises:
        InputError: as for :func:`int8_graphs`.
    """
    for name, ranges in calibration.graphs.items():
        model = fp32_graph(bundle, name)
        view = GraphView(model.graph)
        products, reach = _of_method(view, ranges, calibration.method)
        wide = quantised(model, products, reach)
        file = GraphFile(f"{name}.onnx", INT8_FP32, bundle.graph(name, "fp32").spec)
        yield Int8Graph(name, wide, file, _names(view, products))


def unquantised(calibration: Calibration) -> dict[str, list[str]]:
    """For each graph its tensors that were nothing but zeros; what reads them is not quantised."""
    found = {
        name: [tensor for tensor, limits in graph.tensors.items() if not limits.largest]
        for name, graph in calibration.graphs.items()
    }
    return {name: tensors for name, tensors in found.items() if tensors}


def versions() -> dict[str, str]:
    """Of the libraries that take part in a calibration."""
    found = {}
    for name in ("openvis-rt", "onnx", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _names(view: GraphView, products: Iterable[int]) -> tuple[str, ...]:
    return tuple(view.nodes[index].output[0] for index in sorted(products))


def _recorded(view: GraphView, ranges: GraphRanges) -> list[int]:
    """Places of the products that a record names.

    Raises:
        InputError: the graph has not all of them.
    """
    chosen = [view.producer[name] for name in ranges.products if name in view.producer]
    if len(chosen) != len(ranges.products):
        raise InputError("the calibration names products that the graph has not. Calibrate anew.")
    return chosen


def _of_method(
    view: GraphView, ranges: GraphRanges, method: str
) -> tuple[list[int], dict[str, float]]:
    """Places of the products all of whose tensors have a range, and the ranges.

    Raises:
        InputError: there are none, or the record has no range of a tensor.
    """
    chosen = _recorded(view, ranges)
    limits = {n: t.by_method[method] for n, t in ranges.tensors.items() if t.largest}
    chosen = [i for i in chosen if view.nodes[i].input[0] in limits]
    while lacking := set(activations_of(view, chosen)) - limits.keys():  # a shortcut's output
        chosen = [i for i in chosen if lacking.isdisjoint(view.nodes[i].output)]
    if not chosen:
        raise InputError("every activation is 0 on these frames: there is nothing to quantise")
    return chosen, limits


def _described(
    model: onnx.ModelProto, source: onnx.ModelProto, file: GraphFile, facts: Mapping[str, object]
) -> onnx.ModelProto:
    """The graph with the metadata of the one that it was made of, and its own."""
    told = {"graph": json_from_record(file.spec), "precision": file.precision, **facts}
    kept = {p.key: p.value for p in source.metadata_props}
    kept |= {f"openvis_rt.{key}": json.dumps(value) for key, value in told.items()}
    del model.metadata_props[:]
    for key, value in kept.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.graph.name = source.graph.name
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    return model
