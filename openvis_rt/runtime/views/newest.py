"""Work on the newest item only, in a thread of its own: what comes too fast is dropped.

    with NewestStage("draw for viewers", draw) as stage:
        for item in items:
            stage.put(item)     # never waits

The counterpart of :class:`openvis_rt.runtime.stages.Stage`, which drops nothing and waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["NewestStage"]

Item = TypeVar("Item")

_PATIENCE = 2.0  # seconds that the end of a block waits for the item in hand


class NewestStage(Generic[Item]):
    """A function that is called with the newest item, again and again, in a thread of its own.

    The ``with`` block ends when the last item is done, after an error when the item in hand is;
    work that hangs (a peer that takes no data) is left behind after two seconds, in a thread that
    ends with the process. What the function raises ends the stage: ``failed`` is told, and later
    items are dropped.

    Args:
        name: of the thread.
        work: is called with an item.
        failed: is told in that thread what ``work`` raised.
        every: seconds between the beginnings of two calls, at least.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Item], None],
        failed: Callable[[Exception], None],
        every: float = 0.0,
    ) -> None:
        self._work, self._failed, self._every = work, failed, every
        self._changed = threading.Condition()
        self._waiting: tuple[Item] | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, item: Item) -> None:
        """Hand an item over, in place of one that still waits; this never waits itself."""
        with self._changed:
            if not self._ending:
                self._waiting = (item,)
                self._changed.notify()

    def __enter__(self) -> NewestStage[Item]:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ending = True
            if error is not None:
                self._waiting = None
            self._changed.notify()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            begin = time.monotonic()
            try:
                self._work(item[0])
            except Exception as exc:
                with self._changed:
                    self._ending, self._waiting = True, None
                self._failed(exc)
                return
            self._pause(begin + self._every)

    def _next(self) -> tuple[Item] | None:
        """The newest item, when there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._ending)
            item, self._waiting = self._waiting, None
            return item

    def _pause(self, until: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ending, max(0.0, until - time.monotonic()))
