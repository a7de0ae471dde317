"""Items from the thread that makes them to the one that uses them, a few at most.

    maker   while handover.put(make()): ...
    user    while (item := handover.get()) is not None: ...

A file's maker waits where the user is slower. A live source's cannot: there the newest items win,
and those that they push out are counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Handover"]

Item = TypeVar("Item")

_GLANCE = 0.1  # seconds between two looks at a user's own event


class Handover(Generic[Item]):
    """A short queue with an end, an error, and a rule for what comes too fast.

    Args:
        size: items that wait at most.
        newest: where it is full, the oldest item is dropped; else the maker waits.

    Attributes:
        size: as given; it may be changed.
        dropped: items that newer ones pushed out.
        error: what the maker ended with, or None.
    """

    def __init__(self, size: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self.error: BaseException | None = None
        self._items: deque[Item] = deque()
        self.size, self._newest = size, newest
        self._changed = threading.Condition()
        self._ended = self._closed = False

    def put(self, item: Item) -> bool:
        """Hand an item over; false once the user wants no more."""
        with self._changed:
            if self._newest and len(self._items) >= self.size:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.size)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None = None) -> None:
        """No item follows."""
        with self._changed:
            self._ended, self.error = True, error
            self._changed.notify_all()

    def get(self, stop: threading.Event | None = None, seconds: float | None = None) -> Item | None:
        """The next item, which may take until one is there; None at the end.

        Args:
            stop: the wait ends, with None, a tenth of a second after this is set.
            seconds: that it may take; None for any number.

        Raises:
            TimeoutError: neither an item nor the end came in time.
        """
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not (self._items or self._ended or self._closed):
                if stop is not None and stop.is_set():
                    return None
                if until is not None and time.monotonic() >= until:
                    raise TimeoutError
                # with a timeout in any case: without, Python hears no Ctrl-C on some systems
                self._changed.wait(_GLANCE)
            if self._closed or not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    @property
    def waiting(self) -> bool:
        """Whether an item can be had at once."""
        with self._changed:
            return bool(self._items) and not self._closed

    def close(self) -> list[Item]:
        """The user wants no more, and the maker waits no longer.

        Returns:
            the items that nobody took.
        """
        with self._changed:
            self._closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return left
