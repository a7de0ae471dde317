"""The graphs as TensorRT compiles them, in ONNX Runtime: the rewrites are tried without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.rewrites.grid_sample import find_grid_samples, replace_grid_sample
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from openvis_rt.verify.checks import AS_BUILT_NAME

__all__ = ["RewrittenGraphs"]


class RewrittenGraphs:
    """A backend: ONNX Runtime on the CPU, with every GridSample as gathers."""

    name, slots, device = AS_BUILT_NAME, 1, "cpu"

    def __init__(self) -> None:
        self._backend = OnnxRuntime("cpu")

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every graph of every bundle runs here."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp32",
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> OnnxRuntimeSession:
        """Open one graph of a bundle, rewritten.

        Raises:
            EngineError: it has a GridSample that cannot be replaced.
        """
        path, file = str(bundle.graph_path(graph, precision)), bundle.graph(graph, precision)
        data = replace_grid_sample(
            onnx.load_from_string(bundle.read_graph(graph, precision))
        ).SerializeToString()
        return OnnxRuntimeSession(path, file.spec, "cpu", data=data, made_here=True)

    def changed(self, bundle: Bundle, precision: str) -> list[str]:
        """The graphs that are rewritten; the others are the bundle's own."""
        return [
            name
            for name in bundle.graphs
            if find_grid_samples(onnx.load_from_string(bundle.read_graph(name, precision)))
        ]

    def counters(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is left to give back."""
