"""What an output folder of a batch knows: its videos with their ids, and what became of each.

    OUTPUT/batch.json              what the videos are made with
    OUTPUT/videos.json             id, folder and source of every video that was ever given
    OUTPUT/videos/street/          what ``openvis run`` writes of that video
    OUTPUT/records/street.json     how it ended, and with what it was made

An id and a folder belong to a source for good: they are given when it is first seen, and videos
that come later take the next ones. A record is written after its folder is whole, so that a video
without one is not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from openvis_rt.errors import InputError, OutputError
from openvis_rt.files import digest_of, lock_directory, output_errors, output_file
from openvis_rt.given_files import given_file, given_json
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.serving.sources import VIDEO_SUFFIXES, is_address

__all__ = ["MERGED", "BatchFolder", "Record", "Video"]

MERGED = ("frames.jsonl", "results.json")
"""Files of a video's folder that the merged ones are made of."""

_LARGEST = 1 << 31  # bytes of an index; a million videos have some 200 MB
_LAST = (1 << 63) - 1  # as the tables hold it
_TOLD = 9  # settings in a message
_NAME = 80  # letters of a folder's name, for file systems that take 255 bytes
_OURS = {"batch.json", "videos.json", "videos", "records", "results.json", "categories.json"}
_OURS |= {f"{table}.{form}" for table in ("videos", "instances") for form in ("csv", "parquet")}
_UNSAFE = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True)
class Video:
    """A video of a batch.

    Attributes:
        id: from 1, the ``video_id`` of its results.
        folder: the name of its folder.
        source: an absolute path or an address.
    """

    id: int
    folder: str
    source: str

    def __post_init__(self) -> None:
        """Refuse what would lead out of the output's folder.

        Raises:
            InputError: an id that is none, or a folder that is no plain name.
        """
        if not 1 <= self.id <= _LAST:
            raise InputError(f"an id is from 1 to {_LAST}; found {self.id}")
        if self.folder != _safe(self.folder):
            raise InputError(f"{self.folder[:_NAME]!r} is no name of a video's folder")


@dataclass(frozen=True)
class Record:
    """How a video ended.

    Attributes:
        video: which.
        status: ``finished``; ``failed``; ``running``, which a killed worker leaves; ``stopped``
            (never on disk), where the place cannot be written or nothing can be run, so that the
            batch must end.
        fingerprint: of its content, see :func:`.sources.fingerprint`.
        made_with: a hash of all that the outputs depend on.
        batch: a name of the command's run, by which attempts of another one are told.
        attempts: how often it was begun in this batch.
        error: why it failed, or why the last attempt did; empty if none did.
        exit_code: of that error.
        report: of a finished one, as :meth:`.RunReport.to_json`.
        worker: host and process.
        files: SHA-256 of those files of a finished one that the merged ones are made of.
    """

    video: Video
    status: Literal["finished", "failed", "running", "stopped"]
    fingerprint: str = ""
    made_with: str = ""
    batch: str = ""
    attempts: int = 0
    error: str = ""
    exit_code: int = 0
    report: dict[str, Any] | None = None
    worker: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no worker writes.

        Raises:
            InputError: counts that are none; a report, which a finished video has and no other one,
                without the figures that the tables hold.
        """
        if not (0 <= self.attempts <= _LAST and 0 <= self.exit_code <= 255):
            raise InputError(f"{self.attempts} attempts with exit code {self.exit_code}")
        if (self.report is None) == (self.status == "finished"):
            raise InputError(f"a {self.status} video with{'' if self.report else 'out'} a report")
        if self.report is not None:
            record_from_json(_Figures, self.report, strict=False)


@dataclass(frozen=True)
class _Figures:
    """What the tables hold of a report."""

    frames: int
    tracks: int
    seconds: float
    backend: str

    def __post_init__(self) -> None:
        """Refuse numbers that are none."""
        if not (0 <= self.frames <= _LAST and 0 <= self.tracks <= _LAST and self.seconds >= 0):
            raise InputError(f"{self.frames} frames, {self.tracks} tracks, {self.seconds} seconds")


@dataclass(frozen=True)
class BatchFolder:
    """The output folder of a batch."""

    path: Path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be, and let no other batch write there meanwhile.

        Raises:
            OutputError: another batch writes there; it holds other files; or it cannot be written.
        """
        with output_errors(self.path):
            for folder in (self.path, self.path / "videos", self.path / "records"):
                if folder == self.path and folder.is_dir():
                    self._refuse_foreign()
                folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_directory(self.path / "records")
        except BlockingIOError as exc:
            raise OutputError(
                f"another batch writes into {self.path}; wait for it, or give another place"
            ) from exc
        except OSError as exc:
            raise OutputError(
                f"{self.path} cannot be locked ({exc.strerror}), so that two batches could write "
                "there at once; give a place on a file system that has locks"
            ) from exc
        try:
            self.clear_litter()
            yield
        finally:
            os.close(lock)

    def clear_litter(self) -> None:
        """Remove what killed workers left half-written; what a living one writes is locked."""
        with suppress(OSError):
            for file in (
                *self.path.glob(".partial-*"),
                *(self.path / "records").glob(".partial-*"),
            ):
                file.unlink(missing_ok=True)
            for folder in (self.path / "videos").glob(".partial-*"):
                with suppress(OSError):
                    os.close(lock_directory(folder))
                    shutil.rmtree(folder, ignore_errors=True)

    def _refuse_foreign(self) -> None:
        names = {p.name for p in self.path.iterdir() if not p.name.startswith(".partial-")}
        if foreign := sorted(names - _OURS):
            raise OutputError(
                f"{self.path} was not made by `openvis batch`, or holds other files as well, such "
                f"as {foreign[0]}. Give another place."
            )

    def settle(self, made_with: dict[str, Any], *, overwrite: bool) -> None:
        """Note what the videos are made with, or see that it is the same as before.

        Args:
            made_with: JSON types.
            overwrite: make the videos anew if it is not.

        Raises:
            OutputError: it is not, and ``overwrite`` is false.
        """
        path = self.path / "batch.json"
        if path.is_file():
            before = self._settled(path)
            others = sorted(
                key for key in {*before, *made_with} if before.get(key) != made_with.get(key)
            )
            if others and not overwrite:
                raise OutputError(
                    f"the videos in {self.path} were made with another "
                    f"{', '.join(key[:_NAME] for key in others[:_TOLD])}; give another place, or "
                    "--overwrite to make them anew"
                )
            if not others:
                return
        _write_json(path, made_with)

    def _settled(self, path: Path) -> dict[str, Any]:
        """What is noted in ``batch.json``; nothing that would be the same if it is damaged."""
        with suppress(InputError):
            before = given_json(path, _LARGEST)
            if isinstance(before, dict):
                return before
        return {"settings (batch.json is damaged)": True}

    def videos(self) -> list[Video]:
        """Every video that was ever given, by id.

        Raises:
            InputError: ``videos.json`` is damaged.
        """
        path = self.path / "videos.json"
        if not os.path.lexists(path):
            return []
        mend = "Give another output folder, or remove this file to make all videos anew."
        try:
            listed = given_json(path, _LARGEST)
            if not isinstance(listed, list):
                raise InputError(f"{path} is no list")
            videos = [record_from_json(Video, entry) for entry in listed]
            for facts in zip(*((v.id, v.folder.casefold(), v.source) for v in videos), strict=True):
                if len(set(facts)) < len(facts):
                    raise InputError(f"{path} has an id, a folder or a source twice")
        except InputError as exc:
            raise InputError(f"the list of the batch's videos is damaged: {exc}. {mend}") from exc
        return videos

    def add(self, sources: Iterable[str]) -> list[Video]:
        """The videos of some sources; new ones get an id and a folder, and are written down."""
        known = {video.source: video for video in self.videos()}
        wanted = list(sources)
        new = [source for source in wanted if source not in known]
        last = max((video.id for video in known.values()), default=0)
        names = folder_names(new, {video.folder.casefold() for video in known.values()})
        for number, source in enumerate(new, last + 1):
            known[source] = Video(number, names[source], source)
        if new:
            _write_json(
                self.path / "videos.json", [json_from_record(video) for video in known.values()]
            )
        return [known[source] for source in wanted]

    def output(self, video: Video) -> Path:
        """The folder of a video's outputs."""
        return self.path / "videos" / video.folder

    def record(self, video: Video) -> Record | None:
        """How a video ended, if that is known."""
        path = self.path / "records" / f"{video.folder}.json"
        try:
            return record_from_json(Record, given_json(path, _LARGEST))
        except InputError:
            return None

    def write(self, record: Record) -> None:
        """Write a record down.

        Raises:
            OutputError: the place cannot be written.
        """
        path = self.path / "records" / f"{record.video.folder}.json"
        with output_file(path) as partial:
            partial.write_text(json.dumps(json_from_record(record)) + "\n", encoding="utf-8")

    def finished(
        self, video: Video, made_with: str, fingerprint: str | None = None
    ) -> Record | None:
        """The record of a video that is finished, made with the same.

        With its fingerprint it is of the same video, and its files are as they were written.
        """
        found = self.record(video)
        if found is None or found.status != "finished" or found.made_with != made_with:
            return None
        if found.video != video:  # its results have another id
            return None
        if fingerprint is not None and (
            found.fingerprint != fingerprint or self.changed_file(found) is not None
        ):
            return None
        return found if self.output(video).is_dir() else None

    def digests(self, video: Video) -> dict[str, str]:
        """SHA-256 of the files of a video that the merged ones are made of.

        Raises:
            InputError: one is no regular file, or cannot be read.
        """
        folder = self.output(video)
        wanted = (folder / name for name in MERGED if os.path.lexists(folder / name))
        found = {}
        for path in wanted:
            with given_file(path) as file:
                found[path.name] = digest_of(file)
        return found

    def changed_file(self, record: Record) -> str | None:
        """A file of a finished video that is not as it was written; None if all are."""
        try:
            found = self.digests(record.video)
        except InputError:
            return MERGED[0]
        names = sorted({*found, *record.files})
        return next((n for n in names if found.get(n) != record.files.get(n)), None)


def folder_names(sources: list[str], taken: set[str]) -> dict[str, str]:
    """A name for the folder of each source: its own, with more of its path where others share it.

    Args:
        sources: paths and addresses, each once.
        taken: names that others have, in lower case, since some file systems do not tell cases
            apart.
    """
    choices = {source: _choices(source) for source in sources}
    found: dict[str, str] = {}
    for level in range(max((len(names) for names in choices.values()), default=0)):
        left = {s: names[min(level, len(names) - 1)] for s, names in choices.items()}
        left = {source: name for source, name in left.items() if source not in found}
        counts: dict[str, int] = {}
        for name in left.values():
            counts[name.casefold()] = counts.get(name.casefold(), 0) + 1
        free = {
            source: name
            for source, name in left.items()
            if counts[name.casefold()] == 1 and name.casefold() not in taken
        }
        found |= free
        taken = taken | {name.casefold() for name in free.values()}
    return found


def _choices(source: str) -> list[str]:
    """``x``, ``b-x``, ``a-b-x`` and, as no other source has it, ``x-`` with a hash."""
    path = PurePosixPath(urlsplit(source).path if is_address(source) else source)
    own = path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
    parents = [part for part in path.parts[:-1] if part != "/"]
    levels = [[*parents[len(parents) - depth :], own] for depth in range(min(4, len(parents) + 1))]
    names = [_safe("-".join(parts)) for parts in levels]
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    return [*names, f"{names[0][: _NAME - 17]}-{digest[:16]}"]


def _safe(name: str) -> str:
    """Letters that every file system takes; no name begins with a point or is empty."""
    return _UNSAFE.sub("_", name).lstrip(".")[-_NAME:].lstrip("-") or "video"


def _write_json(path: Path, value: Any) -> None:
    with output_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
