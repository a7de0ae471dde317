"""One module to one ONNX file, by torch's exporter, with the contract's names and our metadata."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import nn
from torch.export import Dim

from openvis_rt.export.graph_module import example_inputs
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import CONTEXT_LENGTH, DYNAMIC_AXES, GraphSpec, TensorSpec

__all__ = ["OPSET", "add_metadata", "onnx_from_module"]

OPSET = 18
"""GridSample is 4-D, and older TensorRT parsers know it."""

_LARGEST = {"L": CONTEXT_LENGTH}  # of dynamic axes that have a table of that length

_TABLE = 64 << 20  # bytes: a position table of a 4K frame


def onnx_from_module(module: nn.Module, spec: GraphSpec) -> onnx.ModelProto:
    """Trace a module such as :class:`~openvis_rt.export.graph_module.GraphModule`.

    Args:
        module: its ``forward`` takes the graph's inputs by name and returns its outputs in order.
        spec: the graph with every size filled in, but for the dynamic axes.

    Returns:
        the model, weights inside, without traces of the machine that made it. A node's name is
        ``<path of the module that made it>/<name>``, without a path where the traced module's
        own ``forward``, a method that it calls, or an optimisation made it.
    """
    dynamic = {t.name: _dynamic_shape(t) for t in spec.inputs}
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            kwargs=example_inputs(spec),
            dynamo=True,
            opset_version=OPSET,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            dynamic_shapes=dynamic if any(dynamic.values()) else None,
            verbose=False,
        )
        assert program is not None
        # position tables and the like become constants, in FP32 whatever the graph's precision
        fold_constants(program.model, input_size_limit=_TABLE, output_size_limit=_TABLE)
        remove_unused_nodes(program.model)
    model = program.model_proto
    for node in model.graph.node:
        node.name = _name_in_module(node)
        del node.metadata_props[:]  # stack traces and paths of the exporting machine
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    for value in model.graph.output:  # the exporter invents names for derived dynamic axes
        _name_axes(value, next(t for t in spec.outputs if t.name == value.name))
    return model


def add_metadata(model: onnx.ModelProto, spec: GraphSpec, facts: dict[str, Any]) -> None:
    """Write the graph's contract and origin into the file's ``metadata_props``, as JSON values."""
    model.graph.name = spec.name
    model.producer_name = "openvis-rt"
    model.producer_version = facts["openvis_rt"]
    for key, value in {"graph": json_from_record(spec), **facts}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"openvis_rt.{key}", json.dumps(value)


def _name_in_module(node: onnx.NodeProto) -> str:
    """The node's name behind the path of the innermost module whose ``forward`` made it."""
    scopes = next(
        (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]"
    )
    *modules, _ = ast.literal_eval(scopes) or [""]  # from the outermost to the operator
    path = modules[-1] if modules else ""
    name = node.name.removeprefix("node_")
    return f"{path}/{name}" if path else name


def _dynamic_shape(tensor: TensorSpec) -> dict[int, Any]:
    return {
        axis: Dim(symbol, min=1, max=_LARGEST.get(symbol))
        for axis, symbol in enumerate(tensor.shape)
        if isinstance(symbol, str) and symbol in DYNAMIC_AXES
    }


def _name_axes(value: onnx.ValueInfoProto, tensor: TensorSpec) -> None:
    for dim, wanted in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
        if isinstance(wanted, int):
            if dim.dim_value != wanted:
                raise AssertionError(f"{value.name}: {dim} was traced, {tensor.shape} is specified")
        else:
            dim.dim_param = wanted


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own talk (folding reports, deprecations) off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir", "torch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
