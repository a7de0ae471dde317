"""OpenVINO on the CPU as a backend: it reads the bundle's ONNX files as they are.

FP32 is set as its precision hint: on CPUs with AMX it would compute in BF16 by itself. Sizes of
`masks`, which ONNX Runtime takes as inputs, are constants for OpenVINO, so that graph is compiled
again when a video begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, DependencyError, InputError
from openvis_rt.runtime.backends.base import Array, Session, check_shape, check_value, fetched_value
from openvis_rt.systems.graphs import INT8_FP32, GraphSpec

__all__ = ["OpenVino", "OpenVinoSession"]


class OpenVino:
    """The backend.

    Args:
        threads: that compute one graph; None for the library's choice.

    Raises:
        DependencyError: OpenVINO is not installed.
    """

    slots = 1

    def __init__(self, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError as exc:
            raise DependencyError("openvino", "openvino") from exc
        version = openvino.__version__.split("-")[0]
        self.name, self.device = f"openvino {version}", "cpu"
        self._core = openvino.Core()
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads

    def check(self, bundle: Bundle, precision: str) -> None:
        """Refuse graphs with FP16, which it would compute in FP32.

        Raises:
            BackendError: the precision is neither fp32 nor int8-fp32.
        """
        del bundle
        if precision not in ("fp32", INT8_FP32):
            raise BackendError(
                f"OpenVINO computes in FP32 here (its hint is f32), and {precision} was asked for"
            )

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> OpenVinoSession:
        """Open one graph.

        Raises:
            BackendError: OpenVINO cannot read or compile it; the message is its own.
        """
        del slots, fetched
        path, spec = bundle.graph_path(graph, precision), bundle.graph(graph, precision).spec
        data = bundle.read_graph(graph, precision)
        return OpenVinoSession(self._core, str(path), data, spec, self._settings)

    def counters(self) -> dict[str, float]:
        """Nothing: the library does not tell."""
        return {}

    def close(self) -> None:
        """Nothing is left to give back."""


class OpenVinoSession:
    """One graph, of its file's bytes. Inputs and bound outputs are the same memory."""

    def __init__(
        self, core: Any, path: str, data: bytes, spec: GraphSpec, settings: dict[str, Any]
    ) -> None:
        self.spec = spec
        self._core, self._settings = core, settings
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._views: dict[str, Array] = {}
        self._sources: dict[str, tuple[OpenVinoSession, str]] = {}
        try:
            self._model: Any = core.read_model(data)
        except RuntimeError as exc:
            raise BackendError(f"OpenVINO cannot read {path}: {_first_line(exc)}") from exc
        self._request: Any = None

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """See :class:`Session`."""
        del slot
        dtype = check_shape(self.spec, name, shape)
        self._sources.pop(name, None)
        if name not in self._views or self._views[name].shape != shape:
            self._views[name] = np.zeros(shape, dtype)
        return self._views[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`. Another size of `masks` compiles it anew."""
        check_value(self.spec, name, value)
        if any(tensor.name == name for tensor in self.spec.overridable):
            sizes = tuple(int(size) for size in np.ravel(value))
            if self._sizes.get(name) != sizes:
                self._sizes[name] = sizes
                self._request = None
            return
        self.input_view(name, value.shape, slot)[...] = value

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`."""
        if not isinstance(source, OpenVinoSession):
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        self._sources[name] = (source, output)

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`.

        Raises:
            BackendError: OpenVINO failed.
        """
        del slot
        try:
            self._compile()
            for tensor in self.spec.inputs:
                self._request.set_tensor(tensor.name, self._tensor(tensor.name))
            self._request.infer()
        except RuntimeError as exc:
            raise BackendError(
                f"OpenVINO failed in graph {self.spec.name!r}: {_first_line(exc)}"
            ) from exc

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        del slot
        tensor = next(t for t in self.spec.outputs if t.name == name)
        return fetched_value(tensor, np.array(self._request.get_tensor(name).data))

    def close(self) -> None:
        """See :class:`Session`."""
        self._request = self._model = None
        self._views.clear()
        self._sources.clear()

    def _compile(self) -> None:
        if self._request is not None:
            return
        if self._model is None:
            raise InputError(f"the session of graph {self.spec.name!r} is closed")
        from openvino import op

        for node in self._model.get_ops():
            name = node.get_friendly_name()
            if node.get_type_name() == "Constant" and name in self._sizes:
                sizes = op.Constant(np.array(self._sizes[name], np.int64))
                sizes.set_friendly_name(name)
                node.output(0).replace(sizes.output(0))
        self._model.validate_nodes_and_infer_types()
        compiled = self._core.compile_model(self._model, "CPU", self._settings)
        self._request = compiled.create_infer_request()

    def _tensor(self, name: str) -> Any:
        from openvino import Tensor

        if name not in self._sources:
            return Tensor(self._views[name], shared_memory=True)
        source, output = self._sources[name]
        if output in {tensor.name for tensor in source.spec.inputs}:
            return source._tensor(output)
        return source._request.get_tensor(output)


def _first_line(error: Exception) -> str:
    """What OpenVINO says, in one line, without the paths of its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return " ".join(said or lines)[:300]
