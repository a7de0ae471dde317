"""Exported graphs against PyTorch: one random input through both, each output's difference.

The gate is a signal-to-noise ratio, SQNR = 10 log10(sum y^2 / sum (y - y')^2) in dB. Float rounding
leaves 100 dB and more. But inside `propose` an attention-mask bit that lies on the edge may flip on
such rounding, and then queries differ by 1e-3, or by far more with random weights (two runs of the
public code differ so too). A flip happens for one picture in a few, a defect shows in every one: so
a graph that misses its gates is tried on further inputs, and fails if it misses them on all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openvis_rt.errors import DependencyError, ParityError
from openvis_rt.graphs import GraphSpec, TensorSpec

__all__ = ["Difference", "compare_with_torch"]

Array = npt.NDArray[np.generic]

_TRIES = 5
_GATES = {  # dB
    "mask_logits": 80.0,
    "queries": 80.0,
    "object_logits": 80.0,
    "mask_iou": 80.0,
    "features": 90.0,
    "instance_tokens": 90.0,
    "class_scores": 70.0,  # softmax of 100 cos multiplies the rounding by 100
    "embeddings": 60.0,  # 12 blocks amplify rounding: PyTorch's own FP32 is 91 dB from its FP64
}
_SHARE = 1e-3  # of a mask's pixels that may differ: those whose logit is zero but for rounding
_TINY = 1e-30


@dataclass(frozen=True)
class Difference:
    """How far one output is from PyTorch's.

    Attributes:
        graph, output: names.
        largest: largest absolute difference; for masks the share of bits that differ.
        relative: ``largest`` over the output's largest value; for masks the same share, for sums
            over masks the mean difference over the number of pixels.
        sqnr: signal-to-noise ratio in dB; for masks and sums over them infinite.
        passed: whether it is within its gate.
    """

    graph: str
    output: str
    largest: float
    relative: float
    sqnr: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON types; an infinite ratio is null."""
        return {
            "graph": self.graph,
            "output": self.output,
            "largest": self.largest,
            "relative": self.relative,
            "sqnr_db": None if math.isinf(self.sqnr) else self.sqnr,
        }


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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for seed in range(_TRIES):
        inputs = _random_inputs(spec, seed)
        found = session.run([t.name for t in spec.outputs], inputs)
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(v) for name, v in inputs.items()})
        wanted = outputs if isinstance(outputs, tuple) else (outputs,)
        differences = [
            _difference(spec.name, tensor, a, b.numpy(), _pixels(spec))
            for tensor, a, b in zip(spec.outputs, found, wanted, strict=True)
        ]
        if all(d.passed for d in differences):
            return differences
    listing = "; ".join(
        f"{d.output} {d.sqnr:.0f} dB, largest {d.largest:.2e}" for d in differences if not d.passed
    )
    raise ParityError(
        f"the exported graph {spec.name!r} does not give PyTorch's numbers on any of {_TRIES} "
        f"inputs: {listing}. Nothing was written. This is a defect; please report it, with "
        "`openvis doctor`."
    )


def _random_inputs(spec: GraphSpec, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
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
            value = _picture(rng, shape)
        elif tensor.dtype == "bool":
            value = rng.random(shape) < 0.3
            value[0] = False  # an instance without a pixel
        else:
            value = rng.standard_normal(shape, np.float32)
        if tensor.name == "text_embeddings":
            value = value / np.linalg.norm(value, axis=-1, keepdims=True)
        out[tensor.name] = value
    return out


def _difference(
    graph: str, tensor: TensorSpec, found: Array, wanted: Array, pixels: int
) -> Difference:
    y = wanted.astype(np.float64)
    error = np.abs(found.astype(np.float64) - y)
    largest = float(error.max())
    if tensor.dtype in ("bool", "uint8"):
        share = float(error.mean())
        return Difference(graph, tensor.name, share, share, math.inf, share <= _SHARE)
    if tensor.name in ("mask_area", "mask_mass"):  # sums over thresholded pixels
        share = float(error.mean()) / pixels
        return Difference(graph, tensor.name, largest, share, math.inf, share <= _SHARE)
    signal, noise = float((y**2).sum()), float((error**2).sum())
    sqnr = math.inf if noise == 0 else 10 * math.log10(max(signal, _TINY) / noise)
    relative = largest / max(float(np.abs(y).max()), _TINY)
    passed = bool(sqnr >= _GATES[tensor.name])  # false for NaN as well
    return Difference(graph, tensor.name, largest, relative, sqnr, passed)


def _picture(rng: np.random.Generator, shape: list[int]) -> Array:
    """Patches of colour with some noise: uint8 [1, H, W, 3]."""
    _, height, width, _ = shape
    patches = rng.integers(20, 236, (-(-height // 24), -(-width // 24), 3))
    picture = patches.repeat(24, axis=0).repeat(24, axis=1)[None, :height, :width]
    return (picture + rng.integers(-20, 20, shape)).astype(np.uint8)


def _pixels(spec: GraphSpec) -> int:
    """Pixels of the stride-4 grid, for graphs that sum over it."""
    shapes = {t.name: t.shape for t in spec.outputs}
    *_, height, width = shapes.get("mask_logits", (1, 1))
    return int(height) * int(width)
