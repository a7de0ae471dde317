"""What `openvis inspect` says of INT8: which blocks, from which frames, how close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.calibration_tables import decibels, outputs_table
from openvis_rt.cli.ui import Console, say
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import QUANTISED

if TYPE_CHECKING:
    from openvis_rt.calib.ranges import BlockPlacement, Calibration
    from openvis_rt.calib.sensitivity_record import Sensitivity

__all__ = ["calibration_of", "int8_facts", "json_from_calibration", "print_calibration"]

_SOURCES = 5  # that are listed
_NEVER = ("query decoder", "no pixels")  # reasons to leave products that no option changes


def calibration_of(bundle: Bundle) -> Calibration | None:
    """The record that the INT8 graphs were made by; None where the bundle has none.

    Raises:
        InputError: it is damaged, or of other graphs.
    """
    from openvis_rt.calib.reading import calibration_file, read_calibration

    return None if calibration_file(bundle.manifest.files) is None else read_calibration(bundle)


def json_from_calibration(bundle: Bundle, calibration: Calibration | None) -> dict[str, Any] | None:
    """The record without its ranges, and what each block costs if that was measured."""
    if calibration is None:
        return None
    from openvis_rt.calib.sensitivity_record import read_sensitivity

    told = json_from_record(calibration)
    for graph in told["graphs"].values():
        del graph["tensors"]
    found = read_sensitivity(bundle)
    return {**told, "sensitivity": None if found is None else json_from_record(found)}


def print_calibration(bundle: Bundle, calibration: Calibration) -> None:
    """Tables for people: frames, blocks of each graph, how close the outputs are."""
    from openvis_rt.calib.sensitivity_record import read_sensitivity

    found = read_sensitivity(bundle)
    precisions = [name for name in bundle.manifest.graphs if name in QUANTISED]
    console = Console(highlight=False, markup=False)
    _say_frames(calibration)
    for name, graph in calibration.graphs.items():
        console.print(_blocks_table(name, graph.blocks, precisions, found))
    if others := [name for name in bundle.graphs if name not in calibration.graphs]:
        say(f"not quantised, the same files as without INT8: {', '.join(others)}")
    if found is None:
        say("what each block costs was not measured; `openvis calibrate --sensitivity` does")
    if calibration.measured:
        console.print(outputs_table(calibration))
    else:
        say(f"the graphs by {calibration.method} were not measured beside FP32")


def int8_facts(bundle: Bundle, graph: str, precision: str) -> dict[str, Any]:
    """What an INT8 graph has, and from what; nothing of one without INT8, or without a record."""
    record = calibration_of(bundle) if precision in QUANTISED else None
    if record is None or graph not in record.graphs:
        return {}
    blocks = record.graphs[graph].blocks
    return {
        "ranges by": f"{record.method}, of {record.frames} windows",
        "products in INT8": f"{sum(b.quantised(precision) for b in blocks)} of "
        f"{sum(b.products for b in blocks)}",
        "blocks": {b.name: f"{b.quantised(precision)} of {b.products}" for b in blocks},
    }


def _say_frames(calibration: Calibration) -> None:
    length = calibration.window_length
    windows = "frames" if length == 1 else f"windows of {length} frames"
    say(
        f"INT8: ranges by {calibration.method} from {calibration.frames} {windows}, measured on "
        f"{calibration.held_out} others; together"
    )
    for source in calibration.sources[:_SOURCES]:
        say(f"  {source.chosen} of {source.name}, which has {source.frames} frames")
    if more := calibration.sources[_SOURCES:]:
        say(f"  {sum(s.chosen for s in more)} of {len(more)} other sources; --json lists them")


def _blocks_table(
    graph: str,
    blocks: Sequence[BlockPlacement],
    precisions: Sequence[str],
    found: Sensitivity | None,
) -> Table:
    """Blocks in the file's order, how many of their products are INT8, and why the others are not.

    Blocks that no frame's pixels reach, or that the query decoder has, are one row.
    """
    costs = () if found is None else found.blocks
    alone = {cost.block: decibels(cost) for cost in costs if cost.graph == graph}
    headers = [precision.replace("-", "-\n") for precision in precisions]
    table = Table("block", "share", *headers, title_justify="left")
    table.title = f"{graph}: products in INT8/all, and the block's share of the multiply-adds"
    if alone:
        table.title += "; SQNR of this block alone"
        table.add_column("dB")
    table.add_column("why the others are not")
    table.columns[0].overflow, table.columns[0].min_width = "fold", 22
    for column in table.columns[1:-1]:
        column.justify, column.no_wrap = "right", True
    shown = [block for block in blocks if _could_be_int8(block, precisions)]
    for block in [*shown, *_together(blocks, shown, precisions)]:
        counts = [f"{block.quantised(p)}/{block.products}" for p in precisions]
        cells = [block.name, f"{block.share:.1%}", *counts]
        cells += [alone.get(block.name, "")] if alone else []
        table.add_row(*cells, _reasons(block, precisions))
    return table


def _could_be_int8(block: BlockPlacement, precisions: Sequence[str]) -> bool:
    never = sum(block.left[precisions[0]].get(reason, 0) for reason in _NEVER)
    return never < block.products


def _together(
    blocks: Sequence[BlockPlacement], shown: Sequence[BlockPlacement], precisions: Sequence[str]
) -> list[BlockPlacement]:
    """One row for the blocks that are not shown; none if there are none."""
    others = [block for block in blocks if block not in shown]
    if not others:
        return []
    left = {p: dict(sum((Counter(b.left[p]) for b in others), Counter())) for p in precisions}
    products, share = sum(b.products for b in others), sum(b.share for b in others)
    name = f"{len(others)} others"
    return [replace(others[0], name=name, products=products, share=share, left=left)]


def _reasons(block: BlockPlacement, precisions: Sequence[str]) -> str:
    """Why products stay as they are, and how many for each reason."""
    told = [
        ", ".join(f"{reason} ({count})" for reason, count in block.left[precision].items())
        for precision in precisions
    ]
    if len(set(told)) == 1:
        return told[0]
    return "; ".join(f"{p}: {text}" for p, text in zip(precisions, told, strict=True) if text)
