"""From frames to the record of a calibration: what is counted, and what the counting depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.collecting import Histograms, Saved, collect
from openvis_rt.calib.frames import ChosenFrames
from openvis_rt.calib.histograms import Method
from openvis_rt.calib.int8_graphs import seen_tensors, versions
from openvis_rt.calib.ranges import Calibration, GraphRanges, ranges_from
from openvis_rt.calib.tap import TappedGraph
from openvis_rt.calib.windows import CalibrationFrames

__all__ = ["Counted", "count_ranges"]

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Counted:
    """What was counted on frames.

    Attributes:
        calibration: the record, not measured yet.
        facts: everything that the histograms depend on, as JSON types.
        saved: where the histograms are kept until the graphs are added.
    """

    calibration: Calibration
    facts: dict[str, Any]
    saved: Saved


def count_ranges(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    products: Mapping[str, tuple[str, ...]],
    chosen: ChosenFrames,
    frames: CalibrationFrames,
    method: Method,
    *,
    beside: Path,
    threads: int | None,
    progress: Progress,
) -> Counted:
    """Measure the ranges of the activations that some products read and make.

    Args:
        bundle: that is calibrated.
        models: its FP32 graphs that are, by name.
        products: that become INT8, by graph.
        chosen, frames: what is calibrated on.
        method: by which ranges are taken.
        beside: the bundle that is calibrated or made; histograms are saved next to it.
        threads: that compute one graph; None for the library's choice.
        progress: told of windows done and in all.

    Raises:
        InputError, BackendError, OutputError: as for
            :func:`~openvis_rt.calib.collecting.collect`.
    """
    tapped = {
        name: TappedGraph(
            model, bundle.graph(name, "fp32").spec, seen_tensors(model, products[name])
        )
        for name, model in models.items()
    }
    facts = _facts(bundle, tapped, chosen, frames)
    saved = Saved(beside, facts)
    histograms = collect(
        bundle, tapped, chosen.windows, chosen.places, saved, threads=threads, progress=progress
    )
    record = _record(histograms, bundle, method, products, chosen, frames)
    return Counted(record, facts, saved)


def _facts(
    bundle: Bundle,
    tapped: Mapping[str, TappedGraph],
    chosen: ChosenFrames,
    frames: CalibrationFrames,
) -> dict[str, Any]:
    return {
        "graphs": {name: bundle.graph_sha256(name) for name in bundle.graphs},
        "seen": {name: graph.seen for name, graph in tapped.items()},
        "sources": [(s.sha256, s.chosen) for s in chosen.sources],
        "frames": [frames.count, frames.stride, frames.seed, bundle.manifest.window_length],
        "tools": versions(),
    }


def _record(
    histograms: Histograms,
    bundle: Bundle,
    method: Method,
    products: Mapping[str, tuple[str, ...]],
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
