"""The videos that a batch is given: files, folders, patterns, lists of them, object stores.

street.mp4                  a video
clips/                      every video below it, and every folder below it that holds images
'clips/*.mp4'               what the pattern finds
videos.txt                  one of these a line, relative to the file; # begins a comment
s3://bucket/clips/*.mp4     the same in any file system that fsspec knows
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from openvis_rt.errors import DependencyError, InputError, VideoError
from openvis_rt.files import digest_of, is_about, output_errors
from openvis_rt.given_files import given_bytes, given_file
from openvis_rt.printable import shortened
from openvis_rt.runtime.video.reading import IMAGE_SUFFIXES

__all__ = ["VIDEO_SUFFIXES", "fetched", "find_videos", "fingerprint", "is_address"]

VIDEO_SUFFIXES = frozenset(
    {
        *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
    }
)
_LIST = ".txt"
_LARGEST_LIST = 1 << 30  # bytes: a million long addresses have 200 MB
_LIVE = frozenset({"rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp"})
_OF_CONTENT = (  # what file systems say of an object that changes with its bytes
    *("size", "ETag", "etag", "md5", "md5Hash", "crc32c", "content_md5"),
    *("LastModified", "last_modified", "mtime", "updated", "created"),
)


def find_videos(given: Iterable[str], *, outside: Path) -> list[str]:
    """The videos that some arguments name, each once, in the order of the arguments.

    Args:
        given: see this module's docstring.
        outside: a folder whose files are no sources: the output, which holds overlays.

    Returns:
        absolute paths and addresses; those of a folder or a pattern in natural order.

    Raises:
        InputError: an argument names nothing, or something that has no end.
        DependencyError: an address needs fsspec or one of its file systems.
    """
    barred = Path(os.path.realpath(outside))  # of links in a circle it is the path itself
    found: dict[str, None] = {}
    for argument in given:
        for video in _named_by(argument):
            real = Path(os.path.realpath(video))
            if is_address(video) or not real.is_relative_to(barred):
                found[video] = None
    if not found:
        raise InputError(
            "no video to run: the arguments name none; give video files, folders, patterns, "
            "addresses, or a .txt file with one of these a line"
        )
    return list(found)


def is_address(source: str) -> bool:
    """Whether fsspec reads it, not the system."""
    return "://" in source


def fingerprint(source: str) -> str:
    """What changes when a video's content does: text that equals that of the same bytes.

    It is the SHA-256 of a file, or of the names and bytes of a folder's images. Of an address it is
    what the store says of the object (size, checksum, time), so that nothing is fetched for it.

    Raises:
        VideoError: there is no such video, or it cannot be read.
    """
    if is_address(source):
        with _store_errors(source):
            files, name = _store_of(source)
            facts = files.info(name)
        told = {key: str(facts[key]) for key in _OF_CONTENT if facts.get(key) is not None}
        return f"listed {_digest(json.dumps(told, sort_keys=True))}"
    try:
        path = Path(source)
        if path.is_dir():
            images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            return f"sha256 {_digest(*(f'{p.name} {_sha256_of(p)}' for p in images))}"
        return f"sha256 {_sha256_of(path)}"
    except OSError as exc:
        raise VideoError(f"{source} cannot be read: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def fetched(source: str) -> Iterator[str]:
    """A path where a video can be read while the block runs: its own, or that of a local copy.

    Raises:
        VideoError: the store does not give the object.
        OutputError: the disk of temporary files is full.
    """
    if not is_address(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="openvis-") as folder:
        files, path = _store_of(source)
        local = Path(folder) / (PurePosixPath(path).name or "video")
        with output_errors(local):
            local.touch()
        try:
            with _store_errors(source):
                files.get_file(path, str(local))
        except VideoError as exc:
            if isinstance(exc.__cause__, OSError) and is_about(exc.__cause__, Path(folder)):
                with output_errors(local):
                    raise exc.__cause__ from None
            raise
        yield str(local)


def _named_by(argument: str) -> list[str]:
    """The videos of one argument."""
    if is_address(argument):
        return _at_address(argument)
    if argument.isdecimal() and not Path(argument).exists():
        raise InputError(f"{argument} is a camera, which has no end; use `openvis run`")
    path = Path(argument)
    if path.suffix.lower() == _LIST and path.is_file():
        return _listed(path)
    if path.is_dir():
        return _in_folder(path.absolute())
    if path.exists():
        return [str(path.absolute())]
    if not has_magic(argument):
        raise InputError(
            f"there is no {shortened(argument)}; give a video, a folder, a pattern or a list"
        )
    matches = sorted(glob(argument, recursive=True), key=_natural)  # noqa: PTH207 - absolute patterns
    videos = [v for match in matches for v in _matched(Path(match).absolute())]
    if not videos:
        raise InputError(f"the pattern {shortened(argument)} finds no video")
    return videos


def _matched(path: Path) -> list[str]:
    if path.is_dir():
        return _in_folder(path)
    return [str(path)] if path.suffix.lower() in VIDEO_SUFFIXES else []


def _listed(path: Path) -> list[str]:
    """The videos of a list file; what it names is relative to it."""
    text = given_bytes(path, _LARGEST_LIST).decode("utf-8-sig", "surrogateescape")
    lines = (line.strip() for line in text.splitlines())
    videos = []
    for line in lines:
        if line and not line.startswith("#"):
            named = line if is_address(line) else str(path.absolute().parent / line)
            if Path(named).suffix.lower() == _LIST:
                raise InputError(
                    f"{path} names another list, {shortened(line)}; name its videos instead"
                )
            videos += _named_by(named)
    return videos


def _in_folder(folder: Path) -> list[str]:
    """Every video below a folder, and every folder of images, which is a video as well."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = {name: Path(name).suffix.lower() for name in names if name[0] != "."}
        found += [f"{place}/{name}" for name, end in suffixes.items() if end in VIDEO_SUFFIXES]
        if any(end in IMAGE_SUFFIXES for end in suffixes.values()):
            found.append(place)
    if not found:
        raise InputError(f"{folder} holds no video and no images")
    return sorted(found, key=_natural)


def _at_address(address: str) -> list[str]:
    try:
        parts = urlsplit(address)
    except ValueError as exc:
        raise InputError(f"{shortened(address)} is no address: {exc}") from exc
    if parts.scheme.lower() in _LIVE:
        raise InputError(f"{address} is a stream, which may have no end; use `openvis run`")
    if parts.password:
        raise InputError(
            f"{address} holds a password, which would stand in the output's files; give it by the "
            "environment or the configuration of fsspec's file system"
        )
    with _store_errors(address):
        files, path = _store_of(address)
        if has_magic(path):
            found = files.glob(path)
        elif files.isfile(path):
            return [address]
        else:
            found = files.find(path)
        videos = [name for name in found if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
        names = [str(files.unstrip_protocol(name)) for name in sorted(videos, key=_natural)]
    if not names:
        raise InputError(f"{address} names no video")
    return names


def _store_of(address: str) -> tuple[Any, str]:
    """Fsspec's file system, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as exc:
        raise DependencyError("fsspec", "ray") from exc
    try:
        files, path = url_to_fs(address)
    except ImportError as exc:  # its words name the package of this file system
        raise InputError(f"{address} cannot be read: {exc}") from exc
    except ValueError as exc:  # no such protocol
        raise InputError(f"{address} cannot be read: {exc}") from exc
    return files, str(path)


@contextlib.contextmanager
def _store_errors(address: str) -> Iterator[None]:
    """Each file system of fsspec raises its own library's errors; they become one of ours."""
    try:
        yield
    except (InputError, DependencyError):
        raise
    except Exception as exc:
        raise VideoError(f"{address} cannot be read: {exc or type(exc).__name__}") from exc


def _sha256_of(path: Path) -> str:
    """Of a regular file; a pipe or a device, which may have no end, is a VideoError."""
    with given_file(path, VideoError) as file:
        return digest_of(file)


def _digest(*lines: str) -> str:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which ``video2`` comes before ``video10``."""
    return [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d+)", name)]
