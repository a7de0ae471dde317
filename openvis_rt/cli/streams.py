"""The command's stdout and stderr, which may be full, closed, or read by nobody any longer."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from openvis_rt.errors import InputError, OutputError
from openvis_rt.printable import shortened

__all__ = ["readable_files", "safe_data", "safe_talk"]

# a write to stdout fails by one of these, and none of them comes from a defect
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})

# what is wrong with a named file by one of these is wrong with the place, not with this program
_PLACES = _FULL | {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}
_PLACES |= {errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE}


class _Talk:
    """stderr, whose texts are lost where they cannot be written: the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a stream's."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_talk() -> Iterator[None]:
    """Within the block what cannot be written to stderr is lost, and the work goes on."""
    stderr = sys.stderr
    if stderr is not None:  # it may be closed
        sys.stderr = cast("TextIO", _Talk(stderr))
    try:
        yield
    finally:
        sys.stderr = stderr


@contextlib.contextmanager
def safe_data() -> Iterator[None]:
    """Within the block the end of stdout is the end of the command.

    Where the reader of stdout has left (``openvis models | head -1``), it had what it wanted: the
    command ends with code 0.

    Raises:
        OutputError: stdout cannot be written, such as on a full disk.
    """
    stdout, stderr = sys.stdout, sys.stderr
    try:
        try:
            yield
        finally:
            _flush()
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # which typer has turned into code 1
            _drop_stdout(stdout)
            raise SystemExit(0) from None
        raise
    except BrokenPipeError:
        _drop_stdout(stdout)
        raise SystemExit(0) from None
    except OSError as exc:
        if exc.filename is not None or exc.errno not in _FULL:
            raise
        _drop_stdout(stdout)
        raise OutputError(
            f"stdout cannot be written ({exc.strerror}): what was to come there is lost. Files "
            "that the command wrote are whole."
        ) from exc
    finally:
        sys.stdout, sys.stderr = stdout, stderr


@contextlib.contextmanager
def readable_files() -> Iterator[None]:
    """Within the block a file or folder that may not be used is bad input.

    A place may be closed to its reader anywhere on its way, and be asked for anywhere; callers of
    the Python interface get Python's own error.

    Raises:
        InputError: in place of the ``OSError``, which names the file.
        OutputError: no temporary file can be written.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.ENOENT and "usable temporary directory" in str(exc):
            raise OutputError(
                "no folder for temporary files can be written: free space in /tmp, or name another "
                "one in TMPDIR"
            ) from exc
        if exc.filename is None or exc.errno not in _PLACES:
            raise
        raise InputError(
            f"{shortened(str(exc.filename))} cannot be used: {exc.strerror}. Give files and "
            "folders that you may read, and an output that you may write."
        ) from exc


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_stdout(stdout: TextIO) -> None:
    """Lead stdout to nowhere, so that Python's own flush at its end does not fail once more."""
    with contextlib.suppress(OSError, ValueError):  # a test's stdout has no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout.fileno())
        os.close(nowhere)
