"""What may wait for a peer or a driver for ever, in a thread that can be left behind.

FFmpeg hears of no interrupt while it connects, and a camera's driver hears of none while it waits
for a picture. Such a thread ends when the wait does, and releases then what it opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.video.container import ContainerReader, DamagedError
from openvis_rt.runtime.video.handover import Handover

__all__ = ["WatchedReader", "opened_aside"]

Opened = TypeVar("Opened")
_Item = tuple[int, float | None, npt.NDArray[np.uint8]]


class WatchedReader:
    """A reader that counts as broken where no frame comes for some seconds.

    Args:
        reader: of a device, which has no timeout of its own. It is released when this reader is
            closed, or, if it hangs then, as soon as it no longer does.
        timeout: seconds.

    Attributes:
        name, fps, frame_count, live, start, warnings, damage: as the reader's.
    """

    def __init__(self, reader: ContainerReader, timeout: float) -> None:
        self._reader, self._timeout = reader, timeout
        self._door: Handover[_Item] = Handover(1)
        self._thread: threading.Thread | None = None
        self.name, self.frame_count, self.live = reader.name, reader.frame_count, reader.live
        self.fps: Fraction = reader.fps
        self.warnings, self.damage = reader.warnings, reader.damage

    @property
    def start(self) -> float | None:
        """Of the first frame by the device's clock, in seconds."""
        return self._reader.start

    def frames(self, stride: int = 1) -> Iterator[_Item]:
        """As :meth:`.container.ContainerReader.frames`.

        Raises:
            DamagedError: no frame came in time, or the data break.
        """
        self._thread = threading.Thread(
            target=self._read, args=[stride], name=f"read {self.name}", daemon=True
        )
        self._thread.start()
        while True:
            try:
                item = self._door.get(seconds=self._timeout)
            except TimeoutError as exc:
                raise DamagedError(f"no whole frame came within {self._timeout:g} s") from exc
            if item is None:
                break
            yield item
        if self._door.error is not None:
            raise self._door.error

    def close(self) -> None:
        """Release the device, or leave that to the thread that waits for it."""
        self._door.close()
        if self._thread is None:
            self._reader.close()

    def _read(self, stride: int) -> None:
        error: BaseException | None = None
        try:
            for item in self._reader.frames(stride):
                if not self._door.put(item):
                    break
        except BaseException as exc:  # handed to the one who waits, whatever it is
            error = exc
        self._reader.close()
        self._door.end(error)


def opened_aside(
    name: str,
    open_source: Callable[[], Opened],
    close: Callable[[Opened], None],
    stop: threading.Event | None = None,
    seconds: float | None = None,
) -> Opened:
    """What ``open_source`` gives, from a thread of its own, so that an interrupt is heard at once.

    Args:
        name: of the source.
        open_source: may wait for a peer.
        close: is called with what comes after the wait was given up.
        stop: ends the wait.
        seconds: that it may take; None for any number.

    Raises:
        KeyboardInterrupt: it was stopped, or interrupted.
        TimeoutError: it took too long.
        BaseException: what ``open_source`` raises.
    """
    door: Handover[Opened] = Handover(1)

    def work() -> None:
        try:
            opened = open_source()
        except BaseException as exc:  # handed to the caller, whatever it is
            door.end(exc)
            return
        if not door.put(opened):
            close(opened)

    thread = threading.Thread(target=work, name=f"open {name}", daemon=True)
    thread.start()
    try:
        opened = door.get(stop, seconds)
        if opened is None and door.error is None:
            raise KeyboardInterrupt
        thread.join()
    finally:
        left = door.close()
        for late in left:
            close(late)
    if opened is None:
        assert door.error is not None  # said above
        raise door.error
    return opened
