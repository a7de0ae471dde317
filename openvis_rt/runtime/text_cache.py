"""Text embeddings on disk: one sqlite file of the user's for all phrases of all bundles.

It is ``openvis-rt/embeddings.sqlite`` in the user's cache directory, and not in a bundle: that may
come from a stranger, and a database does more than hold rows: its journal names files to remove.
It is a help and never a hindrance: what is wrong with it is told once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import TOKENIZER, Bundle
from openvis_rt.bundle.names import are_unit

__all__ = ["TextCache", "cache_place"]

Floats = npt.NDArray[np.float32]

_FILE = "embeddings.sqlite"
_APPLICATION = 0x4F565254  # "OVRT" in the file's header; another number is another program's file
_TABLE = "CREATE TABLE embeddings (key TEXT PRIMARY KEY, vector BLOB, sha256 BLOB)"
# Writers hold the file for the milliseconds of one commit, so whoever waits longer than this waits
# for a process that hangs.
_PATIENCE = 5.0  # seconds


def cache_place() -> Path | None:
    """The file of the cache in the user's directory; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "openvis-rt" / _FILE


class TextCache:
    """Embeddings by phrase.

    Several processes may use the file at once. The journal is sqlite's rollback journal: a
    write-ahead log needs memory that processes share, which network file systems do not have.

    Args:
        bundle: whose text weights and prompts the embeddings are of.
        precision: of the `text` graph's file.
        width: D, of an embedding.
        warn: told at most once.
    """

    def __init__(
        self, bundle: Bundle, precision: str, width: int, warn: Callable[[str], None]
    ) -> None:
        manifest = bundle.manifest
        # of the files, as they are compared when they are read: a digest that a manifest only
        # claims would let one bundle write entries for another one's weights
        files = [
            entry.sha256
            for name in (bundle.graph("text", precision).file, TOKENIZER)
            if (entry := manifest.files.get(name)) is not None
        ]
        self._facts = [*files, manifest.text_sha256, precision, manifest.prompts]
        self._place = cache_place()
        self._width = width
        self._warn: Callable[[str], None] | None = warn

    def get(self, phrases: Iterable[str]) -> dict[str, Floats]:
        """Embeddings of the phrases that have one: float32 [D], L2-normalised.

        An entry whose bytes are not those that were written, or are no unit vector of D finite
        numbers, is passed over.
        """
        missing = {self._key(phrase): phrase for phrase in phrases}
        found: dict[str, Floats] = {}
        if self._place is None or not missing:
            return found
        try:
            rows = _rows(self._place, missing, 4 * self._width)
        except (sqlite3.Error, OSError) as exc:
            self._tell(
                f"text embeddings of {self._place} are not used ({exc}): class names are embedded "
                "anew. If this comes again, remove the file; it is only a cache."
            )
            self._place = None  # and wait for it no second time
            return found
        for key, vector, digest in rows:
            embedding = self._checked(key, vector, digest)
            if embedding is not None and key in missing:
                found[missing.pop(key)] = embedding
        return found

    def put(self, embeddings: Mapping[str, Floats]) -> None:
        """Keep float32 [D] by phrase."""
        rows = []
        for phrase, embedding in embeddings.items():
            key, vector = self._key(phrase), np.ascontiguousarray(embedding, "<f4").tobytes()
            rows.append((key, vector, _digest(key, vector)))
        if not rows:
            return
        try:
            if self._place is None:
                raise OSError("there is no place for them")
            _insert(self._place, rows)
        except (sqlite3.Error, OSError) as exc:
            self._tell(
                f"text embeddings are not cached ({exc}): class names are embedded anew at every "
                "start"
            )

    def _key(self, phrase: str) -> str:
        facts = json.dumps([*self._facts, phrase])
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def _checked(self, key: str, vector: object, digest: object) -> Floats | None:
        if not isinstance(vector, bytes) or digest != _digest(key, vector):
            return None
        if len(vector) != 4 * self._width:
            return None
        embedding = np.frombuffer(vector, "<f4").astype(np.float32)
        return embedding if are_unit(embedding[None]) else None

    def _tell(self, message: str) -> None:
        if self._warn is not None:
            self._warn(message)
            self._warn = None


def _digest(key: str, vector: bytes) -> bytes:
    """Of an entry; the key is in it, so that a vector counts for its own phrase only."""
    return hashlib.sha256(key.encode() + vector).digest()


def _rows(place: Path, keys: Iterable[str], size: int) -> list[tuple[str, object, object]]:
    """The entries of these keys whose vectors have so many bytes; none where there is no file."""
    if not place.exists():
        return []
    if not place.is_file():
        raise sqlite3.DatabaseError("it is no regular file")
    # rw: a reader mends what a killed writer left
    with _opened(place, "rw") as database:
        if not _is_ours(database):
            return []
        return database.execute(
            "SELECT key, vector, sha256 FROM embeddings "
            "WHERE length(vector) = ? AND length(sha256) = 32 "
            "AND key IN (SELECT value FROM json_each(?))",
            (size, json.dumps(list(keys))),
        ).fetchall()


def _insert(place: Path, rows: list[tuple[str, bytes, bytes]]) -> None:
    """Insert or replace entries in one transaction; the file is made if need be."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with _opened(place, "rwc") as database:
        database.execute("PRAGMA page_size = 32768")  # of a new file; 2 KB rows waste the usual 4
        database.execute("BEGIN IMMEDIATE")  # one writer at a time, from here on
        if not _is_ours(database):
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(_TABLE)
        database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")


@contextlib.contextmanager
def _opened(place: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection; closing it takes back a transaction that was not committed."""
    address = f"{place.absolute().as_uri()}?mode={mode}"
    database = sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)
    with contextlib.closing(database):
        yield database


def _is_ours(database: sqlite3.Connection) -> bool:
    """Whether the file has the table; false if it is new, and a DatabaseError if it is foreign."""
    [(application,)] = database.execute("PRAGMA application_id")
    [(tables,)] = database.execute("SELECT count(*) FROM sqlite_master")
    if tables and application != _APPLICATION:
        raise sqlite3.DatabaseError("it was not made by openvis-rt")
    return bool(tables)
