"""A backend that looks into graphs: ONNX Runtime with more outputs, and somebody who is told.

It stands behind the runtime's own door, so each graph is given what it really gets: `classify` sees
the masks and features that `propose` has made. Graphs that come after the last one that is looked
into are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Array, Backend, ForwardingSession, Session, check_shape
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from openvis_rt.runtime.graphs import Graphs
from openvis_rt.runtime.preprocessing import letterbox_for
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = ["TapBackend", "TappedGraph", "run_windows", "with_outputs"]

Image8 = npt.NDArray[np.uint8]
Told = Callable[[str, Mapping[str, Array]], None]
"""Called after each run of a graph with its name and what its outputs hold."""

_ROWS = 64  # of the text classifier, where `classify` is computed
_SEED = 14


@dataclass(frozen=True)
class TappedGraph:
    """A graph that is looked into.

    Attributes:
        model: what is computed: the bundle's own graph, or another of the same inputs and outputs.
        spec: its inputs and outputs.
        seen: names of the tensors that are told, floats of any node, or outputs.
    """

    model: onnx.ModelProto
    spec: GraphSpec
    seen: tuple[str, ...]


class TapBackend:
    """ONNX Runtime on the CPU, for calibrating and measuring.

    Args:
        graphs: that are looked into, by name.
        told: of what they make.
        threads: that compute one graph; None for the library's choice.
    """

    name, slots, device = "onnxruntime", 1, "cpu"

    def __init__(
        self, graphs: Mapping[str, TappedGraph], told: Told, threads: int | None = None
    ) -> None:
        self._graphs, self._told, self._threads = graphs, told, threads
        self._backend = OnnxRuntime("cpu", threads=threads)

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every graph of every bundle runs here."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> Session:
        """Open a graph to be looked into, as it is, or as one that does nothing."""
        names = list(bundle.graphs)
        if graph not in self._graphs:
            last = max(map(names.index, self._graphs))
            if names.index(graph) > last:
                return _Idle(bundle.graph(graph, precision).spec)
            return self._backend.open(bundle, graph, precision, slots=slots, fetched=fetched)
        tapped = self._graphs[graph]
        data = with_outputs(tapped.model, tapped.seen).SerializeToString()
        inner = {t.name for t in tapped.spec.outputs}
        more = [TensorSpec(n, "float32", ("?",)) for n in tapped.seen if n not in inner]
        spec = replace(tapped.spec, outputs=(*tapped.spec.outputs, *more))
        session = OnnxRuntimeSession(graph, spec, "cpu", self._threads, data, made_here=True)
        return _Tapped(session, lambda values: self._told(graph, values), tapped.seen)

    def counters(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is left to give back."""


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy in which these float tensors are outputs as well."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    held = {value.name for value in result.graph.output}
    for name in names:
        if name not in held:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            result.graph.output.append(value)
    return result


def run_windows(
    bundle: Bundle,
    backend: Backend,
    windows: Sequence[Sequence[Image8]],
    precision: str = "fp32",
) -> Iterator[int]:
    """Compute the graphs of a bundle for windows of frames, as the runtime does.

    Args:
        bundle: whose graphs.
        backend: it stays open.
        windows: uint8 [H, W, 3] frames, of any size.
        precision: of the graphs that the backend takes from the bundle.

    Yields:
        the number of each window when it is done.

    Raises:
        BackendError: a graph failed.
    """
    rule = bundle.manifest.preprocess
    with _graphs(bundle, backend, precision) as (graphs, width):
        for number, images in enumerate(windows):
            letterbox = letterbox_for(images[0].shape[0], images[0].shape[1], rule)
            rows = None if width is None else _unit_rows(len(images), width)
            frames = [Frame(index, None, image) for index, image in enumerate(images)]
            graphs.submit(frames, letterbox, rows)
            yield number


@contextmanager
def _graphs(
    bundle: Bundle, backend: Backend, precision: str
) -> Iterator[tuple[Graphs, int | None]]:
    """The runtime's graphs, and how wide the image embeddings are that must be given to them.

    The text classifier's rows are random: they reach nothing but the class scores.
    """
    inputs = {t.name: t for t in bundle.graph("classify", precision).spec.inputs}
    given = "image_embeddings" in inputs and "embed" not in bundle.graphs
    graphs = Graphs(bundle, backend, precision, embeds=not given)
    try:
        if text := inputs.get("text_embeddings"):
            graphs.set_text_embeddings(_unit_rows(_ROWS, int(text.shape[-1])))
        yield graphs, int(inputs["image_embeddings"].shape[-1]) if given else None
    finally:
        graphs.close()


def _unit_rows(count: int, width: int) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(_SEED).standard_normal((count, width))
    unit: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


class _Tapped(ForwardingSession):
    """A session of ONNX Runtime that tells what it has computed."""

    def __init__(
        self,
        session: OnnxRuntimeSession,
        told: Callable[[Mapping[str, Array]], None],
        seen: Sequence[str],
    ) -> None:
        super().__init__(session)
        self._told, self._seen = told, seen

    def run(self, slot: int = 0) -> None:
        """Compute, and tell."""
        self.session.run(slot)
        self._told({name: self.session.fetch(name, slot) for name in self._seen})


class _Idle:
    """A session that computes nothing, for a graph that nobody looks at."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Memory that nobody reads."""
        return np.zeros(shape, check_shape(self.spec, name, shape))

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Nothing."""

    def bind(self, name: str, source: Session, output: str) -> None:
        """Nothing."""

    def run(self, slot: int = 0) -> None:
        """Nothing."""

    def fetch(self, name: str, slot: int = 0) -> Array:
        """There is nothing to fetch."""
        raise AssertionError(f"graph {self.spec.name!r} is not computed")

    def close(self) -> None:
        """Nothing."""
