"""A window that shows the run; its process is :mod:`.window_process`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from openvis_rt.errors import UnavailableError
from openvis_rt.runtime.views.child import Child, Event
from openvis_rt.runtime.views.newest import NewestStage
from openvis_rt.runtime.views.views import Picture, Run

__all__ = ["Window"]

_START = 30.0  # seconds that a window may take to open
_INTERVAL = 1 / 30  # seconds between two pictures, at least
_PATIENCE = 1.0


class Window:
    """A view on this machine's display. q, Escape or closing it ends the run as Ctrl-C does.

    Args:
        warn: told why it shows no more, if that comes.

    Raises:
        UnavailableError: on entering, where there is no display or no Tk.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._answers: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop: Callable[[], None] = lambda: None  # until the source is open
        self._closed, self._stack = threading.Event(), ExitStack()
        self._child: Child | None = None
        self._feed = NewestStage("feed window", self._fed, self._failed, _INTERVAL)

    def __enter__(self) -> Window:
        with ExitStack() as stack:
            self._child = Child("openvis_rt.runtime.views.window_process", [], "", self._hear)
            stack.callback(self._child.end, _PATIENCE)
            self._refuse_unopened()
            stack.enter_context(self._feed)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = lambda: None  # it closes because the run has ended
        self._stack.__exit__(kind, error, trace)

    @property
    def watched(self) -> bool:
        """Whether it is open."""
        return not self._closed.is_set()

    def begin(self, run: Run) -> None:
        """The source is open, and pictures follow."""
        self._stop = run.stop
        if self._closed.is_set():
            run.stop()

    def show(self, picture: Picture) -> None:
        """Show the picture, unless a newer one comes first."""
        self._feed.put(picture)

    def _refuse_unopened(self) -> None:
        try:
            answer = self._answers.get(timeout=_START)
        except queue.Empty:
            answer = {"failed": f"none came up within {_START:g} s"}
        if "opened" not in answer:
            why = answer.get("failed", f"its process ended with code {answer.get('ended')}")
            raise UnavailableError(
                f"--show can open no window here: {why}. Run it on a desktop, or look on by "
                "--serve 8000 in a browser"
            )

    def _hear(self, event: Event) -> None:
        """In a thread of the child's."""
        self._answers.put(event)
        if "closed" in event or "ended" in event:
            self._closed.set()
            self._stop()

    def _fed(self, picture: Picture) -> None:
        assert self._child is not None  # it is open
        if not self._closed.is_set():
            try:
                self._child.show(picture.frame)
            except OSError:  # it was closed meanwhile
                self._closed.set()

    def _failed(self, error: Exception) -> None:
        self._warn(f"the window shows no more pictures: {error}")
