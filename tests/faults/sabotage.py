"""What goes wrong around a command: called in its process before it begins, by tests' court."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

__all__ = ["begin"]

# what Python tells of before it happens, and what it may change
_CHANGES = frozenset(
    {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate"}
    | {"os.chmod", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp", "fcntl.flock"}
)


def begin(kind: str, *arguments: Any) -> None:
    """Bring one fault about; each function below whose name begins with ``_do_`` is a kind."""
    globals()[f"_do_{kind}"](*arguments)


def _do_points(place: str, log: str, kill: int) -> None:
    """Number what may change ``place`` or what is below it, and die before number ``kill``.

    With ``kill`` 0 nothing dies, and ``log`` holds a line for each.
    """
    count = 0
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def point(event: str, about: object) -> None:
        nonlocal count
        count += 1
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(lines, f"{event} {about}\n".encode())

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
            if not writes or not _is_below(given[0], place):
                return
        elif event == "ctypes.dlsym":  # renameat2, which Python has not
            if given[1] != "renameat2":
                return
        elif event not in _CHANGES or not any(_is_below(name, place) for name in given):
            return
        point(event, given[0])

    fsync = os.fsync

    def flushed(descriptor: int) -> None:
        point("os.fsync", descriptor)
        fsync(descriptor)

    os.fsync = flushed  # of which Python tells nothing
    sys.addaudithook(heard)


def _is_below(name: object, place: str) -> bool:
    if isinstance(name, int) and not isinstance(name, bool) and name > 2:
        return os.path.realpath(f"/proc/self/fd/{name}").startswith(place)
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    return str(Path(os.fsdecode(name)).absolute()).startswith(place)


def _do_file_limit(size: int) -> None:
    """No file may grow beyond so many bytes: EFBIG, as with a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _do_call_fails(name: str, number: int) -> None:
    """One function of ``os`` or ``fcntl`` fails always."""

    def fails(*given: Any, **_: Any) -> None:
        first = given[0] if isinstance(given[0], str | os.PathLike) else None
        raise OSError(number, os.strerror(number), first)

    module, function = name.split(".")
    setattr({"os": os, "fcntl": fcntl}[module], function, fails)


def _do_no_exchange(number: int) -> None:
    """The system has no renameat2 that exchanges."""
    import ctypes

    class Library:
        def __init__(self, library: Any) -> None:
            self._library = library

        def __getattr__(self, name: str) -> Any:
            if name != "renameat2":
                return getattr(self._library, name)
            if not number:
                raise AttributeError(name)
            return lambda *_: ctypes.set_errno(number) or -1

    load = ctypes.CDLL
    ctypes.CDLL = lambda name, *more, **how: (
        Library(load(name, **how)) if name is None else load(name, *more, **how)
    )


def _do_stream(number: int, end: str) -> None:
    """stdout (1) or stderr (2) is closed, full, or its reader leaves, at once or after a byte."""
    streams = (1, 2) if number == 3 else (number,)
    for descriptor in streams:
        if end == "closed":
            os.close(descriptor)
        elif end == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
        else:
            _lead_to_a_reader(descriptor, takes=0 if end == "gone" else 20)
    if end == "closed":  # as Python finds it when it begins
        sys.stdout, sys.stderr = (
            None if number in streams else stream
            for number, stream in ((1, sys.stdout), (2, sys.stderr))
        )


def _lead_to_a_reader(descriptor: int, takes: int) -> None:
    """A pipe of the smallest kind whose other end reads so many bytes and leaves."""
    mine, its = socket.socketpair() if takes else (None, None)
    if mine is None or its is None:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, descriptor)
        os.close(write)
        return
    if not os.fork():
        mine.close()
        its.recv(takes)
        os._exit(0)
    its.close()
    os.dup2(mine.fileno(), descriptor)
    mine.close()


def _do_environment(name: str, value: str | None) -> None:
    """A variable that is another, or not there."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _do_several(*faults: list[Any]) -> None:
    for kind, *arguments in faults:
        begin(kind, *arguments)


if not Path("/dev/full").exists():  # another system than Linux
    raise ImportError("faults are brought about on Linux only")
