"""Writing files so that a killed process leaves nothing that loads: write aside, flush, rename."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from openvis_rt.errors import OutputError

__all__ = ["output_directory", "output_errors", "output_file", "sha256_of"]

_PARTIAL = ".partial-"  # every name that begins so is litter of a killed process


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into an :class:`OutputError` with advice."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise OutputError(
            f"cannot write {path}: {reason}. Nothing was left there. "
            "Free space or give a place that can be written with --output."
        ) from exc


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name ``path`` when the block ends well.

    An error inside the block removes it, and an earlier file at ``path`` stays as it was.

    Raises:
        OutputError: the folder cannot be written, or has no space left.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
            _flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def output_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill; it takes the name ``path`` when the block ends well.

    Litter that killed processes left beside ``path`` for the same name is removed first.

    Args:
        path: the directory to make.
        overwrite: replace a directory that is there; it is removed only after the new one is whole.

    Raises:
        OutputError: ``path`` exists and ``overwrite`` is false, or its parent cannot be written.
    """
    path = path.absolute()  # "." has no name of its own
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already. Give another place, or --overwrite to replace it."
        )
    if Path.cwd().is_relative_to(path.resolve()):
        raise OutputError(f"{path} holds the working directory and cannot be replaced.")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{_PARTIAL}{path.name}-"
        _remove_litter(path.parent, prefix)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        lock = _lock(partial)
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
            for file in partial.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
                try:
                    path.rename(old / path.name)
                    partial.rename(path)
                finally:
                    if not path.exists():
                        (old / path.name).rename(path)
                    shutil.rmtree(old, ignore_errors=True)
            else:
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


_RANDOM = 8  # letters that mkdtemp adds


def _remove_litter(folder: Path, prefix: str) -> None:
    """Remove what killed processes left for one name; a running one holds the lock of its own."""
    for litter in folder.iterdir():
        name = litter.name
        if not (name.startswith(prefix) and len(name) == len(prefix) + _RANDOM):
            continue
        with contextlib.suppress(OSError):  # locked, or gone meanwhile
            lock = _lock(litter)
            shutil.rmtree(litter, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int:
    """Hold a directory until its descriptor is closed or the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
