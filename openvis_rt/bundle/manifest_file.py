"""``bundle.json`` on disk: reading it, refusing one that is wrong, and writing it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from openvis_rt.bundle.manifest import SCHEMA, FileEntry, Manifest
from openvis_rt.errors import BundleError, RecordError
from openvis_rt.files import output_file, sha256_of
from openvis_rt.given_files import given_json
from openvis_rt.records import json_from_record, record_from_json

__all__ = [
    "MANIFEST",
    "MEND",
    "check_manifest",
    "check_name",
    "file_entry",
    "is_newer_minor",
    "manifest_sha256",
    "read_manifest",
    "save_manifest",
    "write_manifest",
]

MANIFEST = "bundle.json"
MEND = "the bundle cannot be trusted: export it again with `openvis export`"

_LARGEST = 16 << 20  # bytes of a manifest; those of the largest models have 20 kB
_NEVER_LISTED = frozenset({MANIFEST, "engines", "text"})  # engines have sidecars, text is a cache
_MAJOR, _MINOR = map(int, SCHEMA.split("."))


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest; the other files are not read.

    Raises:
        BundleError: the folder is no bundle or an unfinished one; its manifest was changed, has
            another major schema or a wrong field, or names a file outside of the bundle.
    """
    file = folder / MANIFEST
    if folder.is_file():
        raise BundleError(
            f"{folder} is a file, and a bundle is a directory; `openvis export` makes one"
        )
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: there is no such directory")
    if not file.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST} (an unfinished export leaves none)"
        )
    try:
        data = given_json(file, _LARGEST, BundleError)
    except BundleError as exc:
        raise BundleError(f"{file} is damaged ({exc}); {MEND}") from exc
    if not isinstance(data, dict):
        raise BundleError(f"{file} is damaged (it holds no object); {MEND}")
    _, minor = _checked_schema(data.get("schema"), folder)
    if data.pop("manifest_sha256", None) != _digest(data):
        raise BundleError(f"{file} was changed after it was written; {MEND}")
    try:
        manifest = record_from_json(Manifest, data, strict=minor <= _MINOR)
        check_manifest(manifest, folder)
    except (RecordError, BundleError) as exc:
        raise BundleError(f"{file} is damaged ({exc}); {MEND}") from exc
    return manifest


def write_manifest(folder: Path, manifest: Manifest, files: Iterable[str] = ()) -> None:
    """Write ``bundle.json`` into a directory that has everything else.

    Args:
        folder: the directory. What else stands there is no part of the bundle.
        manifest: its ``files`` and ``schema`` are replaced.
        files: what belongs to the bundle beside the graphs, by paths inside it.

    Raises:
        BundleError: a path leaves the bundle, a file is missing, or the graphs of two precisions
            differ.
        RecordError: a value is of another type than its field.
    """
    names = sorted({*manifest.graph_files, *files})
    listed = replace(manifest, files={name: file_entry(folder, name) for name in names})
    check_manifest(listed, folder)
    with output_file(folder / MANIFEST) as partial:
        save_manifest(listed, partial)


def save_manifest(manifest: Manifest, file: Path) -> None:
    """Write a manifest with the digest of its own text and the schema of this version.

    Raises:
        RecordError: a value is of another type than its field, so it could not be read again.
    """
    data = json_from_record(replace(manifest, schema=SCHEMA))
    record_from_json(Manifest, data)
    data["manifest_sha256"] = _digest(data)
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def file_entry(folder: Path, name: str) -> FileEntry:
    """Digest and size of a file; BundleError if it is missing or lies outside of the folder."""
    check_name(folder, name)
    if not (folder / name).is_file():
        raise BundleError(f"{folder / name} is to be a part of the bundle, and it is not there")
    return FileEntry(sha256_of(folder / name), (folder / name).stat().st_size)


def check_name(folder: Path, name: str) -> None:
    """Refuse a path that does not lie in the bundle, or lies in a part of it that is never listed.

    Raises:
        BundleError: the path is absolute, is not in its plain form (``..``, ``./``, a backslash),
            leads outside by a symbolic link, or belongs to ``engines/`` or ``text/``.
    """
    path = PurePosixPath(name)
    plain = bool(path.parts) and str(path) == name and not path.is_absolute()
    if not plain or ".." in path.parts or "\\" in name or "\0" in name:
        raise BundleError(f"{name!r} is no path of a file inside of a bundle")
    if path.parts[0] in _NEVER_LISTED or path.parts[0].startswith("."):
        raise BundleError(
            f"{name!r} is no path of a listed file: {', '.join(sorted(_NEVER_LISTED))} and names "
            "that begin with a dot are not for those"
        )
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as exc:  # a circle of links, or no text
        raise BundleError(f"{folder / name} cannot be followed: {exc}") from exc
    if not inside:
        raise BundleError(f"{folder / name} is a symbolic link that leads out of the bundle")


def is_newer_minor(manifest: Manifest) -> bool:
    """Whether a manifest that was read has fields that this version may have passed over."""
    return int(manifest.schema.split(".")[1]) > _MINOR


def check_manifest(manifest: Manifest, folder: Path) -> None:
    """What a manifest must hold beyond the types of its fields.

    Raises:
        BundleError: a file's path leaves the bundle, a graph's file is not listed, or there is no
            graph, or not the same ones in every precision.
    """
    for name in manifest.files:
        check_name(folder, name)
    if missing := sorted(manifest.graph_files - manifest.files.keys()):
        raise BundleError(f"the file {missing[0]!r} of a graph is not among the bundle's files")
    names = {precision: sorted(graphs) for precision, graphs in manifest.graphs.items()}
    if not all(names.values()) or len(set(map(tuple, names.values()))) != 1:
        raise BundleError(f"every precision needs the same graphs, one or more; found {names}")


def _checked_schema(found: object, folder: Path) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", found) if isinstance(found, str) else None
    if match is None or int(match[1]) != _MAJOR:
        raise BundleError(
            f"{folder} has bundle schema {found}; this version of openvis-rt reads {_MAJOR}.x. "
            "Use the openvis-rt that wrote it, or export it again with this one."
        )
    return int(match[1]), int(match[2])


def manifest_sha256(manifest: Manifest) -> str:
    """Hex SHA-256 of what a manifest says, which lists the digests of all its bundle's files."""
    return _digest(json_from_record(manifest))


def _digest(data: dict[str, Any]) -> str:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
