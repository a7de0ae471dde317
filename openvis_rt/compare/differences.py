"""How far one output is from another, and how far it may be.

The gate is a signal-to-noise ratio, SQNR = 10 log10(sum y^2 / sum (y - y')^2) in dB; bits have the
share of those that differ. Float rounding leaves 100 dB and more. But inside `propose` an
attention-mask bit that lies on the edge may flip on such rounding, and then queries differ by 1e-3,
or by far more with random weights (two runs of the public code differ so too).

An FP16 graph is compared with the same FP32 numbers of PyTorch, as its FP16 emulation
(:mod:`openvis_rt.export.fp16.emulation`). A number rounded to FP16 once has 76 dB on average;
layers add their roundings, and some attention-mask bits flip in almost every picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = [
    "ENGINES",
    "GATES",
    "GIVEN_MASKS",
    "Difference",
    "difference",
    "differing_share",
    "grid_pixels",
    "is_mask",
    "largest_error",
    "mask_ious",
    "mask_pixels",
    "sqnr",
]

Array = npt.NDArray[np.generic]

GATES: dict[str, dict[str, float]] = {  # by precision and output
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
        "masks": 0.99,  # median IoU of masks, the stage fed with the reference's own inputs
        "video masks": 0.9,
        "video ids": 0.9,
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
        "masks": 0.9,
        "video masks": 0.7,
        "video ids": 0.7,
    },
}
"""Least SQNR of each output in dB; ``bits`` is the largest share of a mask's pixels that differ."""
# INT8 products of backbone and pixel decoder; an INT8 number has 40 dB at best, and 40 products in
# a row leave 30. 15 dB below what instformer-mini with trained proposals has on frames that were
# not calibrated on (docs/int8.md), and never below 10, where the noise is a third of the signal: a
# range that is wrong leaves 0 to 5.
_INT8 = {
    "mask_logits": 14.0,  # 29 and 31; single frames 17, where attention-mask bits flip
    "queries": 10.0,  # 21 and 24; single frames 11
    "object_logits": 10.0,  # 25 and 32; single frames 10
    "mask_iou": 10.0,  # as object_logits
    "guidance_mask": 15.0,  # 31 and 32
    "features": 15.0,  # as mask_logits, without flips
    "instance_tokens": 15.0,  # 32 and 31, with CLIP in INT8 too
    "image_embeddings": 15.0,  # as instance_tokens
    "class_scores": 15.0,  # 32 and 31
    "embeddings": 40.0,  # the text graph is never quantised: as FP16's
    "bits": 0.05,  # 1e-3 to 2e-3 of mask_area; single frames 9e-3
    "masks": 0.75,  # 0.91; single frames 0.87
    "video masks": 0.6,  # less than FP16's by as much as masks are
    "video ids": 0.6,
}
GATES |= {"int8": _INT8, "int8-fp32": _INT8}
GIVEN_MASKS: dict[str, dict[str, float]] = {
    "fp16": {
        **GATES["fp16"],
        "mask_logits": 30.0,  # 44 to 58, with weights that leave 8 to 12 end to end
        "queries": 30.0,  # 48 to 57
        "object_logits": 30.0,  # 45 to 59
        "guidance_mask": 30.0,  # as mask_logits
        "bits": 1e-2,  # 2e-3 of pool_mask
    }
}
"""The same where the query decoder is given PyTorch's attention masks: no bit of them can flip."""
# both sides round to the same INT8 steps, but for numbers that lie between two of them: 34 to 79 dB
# by two ways of computing the miniatures' files on a CPU, features 107; FP16 adds its own rounding
_INT8_ENGINES = {
    **GATES["fp16"],
    **dict.fromkeys(("mask_iou", "features", "instance_tokens", "class_scores"), 25.0),
}
ENGINES: dict[str, dict[str, float]] = {
    "fp16": GATES["fp16"],
    "int8": _INT8_ENGINES,
    "int8-fp32": _INT8_ENGINES,
    # an engine's FP32 products have another order, and convolutions by Winograd keep 50 to 60 dB;
    # what a compiler gets wrong leaves 0 to 20
    "fp32": {
        **dict.fromkeys(GATES["fp32"], 40.0),
        **dict.fromkeys(("mask_logits", "queries", "object_logits", "guidance_mask"), 25.0),
        "bits": 1e-2,
    },
}
"""The same for an engine beside ONNX Runtime, which computes the same file."""
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
        given_masks: the query decoder was given PyTorch's attention masks; false end to end.
    """

    graph: str
    precision: str
    output: str
    largest: float
    relative: float
    sqnr: float
    passed: bool
    given_masks: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON types; an infinite ratio is null."""
        return {
            "graph": self.graph,
            "precision": self.precision,
            "output": self.output,
            "largest": self.largest,
            "relative": self.relative,
            "sqnr_db": None if math.isinf(self.sqnr) else self.sqnr,
            "given_masks": self.given_masks,
        }


def difference(
    graph: str,
    precision: str,
    tensor: TensorSpec,
    found: Array,
    wanted: Array,
    pixels: int,
    *,
    given_masks: bool = False,
) -> Difference:
    """One output beside its reference.

    Args:
        graph, precision: what was run; the precision decides the gates.
        tensor: the output.
        found, wanted: its values, of one shape.
        pixels: of the grid that masks are summed over.
        given_masks: as :class:`Difference` has it; it decides the gates, too.
    """
    gates = (GIVEN_MASKS if given_masks else GATES)[precision]
    largest = largest_error(found, wanted)
    share = differing_share(tensor.name, found, wanted, pixels)
    if share is not None:
        if is_mask(wanted):
            largest = share
        passed = share <= gates["bits"]
        told = largest, share, math.inf, passed
        return Difference(graph, precision, tensor.name, *told, given_masks)
    ratio = sqnr(found, wanted)
    relative = largest / max(float(np.abs(wanted.astype(np.float64)).max()), _TINY)
    passed = bool(ratio >= gates[tensor.name])  # false for NaN as well
    told = largest, relative, ratio, passed
    return Difference(graph, precision, tensor.name, *told, given_masks)


def is_mask(value: Array) -> bool:
    """Whether an output is a mask of bits: bool, or packed rows."""
    return value.dtype in (np.bool_, np.uint8)


def mask_pixels(value: Array) -> npt.NDArray[np.bool_]:
    """The pixels of a mask; those of packed rows, uint8 [..., B], are [..., 8 B]."""
    if value.dtype == np.bool_:
        return value.astype(np.bool_, copy=False)
    return np.unpackbits(value.astype(np.uint8, copy=False), axis=-1).astype(np.bool_)


def differing_share(output: str, found: Array, wanted: Array, pixels: int) -> float | None:
    """Share of a mask's bits that differ, 0..1; of a sum over masks, of the pixels it sums over.

    Args:
        output: its name.
        found, wanted: values of one shape.
        pixels: of the grid that masks are summed over.

    Returns:
        None for an output that is neither, and has a signal-to-noise ratio instead.
    """
    if is_mask(wanted):
        return float((mask_pixels(found) != mask_pixels(wanted)).mean())
    if output in ("mask_area", "mask_mass"):  # sums over thresholded pixels
        return _mean_error(found, wanted) / pixels
    return None


def grid_pixels(spec: GraphSpec) -> int:
    """Pixels of the stride-4 grid that a graph sums over; 1 if it gives no mask logits."""
    shapes = {t.name: t.shape for t in spec.outputs}
    *_, height, width = shapes.get("mask_logits", (1, 1))
    return int(height) * int(width)


def sqnr(found: Array, wanted: Array) -> float:
    """Signal-to-noise ratio in dB; infinite where both are the same.

    Minus infinity where ``found`` is infinite, NaN where either holds NaN, or their shapes differ.
    """
    if found.shape != wanted.shape:
        return math.nan
    y = wanted.astype(np.float64)
    signal, noise = float((y**2).sum()), float(((found.astype(np.float64) - y) ** 2).sum())
    if not math.isfinite(noise):
        return -math.inf if math.isinf(noise) else math.nan
    return math.inf if noise == 0 else 10 * math.log10(max(signal, _TINY) / noise)


def largest_error(found: Array, wanted: Array) -> float:
    """Largest absolute difference."""
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())


def mask_ious(found: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]) -> list[float]:
    """IoU of each mask of bool [N, ...], but for those that are empty on both sides."""
    axes = tuple(range(1, found.ndim))
    both, either = (found & wanted).sum(axes), (found | wanted).sum(axes)
    return [float(i / u) for i, u in zip(both, either, strict=True) if u]


def _mean_error(found: Array, wanted: Array) -> float:
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).mean())
