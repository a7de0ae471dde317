"""Writing files so that a killed process leaves nothing that loads: write aside, flush, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from openvis_rt.errors import OutputError

__all__ = [
    "check_replaceable",
    "digest_of",
    "flush",
    "is_about",
    "lock_directory",
    "output_directory",
    "output_errors",
    "output_file",
    "refuse_existing",
    "refuse_inputs",
    "sha256_of",
]

_PARTIAL = ".partial-"  # every name that begins so is litter, once its process is gone
_REPLACED = ".replaced-"  # holds the old directory while a new one takes its name
_RANDOM = 8  # letters that mkdtemp adds to a prefix
_LETTERS = 20  # of a file's name, with which the names of what is aside for it begin
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_HERE, _EXCHANGE = -100, 2  # Linux's AT_FDCWD and RENAME_EXCHANGE
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """Hex SHA-256 of an open file's bytes from its begin on, read in pieces."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into an :class:`OutputError` with advice."""
    try:
        yield
    except OSError as exc:
        raise _output_error(path, exc) from exc


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name ``path`` when the block ends well.

    What killed processes left there for the same name is removed first. An error inside the block
    removes it, and an earlier file at ``path`` stays as it was. An ``OSError`` of the block is left
    as it is, unless it names the file or says that a disk is full.

    Raises:
        OutputError: the folder cannot be written, or has no space left.
    """
    with _made_parents(path):
        with output_errors(path):
            _remove_litter(path)
            partial, lock = _locked_file(path)
        try:
            with _block_errors(path, partial):
                yield partial
            with output_errors(path):
                partial.chmod(0o666 & ~_umask())  # mkstemp's files can be read by the owner only
                flush(partial)
                partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
            os.close(lock)


@contextlib.contextmanager
def output_directory(
    path: Path, *, overwrite: bool = False, ours: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """A new directory to fill; it takes the name ``path`` when the block ends well.

    What killed processes left beside ``path`` for the same name is cleared up first: unfinished
    work is removed, and a directory that was about to be replaced gets its name back. An
    ``OSError`` of the block is treated as in :func:`output_file`.

    Args:
        path: the directory to make.
        overwrite: replace a directory that is there; it is removed only after the new one is whole.
        ours: whether a directory holds what an earlier call made, and nothing else. No other one is
            replaced, unless it is empty.

    Raises:
        OutputError: there is something at ``path`` that may not be replaced, or its parent cannot
            be written.
    """
    path = path.absolute()  # "." has no name of its own
    with output_errors(path):
        _recover(path)
        check_replaceable(path, overwrite=overwrite, ours=ours)
    with _made_parents(path):
        with output_errors(path):
            partial, lock = _locked_directory(path, _PARTIAL)
        try:
            with _block_errors(path, partial):
                yield partial
            with output_errors(path):
                partial.chmod(0o777 & ~_umask())
                for file in partial.rglob("*"):
                    if file.is_file():
                        flush(file)
                # again: the work may have taken hours
                check_replaceable(path, overwrite=overwrite, ours=ours)
                _put_in_place(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there already; long work asks this before it begins.

    Raises:
        OutputError: it exists, and ``overwrite`` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"{path} exists already. Give another place, or --overwrite to replace it."
        )


def refuse_inputs(path: Path, *inputs: Path | str | None) -> None:
    """Refuse an output in whose place something stands that is read, also with ``overwrite``.

    Raises:
        OutputError: an input is at ``path`` or below it.
    """
    place = os.path.realpath(path)
    for given in inputs:
        # not Path.resolve, which raises on links in a circle
        if given is not None and Path(os.path.realpath(given)).is_relative_to(place):
            raise OutputError(
                f"{path} cannot be written: {given} is read from there. Give another place."
            )


def check_replaceable(path: Path, *, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Refuse what :func:`output_directory` would, with the same arguments.

    Raises:
        OutputError: there is something at ``path`` that may not be replaced.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is not a directory. Remove it yourself or give another place.")
    refuse_existing(path, overwrite=overwrite)
    if Path.cwd().is_relative_to(path.resolve()):
        raise OutputError(f"{path} holds the working directory and cannot be replaced.")
    if any(path.iterdir()) and not ours(path):
        raise OutputError(
            f"{path} was not made by openvis, or holds other files as well; --overwrite does not "
            "replace it. Remove it yourself or give another place."
        )


def _put_in_place(partial: Path, path: Path) -> None:
    """Give ``partial`` the name ``path``; what had it takes ``partial``'s name, as litter."""
    if not path.exists():
        partial.rename(path)
        return
    if not path.is_symlink() and _exchanged(partial, path):
        return
    parked, lock = _locked_directory(path, _REPLACED)
    try:
        path.rename(parked / path.name)
        partial.rename(path)  # a process killed before this leaves the old one to _recover
        parked.rename(partial)
    finally:
        with contextlib.suppress(OSError):
            if not os.path.lexists(path):
                (parked / path.name).rename(path)
            shutil.rmtree(parked, ignore_errors=True)
        os.close(lock)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two names change what they stand for, at one moment; false where that is not possible.

    It is Linux's ``renameat2``, which needs a file system that can do it (ext4, xfs, btrfs, tmpfs).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:  # another system, or a C library before glibc 2.28
        return False
    names = os.fsencode(one), os.fsencode(other)
    return int(renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)) == 0


def _recover(path: Path) -> None:
    """Clear up what killed processes left for one name."""
    if not path.parent.is_dir():
        return
    for parked in _left_behind(path, f"{_REPLACED}{path.name}-"):
        with contextlib.suppress(OSError):
            if not os.path.lexists(path) and os.path.lexists(parked / path.name):
                (parked / path.name).rename(path)
            # removed under another name: half of a directory must never come back
            parked.rename(parked.with_name(parked.name.replace(_REPLACED, _PARTIAL, 1)))
    for litter in _left_behind(path, f"{_PARTIAL}{path.name}-"):
        shutil.rmtree(litter, ignore_errors=True)


def _remove_litter(path: Path) -> None:
    """Remove the unfinished files that killed processes left for one name."""
    for litter in _left_behind(path, _file_prefix(path), path.suffix):
        with contextlib.suppress(OSError):  # what is a directory is none of this name's files
            litter.unlink()


def _file_prefix(path: Path) -> str:
    """How the names of unfinished files for ``path`` begin; a name has 255 bytes at the most."""
    return f"{_PARTIAL}{path.stem[:_LETTERS]}-"


def _left_behind(path: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """What has such a name beside ``path`` and no process; each is held while the caller has it."""
    length = len(prefix) + _RANDOM + len(suffix)
    with os.scandir(path.parent) as entries:
        names = [e.name for e in entries if e.name.startswith(prefix) and e.name.endswith(suffix)]
    for found in (path.with_name(name) for name in names if len(name) == length):
        if found.is_symlink():
            continue
        try:
            lock = lock_directory(found)
        except OSError:  # its process runs, or it is gone meanwhile
            continue
        try:
            yield found
        finally:
            os.close(lock)


def _locked_directory(path: Path, kind: str) -> tuple[Path, int]:
    """A new directory beside ``path``, and the descriptor that holds it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}{path.name}-", dir=path.parent))
        try:
            lock = lock_directory(folder, needed=False)
        except (BlockingIOError, FileNotFoundError):  # another process takes it for litter
            continue
        except OSError:
            folder.rmdir()
            raise
        if folder.exists():
            return folder, lock
        os.close(lock)


def _locked_file(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, and the descriptor that holds it."""
    while True:
        lock, name = tempfile.mkstemp(path.suffix, _file_prefix(path), path.parent)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.lexists(name):
                return Path(name), lock
        except BlockingIOError:  # another process takes it for litter
            pass
        except OSError as exc:
            if exc.errno in _NO_LOCKS:
                return Path(name), lock
            os.close(lock)
            Path(name).unlink()
            raise
        os.close(lock)


def lock_directory(folder: Path, *, needed: bool = True) -> int:
    """Hold a directory until its descriptor is closed or the process ends, however it ends.

    Args:
        folder: the directory.
        needed: refuse a file system without locks, as some of networks are; else the descriptor
            holds nothing there.

    Returns:
        The descriptor, for ``os.close``.

    Raises:
        BlockingIOError: another process, or another part of this one, holds it.
        OSError: the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name: no waiting
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if needed or exc.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    return descriptor


@contextlib.contextmanager
def _made_parents(path: Path) -> Iterator[None]:
    """Make the folders above ``path``; those that were missing go again if the block fails."""
    missing: list[Path] = []
    try:
        with output_errors(path):
            missing += [folder for folder in path.parents if not folder.exists()]  # deepest first
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was never made, or others use it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _block_errors(path: Path, partial: Path) -> Iterator[None]:
    """Map an ``OSError`` of the caller's block if it is one of writing, and no other."""
    try:
        yield
    except OSError as exc:
        if is_about(exc, partial):
            raise _output_error(path, exc) from exc
        raise


def is_about(error: OSError, place: Path) -> bool:
    """Whether an error says that a disk is full, or names ``place`` or something in it."""
    if error.errno in _FULL:
        return True
    names = (error.filename, error.filename2)
    paths = [Path(os.fsdecode(n)) for n in names if isinstance(n, str | bytes | os.PathLike)]
    return any(path.absolute().is_relative_to(place.absolute()) for path in paths)


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in _FULL:
        where = f" at {error.filename}" if error.filename else ""
        return OutputError(
            f"cannot write {path}: the disk is full{where} ({error.strerror}). Nothing was left "
            "there. Free space, also where temporary files go, or give another place with --output."
        )
    return OutputError(
        f"cannot write {path}: {error.strerror or error}. Nothing was left there. "
        "Give a place that can be written with --output."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that a later rename cannot be there alone."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
