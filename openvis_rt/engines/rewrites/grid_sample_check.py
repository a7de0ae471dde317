"""Gathers against GridSample, in ONNX Runtime on the CPU, for every GridSample of a graph.

Each replacement is compared on the inputs that its GridSample has in the running graph, not at the
graph's outputs: behind a thresholded attention mask a rounding error may grow to anything, and
would hide or feign a defect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from openvis_rt.engines.rewrites.grid_sample import GridSampleSite, find_grid_samples, with_nodes
from openvis_rt.errors import DependencyError, ParityError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["check_grid_samples", "random_inputs"]

Array = npt.NDArray[Any]


def check_grid_samples(model: onnx.ModelProto, *inputs: Mapping[str, Array]) -> float:
    """The largest difference to GridSample, as a part of the largest sampled value.

    The gate follows from FP32: a coordinate is off by at most four units in the last place of the
    image's size s, and bilinear sampling changes by at most twice the largest value per pixel and
    axis, so two evaluations differ by at most ``2 axes * 2 * 4 * eps * s`` times the largest value.

    Args:
        model: the graph with its GridSample nodes, at least one.
        inputs: at least one run: a value for each input of the graph.

    Raises:
        ParityError: a difference is above the gate.
        DependencyError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as exc:
        raise DependencyError("onnxruntime", "cpu") from exc
    sites = find_grid_samples(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every FP16 node that it does not fold
    session = onnxruntime.InferenceSession(
        _model_of_differences(model, sites).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return max(_checked_run(sites, session.run(None, dict(values))) for values in inputs)


def _checked_run(sites: Sequence[GridSampleSite], measured: Sequence[Array]) -> float:
    """The largest error of one run; ``measured`` is max |difference|, max |value| of each site."""
    numbers = np.array(measured, np.float64).reshape(len(sites), 2)
    worst = 0.0
    for site, (difference, largest) in zip(sites, numbers, strict=True):
        error = float(difference / max(largest, np.finfo(np.float32).tiny))
        gate = 16 * float(np.finfo(np.float32).eps) * max(site.shape[2:])
        if not error <= gate:  # also catches NaN
            raise ParityError(
                f"GridSample {site.node.name!r}: the gathers differ from it by {error:.2e} of the "
                f"largest value, and rounding explains {gate:.2e}. The graph was not built; this "
                "is a defect."
            )
        worst = max(worst, error)
    return worst


def random_inputs(
    graph: onnx.GraphProto, sizes: Mapping[str, int], seed: int = 0
) -> dict[str, Array]:
    """Values for every input that has no default: uniform uint8, normal floats, fair bits, index 0.

    Args:
        graph: the graph.
        sizes: a number for each symbolic axis.
        seed: of the generator.
    """
    random = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in graph.initializer}
    values: dict[str, Array] = {}
    for info in graph.input:
        if info.name in defaults:
            continue
        kind = info.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes[d.dim_param] for d in kind.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype == np.uint8:
            values[info.name] = random.integers(0, 256, shape, np.uint8)
        elif dtype == np.bool_:
            values[info.name] = random.random(shape) < 0.5
        elif np.issubdtype(dtype, np.floating):
            values[info.name] = random.standard_normal(shape).astype(dtype)
        else:  # an index, whose range the file does not tell
            values[info.name] = np.zeros(shape, dtype)
    return values


def _model_of_differences(
    model: onnx.ModelProto, sites: Sequence[GridSampleSite]
) -> onnx.ModelProto:
    """A copy that puts out, for each site, max |GridSample - gathers| and max |value|."""
    nodes = list(model.graph.node)
    constants: list[onnx.TensorProto] = []
    outputs: list[str] = []
    for site in sites:
        gathers = site.gathers(f"{site.prefix}/sampled")
        difference = gathers.add("Sub", site.node.output[0], f"{site.prefix}/sampled")
        for tensor in (difference, site.node.input[0]):
            size = gathers.add("Abs", tensor)
            outputs.append(gathers.add("ReduceMax", size, keepdims=0))
        nodes.extend(gathers.nodes)
        constants.extend(gathers.constants)
    result = with_nodes(model, nodes, constants)
    del result.graph.output[:]
    result.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in outputs
    )
    return result
