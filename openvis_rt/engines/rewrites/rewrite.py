"""The ONNX file that TensorRT compiles: the bundle's own, with three things rewritten.

GridSample becomes gathers, see :mod:`openvis_rt.engines.rewrites.grid_sample`. Initializers that a
caller of ONNX Runtime may override lose their default: TensorRT would take them for constants, and
without it they are inputs whose values are sizes, so one engine serves videos of every size.
Masks are packed before they go over the bus, see :mod:`openvis_rt.engines.rewrites.packing`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from openvis_rt.engines.rewrites.grid_sample import find_grid_samples, replace_grid_sample
from openvis_rt.engines.rewrites.grid_sample_check import check_grid_samples, random_inputs
from openvis_rt.engines.rewrites.packing import gives_masks, pack_masks

__all__ = ["Rewritten", "rewrite", "without_defaults"]


@dataclass(frozen=True)
class Rewritten:
    """A graph for TensorRT.

    Attributes:
        model: the graph; None where the original serves as it is.
        replaced_grid_samples: GridSample nodes that became gathers.
        replacement_error: as :func:`check_grid_samples` measures it; None if it was not asked to.
    """

    model: onnx.ModelProto | None
    replaced_grid_samples: int
    replacement_error: float | None


def rewrite(
    model: onnx.ModelProto,
    inputs: Collection[str],
    sizes: Sequence[Mapping[str, int]],
    *,
    verify: bool,
) -> Rewritten:
    """Rewrite a graph for TensorRT.

    Args:
        model: the graph; it is not changed.
        inputs: overridable initializers that become inputs.
        sizes: a number for each symbolic axis; the graph is run with each set of them.
        verify: hold the gathers against GridSample in ONNX Runtime.

    Raises:
        EngineError: a GridSample cannot be replaced.
        ParityError: gathers compute something else.
        DependencyError: onnxruntime is not installed.
    """
    sites, error = find_grid_samples(model), None
    if not sites and not inputs and not gives_masks(model):
        return Rewritten(None, 0, None)
    if sites and verify:
        runs = [random_inputs(model.graph, numbers) for numbers in _apart(model.graph, sizes)]
        error = check_grid_samples(model, *runs)
    result = pack_masks(replace_grid_sample(without_defaults(model, inputs)))
    return Rewritten(result, len(sites), error)


def _apart(graph: onnx.GraphProto, sizes: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    """Those of the sizes that are not the same for the inputs of this graph."""
    shapes = (value.type.tensor_type.shape.dim for value in graph.input)
    symbols = sorted({d.dim_param for shape in shapes for d in shape if d.dim_param})
    return list({tuple(numbers[s] for s in symbols): numbers for numbers in sizes}.values())


def without_defaults(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy in which these initializers are inputs only."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in names]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result
