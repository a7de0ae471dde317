"""The bundle: a directory of graphs with a manifest that says what is in it and how to drive it.

    bundle.json              the manifest
    propose.onnx ...         one graph each; `propose.fp16.onnx` is the same in another precision
    tracker.safetensors      recurrence weights, where the tracker has any
    tokenizer/tokenizer.json CLIP's byte-pair tokenizer, in the `tokenizers` library's format
    calibration/             what INT8 ranges were measured from, where that was done
    reference/               recorded inputs and PyTorch's outputs, where they were recorded
    engines/<target>/        engines and their sidecars, written by `openvis build`; not listed
    text/                    the cache of text embeddings, written at run time; not listed

A file belongs to the bundle because the manifest lists it, with its SHA-256; the manifest carries
its own. Nothing in a bundle is ever unpickled. What the rest of the project needs of this folder is
imported from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openvis_rt.bundle.growing import Change, changing
from openvis_rt.bundle.manifest import (
    SCHEMA,
    FileEntry,
    GraphFile,
    Manifest,
    Preprocess,
)
from openvis_rt.bundle.manifest_file import (
    MANIFEST,
    MEND,
    manifest_sha256,
    read_manifest,
    write_manifest,
)
from openvis_rt.bundle.onnx_file import refused_part
from openvis_rt.errors import BundleError
from openvis_rt.files import digest_of
from openvis_rt.given_files import given_file
from openvis_rt.systems.graphs import QUANTISED

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "TOKENIZER",
    "TRACKER",
    "Bundle",
    "Change",
    "FileEntry",
    "GraphFile",
    "Manifest",
    "Preprocess",
    "write_manifest",
]

TOKENIZER = "tokenizer/tokenizer.json"
TRACKER = "tracker.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its manifest read and, unless told otherwise, its files checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, sha256: str | None = None) -> Bundle:
        """Open a bundle.

        Args:
            path: its directory.
            verify: compare every file's SHA-256 with the manifest (about a second for 500 MB).
            sha256: of the bundle that it must be, where it was opened before; None for any.

        Raises:
            BundleError: it is missing, unfinished, damaged, of a schema that is not known here, not
                the one that it must be, or its manifest names a file outside of it.
        """
        path = Path(path)
        bundle = cls(path, read_manifest(path))
        if sha256 not in (None, bundle.sha256):
            raise BundleError(
                f"{path} was replaced or changed since it was first opened here; what was made of "
                "it so far is not of the bundle that stands there now. Start anew"
            )
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Compare every listed file with the manifest, and look into the graphs.

        Raises:
            BundleError: a file is missing or has changed, or a graph has what no graph of a bundle
                may have (:func:`refused_part`); the message names the first one.
        """
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.exists():
                raise BundleError(f"{file} is missing; {MEND}")
            with self._opened(name) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != entry.bytes:
                    raise BundleError(
                        f"{file} has {size} bytes, {entry.bytes} were written; {MEND}"
                    )
                found = digest_of(opened)
                if found != entry.sha256:
                    raise BundleError(
                        f"{file} was changed: its sha256 is {found[:16]}..., "
                        f"{entry.sha256[:16]}... was written; {MEND}"
                    )
                if name in self.manifest.graph_files and size:
                    with contextlib.suppress(ValueError):
                        # what is no ONNX file is told by whoever opens the graph
                        _refuse_parts(file, opened)

    @contextlib.contextmanager
    def adding(self) -> Iterator[Change]:
        """Add a precision, a calibration or a recorded reference to the bundle on disk.

            with bundle.adding() as change:
                save(model, change.new_file("propose.int8.onnx"))
                change.set_precision("int8", graphs)
            bundle = Bundle.open(bundle.path)

        This object stays as it was opened. The change appears when the block ends well, as a whole;
        an error in the block, and a process that is killed at any moment, leave the bundle as it
        was. Only one process changes a bundle at a time.

        Raises:
            OutputError: another process is changing the bundle, or it cannot be written.
            BundleError: what the block left does not fit together; another bundle stands there
                now, so that what was made of this one does not belong to it; or a newer openvis-rt
                wrote the bundle, and this one would lose what it does not know.
        """
        with changing(self.path, self.manifest) as change:
            yield change

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what the manifest says: two bundles that share it have the same files."""
        return manifest_sha256(self.manifest)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, in the order in which a frame meets them."""
        return tuple(next(iter(self.manifest.graphs.values())))

    def graph(self, name: str, precision: str = "fp32") -> GraphFile:
        """A graph's file, computing precision and tensors.

        Raises:
            BundleError: the bundle does not hold this graph in this precision.
        """
        found = self.manifest.graphs.get(precision, {}).get(name)
        if found is None:
            held = ", ".join(f"{p} ({', '.join(g)})" for p, g in self.manifest.graphs.items())
            made = "; `openvis calibrate` with videos makes INT8" if precision in QUANTISED else ""
            raise BundleError(
                f"{self.path} holds no graph {name!r} in precision {precision!r}; it holds {held}"
                f"{made}"
            )
        return found

    def graph_path(self, name: str, precision: str = "fp32") -> Path:
        """The ONNX file of a graph; BundleError as in :meth:`graph`."""
        return self.path / self.graph(name, precision).file

    def read_graph(self, name: str, precision: str = "fp32") -> bytes:
        """The bytes of a graph's ONNX file, as the manifest lists them and nothing else.

        They are read once and checked, so what is opened is what was exported, also where the
        bundle was replaced since it was opened here.

        Raises:
            BundleError: the bundle does not hold this graph; its file is missing, was changed, is
                no ONNX file, or has what no graph of a bundle may have (:func:`refused_part`).
        """
        file = self.graph_path(name, precision)
        data = self.read_file(self.graph(name, precision).file)
        try:
            _refuse_parts(file, data)
        except ValueError as exc:
            raise BundleError(f"{file} is no ONNX file: {exc}; {MEND}") from exc
        return data

    def read_file(self, name: str, largest: int | None = None) -> bytes:
        """The bytes of a listed file, read once and compared with its digest.

        So they are those of the bundle that was opened, whatever stands under its name by now.

        Args:
            name: of the file, such as :data:`TOKENIZER`.
            largest: the most bytes that such a file has; None for no bound.

        Raises:
            BundleError: it is not listed, missing, no regular file, larger, or was changed.
        """
        file, entry = self.file_path(name), self.manifest.files[name]
        if largest is not None and entry.bytes > largest:
            raise BundleError(
                f"{file} has {entry.bytes} bytes; such a file has at most {largest >> 20} MiB"
            )
        with self._opened(name) as opened:
            try:
                data = opened.read(entry.bytes + 1)
            except OSError as exc:
                raise BundleError(f"{file} cannot be read: {exc.strerror}; {MEND}") from exc
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise self._changed(name)
        return data

    def copy_file(self, name: str, target: Path) -> None:
        """Copy a listed file, and compare what was copied with its digest.

        Raises:
            BundleError: as :meth:`read_file`.
            OSError: the copy cannot be written.
        """
        with self._opened(name) as opened, target.open("wb+") as copy:
            shutil.copyfileobj(opened, copy, 1 << 20)
            if digest_of(copy) != self.manifest.files[name].sha256:
                raise self._changed(name)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """A listed file; BundleError where it cannot be read, or says that it was replaced."""
        try:
            file = given_file(self.file_path(name), BundleError)
        except BundleError as exc:
            raise self._changed(name, str(exc)) from exc
        with file:
            yield file

    def _changed(self, name: str, how: str = "") -> BundleError:
        """What is said of a file that is not the one of the bundle that was opened."""
        try:
            replaced = read_manifest(self.path) != self.manifest
        except BundleError:
            replaced = True
        how = how or f"{self.path / name} was changed since the bundle was written"
        if replaced:
            return BundleError(
                f"{how}; {self.path} was replaced, changed or removed since it was opened here. "
                "Open it again: start anew"
            )
        return BundleError(f"{how}; {MEND}")

    def graph_sha256(self, name: str, precision: str = "fp32") -> str:
        """Hex SHA-256 of a graph's ONNX file, from the manifest."""
        return self.manifest.files[self.graph(name, precision).file].sha256

    def file_path(self, name: str) -> Path:
        """The path of a listed file, such as :data:`TOKENIZER`.

        Raises:
            BundleError: the manifest does not list it, so whatever stands there is no part of the
                bundle.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name}: {MANIFEST} does not list it")
        return self.path / name


def _refuse_parts(file: Path, data: bytes | BinaryIO) -> None:
    refused = refused_part(data)
    if refused is not None:
        raise BundleError(f"{file} {refused}; no graph of a bundle may: {MEND}")
