"""ONNX Runtime with some graphs of a bundle replaced, so that a mix runs before it is added."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.int8_graphs import Int8Graph
from openvis_rt.calib.measuring import model_on_a_cpu
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession

__all__ = ["MixedBackend"]


class MixedBackend(OnnxRuntime):
    """The backend, on the CPU.

    FP16 graphs are computed as their FP16 emulations; `text` is the bundle's own file, since its
    embeddings are kept with the bundle.

    Args:
        graphs: that take the place of the bundle's, INT8 ones.
        threads: that compute one graph; None for the library's choice.
    """

    def __init__(self, graphs: Sequence[Int8Graph], threads: int | None = None) -> None:
        super().__init__("cpu", threads=threads)
        self._replaced = {graph.graph: graph for graph in graphs}

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp32",
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> OnnxRuntimeSession:
        """Open a graph that is replaced, or the bundle's own."""
        if (ours := self._replaced.get(graph)) is not None:
            model, spec = model_on_a_cpu(ours), ours.file.spec
        elif graph == "text" or bundle.graph(graph, precision).precision != "fp16":
            return super().open(bundle, graph, precision, slots=slots, fetched=fetched)
        else:
            model = fp16_emulation(onnx.load_from_string(bundle.read_graph(graph, precision)))
            spec = bundle.graph(graph, precision).spec
        data = model.SerializeToString()
        return OnnxRuntimeSession(graph, spec, "cpu", self._threads, data, made_here=True)
