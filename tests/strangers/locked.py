"""Files and folders that cannot be read or written, and outputs where something stands already."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from court import Case, Outcome
from films import film, trial
from PIL import Image
from workshop import Workshop

__all__ = ["ROWS", "begin"]


def begin() -> None:
    """Go on as a user whom modes of files stop: root without its capabilities (Linux)."""
    if os.geteuid() == 0:
        version = 0x20080522  # linux/capability.h: two sets of three words
        header, none = struct.pack("=Ii", version, 0), bytes(24)
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def _locked(folder: Path) -> None:
    """Files and folders that nobody may read or write, and paths that lead nowhere."""
    film(folder / "good.mp4")
    film(folder / "shut.mp4").chmod(0)
    for name in ("shut", "blind", "fixed"):
        (folder / name).mkdir()
        film(folder / name / "a.mp4")
    (folder / "loop").symlink_to("loop")
    (folder / "lost").symlink_to("nothing")
    (folder / "words.txt").write_text("disc\n")
    (folder / "shut.txt").write_text("disc\n")
    (folder / "shut.txt").chmod(0)
    for name, mode in (("shut", 0), ("blind", 0o111), ("fixed", 0o555)):
        (folder / name).chmod(mode)
    folder.chmod(0o777)


PATHS = (
    *("shut.mp4", "shut", "shut/a.mp4", "blind", "good.mp4/a.mp4", "loop", "loop/a", "lost"),
    *("a" * 300, "a/" * 3000, "nothing/a", "/proc/self/fd/99", "/proc/self/mem", "/proc/1/mem"),
    *("/dev/null", "/dev/full", "fixed/../shut/a.mp4", "shut.txt", ".", "", "/", "/proc/self/fd"),
)
PLACES = (
    *("shut/out", "blind/out", "fixed/out", "good.mp4/out", "good.mp4", "loop", "loop/out", "lost"),
    *("a" * 300, "a/" * 3000, "/proc/out", "/dev/null", "/dev/full", "/sys/out", ".", "", "/"),
    *("fixed", "shut"),
)


def _reads(bundle: str, path: str) -> dict[str, list[str]]:
    """Verbs and options with a path that is read."""
    good = ["-c", "disc", "--only", "-o", "out"]
    return {
        "run, source": ["run", bundle, path, *good],
        "run, bundle": ["run", path, "good.mp4", *good],
        "run, vocabulary": ["run", bundle, "good.mp4", "--vocabulary", path, "-o", "out"],
        "inspect": ["inspect", path],
        "convert": ["convert", path, "--to", "coco", "-o", "out"],
        "batch": ["batch", bundle, path, "-c", "disc", "--workers", "0", "-o", "out"],
        "verify": ["verify", path],
        "export": ["export", "clip-vis-mini", "--checkpoint", path, "-o", "out"],
        "calibrate": ["calibrate", bundle, path],
        "build": ["build", path],
    }


def _writes(bundle: str, path: str) -> dict[str, list[str]]:
    """Verbs and options with a path that is written."""
    return {
        "run": ["run", bundle, "good.mp4", "-c", "disc", "--only", "-o", path],
        "batch": ["batch", bundle, "good.mp4", "-c", "disc", "--workers", "0", "-o", path],
        "export": ["export", "clip-vis-mini", "-o", path],
    }


def _row(
    workshop: Workshop, paths: Sequence[str], commands: Callable[[str, str], dict[str, list[str]]]
) -> Iterator[Case]:
    for verb in commands("", ""):
        for path in paths:
            if (verb, path) == ("batch", "/"):
                continue  # it would run every video of the machine, as it was told to

            def make(folder: Path, verb: str = verb, path: str = path) -> list[str]:
                _locked(folder)
                for place in (workshop.bundle, workshop.place):
                    place.chmod(0o755)
                return commands(str(workshop.bundle), path)[verb]

            title = f"{verb}: {path[:30]!r}"
            yield Case(
                title,
                make,
                codes=frozenset({2, 3}),
                sabotage=(Path(__file__), []),
                keeps=verb == "batch",  # a list of what could not be read
            )


def unreadable(workshop: Workshop) -> Iterator[Case]:
    """Each verb with each path that cannot be read, as a user without rights."""
    return _row(workshop, PATHS, _reads)


def unwritable(workshop: Workshop) -> Iterator[Case]:
    """Each verb with each place that cannot be written, as a user without rights."""
    return _row(workshop, PLACES, _writes)


def taken(workshop: Workshop) -> Iterator[Case]:
    """Outputs where something is already, or within what is read."""

    def prepared(folder: Path) -> None:
        (folder / "in").mkdir()
        for number in range(2):
            Image.new("RGB", (64, 48)).save(folder / f"in/{number}.png")
        film(folder / "a.mp4")
        (folder / "full").mkdir()
        (folder / "full/mine.txt").write_text("mine")

    places = {
        "a file": ("a.mp4", "full/mine.txt", 2),
        "the source": ("a.mp4", "a.mp4", 2),
        "the source, --overwrite": ("a.mp4", "a.mp4 --overwrite", 2),
        "the folder of the source": ("in", "in", 2),
        "the folder of the source, --overwrite": ("in", "in --overwrite", 2),
        "above the source, --overwrite": ("in", ". --overwrite", 2),
        "within the folder of the source": ("in", "in/out", 0),
        "a folder of somebody": ("a.mp4", "full", 2),
        "a folder of somebody, --overwrite": ("a.mp4", "full --overwrite", 2),
    }
    for title, (source, place, code) in places.items():

        def make(folder: Path, source: str = source, place: str = place) -> Sequence[str | Path]:
            prepared(folder)
            return [*trial(workshop.bundle, source)[:-1], *place.split()]

        def check(folder: Path, _outcome: Outcome) -> str | None:
            kept = (folder / "full/mine.txt").read_text() == "mine"
            kept = kept and (folder / "a.mp4").stat().st_size > 500
            return None if kept and (folder / "in/1.png").is_file() else "what was there is gone"

        yield Case(title, make, codes=frozenset({code}), check=check)


ROWS = {
    "places, unreadable": unreadable,
    "places, unwritable": unwritable,
    "places, taken": taken,
}
