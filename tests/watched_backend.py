"""Backends for tests, given to ``Pipeline.open(backend=...)`` as a user would give one.

:class:`WatchedBackend` hands on to another backend and shows what it was asked for;
:class:`TwoSlots` is ONNX Runtime with two windows in flight; :class:`Zeros` computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from openvis_rt.runtime.backends.base import Backend, Session, check_shape, check_value
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime


class WatchedSession:
    """A session whose every call goes to another one, unless a test replaces the method.

    Attributes:
        changes: what is made of an output when it is fetched, by its name.
        bound: for each input that reads another session, that session's graph.
        written: names of the inputs that were written or filled.
    """

    def __init__(self, session: Session, fed: Mapping[str, np.ndarray]) -> None:
        self.session, self.spec, self._fed = session, session.spec, fed
        self.changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        self.bound: dict[str, str] = {}
        self.written: set[str] = set()

    def input_view(self, name, shape, slot=0):
        self.written.add(name)
        return self.session.input_view(name, shape, slot)

    def write(self, name, value, slot=0):
        self.written.add(name)
        self.session.write(name, value, slot)

    def bind(self, name, source, output):
        assert isinstance(source, WatchedSession)
        assert name == output
        if name in self._fed:
            self.session.write(name, self._fed[name])
            return
        self.bound[name] = source.spec.name
        self.session.bind(name, source.session, output)

    def run(self, slot=0):
        self.session.run(slot)

    def fetch(self, name, slot=0):
        value = self.session.fetch(name, slot)
        return self.changes[name](value) if name in self.changes else value

    def close(self):
        self.session.close()


class WatchedBackend:
    """Opens watched sessions.

    Args:
        backend: that does the work; ONNX Runtime on the CPU if there is none.
        fed: values for inputs that would be bound to another graph's output, by their names.

    Attributes:
        sessions: by the graph's name, the last one that was opened.
        closed: how often it was closed.
    """

    def __init__(
        self, backend: Backend | None = None, fed: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.backend, self._fed = backend or OnnxRuntime("cpu"), fed or {}
        self.name, self.slots = self.backend.name, self.backend.slots
        self.sessions: dict[str, WatchedSession] = {}
        self.closed = 0

    @property
    def device(self):
        return self.backend.device

    def check(self, bundle, precision):
        self.backend.check(bundle, precision)

    def open(self, bundle, graph, precision, *, slots=1, fetched=None):
        session = self.backend.open(bundle, graph, precision, slots=slots, fetched=fetched)
        self.sessions[graph] = WatchedSession(session, self._fed)
        return self.sessions[graph]

    def counters(self):
        return self.backend.counters()

    def close(self):
        self.closed += 1
        self.backend.close()


class TwoSlots(OnnxRuntime):
    """ONNX Runtime with two slots; a window is computed when it is submitted."""

    slots = 2

    def __init__(self) -> None:
        super().__init__("cpu")

    def open(self, bundle, graph, precision="fp32", *, slots=1, fetched=None):
        opened = super().open
        return SessionOfSlots([opened(bundle, graph, precision) for _ in range(slots)])


class SessionOfSlots:
    """A graph once a slot. Sizes that ONNX Runtime takes in place of the file's hold for all."""

    def __init__(self, sessions) -> None:
        self.each, self.spec = sessions, sessions[0].spec

    def input_view(self, name, shape, slot=0):
        return self._of(slot).input_view(name, shape)

    def write(self, name, value, slot=0):
        of_all = any(tensor.name == name for tensor in self.spec.overridable)
        for session in self.each if of_all else [self._of(slot)]:
            session.write(name, value)

    def bind(self, name, source, output):
        for slot, session in enumerate(self.each):
            session.bind(name, source._of(slot), output)

    def run(self, slot=0):
        self._of(slot).run()

    def fetch(self, name, slot=0):
        return self._of(slot).fetch(name)

    def close(self):
        for session in self.each:
            session.close()

    def _of(self, slot):
        return self.each[slot % len(self.each)]


class Zeros:
    """The smallest backend: every output is zeros. It keeps only the shapes of inputs."""

    name, slots, device = "zeros", 1, "nowhere"

    def check(self, bundle, precision):
        pass

    def open(self, bundle, graph, precision, *, slots=1, fetched=None):
        return ZeroSession(bundle.graph(graph, precision).spec)

    def counters(self):
        return {}

    def close(self):
        pass


class ZeroSession:
    """Knows how large an output is from what was written, or from what it is bound to."""

    def __init__(self, spec) -> None:
        self.spec, self.sources = spec, {}
        self.values = {}

    def input_view(self, name, shape, slot=0):
        self.values[name] = np.zeros(shape, check_shape(self.spec, name, shape))
        return self.values[name]

    def write(self, name, value, slot=0):
        check_value(self.spec, name, value)
        self.values[name] = value

    def bind(self, name, source, output):
        self.sources[name] = source, output

    def run(self, slot=0):
        pass

    def fetch(self, name, slot=0):
        sizes = self.sizes()
        tensor = next(t for t in self.spec.outputs if t.name == name)
        return np.zeros([sizes.get(d, d) for d in tensor.shape], tensor.dtype)

    def sizes(self):
        known = {}
        for source, _ in self.sources.values():
            known |= source.sizes()
        for tensor in self.spec.inputs:
            if tensor.name in self.values:
                known |= dict(zip(tensor.shape, self.values[tensor.name].shape, strict=True))
        if "frame_size" in self.values:
            height, width = self.values["frame_size"].tolist()
            known |= {"Hs": height, "Wb": -(-width // 8)}
        return known

    def close(self):
        self.values.clear()
