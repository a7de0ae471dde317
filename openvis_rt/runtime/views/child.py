"""A process of its own that takes pictures: what blocks or breaks there does not reach the run.

PyAV keeps Python's lock while it connects to an address, and a window belongs to the main thread of
its process; so neither lives in the run's process. Pictures go to the child's stdin, each as two
uint32 (width and height, big-endian) and its RGB bytes. The child says what happens on its stdout,
one JSON object a line, and ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

__all__ = ["Child", "Event", "pictures_from", "say_event", "told_to_live"]

Event = dict[str, Any]

_HEAD = struct.Struct(">II")


class Child:
    """A running child; :meth:`end` it.

    Args:
        module: that is run, with ``python -m``.
        arguments: of its command line; a password among them would be seen by others of this
            machine, so secrets go by ``secret``.
        secret: its first line of stdin.
        told: is called with each event, and at the end with ``{"ended": exit code}``, in a thread.
    """

    def __init__(
        self, module: str, arguments: list[str], secret: str, told: Callable[[Event], None]
    ) -> None:
        self._told = told
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[3],  # -m looks there first: for this package
            start_new_session=True,  # Ctrl-C is the run's
        )
        self._events = threading.Thread(target=self._listen, name=f"hear {module}", daemon=True)
        self._events.start()
        with contextlib.suppress(OSError):
            self._stdin.write(secret.encode() + b"\n")
            self._stdin.flush()

    def show(self, frame: VideoFrame) -> None:
        """Hand a picture over, which waits until the child takes it.

        Raises:
            OSError: it has ended.
        """
        # a reformatter of its own: the frame's serves one thread at a time
        packed = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
        self._stdin.write(_HEAD.pack(frame.width, frame.height))
        self._stdin.write(np.ascontiguousarray(packed, np.uint8).data)
        self._stdin.flush()

    def kill(self) -> None:
        """End it now; a :meth:`show` that waits fails."""
        self._process.kill()

    def end(self, patience: float) -> None:
        """Let it finish what it has for some seconds, then end it."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        self._process.wait()
        self._events.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def _stdin(self) -> Any:
        assert self._process.stdin is not None  # it is a pipe
        return self._process.stdin

    def _listen(self) -> None:
        assert self._process.stdout is not None  # it is a pipe
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._told(event)
        self._told({"ended": self._process.wait()})


def told_to_live() -> tuple[str, BinaryIO, BinaryIO]:
    """In a child, at its begin: the secret, where pictures come from, and where events go to.

    What anything else prints does not get among the events.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    secret = sys.stdin.buffer.readline().decode().rstrip("\n")
    return secret, sys.stdin.buffer, events


def say_event(events: BinaryIO, event: Event) -> None:
    """Tell the parent; one that is gone is not told."""
    with contextlib.suppress(OSError):
        events.write(json.dumps(event).encode() + b"\n")
        events.flush()


def pictures_from(source: BinaryIO) -> Iterator[npt.NDArray[np.uint8]]:
    """In a child: each picture, uint8 [H, W, 3] RGB, until the parent sends no more."""
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        width, height = _HEAD.unpack(head)
        data = source.read(width * height * 3)
        if len(data) < width * height * 3:
            return
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
