"""The overlay sent to an address while the run goes on.

A child process connects, encodes and sends (:mod:`.sending_process`). Where the other side goes
away, the run goes on, and the child is started again after a second, then two, up to thirty.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from types import TracebackType

from openvis_rt.printable import without_password
from openvis_rt.runtime.views.child import Child, Event
from openvis_rt.runtime.views.newest import NewestStage
from openvis_rt.runtime.views.sink import sink_of
from openvis_rt.runtime.views.views import Picture, Run

__all__ = ["Sending"]

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds until the next attempt
_STEADY = 10.0  # seconds after which a connection counts as good, and waits begin anew
_PATIENCE = 2.0  # seconds for the last pictures


class Sending:
    """A view at an address.

    A picture's time there is that of its sending, so that it is seen at once. Pictures that come
    faster than they can be sent are dropped.

    Args:
        address: see :func:`.sink.sink_of`.
        say: told of a connection.
        warn: told why one is lost.

    Raises:
        InputError: nothing can be sent to the address.
    """

    watched = True

    def __init__(
        self, address: str, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        self._sink, self._name = sink_of(address), without_password(address)
        self._given, self._say, self._warn = address, say, warn
        self._rate = Fraction(25)
        self._child: Child | None = None
        self._connected, self._why, self._told = threading.Event(), "", ""
        self._wait, self._next, self._began = _FIRST_WAIT, 0.0, 0.0
        self._ending = self._never = False  # never: no later attempt can do better
        self._feed = NewestStage(f"send to {self._name}", self._send, self._failed)
        self._stack = ExitStack()

    def __enter__(self) -> Sending:
        with ExitStack() as stack:
            stack.callback(self._end)
            stack.enter_context(self._feed)
            stack.callback(self._give_up)  # first: what is not connected is not waited for
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self, run: Run) -> None:
        """The source is open, and pictures follow."""
        self._rate = run.setting.rate

    def show(self, picture: Picture) -> None:
        """Send the picture, unless a newer one comes first."""
        self._feed.put(picture)

    def _send(self, picture: Picture) -> None:
        if self._child is None:
            if time.monotonic() < self._next:
                return
            self._began = time.monotonic()
            self._child = Child(
                "openvis_rt.runtime.views.sending_process",
                [str(self._rate)],
                self._given,
                self._hear,
            )
            if self._ending:
                self._give_up()
            elif self._sink.waits:
                self._say(f"waiting for somebody who connects to {self._name}")
        try:
            self._child.show(picture.frame)
        except OSError:  # it has ended, and said why
            self._lost()

    def _lost(self) -> None:
        """Tell it, once for the same reason, and set the time of the next attempt."""
        assert self._child is not None  # it was lost
        self._child.end(0)
        self._child = None
        self._connected.clear()
        if time.monotonic() - self._began > _STEADY:
            self._wait = _FIRST_WAIT
        self._next = math.inf if self._never else time.monotonic() + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        why = self._why or "the connection ended"
        if why != self._told and not self._ending:
            then = "" if self._never else "; trying again"
            self._warn(f"nothing reaches {self._name}: {why}. The run goes on{then}")
        self._told = why

    def _hear(self, event: Event) -> None:
        """In a thread of the child's."""
        if event.get("connected"):
            self._told = self._why = ""
            self._connected.set()
            self._say(f"the overlay is sent to {self._name}")
        elif isinstance(event.get("lost"), str):
            self._why, self._never = event["lost"], bool(event.get("never"))
        elif event.get("ended"):
            self._why = self._why or "it took no data for too long"

    def _give_up(self) -> None:
        child, self._ending = self._child, True
        if child is not None and not self._connected.is_set():
            child.kill()
            if not self._told:
                why = "nobody had connected" if self._sink.waits else "it had not answered"
                self._warn(f"nothing reached {self._name}: {why} when the run ended")

    def _end(self) -> None:
        if self._child is not None:
            self._child.end(_PATIENCE)
            self._child = None

    def _failed(self, error: Exception) -> None:
        self._warn(f"nothing is sent to {self._name} any more: {error}")
