"""Leads a command's streams to odd places and runs it as a shell would: court's sabotage.

The process becomes a new Python, since encodings and terminals are looked at when it begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["begin"]


def begin(words: list[str], place: str, value: int, environment: dict[str, str | None]) -> None:
    """Lead the streams to a place, and become ``python -m openvis_rt`` with these words."""
    for name, text in environment.items():
        os.environ.pop(name, None)
        if text is not None:
            os.environ[name] = text
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    _PLACES[place](value)
    os.execv(sys.executable, [sys.executable, "-m", "openvis_rt", *words])


def _terminal(columns: int) -> None:
    """stdout and stderr are a terminal so wide, and the file ``seen`` gets what it is sent."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    settings = termios.tcgetattr(slave)
    settings[1] &= ~termios.OPOST  # no carriage returns
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    _reader(master, slave, (1, 2), -1)


def _leaves(count: int) -> None:
    """stdout's reader takes so many bytes, into ``seen``, and leaves; -1 for all."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    _reader(read, write, (1,), count)


def _reader(read: int, write: int, streams: tuple[int, ...], count: int) -> None:
    if os.fork():
        os.close(read)
        for number in streams:
            os.dup2(write, number)
        os.close(write)
        return
    os.close(write)
    for number in (0, 1, 2):
        os.close(number)
    with Path("seen").open("wb", buffering=0) as seen, contextlib.suppress(OSError):
        while count and (data := os.read(read, 4096 if count < 0 else count)):
            seen.write(data)
            count -= len(data) if count > 0 else 0
    os._exit(0)


def _nobody_reads(_value: int) -> None:
    """stdout is a pipe whose other end is open and not read."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_inheritable(read, True)
    os.dup2(write, 1)


def _hangs_up(milliseconds: int) -> None:
    """stdout and stderr are a terminal that is closed after a while."""
    master, slave = os.openpty()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    if not os.fork():
        os.close(slave)
        time.sleep(milliseconds / 1000)
        os._exit(0)
    os.close(master)
    os.dup2(slave, 1)
    os.dup2(slave, 2)


def _opened(path: str, flags: int, number: int) -> None:
    os.dup2(os.open(path, flags), number)


_PLACES: dict[str, Callable[[int], None]] = {
    "as it is": lambda _: None,
    "closed": os.close,
    "full": lambda number: _opened("/dev/full", os.O_WRONLY, number),
    "only to be read": lambda number: _opened(os.devnull, os.O_RDONLY, number),
    "a terminal": _terminal,
    "a reader that leaves": _leaves,
    "nobody": _nobody_reads,
    "a terminal that hangs up": _hangs_up,
}
