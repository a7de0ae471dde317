"""Exported graphs against PyTorch: one random input through both, each output's difference.

The gate is a signal-to-noise ratio, SQNR = 10 log10(sum y^2 / sum (y - y')^2) in dB. A stage of
sums agrees to float rounding, 110 dB and more. Inside `propose`, one attention-mask bit that flips
on such rounding moves one query by 1e-3 or more (seen between two runs of the public code too),
which a largest difference would show as loudly as a defect; a defect of one operator leaves less
than 25 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openvis_rt.errors import DependencyError, ParityError
from openvis_rt.graphs import GraphSpec, TensorSpec

__all__ = ["Difference", "compare_with_torch"]

Array = npt.NDArray[np.generic]

_FLIPS = 30.0  # dB, after flipped attention-mask bits (47 dB seen on noise at 192x320)
_ROUNDING = 90.0  # dB, float rounding alone
_GATES = {
    "mask_logits": _FLIPS,
    "queries": _FLIPS,
    "object_logits": _FLIPS,
    "mask_iou": _FLIPS,
    "mask_area": _FLIPS,
    "mask_mass": _FLIPS,
    "features": _ROUNDING,
    "instance_tokens": _ROUNDING,
    "class_scores": 70.0,  # softmax of 100 cos multiplies the rounding by 100
    "embeddings": 60.0,  # 12 blocks amplify rounding: PyTorch's own FP32 is 91 dB from its FP64
}
_BITS = 5e-3  # share of a thresholded mask's bits that may differ


@dataclass(frozen=True)
class Difference:
    """How far one output is from PyTorch's.

    Attributes:
        graph, output: names.
        largest: largest absolute difference; for masks the share of bits that differ.
        relative: ``largest`` over the output's largest value; for masks the same share.
        sqnr: signal-to-noise ratio in dB; for masks infinite.
        passed: whether it is within its gate.
    """

    graph: str
    output: str
    largest: float
    relative: float
    sqnr: float
    passed: bool


def compare_with_torch(
    path: Path,
    spec: GraphSpec,
    module: nn.Module,
) -> list[Difference]:
    """Run a graph in ONNX Runtime and in PyTorch.

    Args:
        path: the ONNX file.
        spec: its inputs and outputs.
        module: what was exported; its ``forward`` takes the inputs by name.

    Raises:
        ParityError: an output is outside its gate.
        DependencyError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise DependencyError("onnxruntime", "cpu") from exc
    inputs = _random_inputs(spec)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = session.run([t.name for t in spec.outputs], inputs)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.inference_mode():
        outputs = module(**tensors)
    wanted = outputs if isinstance(outputs, tuple) else (outputs,)
    differences = [
        _difference(spec.name, tensor, a, b.numpy())
        for tensor, a, b in zip(spec.outputs, found, wanted, strict=True)
    ]
    worst = [d for d in differences if not d.passed]
    if worst:
        listing = "; ".join(f"{d.output} {d.sqnr:.0f} dB, largest {d.largest:.2e}" for d in worst)
        raise ParityError(
            f"the exported graph {spec.name!r} does not give PyTorch's numbers: {listing}. "
            "Nothing was written. This is a defect; please report it, with `openvis doctor`."
        )
    return differences


def _random_inputs(spec: GraphSpec) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    lengths = {"K": 7, "B": 5, "n": 4}  # not the lengths that were traced
    out: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = [d if isinstance(d, int) else lengths[d] for d in tensor.shape]
        if tensor.name == "tokens":
            value: Array = np.zeros(shape, np.int64)
            for row, words in enumerate(rng.integers(1, 30, shape[0])):  # phrases, as text is
                value[row, : words + 2] = [49406, *rng.integers(1, 49405, words), 49407]
        elif tensor.name == "selected":
            value = rng.permutation(4)
        elif tensor.dtype == "uint8":
            value = rng.integers(0, 256, shape, np.uint8)
        elif tensor.dtype == "bool":
            value = rng.random(shape) < 0.3
            value[0] = False  # an instance without a pixel
        else:
            value = rng.standard_normal(shape, np.float32)
        if tensor.name == "text_embeddings":
            value = value / np.linalg.norm(value, axis=-1, keepdims=True)
        out[tensor.name] = value
    return out


def _difference(graph: str, tensor: TensorSpec, found: Array, wanted: Array) -> Difference:
    if tensor.dtype in ("bool", "uint8"):
        share = float((found != wanted).mean())
        return Difference(graph, tensor.name, share, share, math.inf, share <= _BITS)
    y, error = wanted.astype(np.float64), found.astype(np.float64) - wanted.astype(np.float64)
    largest = float(np.abs(error).max())
    noise = float((error**2).sum())
    sqnr = math.inf if noise == 0 else 10 * math.log10(float((y**2).sum()) / noise)
    return Difference(
        graph,
        tensor.name,
        largest,
        largest / float(np.abs(y).max()),
        sqnr,
        bool(sqnr >= _GATES[tensor.name]),  # false for NaN as well
    )
