"""What a bundle can be calibrated to, and what is refused before the work and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.measuring import beyond_gates
from openvis_rt.calib.ranges import Calibration, Measured
from openvis_rt.errors import InputError, OutputError, ParityError
from openvis_rt.systems.graphs import INT8, INT8_FP32, QUANTISED

__all__ = ["precisions_for", "refuse_existing", "refuse_far", "refuse_unknown"]


def precisions_for(
    bundle: Bundle, warn: Callable[[str], None], wanted: Sequence[str] = ()
) -> tuple[str, ...]:
    """The INT8 precisions that are made.

    Args:
        bundle: has FP16 graphs, or gets no ``int8``.
        warn: told that it gets none.
        wanted: of the two; none for all that the bundle can have.

    Raises:
        InputError: there is no such precision, or the bundle cannot have it.
    """
    if unknown := [name for name in wanted if name not in QUANTISED]:
        raise InputError(
            f"a calibration makes {' and '.join(QUANTISED)}; there is no {unknown[0]!r} among them"
        )
    if "fp16" in bundle.manifest.graphs:
        return tuple(name for name in (INT8_FP32, INT8) if not wanted or name in wanted)
    if INT8 in wanted:
        raise InputError(
            f"{INT8} has FP16 beside INT8, and {bundle.path} has no FP16 graphs: export with "
            f"--precision fp32,fp16, or ask for {INT8_FP32}"
        )
    if wanted:
        return (INT8_FP32,)
    warn(
        f"{bundle.path} has no FP16 graphs, so it gets {INT8_FP32} only, for ONNX Runtime on a "
        f"CPU. TensorRT wants {INT8}: export with --precision fp32,fp16"
    )
    return (INT8_FP32,)


def refuse_unknown(bundle: Bundle, graphs: Sequence[str]) -> None:
    """Refuse graphs that the bundle has not, and a choice of none.

    Raises:
        InputError: the message says which graphs there are.
    """
    if unknown := [name for name in graphs if name not in bundle.graphs]:
        raise InputError(
            f"{bundle.path} has no graph {unknown[0]!r} to quantise; it has "
            f"{', '.join(bundle.graphs)}"
        )
    if not graphs:
        raise InputError("name at least one graph to quantise, such as propose")


def refuse_existing(bundle: Bundle, output: Path | None, *, overwrite: bool) -> None:
    """Refuse what is there already before hours of work, not after them.

    Raises:
        InputError: ``output`` is the bundle itself.
        OutputError: there is an output, or a bundle with INT8 graphs, and it may not be replaced.
    """
    place = bundle.path if output is None else output
    held = [p for p in (INT8, INT8_FP32) if p in bundle.manifest.graphs] if output is None else []
    if output is not None and output.exists() and output.samefile(bundle.path):
        raise InputError(f"{output} is the bundle itself; to add to it, give --into and no output")
    exists = bool(held) or (output is not None and output.exists())
    if exists and not overwrite:
        what = f"has {' and '.join(held)} graphs already" if held else "exists already"
        raise OutputError(f"{place} {what}. Give another place, or --overwrite to replace them.")


def refuse_far(calibration: Calibration) -> None:
    """Refuse INT8 graphs that are farther from FP32 than their gates allow.

    Raises:
        ParityError: the message has the figures of the first output that is too far.
    """
    far = beyond_gates(calibration.measured)
    if not far:
        return
    precision, one, gate = far[0]
    raise ParityError(
        f"{precision} is too far from FP32 on {calibration.held_out} frames that were not "
        f"calibrated on: {one.output} of {one.graph} has {one.measure} {_number(one)}, the gate is "
        f"{gate:g} ({len(far)} such outputs). Nothing was added. Calibrate on more frames, and on "
        "such as the model will see; or try another --method."
    )


def _number(one: Measured) -> str:
    return "infinite" if one.median is None else f"{one.median:.3g}"
