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
from openvis_rt.calib.int8_graphs import Int8Graph
from openvis_rt.calib.ranges import Measure, Measured
from openvis_rt.calib.tap import TapBackend, TappedGraph, run_windows
from openvis_rt.compare.differences import GATES, differing_share, grid_pixels, mask_ious, sqnr
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.runtime.backends.base import Array
from openvis_rt.systems.graphs import INT8

__all__ = ["SQNR", "Reference", "beyond_gates", "measure", "model_on_a_cpu"]

BITS: Measure = "bits that differ"
IOU: Measure = "median IoU"
SQNR: Measure = "SQNR dB"
Image8 = npt.NDArray[np.uint8]
Outputs = list[dict[str, Array]]
Progress = Callable[[str, int, int | None], None]


class Reference:
    """What the FP32 graphs of a bundle make of some windows, which INT8 graphs are compared with.

    Args:
        bundle: holds the FP32 graphs, and of the other graphs the FP16 files for ``int8``.
        names: of the graphs whose outputs are compared.
        windows: uint8 [H, W, 3] frames.
        threads: that compute one graph; None for the library's choice.
        progress: told of windows done and in all.
    """

    def __init__(
        self,
        bundle: Bundle,
        names: Sequence[str],
        windows: Sequence[Sequence[Image8]],
        *,
        threads: int | None = None,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._bundle, self._windows, self._threads = bundle, windows, threads
        self._progress = progress
        self._specs = {name: bundle.graph(name, "fp32").spec for name in names}
        self._seen = {n: tuple(t.name for t in spec.outputs) for n, spec in self._specs.items()}
        self._wanted = self._outputs((), "fp32", "FP32")

    def measured(
        self, graphs: Sequence[Int8Graph], precision: str, what: str
    ) -> tuple[Measured, ...]:
        """How close the outputs are when some graphs are INT8 and the others are not.

        Args:
            graphs: that are INT8.
            precision: ``int8``, with FP16 beside it, or ``int8-fp32``.
            what: is measured, for people.
        """
        found = self._outputs(graphs, precision, what)
        return tuple(
            measured
            for name, outputs in self._seen.items()
            for output in outputs
            for measured in _compared(
                name, output, found[name], self._wanted[name], grid_pixels(self._specs[name])
            )
        )

    def _outputs(
        self, graphs: Sequence[Int8Graph], precision: str, what: str
    ) -> dict[str, Outputs]:
        found: dict[str, Outputs] = defaultdict(list)
        others = "fp16" if precision == INT8 else "fp32"
        tapped = {n: self._tapped(n, graphs, others) for n in self._specs}
        backend = TapBackend(
            tapped, lambda name, value: found[name].append(dict(value)), self._threads
        )
        try:
            for done in run_windows(self._bundle, backend, self._windows, others):
                self._progress(f"measuring {what}", done + 1, len(self._windows))
        finally:
            backend.close()
        return found

    def _tapped(self, name: str, graphs: Sequence[Int8Graph], others: str) -> TappedGraph:
        for graph in graphs:
            if graph.graph == name:
                return TappedGraph(model_on_a_cpu(graph), graph.file.spec, self._seen[name])
        file = self._bundle.graph(name, others)
        model = onnx.load_from_string(self._bundle.read_graph(name, others))
        if file.precision == "fp16":
            model = fp16_emulation(model)
        return TappedGraph(model, file.spec, self._seen[name])


def measure(
    reference: Reference, made: Mapping[str, Sequence[Int8Graph]], what: str = ""
) -> dict[str, tuple[Measured, ...]]:
    """Compare INT8 graphs, by precision, with the FP32 graphs of their bundle.

    Args:
        reference: the FP32 graphs' outputs.
        made: by precision the graphs, the same ones in each.
        what: they are, for people, in front of the precision.

    Returns:
        by precision what was measured of each output.
    """
    return {
        precision: reference.measured(graphs, precision, f"{what} {precision}".strip())
        for precision, graphs in made.items()
    }


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


def model_on_a_cpu(graph: Int8Graph) -> onnx.ModelProto:
    """The graph as a CPU computes it: with FP16 as its FP16 emulation."""
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
    graph: str, output: str, what: Measure, values: Sequence[float], worst: float
) -> Measured:
    median = float(np.median(values))
    return Measured(graph, output, what, _finite(median), _finite(worst))


def _finite(value: float) -> float | None:
    """None for an infinite ratio, of outputs that are the same; NaN is as bad as can be."""
    if math.isnan(value) or value == -math.inf:
        return -999.0
    return None if math.isinf(value) else value
