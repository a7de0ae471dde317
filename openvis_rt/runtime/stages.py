"""Work that is done in a thread of its own, in order, a few items behind its caller.

    with Stage("encode", writer.write) as encode, Stage("draw", draw_and_pass_on) as draw:
        for item in items:
            draw.put(item)      # waits while the stage is a whole queue behind

A stage pays where its work leaves Python's lock free: FFmpeg, and numpy on large arrays.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Stage"]

Item = TypeVar("Item")


class Stage(Generic[Item]):
    """A function that is called with one item after the other, in a thread of its own.

    The ``with`` block ends when the last item is done; where it ends with an error, also an
    interrupt, what still waits is dropped and only the item in hand is finished. So nothing runs
    any longer once the block was left, and what the function uses can be closed. What the function
    raises is raised in the caller, by the next :meth:`put` or at the end of the block, and no
    further item is worked on.

    Args:
        name: of the thread.
        work: is called with each item; it may put items into another stage.
        size: items that wait at most, so that memory is bounded.
    """

    def __init__(self, name: str, work: Callable[[Item], None], size: int = 2) -> None:
        self._work = work
        self._queue: queue.Queue[tuple[Item] | None] = queue.Queue(size)
        self._error: BaseException | None = None
        self._dropped = False
        # join() would do, but an interrupted join takes the thread for ended (Python up to 3.12)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Stage[Item]:
        self._thread.start()
        return self

    def put(self, item: Item) -> None:
        """Hand an item over, which waits while ``size`` others do.

        Raises:
            BaseException: what an earlier item's work raised.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((item,))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._dropped = error is not None
        try:
            self._queue.put(None)
            self._ended.wait()
        except BaseException:  # an interrupt
            self._abandon()
            raise
        if self._error is not None and error is None:
            raise self._error

    def _abandon(self) -> None:
        """Wait for the item in hand alone, whatever comes: its work must not outlive the block."""
        self._dropped = True
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full, KeyboardInterrupt):
                self._queue.put(None, timeout=0.1)
                self._ended.wait()

    def _run(self) -> None:
        """The thread's body. It empties the queue to its end in any case: no put waits forever."""
        while (waiting := self._queue.get()) is not None:
            if self._dropped or self._error is not None:
                continue
            try:
                self._work(waiting[0])
            except BaseException as exc:  # handed to the caller, whatever it is
                self._error = exc
            del waiting  # a frame of 8K has 100 MB, and the next may be long in coming
        self._ended.set()
