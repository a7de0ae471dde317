"""What `openvis calibrate` says when it is done: tables on stdout, the rest on stderr."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import CONSOLE, Console, print_json
from openvis_rt.records import json_from_record

if TYPE_CHECKING:
    from openvis_rt.calib.calibrate import CalibrationResult
    from openvis_rt.calib.ranges import Calibration
    from openvis_rt.calib.sensitivity_record import BlockCost, Sensitivity

__all__ = ["decibels", "number", "outputs_table", "tell_calibration"]


def tell_calibration(result: CalibrationResult, *, as_json: bool) -> None:
    """Print the result, as JSON or for people."""
    from openvis_rt.calib.sensitivity_record import report_paths

    record, found = result.calibration, result.sensitivity
    report = report_paths(result.bundle)
    files = {p: _files(result.bundle, p) for p in result.precisions}
    if as_json:
        told: dict[str, Any] = {"bundle": result.bundle.path, "files": files}
        told["calibration"] = json_from_record(record)
        told["sensitivity"] = None if found is None else json_from_record(found)
        told["report"] = report
        print_json(told)
        return
    console = Console(highlight=False)
    if found is not None:
        console.print(_blocks_table(found))
        CONSOLE.print(_mix_words(found), markup=False)
        for path in report.values():
            CONSOLE.print(f"  {path}", markup=False)
    if record.measured:
        console.print(outputs_table(record))
    for precision, graphs in files.items():
        sizes = ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in graphs.items())
        CONSOLE.print(f"{precision}: {sizes}", markup=False)
    products = sum(len(graph.products) for graph in record.graphs.values())
    CONSOLE.print(
        f"{products} products in INT8, ranges by {record.method} from {record.frames} windows of "
        f"{len(record.sources)} sources; added to {result.bundle.path}",
        markup=False,
    )


def outputs_table(record: Calibration) -> Table:
    """How close each output is, a column for each precision."""
    table = Table("output", "measured", *record.measured, title_justify="left")
    table.title = (
        f"INT8 beside FP32 on {record.held_out} "
        f"{'frames' if record.window_length == 1 else 'windows'} that were held out "
        "(median, worst)"
    )
    for same in zip(*record.measured.values(), strict=True):
        cells = [f"{number(one.median)}  {number(one.worst)}" for one in same]
        table.add_row(f"{same[0].graph} {same[0].output}", same[0].measure, *cells)
    return table


def _blocks_table(found: Sensitivity) -> Table:
    """What each block costs and saves, the cheapest first."""
    columns = ["block", "products", "share", "MB", "dB", "IoU"]
    with_ap = any(block.ap is not None for block in found.blocks)
    table = Table(*columns, *(["AP"] if with_ap else []), "INT8", title_justify="left")
    table.title = (
        "Each block alone in INT8, cheapest first: share of the multiply-adds, MB of its weights "
        f"in FP32, SQNR and IoU of the masks on {found.windows} windows that were held out"
    )
    table.columns[0].overflow, table.columns[0].min_width = "fold", 28
    for column in table.columns[1:]:
        column.justify = "right"
    one_graph = len({block.graph for block in found.blocks}) == 1
    for block in found.blocks:
        masks = block.of_masks
        cells = [
            block.block if one_graph else block.label,
            str(block.products),
            f"{block.share:.1%}",
            f"{block.weight_bytes / 1e6:.2f}",
            decibels(block),
            "-" if masks is None else number(masks.median),
        ]
        if with_ap:
            cells.append("-" if block.ap is None else f"{block.ap:.2f}")
        table.add_row(*cells, "yes" if block.chosen else "no")
    return table


def _mix_words(found: Sensitivity) -> str:
    """What was picked, and what was measured of the mixes that were tried."""
    chosen = [block for block in found.blocks if block.chosen]
    share = sum(block.share for block in chosen)
    text = f"{len(chosen)} of {len(found.blocks)} blocks are INT8, {share:.0%} of the multiply-adds"
    if found.bound is None:
        return text
    if found.evaluated is not None and found.bound.measure == "max_ap_drop":
        tried = ", ".join(f"{probe.blocks}: {probe.ap:.2f}" for probe in found.probes)
        return (
            f"{text}: at most {found.bound.value:g} points of AP may be lost of FP32's "
            f"{found.evaluated.ap:.2f}; AP by blocks: {tried}"
        )
    tried = ", ".join(f"{probe.blocks}: {number(probe.sqnr)}" for probe in found.probes)
    return f"{text}: mask logits at {found.bound.value:g} dB or more; dB by blocks: {tried}"


def decibels(block: BlockCost) -> str:
    """SQNR of the output that a block is judged by, where it alone is INT8."""
    return f"{-10 * math.log10(block.noise):.1f}" if block.noise else "same"


def _files(bundle: Bundle, precision: str) -> dict[str, int]:
    """The files that this precision alone has, and their bytes."""
    graphs = bundle.manifest.graphs[precision].values()
    own = [graph.file for graph in graphs if graph.precision == precision]
    return {file: bundle.manifest.files[file].bytes for file in own}


def number(value: float | None) -> str:
    """A measure for people; None is an infinite ratio."""
    return "same" if value is None else f"{value:.3g}"
