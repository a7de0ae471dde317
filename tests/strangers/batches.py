"""What `openvis batch` reads: lists, folders of videos, and what an earlier batch left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from contents import Put, no_files, texts
from court import Case, Outcome
from int8_bundle import CLASSES, write_video_bundle
from smallfiles import Arguments, cases, every_change
from workshop import Workshop

__all__ = ["ROWS"]

HOW = ("--workers", "0", "--no-overlay", "--max-frames", "2", "-o", "out")
STATE = ("batch.json", "videos.json", "records/a.json", "videos/a/results.json")


def _bundle(workshop: Workshop) -> Path:
    bundle = workshop.place / "tiny-batch"
    if not bundle.exists():
        write_video_bundle(bundle)
    return bundle


def _order(workshop: Workshop, *sources: str) -> list[str | Path]:
    names = [word for name in CLASSES for word in ("-c", name)]
    return ["batch", _bundle(workshop), *sources, *names, *HOW]


def given(workshop: Workshop) -> Iterator[Case]:
    """Lists, and what stands in the place of a list, a video and a folder."""

    def listed(folder: Path, put: Put) -> Arguments:
        os.link(workshop.video, folder / "a.mp4")
        put(folder / "list.txt")
        return _order(workshop, "list.txt")

    lines = chain(no_files(), texts(b"a.mp4\n"), _lines())
    yield from _kept(cases(lines, listed, "list.txt", "a.mp4"))

    def lone(folder: Path, put: Put) -> Arguments:
        put(folder / "b.mp4")
        return _order(workshop, "b.mp4")

    for case in _kept(cases(no_files(), lone, "b.mp4")):
        yield replace(case, name=f"in a video's place: {case.name}")

    def beside(folder: Path, put: Put, good: str = "videos/a.mp4") -> Arguments:
        (folder / "videos").mkdir()
        os.link(workshop.video, folder / good)
        put(folder / "videos/b.mp4")
        return _order(workshop, "videos")

    strange = chain(no_files(), _films(workshop.video))
    for case in _kept(cases(strange, beside, "videos")):
        yield replace(case, name=f"beside a good one: {case.name}")


def _kept(cases: Iterator[Case]) -> Iterator[Case]:
    """With the output where a video fails, since it lists what failed and why."""
    return (replace(case, keeps=True) for case in cases)


def _lines() -> Iterator[tuple[str, Put]]:
    found = (
        *(
            "a.mp4\n" * 1000,
            "./a.mp4\n../nothing/a.mp4\n",
            "nothing.mp4",
            "0",
            "list.txt",
            "a.mp4/",
        ),
        *("a" * 300 + ".mp4", "b/" * 3000 + "c.mp4", "a.mp4\0", "*", "[", "**/**/*.mp4", "a.mp?"),
        *("http://[", "://", "nowhere://x", "memory://none", "file:///nothing.mp4", "rtsp://x/"),
        *("s3://user:secret@x/a.mp4", "~nobody/a.mp4", "$HOME/a.mp4", "\u202ea.mp4", "#", "# a\n"),
        *("a.mp4 # a", '"a.mp4"', "-o\n--help", "/dev/zero", "/dev/full", "/proc/self/mem"),
        *("\udcff.mp4", "\udcffa*.mp4", "\x1b[2J.mp4", "a.mp4/x", "1" * 5000, "٣", "file://a.mp4"),
    )
    for text in found:
        data = text.encode("utf-8", "surrogateescape")
        yield repr(text[:40]), lambda path, data=data: path.write_bytes(data)


def _films(good: Path) -> Iterator[tuple[str, Put]]:
    data = good.read_bytes()
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_bytes(b"a film\n")
    yield "the first half", lambda path: path.write_bytes(data[: len(data) // 2])
    yield "no rights", lambda path: (path.write_bytes(data), path.chmod(0))
    yield "ends in blanks", lambda path: os.link(good, path.with_name("a.mp4 "))
    yield "the same again", lambda path: os.link(good, path.with_name("A.MP4"))
    yield "letters that a terminal obeys", lambda path: os.link(good, path.with_name("\x1b[2J.mp4"))
    yield "no text", lambda path: os.link(good, path.with_name("\udcff.mp4"))
    yield "a long name", lambda path: os.link(good, path.with_name("é" * 125 + ".mp4"))
    yield "a point", lambda path: os.link(good, path.with_name(".mp4"))


def resumed(workshop: Workshop) -> Iterator[Case]:
    """What an earlier batch of two videos left, one file of it changed; the batch is run again."""
    before = _finished(workshop)
    for name in STATE:
        good = json.loads((before / "out" / name).read_text())
        changes = every_change(good, 20 if name == "batch.json" else 70)
        for number, (what, put) in enumerate(changes):
            yield _resumed(workshop, before, name, what, put, overwrite=number % 4 == 3)
    for what, put in chain(no_files(), texts(_log(before))):
        yield _resumed(workshop, before, "videos/a/frames.jsonl", what, put)
    for name in ("records", "videos", "videos/a", "categories.json", "results.json"):
        for what, put in no_files():
            yield _resumed(workshop, before, name, what, put)
    for what, change in _moved():
        yield _resumed(workshop, before, "", what, change)


def _log(before: Path) -> bytes:
    return (before / "out/videos/a/frames.jsonl").read_bytes()


def _moved() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What is exchanged between the two videos of a batch."""

    def exchanged(one: str, other: str) -> Callable[[Path], None]:
        def change(out: Path) -> None:
            (out / one).rename(out / "aside")
            (out / other).rename(out / one)
            (out / "aside").rename(out / other)

        return change

    yield "exchanged records", exchanged("records/a.json", "records/b.json")
    yield "exchanged folders", exchanged("videos/a", "videos/b")

    def lost(out: Path) -> None:
        videos = json.loads((out / "videos.json").read_text())
        (out / "videos.json").write_text(json.dumps(videos[1:]))

    yield "the first video is forgotten", lost

    def renamed(out: Path) -> None:
        videos = json.loads((out / "videos.json").read_text())
        videos[0]["folder"], videos[1]["folder"] = videos[1]["folder"], videos[0]["folder"]
        (out / "videos.json").write_text(json.dumps(videos))

    yield "exchanged names in the list", renamed


def _finished(workshop: Workshop) -> Path:
    """A folder with two videos, and a batch of them that ended."""
    before = workshop.place / "batched"
    if not before.exists():
        before.mkdir()
        for name in ("a.mp4", "b.mp4"):
            os.link(workshop.video, before / name)
        made = workshop.bench.run(_order(workshop, "a.mp4", "b.mp4"), before)
        assert made.code == 0, made.stderr
    return before


def _resumed(
    workshop: Workshop,
    before: Path,
    name: str,
    what: str,
    put: Callable[[Path], object],
    *,
    overwrite: bool = False,
) -> Case:
    def make(folder: Path) -> Arguments:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        records = [*(folder / "out/records").iterdir(), folder / "out/videos.json"]
        for file in records:  # sources are absolute paths
            file.write_text(file.read_text().replace(str(before), str(folder)))
        place = folder / "out" / name
        if place.is_dir() and name:
            shutil.rmtree(place)
        elif name:
            place.unlink(missing_ok=True)
        put(place)
        more = ["--overwrite"] if overwrite else []
        return [*_order(workshop, "a.mp4", "b.mp4"), *more]

    def check(folder: Path, outcome: Outcome) -> str | None:
        if outcome.left:
            return f"written outside of the output: {', '.join(outcome.left)}"
        return None if outcome.code else _wrong(folder / "out", before / "out")

    label = f"{name}{' --overwrite' if overwrite else ''}: {what}"
    return Case(label, make, frozenset({"a.mp4", "b.mp4", "out"}), check=check, keeps=True)


def _wrong(out: Path, good: Path) -> str | None:
    """What is not as in the batch before, whose videos and settings are the same ones."""
    entries, wanted = (json.loads((folder / "results.json").read_text()) for folder in (out, good))
    told = json.loads((out / "videos.json").read_text())
    if any(Path(video["folder"]).name != video["folder"] for video in told):
        return "a folder outside of the output is listed"
    ids = {video["id"] for video in told}
    if len(ids) != len(told) or {entry["video_id"] for entry in entries} - ids:
        return "results of videos that are not listed"
    return None if _shown(entries) == _shown(wanted) else "other results than before"


def _shown(entries: Any) -> Any:
    return sorted(json.dumps({**entry, "video_id": 0, "id": 0}) for entry in entries)


ROWS = {"batch": given, "resumed batches": resumed}
