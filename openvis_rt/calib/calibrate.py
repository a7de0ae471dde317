"""Calibrate a bundle: frames to activation ranges to INT8 graphs, measured and added to it.

    sources -> windows -> counted ranges -> blocks, sensitivity, mix -> INT8 graphs -> adding

Each step is a file of this folder, and this one puts them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.adding import add_int8
from openvis_rt.calib.block_choice import BlockChoice, data_set_for
from openvis_rt.calib.block_placement import with_placements
from openvis_rt.calib.blocks import blocks_of, with_blocks
from openvis_rt.calib.histograms import Method
from openvis_rt.calib.int8_graphs import (
    Int8Graph,
    fp32_graph,
    int8_graphs,
    placed_products,
    unquantised,
    versions,
)
from openvis_rt.calib.measuring import Reference, measure
from openvis_rt.calib.mix import chosen_mix
from openvis_rt.calib.ranges import Calibration
from openvis_rt.calib.reading import read_calibration
from openvis_rt.calib.recording import count_ranges
from openvis_rt.calib.refusals import (
    precisions_for,
    refuse_existing,
    refuse_far,
    refuse_unknown,
)
from openvis_rt.calib.saved_results import SavedResults
from openvis_rt.calib.sensitivity import Study
from openvis_rt.calib.sensitivity_chart import svg_from_sensitivity
from openvis_rt.calib.sensitivity_record import (
    PICTURE,
    REPORT,
    Sensitivity,
    read_sensitivity,
    saved_report,
)
from openvis_rt.calib.windows import CalibrationFrames, windows_for
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import QUANTISED

__all__ = ["DEFAULT_METHOD", "CalibrationResult", "calibrate", "rebuild_int8"]

DEFAULT_METHOD: Method = "percentile"

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class CalibrationResult:
    """What was made.

    Attributes:
        bundle: with the INT8 graphs.
        calibration: its record.
        precisions: that were added.
        sensitivity: what each block costs, if that was asked for.
    """

    bundle: Bundle
    calibration: Calibration
    precisions: tuple[str, ...]
    sensitivity: Sensitivity | None = None


def calibrate(
    bundle: Bundle,
    sources: Sequence[str],
    *,
    output: Path | None = None,
    frames: CalibrationFrames | None = None,
    method: Method = DEFAULT_METHOD,
    graphs: Sequence[str] = ("propose",),
    precisions: Sequence[str] = (),
    blocks: BlockChoice | None = None,
    overwrite: bool = False,
    check: bool = True,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
) -> CalibrationResult:
    """Measure activation ranges on frames and add INT8 graphs to a bundle.

    A run that is interrupted goes on where it was when it is started again in the same way.

    Args:
        bundle: with its FP32 graphs; with FP16 graphs it gets both precisions, ``int8`` and
            ``int8-fp32``, else the second one only.
        sources: videos, folders, data sets, streams: :mod:`openvis_rt.calib.sources`.
        output: a new bundle that is made; None to add to this one.
        frames: which frames are taken.
        method: how ranges are chosen; the others are recorded as well.
        graphs: that are quantised. Others serve the INT8 precisions as they are.
        precisions: ``int8`` for TensorRT, ``int8-fp32`` for CPUs; none for both.
        blocks: measure what each block of these graphs costs, and quantise those that the choice
            asks for; the bundle gets the report. None to quantise all and measure no block alone.
        overwrite: replace INT8 graphs that are there, or the bundle at ``output``.
        check: refuse graphs that are farther from FP32 than
            :data:`~openvis_rt.compare.differences.GATES` allows.
        threads: that compute one graph on the CPU; None for the library's choice.
        progress: told what is done.
        warn: told what does not stop the work.

    Raises:
        InputError: a graph, method, frame or data set that cannot be taken; an activation that is
            infinite or NaN.
        VideoError: a source cannot be read to its end.
        BundleError: the bundle has no FP32 graphs.
        OutputError: INT8 graphs, or ``output``, are there already, or cannot be written.
        ParityError: the INT8 graphs are too far from FP32, or no block holds the bound; nothing
            was added.
        DependencyError: ONNX Runtime is not installed.
    """
    frames = frames or CalibrationFrames()
    precisions = precisions_for(bundle, warn, precisions)
    refuse_unknown(bundle, graphs)
    refuse_existing(bundle, output, overwrite=overwrite)
    data = None if blocks is None else data_set_for(bundle, blocks, graphs, sources, warn)
    models = {name: fp32_graph(bundle, name) for name in graphs}
    products = {name: placed_products(model, name) for name, model in models.items()}
    every_block = blocks_of(models, products, bundle.manifest.window_length)
    chosen = windows_for(bundle, sources, frames, shrink="embed" not in graphs, progress=progress)
    for text in chosen.warnings:
        warn(text)
    beside = output or bundle.path
    counted = count_ranges(
        *(bundle, models, products, chosen, frames, method),
        beside=beside,
        threads=threads,
        progress=progress,
    )
    calibration = counted.calibration
    _warn_of_zeros(calibration, warn)
    reference = Reference(
        bundle, tuple(graphs), chosen.held_out, threads=threads, progress=progress
    )
    found, results = None, _saved_results(beside, counted.facts, calibration)
    if blocks is not None:
        study = Study(
            *(bundle, calibration, precisions, reference, data, results, threads, progress, warn)
        )
        mix, found = chosen_mix(study, every_block, blocks)
        calibration = with_blocks(calibration, mix)
    calibration, made = _made(bundle, calibration, precisions, progress)
    calibration = replace(calibration, measured=measure(reference, made))
    if check:
        refuse_far(calibration)
    added = add_int8(bundle, output, calibration, made, _report(found), overwrite=overwrite)
    counted.saved.clear()
    results.clear()
    return CalibrationResult(added, calibration, tuple(made), found)


def rebuild_int8(
    bundle: Bundle,
    *,
    output: Path | None = None,
    method: Method | None = None,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
) -> CalibrationResult:
    """Make the INT8 graphs of a bundle again from its recorded ranges, without any frame.

    It gets the INT8 precisions that it has; one that has only the record gets all that it can have.

    Args:
        bundle: with a calibration.
        output, overwrite, progress, warn: as for :func:`calibrate`.
        method: another one than before; None for the recorded one. The same blocks become INT8.
            What was measured is kept only with the same method, since it cannot be measured
            without frames.

    Raises:
        InputError: the bundle has no calibration, or one of other graphs.
        OutputError: as for :func:`calibrate`.
    """
    calibration = read_calibration(bundle)
    held = [precision for precision in QUANTISED if precision in bundle.manifest.graphs]
    precisions = precisions_for(bundle, warn, held)
    refuse_existing(bundle, output, overwrite=overwrite)
    read_sensitivity(bundle)  # a damaged one is not passed on
    texts = saved_report(bundle)
    if method is not None and method != calibration.method:
        calibration = replace(calibration, method=method, measured={}, tools=versions())
        texts = {}
        warn(
            f"INT8 graphs by {method} were not measured, which needs frames; `openvis eval` and "
            "`openvis verify` say how good they are"
        )
    calibration, made = _made(bundle, calibration, precisions, progress)
    added = add_int8(bundle, output, calibration, made, texts, overwrite=overwrite)
    return CalibrationResult(added, calibration, tuple(made))


def _made(
    bundle: Bundle, calibration: Calibration, precisions: Sequence[str], progress: Progress
) -> tuple[Calibration, dict[str, list[Int8Graph]]]:
    """The graphs by precision, and the record with what became of each block in them."""
    progress("writing INT8 graphs", 0, None)
    made: dict[str, list[Int8Graph]] = {precision: [] for precision in precisions}
    for precision, graph in int8_graphs(bundle, calibration, precisions):
        made[precision].append(graph)
    return with_placements(calibration, bundle, made), made


def _warn_of_zeros(calibration: Calibration, warn: Warn) -> None:
    for name, tensors in unquantised(calibration).items():
        warn(
            f"{len(tensors)} tensors of {name}, such as {tensors[0]!r}, are 0 everywhere on these "
            "frames; the products beside them are not quantised"
        )


def _saved_results(beside: Path, facts: object, calibration: Calibration) -> SavedResults:
    """For what is measured of blocks and mixes: it depends on the ranges as well."""
    ranges = {name: json_from_record(graph) for name, graph in calibration.graphs.items()}
    return SavedResults(beside, [facts, calibration.method, ranges])


def _report(found: Sensitivity | None) -> dict[str, str]:
    """The files below ``calibration/`` that say what the blocks cost."""
    if found is None:
        return {}
    return {REPORT: found.to_json(), PICTURE: svg_from_sensitivity(found)}
