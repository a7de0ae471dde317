"""The graphs as models of the same Triton server: a backend whose sessions call them.

``run`` is a request to another model of the server ("business logic scripting"). What one graph
gives and another one reads is handed on as the server's tensor; only what is fetched becomes an
array. All of it lies in the host's memory, which both processes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.base import Array, Session, check_value, check_view, fetched_value
from openvis_rt.serving.triton.tensors import array_of, tensor_of
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["TritonBackend", "TritonSession", "model_name"]


def model_name(prefix: str, graph: str) -> str:
    """The name of a graph's model in the repository."""
    return f"{prefix}_{graph}"


class TritonBackend:
    """The backend.

    Args:
        pb: the module ``triton_python_backend_utils``, which exists inside of the server alone.
        prefix: of the models' names, see :func:`model_name`.
    """

    name = "triton"
    device = "the server's"
    slots = 1  # a call returns when its outputs are there

    def __init__(self, pb: Any, prefix: str) -> None:
        self._pb, self._prefix = pb, prefix

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every bundle's graphs are the server's to refuse, when they are called."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> TritonSession:
        """A session of a graph's model, which the server has loaded or not."""
        del slots  # one
        spec = bundle.graph(graph, precision).spec
        wanted = [t.name for t in spec.outputs if t.fetched] if fetched is None else fetched
        return TritonSession(self._pb, model_name(self._prefix, graph), spec, wanted)

    def counters(self) -> dict[str, float]:
        """Nothing: the server's own metrics tell."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class TritonSession:
    """One graph. It has one slot, and ``run`` returns when the outputs are there.

    Args:
        pb: as for the backend.
        model: its name on the server.
        spec: its tensors.
        wanted: outputs that are asked for, and with them those that other sessions are bound to.
    """

    def __init__(self, pb: Any, model: str, spec: GraphSpec, wanted: Sequence[str]) -> None:
        self.spec = spec
        self._pb, self._model, self._wanted = pb, model, list(wanted)
        self._hosts: dict[str, Array] = {}
        self._sources: dict[str, tuple[TritonSession, str]] = {}
        self._outputs: dict[str, Any] = {}

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """See :class:`Session`."""
        del slot
        dtype = check_view(self.spec, name, shape)
        self._sources.pop(name, None)
        if name not in self._hosts or self._hosts[name].shape != shape:
            self._hosts[name] = np.zeros(shape, dtype)
        return self._hosts[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`."""
        del slot
        check_value(self.spec, name, value)
        self._sources.pop(name, None)
        self._hosts[name] = np.array(value, order="C")

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`; ``output`` may be an input of ``source``.

        Raises:
            InputError: ``source`` is of another backend.
        """
        if not isinstance(source, TritonSession):
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        if any(t.name == output for t in source.spec.outputs) and output not in source._wanted:
            source._wanted.append(output)
        self._sources[name] = (source, output)

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`."""
        del slot
        pb, names = self._pb, [t.name for t in self.spec.inputs]
        names += [t.name for t in self.spec.overridable if t.name in self._hosts]
        call = pb.InferenceRequest(
            model_name=self._model,
            requested_output_names=self._wanted,
            inputs=[self._tensor(name, name) for name in names],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
        )
        answer = call.exec()
        if answer.has_error():
            raise BackendError(
                f"the model {self._model} of this server failed: {answer.error().message()}. Its "
                "log says whether it was loaded; `openvis triton --graphs inside` makes a "
                "repository that needs no other model"
            )
        self._outputs = {tensor.name(): tensor for tensor in answer.output_tensors()}

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        del slot
        tensor = next(t for t in self.spec.outputs if t.name == name)
        return np.array(fetched_value(tensor, array_of(self._output(name))))

    def close(self) -> None:
        """See :class:`Session`."""
        self._hosts.clear()
        self._sources.clear()
        self._outputs.clear()

    def _tensor(self, name: str, wanted: str) -> Any:
        """The server's tensor for an input ``name``, or output, under the name ``wanted``."""
        if name in self._sources:
            source, output = self._sources[name]
            return source._tensor(output, wanted)
        if name in self._hosts:
            return tensor_of(self._pb, wanted, self._hosts[name])
        return self._output(name)

    def _output(self, name: str) -> Any:
        if name not in self._outputs:
            raise InputError(
                f"{name!r} of graph {self.spec.name!r} holds nothing: it was never written or run"
            )
        return self._outputs[name]
