"""Ctrl-C and SIGTERM as the end of a run: the first lets it finish what it has, the next aborts it.

`docker stop`, systemd and a cluster's scheduler send SIGTERM; a person presses Ctrl-C. Either way
what was done so far is worth whole files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets, while the block runs.

    After the first one the signals do what they did before, so that the next one aborts. Outside of
    the main thread, which alone may take signals, the event is never set.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        stopped.set()
        restore()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell starts its background jobs
            signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
