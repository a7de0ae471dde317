"""One thing that was compared: what was measured, how far it may be, and whether it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.compare.differences import (
    GATES,
    differing_share,
    is_mask,
    largest_error,
    mask_ious,
    sqnr,
)
from openvis_rt.errors import BundleError

__all__ = [
    "AS_BUILT_NAME",
    "Check",
    "Measure",
    "check_equal",
    "check_masks",
    "check_output",
    "gates_of",
]

AS_BUILT_NAME = "onnxruntime on the graphs as built"
"""How the contender is called that runs the graphs as TensorRT compiles them."""

Array = npt.NDArray[np.generic]
Measure = Literal[
    "SQNR dB", "bits that differ", "median IoU", "ids that agree", "values that differ"
]
_AT_MOST = ("bits that differ", "values that differ")


@dataclass(frozen=True)
class Check:
    """A comparison with the reference.

    Attributes:
        contender: what was tried, such as ``onnxruntime (cpu, fp16)``.
        stage: the graph, or the part of the host.
        point: sizes of the dynamic axes, such as ``T=3``; empty where there are none.
        output: what was compared.
        measure, value: what was found. Infinite SQNR is equality.
        gate: the least value that passes; the most, of what counts differences.
        largest: largest absolute difference; NaN where it means nothing.
        ious: of masks the IoU of each one that is not empty on both sides.
        note: what else should be known.
    """

    contender: str
    stage: str
    point: str
    output: str
    measure: Measure
    value: float
    gate: float
    largest: float = math.nan
    ious: tuple[float, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within its gate; NaN never is."""
        if self.measure in _AT_MOST:
            return self.value <= self.gate
        return self.value >= self.gate

    @property
    def margin(self) -> float:
        """How far inside the gate, in the measure's unit; negative outside."""
        sign = -1 if self.measure in _AT_MOST else 1
        return -math.inf if math.isnan(self.value) else sign * (self.value - self.gate)

    def to_json(self) -> dict[str, Any]:
        """As JSON types; what is not finite is null."""
        return {
            "contender": self.contender,
            "stage": self.stage,
            "point": self.point,
            "output": self.output,
            "measure": self.measure,
            "value": _finite(self.value),
            "gate": self.gate,
            "passed": self.passed,
            "largest": _finite(self.largest),
            "ious": _distribution(self.ious),
            "note": self.note,
        }


def gates_of(bundle: Bundle, precision: str) -> dict[str, float]:
    """The gates of a precision: the general ones, and the bundle's own where they are closer.

    Only the gates of the video may be wider, since with some weights rounding decides the tracks.

    Raises:
        BundleError: the bundle has a gate of an unknown name.
    """
    general = GATES.get(precision, GATES["fp16"])
    own = bundle.manifest.gates.get(precision, {})
    if unknown := sorted(own.keys() - general.keys()):
        raise BundleError(
            f"{bundle.path} has a gate {unknown[0]!r}; this version knows {', '.join(general)}"
        )
    gates = {**general, **own}
    for name, gate in general.items():
        if not name.startswith("video"):
            gates[name] = (min if name == "bits" else max)(gates[name], gate)
    return gates


def check_output(
    contender: str,
    stage: str,
    point: str,
    output: str,
    found: Array,
    wanted: Array,
    gates: Mapping[str, float],
    pixels: int,
) -> Check:
    """An output beside the reference's.

    Args:
        contender, stage, point, output: names.
        found, wanted: values of one shape.
        gates: by output, and ``bits``.
        pixels: of the grid that masks are summed over.
    """
    names = contender, stage, point, output
    largest = math.nan if is_mask(wanted) else largest_error(found, wanted)
    share = differing_share(output, found, wanted, pixels)
    if share is not None:
        return Check(*names, "bits that differ", share, gates["bits"], largest)
    return Check(*names, "SQNR dB", sqnr(found, wanted), gates[output], largest)


def check_masks(
    contender: str,
    stage: str,
    point: str,
    found: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_],
    gates: Mapping[str, float],
) -> Check:
    """Masks, bool [n, ...], beside the reference's: the median of their IoU."""
    ious = mask_ious(found, wanted)
    median = float(np.median(ious)) if ious else 1.0
    names = contender, stage, point, "masks"
    return Check(*names, "median IoU", median, gates["masks"], ious=tuple(ious))


def check_equal(stage: str, output: str, found: object, wanted: object, note: str = "") -> Check:
    """Something of the host that must be the same: arrays by value, other things by ``==``."""
    if isinstance(found, np.ndarray) and isinstance(wanted, np.ndarray):
        same = found.shape == wanted.shape
        differing = float((found != wanted).sum()) if same else float(max(found.size, wanted.size))
    else:
        differing = float(found != wanted)
    return Check("host", stage, "", output, "values that differ", differing, 0.0, note=note)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distribution(ious: tuple[float, ...]) -> dict[str, float] | None:
    if not ious:
        return None
    shares = {"min": 0, "p5": 5, "median": 50, "mean": None, "max": 100}
    return {
        name: float(np.mean(ious) if q is None else np.percentile(ious, q))
        for name, q in shares.items()
    } | {"masks": float(len(ious))}
