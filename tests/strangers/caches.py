"""Embeddings of names, in the user's cache and in a bundle, and the tracker's weights."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from contents import Put, changed_bytes, no_files, texts
from court import Case, Outcome
from safetensors.numpy import load, save
from sealing import replaced
from smallfiles import Arguments, cases
from workshop import Workshop

from openvis_rt.systems.recurrence import RECURRENCES, recurrence_shapes

__all__ = ["ROWS"]

PLACE, TRACKER = "openvis-rt/embeddings.sqlite", "tracker.safetensors"
NAMES = ("-c", "disc", "-c", "square", "--only")


class _Runs:
    """A run without a cache, and a bundle that has one; made once for a row."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.place = workshop.place / "cached"
        if not self.place.exists():
            self.place.mkdir()
            workshop.linked(self.place)
            home = {"XDG_CACHE_HOME": str(self.place)}
            done = workshop.bench.run(self.arguments(), self.place, environment=home)
            assert done.code == 0, done.stderr
        self.scores = (self.place / "out/frames.jsonl").read_bytes()
        self.cache = (self.place / PLACE).read_bytes()

    def arguments(self) -> Arguments:
        """The command of every case."""
        return ["run", "bundle", self.workshop.video, *NAMES, "--no-overlay", "-o", "out"]

    def use(self, folder: Path, put: Put) -> Arguments:
        """A user whose cache is strange."""
        self.workshop.linked(folder)
        (folder / PLACE).parent.mkdir()
        put(folder / PLACE)
        return self.arguments()

    def check(self, folder: Path, outcome: Outcome) -> str | None:
        """A run that ends well says what one without a cache says."""
        if outcome.code:
            return f"a cache that is of no use ended the run: {outcome.stderr[-200:]}"
        if (folder / "out/frames.jsonl").read_bytes() != self.scores:
            return "other results than without a cache"
        return None

    def cases(self, puts: Any) -> Iterator[Case]:
        """Each with the check."""
        for case in cases(puts, self.use, "bundle", "openvis-rt"):
            yield replace(case, check=self.check, cache=True)


def text_cache(workshop: Workshop) -> Iterator[Case]:
    """A cache that is no file, no database, or one with flipped bits."""
    runs = _Runs(workshop)
    yield from runs.cases(no_files())
    yield from runs.cases(texts(b"a\nb\n"))
    yield from runs.cases(changed_bytes(runs.cache, 60))


def brought(workshop: Workshop) -> Iterator[Case]:
    """What stands where bundles once had a cache; nothing of it is opened, followed or removed."""
    runs = _Runs(workshop)
    view = "CREATE VIEW embeddings AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM"
    view += " n) SELECT 'key' AS key, zeroblob(2048) AS vector, zeroblob(32) AS sha256 FROM n"
    trigger = "CREATE TRIGGER more AFTER INSERT ON embeddings BEGIN INSERT INTO embeddings SELECT"
    trigger += " hex(randomblob(9)), zeroblob(99), '' FROM embeddings; END"
    database = "text/embeddings.sqlite"
    strange: dict[str, Callable[[Path], object]] = {
        "a good cache": lambda b: (b / database).write_bytes(runs.cache),
        "each other's vectors": lambda b: _swapped(runs, b / database),
        "a view without end": lambda b: _edited(runs, b / database, "DROP TABLE embeddings", view),
        "a trigger": lambda b: _edited(runs, b / database, trigger),
        "a journal that names a victim": lambda b: (
            (b / database).write_bytes(runs.cache),
            (b / f"{database}-journal").write_bytes(_journal(runs.cache, b.parent / "victim")),
        ),
        "a log": lambda b: (b / f"{database}-wal").write_bytes(bytes(4096)),
        "a pipe": lambda b: os.mkfifo(b / database),
        "a pipe as the journal": lambda b: (
            (b / database).write_bytes(runs.cache),
            os.mkfifo(b / f"{database}-journal"),
        ),
        "a link to nothing outside": lambda b: (b / database).symlink_to("../../made"),
        "a link to a file outside": lambda b: (b / database).symlink_to("../../victim"),
        "a folder that is a link": lambda b: ((b / "text").rmdir(), (b / "text").symlink_to("..")),
        "endless": lambda b: (b / database).symlink_to("/dev/zero"),
    }
    for name, put in strange.items():
        for verb in ("run", "batch", "triton"):

            def make(folder: Path, put: Callable[[Path], object] = put, verb: str = verb) -> Any:
                bundle = workshop.linked(folder)
                (bundle / "text").mkdir(exist_ok=True)
                (folder / "victim").write_text("mine")
                put(bundle)
                source = [] if verb == "triton" else [workshop.video, "--no-overlay"]
                source += ["--workers", "0"] if verb == "batch" else []
                names = NAMES[:-1] if verb == "triton" else NAMES
                return [verb, "bundle", *source, *names, "-o", "out"]

            yield Case(
                f"{verb}: {name}",
                make,
                frozenset({"out", "bundle", "victim"}),
                frozenset({0}),
                check=partial(_kept, runs, verb),
            )


def _kept(runs: _Runs, verb: str, folder: Path, outcome: Outcome) -> str | None:
    if (folder / "victim").read_text() != "mine":
        return "a file that is none of its own was changed"
    if verb == "run":
        return runs.check(folder, outcome)
    return None


def _swapped(runs: _Runs, path: Path) -> None:
    """Every name has another one's vector, with a digest that holds."""
    path.write_bytes(runs.cache)
    with closing(sqlite3.connect(path)) as database, database:
        rows = database.execute("SELECT key, vector FROM embeddings").fetchall()
        for (key, _), (_, vector) in zip(rows, rows[1:] + rows[:1], strict=True):
            digest = hashlib.sha256(key.encode() + vector).digest()
            database.execute("REPLACE INTO embeddings VALUES (?, ?, ?)", (key, vector, digest))


def _edited(runs: _Runs, path: Path, *orders: str) -> None:
    path.write_bytes(runs.cache)
    with closing(sqlite3.connect(path)) as database, database:
        for order in orders:
            database.execute(order)


def _journal(database: bytes, victim: Path) -> bytes:
    """A hot journal of no pages whose super-journal is the victim: SQLite would remove that."""
    name, size = str(victim).encode(), int.from_bytes(database[16:18], "big")
    magic, pages = bytes.fromhex("d9d505f920a163d7"), len(database) // size
    head = (magic + struct.pack(">iIIII", 0, 0, pages, 512, size)).ljust(512, b"\0")
    locked = struct.pack(">I", (1 << 30) // size + 1)
    return head + locked + name + struct.pack(">II", len(name), sum(name)) + magic


def planted(workshop: Workshop) -> Iterator[Case]:
    """A whole database with vectors that are not those of their names."""
    runs = _Runs(workshop)
    with sqlite3.connect(runs.place / PLACE) as found:
        vectors = [bytes(row[0]) for row in found.execute("SELECT vector FROM embeddings")]
    found.close()
    for name, value in _vectors(vectors):

        def put(path: Path, value: Any = value) -> None:
            path.write_bytes(runs.cache)
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("UPDATE embeddings SET vector = ?", (value,))

        yield from runs.cases([(name, put)])


def _vectors(good: list[bytes]) -> Iterator[tuple[str, Any]]:
    one = good[0]
    floats = np.frombuffer(one[: len(one) // 4 * 4], "<f4").copy()
    yield from {"null": None, "a number": 7, "a text": "x", "nothing": b"", "a byte": b"0"}.items()
    yield from ((f"one name's for all, {number}", vector) for number, vector in enumerate(good))
    for factor in (-1, 0, 2, 0.5, 1.0001, 1e30, np.nan, np.inf):
        yield f"times {factor}", (floats * np.float32(factor)).tobytes()
    for shift in (1, 2, 7, len(floats) // 2):
        yield f"moved by {shift}", np.roll(floats, shift).tobytes()
    for width in (-4, -1, 1, 4, 4 * len(floats)):
        yield f"{width} bytes longer", one[:width] if width < 0 else one + one[:1] * width
    yield "in FP16", floats.astype("<f2").tobytes()
    yield "in FP64", floats.astype("<f8").tobytes()
    yield "big-endian", floats.astype(">f4").tobytes()
    for number in range(72):
        at = number * len(one) // 72
        yield (
            f"bit {number % 8} of byte {at}",
            (one[:at] + bytes([one[at] ^ 1 << number % 8]) + one[at + 1 :]),
        )


def trackers(workshop: Workshop) -> Iterator[Case]:
    """Weights of the tracker's recurrence, listed with their true digest."""
    bundle = workshop.exported("instformer-mini")
    good = (bundle / TRACKER).read_bytes()

    def use(folder: Path, put: Put) -> Arguments:
        target = workshop.linked(folder, bundle)
        (target / TRACKER).unlink()
        put(target / TRACKER)
        replaced(target, TRACKER, (target / TRACKER).read_bytes())
        return ["run", "bundle", workshop.video, *NAMES, "--no-overlay", "-o", "out"]

    yield from cases(changed_bytes(good, 60), use, "bundle")
    yield from cases(texts(good[:8].hex().encode()), use, "bundle")
    for name, weights in _recurrences(load(good)):
        data = save({key: np.ascontiguousarray(value) for key, value in weights.items()})
        yield from cases([(name, lambda path, d=data: path.write_bytes(d))], use, "bundle")


def _recurrences(good: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    width = good["bias_ih_l0"].shape[0]
    rng = np.random.default_rng(0)
    for kind in RECURRENCES:
        shapes = recurrence_shapes(kind, width)
        for value in (0.0, 1.0, -1e20, 1e38, 3.4e38, np.nan, np.inf, -np.inf):
            yield (
                f"{kind} of {value}",
                {key: np.full(shape, value, np.float32) for key, shape in shapes.items()},
            )
        noise = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
        for scale in (1e-30, 1.0, 1e15):
            yield f"{kind} of noise, {scale}", {k: v * np.float32(scale) for k, v in noise.items()}
        for other in (0, 1, width - 1, 2 * width):
            made = recurrence_shapes(kind, other).items()
            yield f"{kind}, {other} wide", {k: np.zeros(shape, np.float32) for k, shape in made}
    for kind in ("<f2", "<f8", "<i4", "u1", "?"):
        yield f"as {kind}", {key: value.astype(kind) for key, value in good.items()}
    for key, value in good.items():
        yield f"without {key}", {k: v for k, v in good.items() if k != key}
        yield f"{key} of another shape", {**good, key: value.T[..., None]}
        yield f"{key} twice", {**good, f"{key}_": value}
    yield "nothing", {}


ROWS = {
    "text cache": text_cache,
    "text cache, brought": brought,
    "planted": planted,
    "trackers": trackers,
}
