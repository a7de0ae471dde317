"""Changing a bundle so that it is whole at every moment, also for a process that is killed.

A change is made in a folder of its own inside the bundle, and takes effect in this order:

    1. the names of all files that come or go are written down, beside the new files
    2. the new files are renamed into the bundle; no listed file has such a name, so the bundle is
       what it was
    3. the new ``bundle.json`` takes the place of the old one, in one step
    4. of the names that were written down, whatever the manifest does not list is removed

A process that dies leaves the folder, and the next writer does step 4 for it before anything else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from openvis_rt.bundle.manifest import GraphFile, Manifest
from openvis_rt.bundle.manifest_file import (
    MANIFEST,
    check_manifest,
    check_name,
    file_entry,
    is_newer_minor,
    read_manifest,
    save_manifest,
)
from openvis_rt.errors import BundleError, InputError, OutputError
from openvis_rt.files import flush, is_about, lock_directory, output_file
from openvis_rt.given_files import given_json

__all__ = ["Change", "changing"]

_FOLDER = ".adding-"
_NAMES = "names.json"
_NEW = "new"


class Change:
    """What one writer is about to do to a bundle; :meth:`Bundle.adding` makes it.

    Attributes:
        path: the bundle's directory.
        manifest: what it will be, but for ``files``, which follows from the methods below. Another
            one may be put here, with other fields.
    """

    def __init__(self, path: Path, manifest: Manifest, folder: Path) -> None:
        self.path = path
        self.manifest = manifest
        self._before = manifest
        self._folder = folder
        self._others = set(manifest.files) - manifest.graph_files
        self._new: list[str] = []

    def new_file(self, name: str) -> Path:
        """Where to write a file that will be ``name`` in the bundle, such as ``reference/a.npz``.

        It is listed in the new manifest, and must be there when the block ends.

        Raises:
            BundleError: ``name`` leaves the bundle.
            OutputError: there is a file of that name. One that is listed keeps its bytes as long as
                it has its name, so what replaces it takes another one; see :meth:`unused_name`.
        """
        check_name(self.path, name)
        if name in self._new or os.path.lexists(self.path / name):
            raise OutputError(
                f"{self.path / name} is there already, and a bundle's files are not overwritten. "
                f"{'Take another name' if name in self._before.files else 'Remove it yourself'}."
            )
        self._new.append(name)
        file = self._folder / _NEW / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def unused_name(self, name: str) -> str:
        """``name``, or with a number before its suffix if there is such a file: ``a.2.npz``."""
        wanted, number = PurePosixPath(name), 1
        while name in self._new or os.path.lexists(self.path / name):
            number += 1
            name = str(wanted.with_suffix(f".{number}{wanted.suffix}"))
        return name

    def set_precision(self, precision: str, graphs: Mapping[str, GraphFile]) -> None:
        """Add or replace a precision: every graph of the bundle, in new files or in listed ones.

        Files of a precision that is replaced go with it, unless another one uses them.
        """
        self.manifest = replace(
            self.manifest, graphs={**self.manifest.graphs, precision: dict(graphs)}
        )

    def drop(self, name: str) -> None:
        """Remove a listed file that is no graph, or all below a folder, when the block ends well.

        Raises:
            BundleError: no such file is listed.
        """
        found = {n for n in self._others if n == name or n.startswith(f"{name}/")}
        if not found:
            raise BundleError(f"{self.path} lists no file {name} that could be dropped")
        self._others -= found

    def _finish(self) -> None:
        """Steps 1 to 3 of the module's docstring."""
        # by one who knows nothing of locks; the folder went with the bundle that it is in
        if not self._folder.is_dir() or _manifest_of_now(self.path) != self._before:
            raise _replaced(self.path)
        new = self._folder / _NEW
        entries = {name: file_entry(new, name) for name in self._new}
        kept = self._others | (self.manifest.graph_files & self._before.files.keys())
        entries |= {name: self._before.files[name] for name in kept}
        manifest = replace(self.manifest, files=dict(sorted(entries.items())))
        check_manifest(manifest, self.path)
        save_manifest(manifest, self._folder / MANIFEST)
        with output_file(self._folder / _NAMES) as partial:
            partial.write_text(
                json.dumps(sorted(manifest.files.keys() ^ self._before.files.keys()))
            )
        for file in (self._folder / MANIFEST, *(new / name for name in self._new)):
            flush(file)
        for name in self._new:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).rename(self.path / name)
        (self._folder / MANIFEST).replace(self.path / MANIFEST)


@contextlib.contextmanager
def changing(path: Path, opened: Manifest) -> Iterator[Change]:
    """See :meth:`Bundle.adding`; ``opened`` is what the bundle was when the caller read it."""
    try:
        with _held(path):
            manifest = _manifest_of_now(path)  # another process may have added to it
            if _source(manifest) != _source(opened):
                raise _replaced(path)
            if is_newer_minor(manifest):
                raise BundleError(
                    f"{path} has bundle schema {manifest.schema}, and this openvis-rt would lose "
                    "what it does not know of it. Use the openvis-rt that wrote it."
                )
            _clear_up(path, manifest)
            folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=path))
            try:
                change = Change(path, manifest, folder)
                yield change
                change._finish()
            finally:
                with contextlib.suppress(OSError, BundleError):  # else the next writer does it
                    _clear_up(path, read_manifest(path))
    except OSError as exc:
        if not is_about(exc, path):
            raise
        raise OutputError(
            f"cannot add to {path}: {exc}. It is as it was. Free space, or copy the bundle to a "
            "place that can be written."
        ) from exc


def _manifest_of_now(path: Path) -> Manifest:
    """BundleError where the bundle that was opened here is gone."""
    if not (path / MANIFEST).exists():
        raise _replaced(path)
    return read_manifest(path)


def _source(manifest: Manifest) -> tuple[object, ...]:
    """What a bundle was exported from and as: nothing that is added to it changes this."""
    precision, graphs = next(iter(manifest.graphs.items()))
    digests = {name: manifest.files[graph.file].sha256 for name, graph in graphs.items()}
    return manifest.variant, manifest.checkpoint, precision, digests


def _replaced(path: Path) -> BundleError:
    return BundleError(
        f"{path} was replaced by another bundle, or removed, since it was opened here, and what "
        "was made of that bundle belongs to no other; nothing was added. Start anew"
    )


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of the one writer; the system opens it when a process dies, however that happens."""
    try:
        lock = lock_directory(path)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise _replaced(path) from exc
        if exc.errno == errno.EWOULDBLOCK:
            raise OutputError(
                f"another process is adding to {path}. Try again when it has ended."
            ) from exc
        raise OutputError(
            f"{path} cannot be locked ({exc}), so nothing is added. Copy it to a local disk."
        ) from exc
    try:
        yield
    finally:
        os.close(lock)


def _clear_up(path: Path, manifest: Manifest) -> None:
    """Remove the folders of changes, and of the files that they named all that is not listed."""
    for folder in path.glob(f"{_FOLDER}*"):
        for name in _named_in(folder):
            with contextlib.suppress(OSError, BundleError):
                if name in manifest.files:
                    continue
                check_name(path, name)  # whoever sent this bundle may have written any name
                (path / name).unlink(missing_ok=True)
                for parent in (path / name).relative_to(path).parents:
                    (path / parent).rmdir()
        shutil.rmtree(folder, ignore_errors=True)


def _named_in(folder: Path) -> list[str]:
    try:
        names = given_json(folder / _NAMES, 1 << 20)
    except InputError:  # it died before it had renamed anything
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
