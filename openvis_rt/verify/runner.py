"""Any graph of a bundle on any backend: named inputs in, every output out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Array, Backend, Session

__all__ = ["GraphRunner"]


class GraphRunner:
    """Runs one graph after the other; one is open at a time.

    Args:
        bundle, precision: whose graphs.
        backend: opens them; it outlives the runner.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str) -> None:
        self._bundle, self._backend, self._precision = bundle, backend, precision
        self._open: tuple[str, Session] | None = None
        self._stack = ExitStack()

    def __call__(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output of one run, by name; an input is cast to the type that this graph takes.

        Raises:
            BackendError: the backend failed.
        """
        session = self._session(graph)
        spec = session.spec
        types = {t.name: t.dtype for t in (*spec.inputs, *spec.overridable)}
        for name, value in inputs.items():
            session.write(name, np.ascontiguousarray(value.astype(types[name], copy=False)))
        session.run()
        return {t.name: session.fetch(t.name) for t in spec.outputs}

    def close(self) -> None:
        """Close the graph that is open."""
        self._stack.close()
        self._open = None

    def _session(self, graph: str) -> Session:
        if self._open is None or self._open[0] != graph:
            self.close()
            outputs = [t.name for t in self._bundle.graph(graph, self._precision).spec.outputs]
            session = self._backend.open(self._bundle, graph, self._precision, fetched=outputs)
            self._stack.callback(session.close)
            self._open = graph, session
        return self._open[1]
