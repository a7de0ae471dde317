"""How close INT8 graphs are to the FP32 graphs, on windows that were not calibrated on.

Both run as the runtime runs them, each graph on what those before it have made. INT8 with FP16 is
FP16 emulation (:mod:`openvis_rt.export.fp16.emulation`), since a CPU does not round to FP16.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.int8_graphs import Int8Graph, fp32_graph
from openvis_rt.calib.ranges import Measured
from openvis_rt.calib.tap import TapBackend, TappedGraph, run_windows
from openvis_rt.compare.differences import GATES, differing_share, grid_pixels, mask_ious, sqnr
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.runtime.backends.base import Array
from openvis_rt.systems.graphs import INT8

__all__ = ["beyond_gates", "measure"]

BITS, IOU, SQNR = "bits that differ", "median IoU", "SQNR dB"
Image8 = npt.NDArray[np.uint8]
Outputs = list[dict[str, Array]]
Progress = Callable[[str, int, int | None], None]


def measure(
    bundle: Bundle,
    made: Mapping[str, Sequence[Int8Graph]],
    windows: Sequence[Sequence[Image8]],
    *,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, tuple[Measured, ...]]:
    """Compare INT8 graphs with the FP32 graphs of a bundle.

    Args:
        bundle: holds the FP32 graphs, and of the other graphs the FP16 files for ``int8``.
        made: by precision the graphs, the same ones in each.
        windows: uint8 [H, W, 3] frames.
        threads: that compute one graph; None for the library's choice.
        progress: told of windows done and in all.

    Returns:
        by precision what was measured of each output.
    """
    names = [graph.graph for graph in next(iter(made.values()))]
    specs = {name: bundle.graph(name, "fp32").spec for name in names}

    def outputs(graphs: Mapping[str, TappedGraph], precision: str, what: str) -> dict[str, Outputs]:
        found: dict[str, Outputs] = defaultdict(list)
        backend = TapBackend(graphs, lambda name, value: found[name].append(dict(value)), threads)
        try:
            for done in run_windows(bundle, backend, windows, precision):
                progress(f"measuring {what}", done + 1, len(windows))
        finally:
            backend.close()
        return found

    seen = {name: tuple(t.name for t in specs[name].outputs) for name in names}
    wide = {n: TappedGraph(fp32_graph(bundle, n), specs[n], seen[n]) for n in names}
    wanted = outputs(wide, "fp32", "FP32")
    result = {}
    for precision, graphs in made.items():
        tapped = {g.graph: TappedGraph(_on_a_cpu(g), g.file.spec, seen[g.graph]) for g in graphs}
        others = "fp16" if precision == INT8 else "fp32"
        found = outputs(tapped, others, precision)
        result[precision] = tuple(
            measured
            for name in names
            for output in seen[name]
            for measured in _compared(
                name, output, found[name], wanted[name], grid_pixels(specs[name])
            )
        )
    return result


def beyond_gates(measured: Mapping[str, Sequence[Measured]]) -> list[tuple[str, Measured, float]]:
    """What is not as close as it has to be: the precision, what was measured, and the gate.

    The median over the windows counts: an attention-mask bit that flips spoils a single one.
    """
    found = []
    for precision, every in measured.items():
        for one in every:
            key = {BITS: "bits", IOU: "masks"}.get(one.measure, one.output)
            gate, median = GATES[precision][key], one.median
            if median is None or math.isnan(gate):
                continue
            if not (median <= gate if one.measure == BITS else median >= gate):
                found.append((precision, one, gate))
    return found


def _on_a_cpu(graph: Int8Graph) -> onnx.ModelProto:
    return fp16_emulation(graph.model) if graph.file.precision == INT8 else graph.model


def _compared(
    graph: str, output: str, found: Outputs, wanted: Outputs, pixels: int
) -> list[Measured]:
    """What is told of one output; of mask logits the overlap of the masks as well."""
    pairs = [(f[output], w[output]) for f, w in zip(found, wanted, strict=True)]
    shares = [differing_share(output, f, w, pixels) for f, w in pairs]
    if None not in shares:
        values = [s for s in shares if s is not None]
        return [_measured(graph, output, BITS, values, max(values))]
    ratios = [sqnr(f, w) for f, w in pairs]
    told = [_measured(graph, output, SQNR, ratios, min(ratios))]
    if output == "mask_logits":
        ious = [mask_ious(_positive(f), _positive(w)) for f, w in pairs]
        medians = [float(np.median(of_one)) if of_one else 1.0 for of_one in ious]
        told.append(_measured(graph, "mask_logits", IOU, medians, min(medians)))
    return told


def _positive(logits: Array) -> npt.NDArray[np.bool_]:
    return np.asarray(logits, np.float32) > 0


def _measured(
    graph: str, output: str, what: str, values: Sequence[float], worst: float
) -> Measured:
    median = float(np.median(values))
    return Measured(graph, output, what, _finite(median), _finite(worst))


def _finite(value: float) -> float | None:
    """None for an infinite ratio, of outputs that are the same; NaN is as bad as can be."""
    if math.isnan(value) or value == -math.inf:
        return -999.0
    return None if math.isinf(value) else value
