"""Reading the record of a calibration from a bundle, which it has to be of."""

from __future__ import annotations

from collections.abc import Iterable

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.ranges import RECORD, Calibration
from openvis_rt.errors import InputError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.records import record_from_json
from openvis_rt.systems.graphs import QUANTISED

__all__ = ["calibration_file", "read_calibration", "refuse_foreign"]

_LARGEST = 256 << 20  # bytes; those of the largest models have 2 MB


def calibration_file(names: Iterable[str]) -> str | None:
    """Of a bundle's files the one that holds its calibration; None if there is none."""
    stem, suffix = RECORD.rsplit(".", 1)
    found = [n for n in names if n.startswith(f"{stem}.") and n.endswith(f".{suffix}")]
    return max(found, default=None)


def read_calibration(bundle: Bundle) -> Calibration:
    """The calibration that a bundle holds.

    Raises:
        InputError: it holds none, a damaged one, or one of other graphs or another checkpoint.
    """
    name = calibration_file(bundle.manifest.files)
    if name is None:
        raise InputError(
            f"{bundle.path} has no recorded calibration; `openvis calibrate` with videos makes one"
        )
    path = bundle.path / name
    try:
        data = bundle.read_file(name, _LARGEST)
        found = record_from_json(Calibration, json_from_bytes(data, str(path)))
    except InputError as exc:
        raise InputError(f"{path} is no calibration ({exc}). Calibrate the bundle anew.") from exc
    refuse_foreign(found, bundle)
    return found


def refuse_foreign(calibration: Calibration, bundle: Bundle) -> None:
    """Refuse a calibration that was not made of a bundle's own graphs.

    Raises:
        InputError: another model, checkpoint or graph; the message says which.
    """
    manifest = bundle.manifest
    mend = "Ranges hold for the weights that they were measured with: calibrate this bundle itself."
    for what, theirs, ours in (
        ("the model", calibration.variant, manifest.variant),
        ("the checkpoint", calibration.checkpoint, manifest.checkpoint),
    ):
        if theirs != ours:
            raise InputError(
                f"the calibration is of {what} {theirs}, and {bundle.path} has {ours}. {mend}"
            )
    _refuse_others_facts(calibration, bundle)
    for name, graph in calibration.graphs.items():
        ours = bundle.graph_sha256(name) if name in bundle.graphs else "no such graph"
        if graph.sha256 != ours:
            raise InputError(
                f"the calibration is of another graph {name!r}: its FP32 file had sha256 "
                f"{graph.sha256[:16]}, and that of {bundle.path} is {ours[:16]}. {mend}"
            )


def _refuse_others_facts(calibration: Calibration, bundle: Bundle) -> None:
    """Refuse what is said of windows, precisions and outputs that the bundle does not have."""
    length = bundle.manifest.window_length
    found = []
    if calibration.window_length != length:
        found.append(
            f"windows of {calibration.window_length} frames, where the bundle's have {length}"
        )
    held = [precision for precision in QUANTISED if precision in bundle.manifest.graphs]
    for name, graph in calibration.graphs.items():
        for block in graph.blocks:
            if lacking := sorted(set(held) - block.left.keys()):
                found.append(f"nothing of {lacking[0]} in block {block.name!r} of {name!r}")
    outputs = {
        (name, tensor.name)
        for name in calibration.graphs.keys() & set(bundle.graphs)
        for tensor in bundle.graph(name, "fp32").spec.outputs
    }
    for precision, every in calibration.measured.items():
        if others := [one for one in every if (one.graph, one.output) not in outputs]:
            found.append(f"{others[0].graph} {others[0].output!r}, measured in {precision}")
    if found:
        raise InputError(
            f"the calibration in {bundle.path} does not fit its graphs: it has {found[0]}. "
            "Calibrate the bundle anew."
        )
