"""Writing files so that a killed process leaves nothing that loads: write aside, flush, rename."""

from __future__ import annotations

import contextlib
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
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already. Give another place, or --overwrite to replace it."
        )
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for litter in path.parent.glob(f"{_PARTIAL}{path.name}-*"):
            shutil.rmtree(litter, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{path.name}-", dir=path.parent))
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
            for file in partial.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():
                old = path.with_name(f"{_PARTIAL}{path.name}-old")
                path.rename(old)
                partial.rename(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
