"""Exported graphs against PyTorch: one random input through both, each output's difference.

The gate is a signal-to-noise ratio, SQNR = 10 log10(sum y^2 / sum (y - y')^2) in dB. Float rounding
leaves 100 dB and more. But inside `propose` an attention-mask bit that lies on the edge may flip on
such rounding, and then queries differ by 1e-3, or by far more with random weights (two runs of the
public code differ so too). A flip happens for one picture in a few, a defect shows in every one: so
a graph that misses its gates is tried on further inputs, and fails if it misses them on all.

An FP16 graph is held against the same FP32 numbers of PyTorch, as its FP16 emulation
(:mod:`openvis_rt.export.fp16.emulation`). A number rounded to FP16 once has 76 dB on average;
layers add their roundings, and some attention-mask bits flip in almost every picture.
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
from openvis_rt.export.fp16.convert import HALF_TENSORS
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = ["Difference", "TorchReference", "compare_with_torch"]

Array = npt.NDArray[np.generic]

_TRIES = 5
_GATES = {  # dB; `bits`: share of a mask's pixels that may differ
    "fp32": {
        "mask_logits": 80.0,
        "queries": 80.0,
        "object_logits": 80.0,
        "mask_iou": 80.0,
        "guidance_mask": 80.0,
        "features": 90.0,
        "instance_tokens": 90.0,
        "image_embeddings": 70.0,  # 12 blocks; 94 measured
        "class_scores": 70.0,  # softmax of 100 cos multiplies the rounding by 100
        "embeddings": 60.0,  # 12 blocks amplify rounding: PyTorch's own FP32 is 91 dB from its FP64
        "bits": 1e-3,  # those whose logit is zero but for rounding
    },
    # 10 dB and more below the worst of 40 frames (docs/fp16.md), since trained weights have
    # outliers that random ones lack. A defect, or a number beyond FP16, leaves 0 dB or NaN.
    "fp16": {
        "mask_logits": 15.0,  # attention-mask bits flip: 25 with random weights, 60 with solved
        "queries": 15.0,  # the same: 30, 57
        "object_logits": 15.0,  # the same: 30, 60
        "mask_iou": 40.0,  # 59
        "guidance_mask": 15.0,  # as mask_logits
        "features": 45.0,  # 63
        "instance_tokens": 40.0,  # 57
        "image_embeddings": 40.0,
        "class_scores": 40.0,  # 57
        "embeddings": 40.0,  # 56
        "bits": 3e-2,  # the same flips: 6.5e-3 of pool_mask
    },
}
_MENDS = {
    "fp32": "This is a defect; please report it, with `openvis doctor`.",
    "fp16": "These weights may need more range or precision than FP16 has: export with "
    "--precision fp32.",
}
_TINY = 1e-30


@dataclass(frozen=True)
class Difference:
    """How far one output is from PyTorch's.

    Attributes:
        graph, precision, output: names.
        largest: largest absolute difference; for masks the share of bits that differ.
        relative: ``largest`` over the output's largest value; for masks the same share, for sums
            over masks the mean difference over the number of pixels.
        sqnr: signal-to-noise ratio in dB; for masks and sums over them infinite.
        passed: whether it is within its gate.
    """

    graph: str
    precision: str
    output: str
    largest: float
    relative: float
    sqnr: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON types; an infinite ratio is null."""
        return {
            "graph": self.graph,
            "precision": self.precision,
            "output": self.output,
            "largest": self.largest,
            "relative": self.relative,
            "sqnr_db": None if math.isinf(self.sqnr) else self.sqnr,
        }


class TorchReference:
    """What a module answers to random inputs; each is computed once, for every precision.

    Args:
        spec: the FP32 graph's inputs and outputs.
        module: what was exported; its ``forward`` takes the inputs by name.
    """

    def __init__(self, spec: GraphSpec, module: nn.Module) -> None:
        self.spec, self._module = spec, module
        self._known: dict[int, tuple[dict[str, Array], list[Array]]] = {}

    def answer(self, seed: int) -> tuple[dict[str, Array], list[Array]]:
        """Inputs by name, and the outputs in order."""
        if seed not in self._known:
            inputs = _random_inputs(self.spec, seed)
            with torch.inference_mode():
                found = self._module(**{name: torch.from_numpy(v) for name, v in inputs.items()})
            outputs = found if isinstance(found, tuple) else (found,)
            self._known[seed] = inputs, [tensor.numpy() for tensor in outputs]
        return self._known[seed]


def compare_with_torch(
    graph: Path | bytes,
    spec: GraphSpec,
    reference: TorchReference,
    precision: str = "fp32",
) -> list[Difference]:
    """Run a graph in ONNX Runtime on what PyTorch FP32 has answered.

    Args:
        graph: the ONNX file, or a serialised model: of an FP16 graph its FP16 emulation.
        spec: its inputs and outputs, with the types that they have in it.
        reference: PyTorch's side.
        precision: of the graph; it decides the gates.

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
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for seed in range(_TRIES):
        inputs, wanted = reference.answer(seed)
        given = {t.name: inputs[t.name].astype(t.dtype) for t in spec.inputs}
        found = session.run([t.name for t in spec.outputs], given)
        differences = [
            _difference(spec.name, tensor, a, b, _pixels(spec), precision)
            for tensor, a, b in zip(spec.outputs, found, wanted, strict=True)
        ]
        if all(d.passed for d in differences):
            return differences
    listing = "; ".join(
        f"{d.output} {d.sqnr:.0f} dB, largest {d.largest:.2e}" for d in differences if not d.passed
    )
    raise ParityError(
        f"the exported graph {spec.name!r} ({precision}) does not give PyTorch's numbers on any of "
        f"{_TRIES} inputs: {listing}. Nothing was written. {_MENDS[precision]}"
    )


def _random_inputs(spec: GraphSpec, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    lengths = {"K": 7, "B": 5, "n": 4, "T": 2}  # not the lengths that were traced
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
            if tensor.name in HALF_TENSORS:  # numbers that every precision can be given
                value = value.astype(np.float16).astype(np.float32)
        if tensor.name == "text_embeddings":
            value = value / np.linalg.norm(value, axis=-1, keepdims=True)
        out[tensor.name] = value
    return out


def _difference(
    graph: str,
    tensor: TensorSpec,
    found: Array,
    wanted: Array,
    pixels: int,
    precision: str = "fp32",
) -> Difference:
    gates = _GATES[precision]
    y = wanted.astype(np.float64)
    error = np.abs(found.astype(np.float64) - y)
    largest = float(error.max())
    if tensor.dtype in ("bool", "uint8"):
        share = float(error.mean())
        passed = share <= gates["bits"]
        return Difference(graph, precision, tensor.name, share, share, math.inf, passed)
    if tensor.name in ("mask_area", "mask_mass"):  # sums over thresholded pixels
        share = float(error.mean()) / pixels
        passed = share <= gates["bits"]
        return Difference(graph, precision, tensor.name, largest, share, math.inf, passed)
    signal, noise = float((y**2).sum()), float((error**2).sum())
    sqnr = math.inf if noise == 0 else 10 * math.log10(max(signal, _TINY) / noise)
    relative = largest / max(float(np.abs(y).max()), _TINY)
    passed = bool(sqnr >= gates[tensor.name])  # false for NaN as well
    return Difference(graph, precision, tensor.name, largest, relative, sqnr, passed)


def _picture(rng: np.random.Generator, shape: list[int]) -> Array:
    """Patches of colour with some noise: uint8 [T, H, W, 3]."""
    _, height, width, _ = shape
    patches = rng.integers(20, 236, (-(-height // 24), -(-width // 24), 3))
    picture = patches.repeat(24, axis=0).repeat(24, axis=1)[None, :height, :width]
    return (picture + rng.integers(-20, 20, shape)).astype(np.uint8)


def _pixels(spec: GraphSpec) -> int:
    """Pixels of the stride-4 grid, for graphs that sum over it."""
    shapes = {t.name: t.shape for t in spec.outputs}
    *_, height, width = shapes.get("mask_logits", (1, 1))
    return int(height) * int(width)
