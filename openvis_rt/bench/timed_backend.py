"""A backend that hands on to another one and times each graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Array, Backend, ForwardingSession, Session

__all__ = ["TimedBackend", "TimedSession"]


class TimedBackend:
    """Opens timed sessions; give it to ``Pipeline.open(backend=...)`` in place of ``backend``.

    Args:
        backend: that is timed; another TimedBackend, too, to read two clocks.
        clock: gives seconds: time that goes by, or :func:`time.process_time`.

    Attributes:
        sessions: by the graph's name, the last one that was opened.
        recording: keep what is fetched, by output name, in ``fetched``; off while time counts.
        fetched: what was fetched last while recording; the keeper's own arrays.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = perf_counter) -> None:
        self._backend, self.clock = backend, clock
        self.name, self.slots = backend.name, backend.slots
        self.sessions: dict[str, TimedSession] = {}
        self.recording = False
        self.fetched: dict[str, Array] = {}

    @property
    def device(self) -> str:
        """Where it runs, for people."""
        return self._backend.device

    def check(self, bundle: Bundle, precision: str) -> None:
        """See :class:`Backend`."""
        self._backend.check(bundle, precision)

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> TimedSession:
        """See :class:`Backend`."""
        session = self._backend.open(bundle, graph, precision, slots=slots, fetched=fetched)
        self.sessions[graph] = TimedSession(session, self)
        return self.sessions[graph]

    def seconds(self) -> dict[str, float]:
        """Seconds so far in ``run`` of each graph, and under ``wait`` in ``fetch`` of all."""
        sessions = self.sessions.items()
        spent = {graph: session.run_seconds for graph, session in sessions if graph != "text"}
        spent["wait"] = sum(session.fetch_seconds for graph, session in sessions if graph != "text")
        return spent

    def graph_seconds(self) -> dict[str, float]:
        """Seconds so far that each graph took: by the device's own clock, where it has one."""
        return {
            graph: float(getattr(session.session, "device_seconds", session.run_seconds))
            for graph, session in self.sessions.items()
            if graph != "text"
        }

    def counters(self) -> dict[str, float]:
        """The backend's own."""
        return self._backend.counters()

    def close(self) -> None:
        """See :class:`Backend`."""
        self._backend.close()


class TimedSession(ForwardingSession):
    """A session whose every call goes to another one.

    Attributes:
        run_seconds, fetch_seconds: spent in these calls so far, by the backend's clock.
    """

    def __init__(self, session: Session, backend: TimedBackend) -> None:
        super().__init__(session)
        self._backend, self._clock = backend, backend.clock
        self.run_seconds = self.fetch_seconds = 0.0

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`."""
        begin = self._clock()
        self.session.run(slot)
        self.run_seconds += self._clock() - begin

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        begin = self._clock()
        value = self.session.fetch(name, slot)
        self.fetch_seconds += self._clock() - begin
        if self._backend.recording:
            self._backend.fetched[name] = np.array(value)
        return value
