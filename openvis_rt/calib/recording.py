"""From counted histograms to the record of a calibration, and what the counting depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.collecting import Histograms
from openvis_rt.calib.frames import ChosenFrames
from openvis_rt.calib.histograms import Method
from openvis_rt.calib.int8_graphs import versions
from openvis_rt.calib.ranges import Calibration, GraphRanges, ranges_from
from openvis_rt.calib.tap import TappedGraph
from openvis_rt.calib.windows import CalibrationFrames

__all__ = ["facts_of", "record_from"]


def facts_of(
    bundle: Bundle,
    tapped: Mapping[str, TappedGraph],
    chosen: ChosenFrames,
    frames: CalibrationFrames,
) -> dict[str, Any]:
    """Everything that the histograms depend on, as JSON types."""
    return {
        "graphs": {name: bundle.graph_sha256(name) for name in bundle.graphs},
        "seen": {name: graph.seen for name, graph in tapped.items()},
        "sources": [(s.sha256, s.chosen) for s in chosen.sources],
        "frames": [frames.count, frames.stride, frames.seed, bundle.manifest.window_length],
        "tools": versions(),
    }


def record_from(
    histograms: Histograms,
    bundle: Bundle,
    method: Method,
    products: Mapping[str, tuple[str, ...]],
    chosen: ChosenFrames,
    frames: CalibrationFrames,
) -> Calibration:
    """The record of a calibration that is not measured yet.

    Args:
        histograms: of every tensor that is seen, by graph.
        bundle: that they are of.
        method: by which the ranges are taken.
        products: that become INT8, by graph.
        chosen, frames: what was calibrated on.
    """
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
