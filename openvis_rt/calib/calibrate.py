"""Calibrate a bundle: frames to activation ranges to INT8 graphs, measured and added to it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import MANIFEST, Bundle
from openvis_rt.bundle.growing import Change
from openvis_rt.calib.collecting import Histograms, Saved, collect
from openvis_rt.calib.frames import ChosenFrames, choose_frames
from openvis_rt.calib.histograms import Method
from openvis_rt.calib.int8_graphs import (
    Int8Graph,
    fp32_graph,
    int8_graphs,
    placed_products,
    seen_tensors,
    unquantised,
    versions,
)
from openvis_rt.calib.measuring import beyond_gates, measure
from openvis_rt.calib.ranges import (
    FOLDER,
    RECORD,
    Calibration,
    GraphRanges,
    Measured,
    calibration_file,
    ranges_from,
    read_calibration,
)
from openvis_rt.calib.tap import TappedGraph
from openvis_rt.errors import InputError, OutputError, ParityError
from openvis_rt.files import output_directory
from openvis_rt.runtime.preprocessing import letterbox_for, place_frame
from openvis_rt.systems.graphs import INT8, INT8_FP32

__all__ = [
    "DEFAULT_FRAMES",
    "DEFAULT_METHOD",
    "CalibrationFrames",
    "CalibrationResult",
    "calibrate",
    "rebuild_int8",
]

DEFAULT_FRAMES = 128
DEFAULT_METHOD: Method = "mse"
_HELD_OUT = 8  # one window in so many is measured on, but at least
_LEAST_HELD_OUT = 4

Image8 = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class CalibrationResult:
    """What was made.

    Attributes:
        bundle: with the INT8 graphs.
        calibration: its record.
        precisions: that were added.
    """

    bundle: Bundle
    calibration: Calibration
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class CalibrationFrames:
    """Which frames are taken: arguments of :func:`~openvis_rt.calib.frames.choose_frames`."""

    count: int = DEFAULT_FRAMES
    stride: int = 5
    seed: int = 0
    allow_few: bool = False


def calibrate(
    bundle: Bundle,
    sources: Sequence[str],
    *,
    output: Path | None = None,
    frames: CalibrationFrames | None = None,
    method: Method = DEFAULT_METHOD,
    graphs: Sequence[str] = ("propose",),
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
        overwrite: replace INT8 graphs that are there, or the bundle at ``output``.
        check: refuse graphs that are farther from FP32 than
            :data:`~openvis_rt.compare.differences.GATES` allows.
        threads: that compute one graph on the CPU; None for the library's choice.
        progress: told what is done.
        warn: told what does not stop the work.

    Raises:
        InputError: a graph, method or frame that cannot be taken; an activation that is infinite or
            NaN.
        VideoError: a source cannot be read to its end.
        BundleError: the bundle has no FP32 graphs.
        OutputError: INT8 graphs, or ``output``, are there already, or cannot be written.
        ParityError: the INT8 graphs are too far from FP32; nothing was added.
        DependencyError: ONNX Runtime is not installed.
    """
    frames = frames or CalibrationFrames()
    precisions = _precisions(bundle, warn)
    _check(bundle, graphs)
    _refuse_existing(bundle, output, overwrite=overwrite)
    models = {name: fp32_graph(bundle, name) for name in graphs}
    products = {name: placed_products(model, name) for name, model in models.items()}
    chosen = _chosen(bundle, sources, frames, shrink="embed" not in graphs, progress=progress)
    for text in chosen.warnings:
        warn(text)
    tapped = {
        name: TappedGraph(
            model, bundle.graph(name, "fp32").spec, seen_tensors(model, products[name])
        )
        for name, model in models.items()
    }
    saved = Saved(output or bundle.path, _facts(bundle, tapped, chosen, frames))
    histograms = collect(
        bundle, tapped, chosen.windows, chosen.places, saved, threads=threads, progress=progress
    )
    calibration = _record(bundle, method, products, histograms, chosen, frames)
    for name, tensors in unquantised(calibration).items():
        warn(
            f"{len(tensors)} tensors of {name}, such as {tensors[0]!r}, are 0 everywhere on these "
            "frames; the products beside them are not quantised"
        )
    made = _made(bundle, calibration, precisions, progress)
    measured = measure(bundle, made, chosen.held_out, threads=threads, progress=progress)
    calibration = replace(calibration, measured=measured)
    if check:
        _refuse_far(calibration)
    result = _added(bundle, output, calibration, made, overwrite=overwrite)
    saved.clear()
    return result


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

    Args:
        bundle: with a calibration.
        output, overwrite, progress, warn: as for :func:`calibrate`.
        method: another one than before; None for the recorded one. What was measured is kept only
            with the same method, since it cannot be measured without frames.

    Raises:
        InputError: the bundle has no calibration, or one of other graphs.
        OutputError: as for :func:`calibrate`.
    """
    calibration = read_calibration(bundle)
    precisions = _precisions(bundle, warn)
    _refuse_existing(bundle, output, overwrite=overwrite)
    if method is not None and method != calibration.method:
        calibration = replace(calibration, method=method, measured={}, tools=versions())
        warn(
            f"INT8 graphs by {method} were not measured, which needs frames; `openvis eval` and "
            "`openvis verify` say how good they are"
        )
    made = _made(bundle, calibration, precisions, progress)
    return _added(bundle, output, calibration, made, overwrite=overwrite)


def _precisions(bundle: Bundle, warn: Warn) -> tuple[str, ...]:
    """Those that the bundle can have."""
    if "fp16" in bundle.manifest.graphs:
        return INT8_FP32, INT8
    warn(
        f"{bundle.path} has no FP16 graphs, so it gets {INT8_FP32} only, for ONNX Runtime on a "
        f"CPU. TensorRT wants {INT8}: export with --precision fp32,fp16"
    )
    return (INT8_FP32,)


def _check(bundle: Bundle, graphs: Sequence[str]) -> None:
    if unknown := [name for name in graphs if name not in bundle.graphs]:
        raise InputError(
            f"{bundle.path} has no graph {unknown[0]!r} to quantise; it has "
            f"{', '.join(bundle.graphs)}"
        )
    if not graphs:
        raise InputError("name at least one graph to quantise, such as propose")


def _refuse_existing(bundle: Bundle, output: Path | None, *, overwrite: bool) -> None:
    """Before hours of work, not after them."""
    place = bundle.path if output is None else output
    held = [p for p in (INT8, INT8_FP32) if p in bundle.manifest.graphs] if output is None else []
    if output is not None and output.exists() and output.samefile(bundle.path):
        raise InputError(f"{output} is the bundle itself; to add to it, give --into and no output")
    exists = bool(held) or (output is not None and output.exists())
    if exists and not overwrite:
        what = f"has {' and '.join(held)} graphs already" if held else "exists already"
        raise OutputError(f"{place} {what}. Give another place, or --overwrite to replace them.")


def _chosen(
    bundle: Bundle,
    sources: Sequence[str],
    frames: CalibrationFrames,
    *,
    shrink: bool,
    progress: Progress,
) -> ChosenFrames:
    rule, length = bundle.manifest.preprocess, bundle.manifest.window_length
    windows = -(-frames.count // length)

    def shrunk(image: Image8) -> Image8:
        """The frame as large as the network sees it, as the runtime makes it."""
        letterbox = letterbox_for(image.shape[0], image.shape[1], rule)
        out = np.empty((*letterbox.picture, 3), np.uint8)
        place_frame(image, letterbox, out, rule.pixel_mean)
        return out

    return choose_frames(
        sources,
        frames.count,
        held_out=max(_LEAST_HELD_OUT, windows // _HELD_OUT),
        stride=frames.stride,
        window_length=length,
        seed=frames.seed,
        allow_few=frames.allow_few,
        keep=shrunk if shrink else lambda image: image,
        progress=progress,
    )


def _facts(
    bundle: Bundle, tapped: dict[str, TappedGraph], chosen: ChosenFrames, frames: CalibrationFrames
) -> object:
    """Everything that the histograms depend on."""
    return {
        "graphs": {name: bundle.graph_sha256(name) for name in bundle.graphs},
        "seen": {name: graph.seen for name, graph in tapped.items()},
        "sources": [(s.sha256, s.chosen) for s in chosen.sources],
        "frames": [frames.count, frames.stride, frames.seed, bundle.manifest.window_length],
        "tools": versions(),
    }


def _record(
    bundle: Bundle,
    method: Method,
    products: dict[str, tuple[str, ...]],
    histograms: Histograms,
    chosen: ChosenFrames,
    frames: CalibrationFrames,
) -> Calibration:
    return Calibration(
        variant=bundle.manifest.variant,
        checkpoint=bundle.manifest.checkpoint,
        method=method,
        graphs={
            name: GraphRanges(bundle.graph_sha256(name), products[name], ranges_from(tensors))
            for name, tensors in histograms.items()
        },
        sources=chosen.sources,
        frames=len(chosen.windows),
        held_out=len(chosen.held_out),
        window_length=bundle.manifest.window_length,
        stride=frames.stride,
        seed=frames.seed,
        measured={},
        tools=versions(),
    )


def _made(
    bundle: Bundle, calibration: Calibration, precisions: Sequence[str], progress: Progress
) -> dict[str, list[Int8Graph]]:
    progress("writing INT8 graphs", 0, None)
    made: dict[str, list[Int8Graph]] = {precision: [] for precision in precisions}
    for precision, graph in int8_graphs(bundle, calibration, precisions):
        made[precision].append(graph)
    return made


def _refuse_far(calibration: Calibration) -> None:
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


def _added(
    bundle: Bundle,
    output: Path | None,
    calibration: Calibration,
    made: dict[str, list[Int8Graph]],
    *,
    overwrite: bool,
) -> CalibrationResult:
    """Write everything into the bundle, or into a copy of it, as a whole."""
    place = bundle.path if output is None else output
    with _target(bundle, output, overwrite=overwrite) as target, target.adding() as change:
        _change(change, calibration, made)
    opened = Bundle.open(place, verify=False)
    return CalibrationResult(opened, calibration, tuple(made))


@contextlib.contextmanager
def _target(bundle: Bundle, output: Path | None, *, overwrite: bool) -> Iterator[Bundle]:
    """The bundle itself, or a copy of its listed files, which gets its name at the end."""
    if output is None:
        yield bundle
        return

    def ours(folder: Path) -> bool:
        return (folder / MANIFEST).is_file()

    with output_directory(output, overwrite=overwrite, ours=ours) as folder:
        copy = folder / "copy"  # the folder itself is locked, and so is a bundle that grows
        for name in (MANIFEST, *bundle.manifest.files):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, copy / name)
        yield Bundle.open(copy, verify=False)
        for path in copy.iterdir():
            path.rename(folder / path.name)
        copy.rmdir()


def _change(change: Change, calibration: Calibration, made: dict[str, list[Int8Graph]]) -> None:
    import onnx

    held = change.manifest
    for precision, graphs in made.items():
        own = {}
        for graph in graphs:
            name = change.unused_name(graph.file.file)
            onnx.save(graph.model, str(change.new_file(name)))
            own[graph.graph] = replace(graph.file, file=name)
        base = held.graphs["fp16" if precision == INT8 else "fp32"]
        change.set_precision(precision, {**base, **own})
    if calibration_file(held.files) is not None:
        change.drop(FOLDER)
    calibration.write(change.new_file(change.unused_name(RECORD)))
