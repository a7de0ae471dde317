"""The record of what each block costs and saves, and of the mix that was picked by it, as JSON.

``calibration/sensitivity.json`` of a bundle; ``sensitivity.svg`` beside it shows the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.ranges import FOLDER, Measured
from openvis_rt.errors import InputError
from openvis_rt.given_files import json_from_bytes
from openvis_rt.records import json_from_record, record_from_json

__all__ = [
    "PICTURE",
    "REPORT",
    "BlockCost",
    "Bound",
    "EvaluatedOn",
    "Probe",
    "Sensitivity",
    "read_sensitivity",
    "report_paths",
    "saved_report",
]

REPORT, PICTURE = "sensitivity.json", "sensitivity.svg"
_SCHEMA = 1
_LARGEST = 64 << 20  # bytes; those of the largest models have 0.1 MB


@dataclass(frozen=True)
class BlockCost:
    """One block: what it costs when it alone is INT8 and all else is FP32, and what it saves.

    Attributes:
        graph, block: names.
        products: how many it has.
        multiply_adds: of one window, from shapes.
        share: of the multiply-adds of all graphs that are quantised, 0..1.
        weight_bytes: of its weights in FP32; INT8 has a quarter of them, FP16 half.
        noise: of the output that is judged, power of the noise over that of the signal:
            10^(-SQNR / 10), median over the windows. It is ``mask_logits`` where the graph gives
            them, else the worst of the graph's outputs.
        measured: how close each output is to FP32.
        ap: in percent; None where none was measured.
        chosen: whether it is INT8 in the mix.
    """

    graph: str
    block: str
    products: int
    multiply_adds: int
    share: float
    weight_bytes: int
    noise: float
    measured: tuple[Measured, ...]
    ap: float | None
    chosen: bool

    def __post_init__(self) -> None:
        """Refuse numbers that no block has.

        Raises:
            InputError: a count or the noise below 0, or a share outside of 0..1.
        """
        for name in ("products", "multiply_adds", "weight_bytes", "noise"):
            if (found := getattr(self, name)) < 0:
                raise InputError(f"{name} is 0 or more; found {found}")
        if not 0 <= self.share <= 1:
            raise InputError(f"a share of the multiply-adds is from 0 to 1; found {self.share:g}")

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.graph} {self.block}"

    @property
    def noise_per_share(self) -> float:
        """By which blocks are ranked; infinite for one without multiply-adds."""
        return self.noise / self.share if self.share else float("inf")

    @property
    def of_masks(self) -> Measured | None:
        """The overlap of the masks, if the graph gives any."""
        return next((m for m in self.measured if m.measure == "median IoU"), None)


@dataclass(frozen=True)
class Bound:
    """What a mix must hold.

    Attributes:
        measure: ``min_sqnr``: SQNR of mask logits, at least, in dB; ``max_ap_drop``: AP of FP32
            less that of the mix, at most, in points.
        value: of the bound.
    """

    measure: Literal["min_sqnr", "max_ap_drop"]
    value: float


@dataclass(frozen=True)
class EvaluatedOn:
    """The data set that AP is of.

    Attributes:
        annotations: the file, as it was given.
        sha256: of it.
        videos: how many.
        ap: of FP32, in percent.
    """

    annotations: str
    sha256: str
    videos: int
    ap: float


@dataclass(frozen=True)
class Probe:
    """A mix that was tried: the cheapest blocks in INT8 together.

    Attributes:
        blocks: so many of them.
        sqnr: of mask logits in dB, median over the windows, the worst of the precisions; None where
            they are the same as FP32's, or where it was not measured.
        ap: in percent, the worst of the precisions that were evaluated; None without a data set.
        within: whether the mix holds the bound.
    """

    blocks: int
    sqnr: float | None
    ap: float | None
    within: bool


@dataclass(frozen=True)
class Sensitivity:
    """What the blocks cost and save.

    Attributes:
        variant: the model's.
        graphs: SHA-256 of the FP32 files by name.
        method: by which ranges were chosen.
        windows: that were measured on; none of them was calibrated on.
        blocks: cheapest first, by noise for each share of multiply-adds.
        evaluated: the data set; None without one.
        bound: None where all blocks are INT8.
        probes: the mixes that were tried, in that order.
        tools: versions.
        schema: of this JSON.
    """

    variant: str
    graphs: dict[str, str]
    method: str
    windows: int
    blocks: tuple[BlockCost, ...]
    evaluated: EvaluatedOn | None
    bound: Bound | None
    probes: tuple[Probe, ...]
    tools: dict[str, str]
    schema: int = _SCHEMA

    def __post_init__(self) -> None:
        """Refuse what no report has.

        Raises:
            InputError: another schema, or no windows.
        """
        if self.schema != _SCHEMA:
            raise InputError(f"schema {self.schema} is not known here, only {_SCHEMA}")
        if self.windows < 1:
            raise InputError(f"blocks are measured on 1 window or more; found {self.windows}")

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(json_from_record(self), indent=1) + "\n"


def report_paths(bundle: Bundle) -> dict[str, Path]:
    """The report that a bundle holds, and its picture, by their names; empty if it holds none."""
    return {name: bundle.file_path(file) for name, file in _report_files(bundle).items()}


def saved_report(bundle: Bundle) -> dict[str, str]:
    """The texts of :func:`report_paths`; BundleError where a file was changed."""
    return {
        name: bundle.read_file(file, _LARGEST).decode("utf-8", errors="replace")
        for name, file in _report_files(bundle).items()
    }


def read_sensitivity(bundle: Bundle) -> Sensitivity | None:
    """What the blocks of a bundle cost and save; None where that was not measured.

    Raises:
        InputError: the report is damaged, or of another model or other graphs.
        BundleError: it was changed since the bundle was written.
    """
    file = _report_files(bundle).get(REPORT)
    if file is None:
        return None
    path, data = bundle.file_path(file), bundle.read_file(file, _LARGEST)
    try:
        found = record_from_json(Sensitivity, json_from_bytes(data, str(path)))
    except InputError as exc:
        raise InputError(f"{path} is no report ({exc}). Calibrate the bundle anew.") from exc
    own = {name: bundle.graph_sha256(name) for name in bundle.graphs if name in found.graphs}
    of_blocks = {block.graph for block in found.blocks}
    of_blocks |= {one.graph for block in found.blocks for one in block.measured}
    if (found.variant, found.graphs) != (bundle.manifest.variant, own) or of_blocks - own.keys():
        raise InputError(
            f"{path} says what the blocks of {found.variant} cost, with other graphs than those of "
            f"{bundle.manifest.variant} in {bundle.path}. Calibrate the bundle anew."
        )
    return found


def _report_files(bundle: Bundle) -> dict[str, str]:
    files = {name: _latest(bundle.manifest.files, name) for name in (REPORT, PICTURE)}
    return {name: file for name, file in files.items() if file is not None}


def _latest(files: Iterable[str], name: str) -> str | None:
    """The listed file of that name, which may have a number before its suffix."""
    wanted = PurePosixPath(FOLDER) / name
    return max(
        (
            f
            for f in files
            if f.startswith(f"{FOLDER}/{wanted.stem}.") and f.endswith(wanted.suffix)
        ),
        default=None,
    )
