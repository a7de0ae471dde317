"""Folders of pictures as people have them: what is in them beside pictures, and in which order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from court import Case, Outcome
from films import film, grey_of, seen, trial
from PIL import Image
from workshop import Workshop

__all__ = ["ROWS"]

Make = Callable[[Path], object]


def _picture(path: Path, index: int, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> None:
    """A picture of one grey, as film's frame of that number."""
    picture = Image.new("RGB", size, (grey_of(index),) * 3).convert(mode)
    kind = {"CMYK": "TIFF"}.get(mode) if path.suffix == ".png" else None
    picture.save(path, kind)


def _named(names: Sequence[str | bytes], folder: Path) -> None:
    """Pictures of these names; the k-th has the grey of frame k."""
    for index, name in enumerate(names):
        text = os.fsdecode(name) if isinstance(name, bytes) else name
        _picture(folder / "tmp.png", index)
        (folder / "tmp.png").rename(folder / text)


NATURAL: dict[str, list[str | bytes]] = {  # in the order in which they are to come
    "numbers without zeros": [f"{k}.png" for k in (1, 2, 3, 9, 10, 11, 99, 100)],
    "numbers with some zeros": ["007.png", "08.png", "9.png", "010.png", "11.png"],
    "frame1 to frame12": [f"frame{k}.png" for k in range(1, 13)],
    "two numbers": [f"s{a}_f{b}.png" for a in (1, 2, 10) for b in (1, 2, 10)],
    "numbers of 30 digits": [f"{10**29 + k}.png" for k in (1, 2, 11)],
    "numbers with a sign": ["a-1.png", "a-2.png", "a-10.png"],
    "a number beside its text": ["1.png", "1a.png", "2.png", "10.png"],
    "numbers in another script": ["\u0661.png", "\u0662.png", "\u0663.png"],
    "superscripts, which are digits and no numbers": ["a1.png", "a\u00b2.png"],
    "times of day": ["10-00-01.png", "10-00-09.png", "10-00-10.png", "10-01-00.png"],
    "suffixes of all kinds": ["1.png", "2.PNG", "3.Png", "4.png"],
    "names of spaces": ["1 .png", " 2.png"],
    "names with an escape": ["a\x1b[2J1.png", "a\x1b[2J2.png"],
    "names with a new line": ["a\n1.png", "a\n2.png"],
    "names that run from right to left": ["\u202egnp.1.png", "\u202egnp.2.png"],
    "names that are no text": [b"a\xff1.png", b"a\xff2.png"],
    "names of emoji": ["\U0001f4f91.png", "\U0001f4f92.png"],
    "names of 255 bytes": ["a" * 249 + f"{k}.png" for k in (1, 2)][:2],
    "names that look like options": ["--help1.png", "--help2.png"],
    "names that look like patterns": ["%03d.png", "*.png"],
    "names that look like addresses": ["http:a1.png", "http:a2.png"],
}


def _beside(name: str, data: bytes | None, folder: Path) -> None:
    """Three pictures, and something of another kind."""
    _named(["1.png", "2.png", "3.png"], folder)
    if data is None:
        (folder / name).mkdir()
        _picture(folder / name / "9.png", 9)
    else:
        (folder / name).write_bytes(data)


BESIDE: dict[str, tuple[str, bytes | None]] = {
    "Finder's settings": (".DS_Store", b"\0\0\0\1Bud1" + bytes(60)),
    "Explorer's previews": ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(500)),
    "Finder's other half of a picture": ("._1.png", b"\0\5\x16\7" + bytes(60)),
    "a hidden picture that is none": (".2.png", b"nothing"),
    "a text": ("readme.txt", b"words"),
    "a list of names": ("files.csv", b"1.png,2.png\n"),
    "a file without a suffix": ("LICENSE", b"words"),
    "a half-written copy": ("4.png.part", b"\x89PNG"),
    "a backup": ("3.png~", b"\x89PNG"),
    "a folder of more pictures": ("more", None),
    "a folder whose name is a picture's": ("4.png", None),
    "a hidden folder": (".git", None),
}


def _linked(target: str, folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    (folder / "3.png").symlink_to(target)


def _outside(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    _picture(folder.parent / "elsewhere.png", 2)
    (folder / "3.png").symlink_to("../elsewhere.png")


def _fifo(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    os.mkfifo(folder / "3.png")


def _put(name: str, data: bytes, folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    (folder / name).write_bytes(data)


def _cut(folder: Path) -> None:
    _named(["1.png", "2.png", "3.png"], folder)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "2.png")
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


def _sized(sizes: Sequence[tuple[int, int]], folder: Path) -> None:
    for index, size in enumerate(sizes):
        _picture(folder / f"{index}.png", index, size)


def _turned(folder: Path) -> None:
    """The second lies on its side, and its EXIF says so: upright it is as large as the others."""
    _named(["1.png", "2.png", "3.png"], folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64), (grey_of(1),) * 3).save(folder / "2.png", exif=exif)


def _kinds(folder: Path) -> None:
    for index, (mode, suffix) in enumerate(
        (
            *(("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png")),
            *(("CMYK", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("L", "jpg")),
        )
    ):
        _picture(folder / f"{index}.{suffix}", index, mode=mode)


def _below(folder: Path) -> None:
    (folder / "a").mkdir()
    _named(["1.png"], folder / "a")


def _deep(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    words = np.full((48, 64), grey_of(2) * 257, np.uint16)
    Image.fromarray(words).save(folder / "3.png")


def _with_film(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    film(folder / "3.mp4")


def _film_named_picture(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    film(folder / "3.mp4").rename(folder / "3.png")


def _moving(folder: Path) -> None:
    _named(["1.png", "2.png"], folder)
    first, second = (Image.new("RGB", (64, 48), (grey_of(k),) * 3) for k in (2, 7))
    first.save(folder / "3.png", save_all=True, append_images=[second], default_image=False)


# how it is made, the number of frames, or what must be said where it is refused, and a warning
MIXED: dict[str, tuple[Make, int | str, str | None]] = {
    "a link to a picture elsewhere": (_outside, 3, None),
    "a link to a picture beside it": (partial(_linked, "1.png"), 3, None),
    "a link to itself": (partial(_linked, "3.png"), "3.png", None),
    "a link to nothing": (partial(_linked, "nothing.png"), "3.png", None),
    "a link to the folder": (partial(_linked, "."), 2, None),
    "a link to an endless device": (partial(_linked, "/dev/zero"), "3.png", None),
    "one that cannot be read": (partial(_linked, "/proc/self/mem"), "3.png cannot be read", None),
    "a pipe": (_fifo, "3.png", None),
    "an empty file": (partial(_put, "3.png", b""), "3.png", None),
    "an empty file as the first": (partial(_put, "0.png", b""), "0.png", None),
    "a text that is called a picture": (partial(_put, "3.jpg", b"words" * 99), "3.jpg", None),
    "a picture that was cut short": (_cut, "2.png", None),
    "two sizes": (partial(_sized, [(64, 48), (64, 48), (32, 48)]), "changes its size", None),
    "sizes that differ by a pixel": (partial(_sized, [(64, 48), (64, 49)]), "64x48 to 64x49", None),
    "a side of one pixel": (partial(_sized, [(64, 48), (1, 1)]), "64x48 to 1x1", None),
    "one that lies on its side": (_turned, 3, None),
    "all kinds of colours": (_kinds, 9, None),
    "one of 16 bits": (_deep, 3, None),
    "a film among them": (_with_film, 2, None),
    "a film that is called a picture": (_film_named_picture, "3.png", None),
    "one that moves": (_moving, 3, "holds several pictures"),
    "nothing": (lambda folder: None, "holds no images", None),
    "only other files": (lambda folder: (folder / "a.txt").touch(), "holds no images", None),
    "only folders": (lambda folder: (folder / "a.png").mkdir(), "holds no images", None),
    "only hidden pictures": (partial(_named, [".1.png", "._2.png"]), "holds no images", None),
    "one picture": (partial(_named, ["1.png"]), 1, None),
    "folders of pictures": (_below, "holds no images", None),
}  # fmt: skip


def folders(workshop: Workshop) -> Iterator[Case]:
    """Folders, by their names, by what is beside the pictures, and by what is among them."""
    for title, names in NATURAL.items():
        yield _case(workshop, title, partial(_named, names), len(names))
    for title, (name, data) in BESIDE.items():
        yield _case(workshop, f"beside them {title}", partial(_beside, name, data), 3)
    for title, (make, wanted, warned) in MIXED.items():
        yield _case(workshop, title, make, wanted, warned)


def _case(
    workshop: Workshop, title: str, make: Make, wanted: int | str, warned: str | None = None
) -> Case:
    def prepared(folder: Path) -> Sequence[str | Path]:
        (folder / "in").mkdir()
        make(folder / "in")
        return trial(workshop.bundle, "in")

    def refused(_folder: Path, outcome: Outcome) -> str | None:
        said = " ".join(outcome.stderr.split())
        return None if str(wanted) in said else f"said {said[-300:]!r}"

    check, codes = refused, frozenset({2})
    if isinstance(wanted, int):
        greys = None
        if title == "a link to a picture beside it":
            greys = [grey_of(k) for k in (0, 1, 0)]
        whole = seen("in", wanted, greys=greys, warned=warned)
        check, codes = whole, frozenset({0})
    return Case(title, prepared, writes=frozenset({"out"}), codes=codes, check=check)


FEW = {"folders": 2}
ROWS = {"folders": folders}
