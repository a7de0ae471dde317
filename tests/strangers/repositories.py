"""What `openvis triton` is given beside the bundle: names, choices, engines, caches, its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from contents import Put, no_files, texts
from court import Case, Outcome
from int8_bundle import CLASSES, write_video_bundle
from sidecars import PLAN
from smallfiles import Arguments, cases, every_change
from workshop import Workshop

__all__ = ["ROWS"]

ENGINES = "engines/tensorrt-linux-sm86"
NAMES = (
    *("", ".", "..", "../x", "a/b", "/tmp/x", "a b", "é", "-o", "x" * 200, "x" * 5000, ".hidden"),
    *("\x1b[2J", "\u202ex", "a\nb", '"', "openvis\n", "_", "0", "a.b-c_d"),
)
NUMBERS = ("0", "-1", "1e999", "nan", "inf", "9223372036854775808", "1" * 5000, "1.5", "", "x")
OPTIONS = ("--instances", "--sequences", "--idle", "--threads", "--max-instances", "--threshold")


def repositories(workshop: Workshop) -> Iterator[Case]:
    """Every input of its own, one after the other."""
    bundle = workshop.place / "tiny-triton"
    write_video_bundle(bundle)
    classes = [word for name in CLASSES for word in ("-c", name)]

    def given(*words: str) -> Callable[[Path], Arguments]:
        return lambda _: [
            "triton",
            bundle,
            "-o",
            "out",
            *(classes if "-c" not in words else ()),
            *words,
        ]

    for name in NAMES:
        for more in ((), ("--graphs", "onnxruntime")):
            label = f"a name {name[:40]!r} {' '.join(more)}"
            yield Case(label, given("--name", name, *more), check=_whole)
    for option in OPTIONS:
        for number in NUMBERS:
            yield Case(f"{option} {number[:30]!r}", given(option, number), check=_whole)
    for option in ("--graphs", "--backend", "--device", "--precision", "--engines"):
        for word in ("", "x" * 5000, "../..", "\x1b[2J", "tensorrt"):
            yield Case(f"{option} {word[:30]!r}", given(option, word), check=_whole)
    for place in ("/dev/null", "/proc/x", "a/b/c", "x" * 300, "é" * 100):
        yield Case(f"written to {place[:30]!r}", given("-o", place), writes=frozenset({"a", place}))
    yield from _files(workshop, bundle, classes)


def _files(workshop: Workshop, bundle: Path, classes: list[str]) -> Iterator[Case]:
    """Files that it reads: names, what stands at the output's place, engines, a text cache."""

    def vocabulary(folder: Path, put: Put) -> Arguments:
        put(folder / "names.txt")
        return ["triton", bundle, "--vocabulary", "names.txt", "-o", "out"]

    lines = "\n".join(CLASSES).encode()
    yield from _labelled("names", cases(chain(no_files(), texts(lines)), vocabulary, "names.txt"))

    def replaced(folder: Path, put: Put) -> Arguments:
        put(folder / "out")
        return ["triton", bundle, *classes, "-o", "out", "--overwrite"]

    yield from _labelled("at its place", cases(no_files(), replaced))

    def engine(folder: Path, put: Put, graphs: str = "tensorrt") -> Arguments:
        held = workshop.linked(folder, bundle) / ENGINES
        held.mkdir(parents=True)
        put(held / "propose.fp32.plan")
        (held / "propose.fp32.json").write_text("{}")
        return ["triton", "bundle", *classes, "--graphs", graphs, "-o", "out"]

    def copied(folder: Path, put: Put) -> Arguments:
        return engine(folder, put, "inside")

    yield from _labelled("an engine that is copied", cases(no_files(), copied, "bundle"))
    plans = chain(no_files(), [("a plan", lambda path: path.write_bytes(PLAN))])
    yield from _labelled("an engine", cases(plans, engine, "bundle"))

    def sidecar(folder: Path, put: Put) -> Arguments:
        held = workshop.linked(folder, bundle) / ENGINES
        held.mkdir(parents=True)
        (held / "propose.fp32.plan").write_bytes(PLAN)
        put(held / "propose.fp32.json")
        return ["triton", "bundle", *classes, "--graphs", "tensorrt", "-o", "out"]

    yield from _labelled("a sidecar", cases(every_change({"schema": 1}, 5), sidecar, "bundle"))

    def cached(folder: Path, put: Put) -> Arguments:
        held = workshop.linked(folder, bundle) / "text"
        held.mkdir()
        put(held / ("0" * 64 + ".safetensors"))
        return ["triton", "bundle", *classes, "-o", "out"]

    yield from _labelled("a text cache", cases(no_files(), cached, "bundle"))

    def cache(folder: Path, put: Put) -> Arguments:
        put(workshop.linked(folder, bundle) / "text")
        return ["triton", "bundle", *classes, "-o", "out"]

    yield from _labelled("all of the text cache", cases(no_files(), cache, "bundle"))


def _labelled(what: str, found: Iterator[Case]) -> Iterator[Case]:
    for case in found:
        yield Case(f"{what}: {case.name}", case.make, case.writes, check=_whole)


def _whole(folder: Path, outcome: Outcome) -> str | None:
    """A repository that was written has regular files, its names, and models in their folders."""
    if outcome.code:
        return None
    out = folder / "out"
    if odd := [path.name for path in out.rglob("*") if not (path.is_dir() or path.is_file())]:
        return f"no regular files: {odd}"
    if any(path.is_symlink() for path in out.rglob("*")):
        return "links lead out of it"
    for model in out.iterdir():
        if f'name: "{model.name}"' not in (model / "config.pbtxt").read_text():
            return f"the model in {model.name} has another name"
    found = json.loads(next(out.glob("*/1/vocabulary.json")).read_text())["names"]
    return None if len(found) == len(CLASSES) else f"{len(found)} names of {len(CLASSES)} classes"


ROWS = {"triton": repositories}
