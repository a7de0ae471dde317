"""The folder that a run writes: whole when it has its name, or there from the start and growing.

A file's results get their name when everything in the folder is whole. A camera's must be seen
while they come, and kept whatever ends the run: their folder is there from the first frame on, and
``unfinished.json`` in it says that a run writes it, or wrote it when it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from openvis_rt.errors import InputError, OutputError
from openvis_rt.files import lock_directory, output_directory
from openvis_rt.files import refuse_existing as refuse_any
from openvis_rt.given_files import given_json
from openvis_rt.runtime.video.results import FrameResult, line_of

__all__ = [
    "RUN_FILES",
    "STOPPED",
    "UNFINISHED",
    "FrameLines",
    "LogFile",
    "growing_directory",
    "is_run",
    "refuse_existing",
]

STOPPED = "stopped.json"  # only where a run ended before its source did
UNFINISHED = "unfinished.json"  # only while a run writes the folder, or after it was killed
_LOG = "frames.jsonl"
_PATIENCE = 1  # seconds that a reader has for its next bytes when the run is stopped
_PICTURES = ("page.html", "recording.rrd")  # where --html and --rerun were told to put them here
RUN_FILES = ("overlay.mp4", _LOG, "results.json", "categories.json", STOPPED, UNFINISHED)
"""What a run writes into its folder, or a part of it."""
_OUTPUTS = frozenset({*RUN_FILES, *_PICTURES})


@contextlib.contextmanager
def growing_directory(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A directory that has its name at once, and is marked unfinished until the block ends well.

    An earlier run's folder of that name is gone from the first moment on. After an error, and when
    the process is killed, the folder stays with what it holds, and with its mark.

    Args:
        path: the directory to make.
        overwrite: replace the directory of an earlier run, finished or not.

    Raises:
        OutputError: as :func:`~openvis_rt.files.output_directory`; or a run writes it now.
    """
    path = path.absolute()
    with output_directory(path, overwrite=overwrite, ours=is_run) as made:
        facts = {"pid": os.getpid(), "start": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        (made / UNFINISHED).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    lock = lock_directory(path, needed=False)
    try:
        yield path
        (path / UNFINISHED).unlink()
    finally:
        os.close(lock)


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run wrote, and nothing else.

    Raises:
        OutputError: a run writes it now.
    """
    names = {file.name for file in folder.iterdir()}
    if UNFINISHED in names:
        try:
            os.close(lock_directory(folder))
        except BlockingIOError as exc:
            raise OutputError(
                f"{folder} is written by another run now{_whose(folder)}. Give another place, or "
                "end that run first."
            ) from exc
        except OSError:
            pass  # no locks here: whoever says --overwrite knows
        # a killed process could not take away what it wrote aside
        names = {name for name in names if not name.startswith(".partial-")}
    return names <= _OUTPUTS


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """As :func:`openvis_rt.files.refuse_existing`, in words about an unfinished run if it is one.

    Raises:
        OutputError: it exists, and ``overwrite`` is false.
    """
    if not overwrite and (path / UNFINISHED).is_file():
        raise OutputError(
            f"{path} holds a run that has not ended, or was killed{_whose(path)}; what it wrote "
            f"is whole up to the last line of {_LOG}. Give another place, or --overwrite to "
            "replace it."
        )
    refuse_any(path, overwrite=overwrite)


def _whose(folder: Path) -> str:
    try:
        facts = given_json(folder / UNFINISHED, 1 << 20)
        return f" (process {int(facts['pid'])}, begun {facts['start']})"
    except (InputError, ValueError, KeyError, TypeError):
        return ""


class FrameLines:
    """Writes frames as JSON lines for another process, each as soon as it is known.

    A reader that takes its time is waited for, until the run is stopped: what it then does not take
    within a second is dropped, so that a run that is told to end does.

    Args:
        file: takes bytes, and keeps none back, such as stdout's without its buffer.
        gone: is called once, when whoever reads has gone away; later lines are dropped.
        stopped: set where the run is to end.
    """

    def __init__(
        self, file: BinaryIO, gone: Callable[[], None], stopped: threading.Event | None = None
    ) -> None:
        self._file, self._gone, self._open = file, gone, True
        self._stopped = stopped or threading.Event()
        self._room = _room(file)

    def write(self, result: FrameResult) -> None:
        """Write the line of one frame.

        Raises:
            OutputError: it cannot be written for another reason than that nobody reads.
        """
        rest = memoryview(line_of(result))
        try:
            while rest and self._open:
                if self._wait():
                    rest = rest[self._file.write(rest[: select.PIPE_BUF]) or 0 :]
        except BrokenPipeError:
            self._open = False
            self._gone()
        except OSError as exc:
            raise OutputError(f"cannot write the lines of frames: {exc.strerror or exc}") from exc

    def _wait(self) -> bool:
        """Whether the file takes ``PIPE_BUF`` bytes now; after the wait it may be given up."""
        if self._room is None or self._room.poll(1000 * _PATIENCE):
            return True
        self._open = not self._stopped.is_set()
        return False


def _room(file: BinaryIO) -> select.poll | None:
    """What tells when a file takes bytes without a wait; None for one that is only in memory."""
    try:
        descriptor = file.fileno()
    except OSError:
        return None
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    return room


class LogFile:
    """A file of JSON lines that has its name at once and holds whole lines only.

    Where a line cannot be written, the file ends before it. Use it in a ``with`` block.

    Args:
        path: of the file, which must not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size, self._frames = path, 0, 0
        self._descriptor = -1

    def __enter__(self) -> LogFile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        try:
            self._descriptor = os.open(self._path, flags, 0o666)
        except OSError as exc:
            raise OutputError(f"cannot write {self._path}: {exc.strerror}.") from exc
        return self

    def write(self, result: FrameResult) -> None:
        """Append the line of one frame.

        Raises:
            OutputError: it cannot be written; the lines before it stay.
        """
        line = line_of(result)
        try:
            rest = memoryview(line)
            while rest:  # in one piece, unless the disk is full
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise OutputError(
                f"cannot write {self._path}: {exc.strerror or exc}. The {self._frames} frames "
                "before are kept there. Free space, or give another place with --output."
            ) from exc
        self._size += len(line)
        self._frames += 1

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
