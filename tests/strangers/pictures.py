# ruff: noqa: E501 - a table of cases reads best with a case on a line
"""Folders of pictures, and single ones: every kind must show what it holds, or be refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from court import Case, Outcome
from films import trial
from PIL import Image
from workshop import Workshop

__all__ = ["ROWS"]

Array = np.ndarray[Any, Any]
Write = Callable[[Path], None]


def _scene() -> Array:
    """Another colour in each corner, [48, 64, 3]: turns and exchanged colours are seen."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:] = (200, 40, 40), (40, 200, 40)
    image[24:, :32], image[24:, 32:] = (40, 40, 200), (150, 150, 150)
    return image


def _grey() -> Array:
    return _scene().astype(np.uint32).mean(axis=2).astype(np.uint8)


def _as_rgb(grey: Array) -> Array:
    return np.stack([grey] * 3, axis=-1)


def _saved(image: Image.Image, name: str, **how: Any) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / name, **how)


def _png(
    folder: Path, name: str, width: int, height: int, depth: int, kind: int, data: bytes
) -> None:
    """A PNG by its numbers, which Pillow cannot all write."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    (folder / name).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _deep(kind: int, channels: int) -> Write:
    """A PNG of 16 bits a colour, whose high bytes are the scene's."""

    def make(folder: Path) -> None:
        high = _grey()[..., None] if channels < 3 else _scene()
        if channels % 2 == 0:
            high = np.concatenate([high, np.full_like(high[..., :1], 255)], axis=-1)
        words = (high.astype(np.uint16) * 256 + 0x55).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in words)
        _png(folder, "a.png", 64, 48, 16, kind, zlib.compress(rows))

    return make


def _words(name: str, kind: str) -> Write:
    values = _grey().astype(kind) * 256 + 0x55
    return lambda folder: Image.fromarray(values).save(folder / name)


def _turned(orientation: int, suffix: str) -> Write:
    """The scene stored so that a reader of EXIF sees it upright."""
    stored = {
        1: _scene(),
        2: _scene()[:, ::-1],
        3: _scene()[::-1, ::-1],
        4: _scene()[::-1],
        5: _scene().transpose(1, 0, 2),
        6: _scene().transpose(1, 0, 2)[::-1],
        7: _scene().transpose(1, 0, 2)[::-1, ::-1],
        8: _scene().transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    return lambda folder: image.save(folder / f"a{suffix}", exif=exif, quality=95)


def _palette(**how: Any) -> Write:
    return _saved(Image.fromarray(_scene()).quantize(8), "a.png", **how)


RGB = Image.fromarray(_scene())
GREY = Image.fromarray(_grey())
ALPHA = Image.fromarray(np.dstack([_scene(), np.full((48, 64), 128, np.uint8)]))
SINGLE: dict[str, tuple[Write, Array, float]] = {
    "png of 16 bits, grey": (_deep(0, 1), _as_rgb(_grey()), 0),
    "png of 16 bits, grey and alpha": (_deep(4, 2), _as_rgb(_grey()), 0),
    "png of 16 bits, colours": (_deep(2, 3), _scene(), 0),
    "png of 16 bits, colours and alpha": (_deep(6, 4), _scene(), 0),
    "png of 8 bits, colours": (_saved(RGB, "a.png"), _scene(), 0),
    "png, interlaced by hand": (_saved(RGB, "a.png", optimize=True), _scene(), 0),
    "png of 8 bits, grey": (_saved(GREY, "a.png"), _as_rgb(_grey()), 0),
    "png, grey and alpha": (_saved(ALPHA.convert("LA"), "a.png"), _as_rgb(np.asarray(RGB.convert("L"))), 0),
    "png, colours and alpha": (_saved(ALPHA, "a.png"), _scene(), 0),
    "png of one bit": (_saved(GREY.point(lambda v: 255 * (v > 100), "1"), "a.png"), _as_rgb(255 * (_grey() > 100).astype(np.uint8)), 0),
    "png, palette": (_palette(), _scene(), 3),
    "png, palette, a colour transparent": (_palette(transparency=1), _scene(), 3),
    "png, palette, each colour transparent by half": (_palette(transparency=b"\x80" * 8), _scene(), 3),
    "png, a colour transparent": (_saved(RGB, "a.png", transparency=(200, 40, 40)), _scene(), 0),
    "png, grey, a grey transparent": (_saved(GREY, "a.png", transparency=93), _as_rgb(_grey()), 0),
    "jpg": (_saved(RGB, "a.jpg", quality=95), _scene(), 9),
    "jpg, progressive": (_saved(RGB, "a.jpg", quality=95, progressive=True), _scene(), 9),
    "jpg, grey": (_saved(GREY, "a.jpg", quality=95), _as_rgb(_grey()), 9),
    "jpg, four inks": (_saved(RGB.convert("CMYK"), "a.jpg", quality=95), _scene(), 9),
    "jpg, 4:4:4": (_saved(RGB, "a.jpg", quality=95, subsampling=0), _scene(), 9),
    "jpg, a colour in each pixel's own": (_saved(RGB, "a.jpeg", quality=95, keep_rgb=True), _scene(), 9),
    "jpg, capital suffix": (_saved(RGB, "A.JPG", quality=95), _scene(), 9),
    "webp": (_saved(RGB, "a.webp", quality=95), _scene(), 12),
    "webp, lossless": (_saved(RGB, "a.webp", lossless=True), _scene(), 0),
    "webp, alpha": (_saved(ALPHA, "a.webp", lossless=True), _scene(), 0),
    "webp, alpha 0": (_saved(Image.fromarray(np.dstack([_scene(), np.zeros((48, 64), np.uint8)])), "a.webp", lossless=True, exact=True), _scene(), 0),
    "bmp": (_saved(RGB, "a.bmp"), _scene(), 0),
    "bmp, grey": (_saved(GREY, "a.bmp"), _as_rgb(_grey()), 0),
    "bmp, palette": (_saved(RGB.quantize(8), "a.bmp"), _scene(), 3),
    "bmp, one bit": (_saved(GREY.point(lambda v: 255 * (v > 100), "1"), "a.bmp"), _as_rgb(255 * (_grey() > 100).astype(np.uint8)), 0),
    "tiff that is called png": (_saved(RGB, "a.png", format="TIFF"), _scene(), 0),
    "tiff of 16 bits that is called png": (lambda folder: Image.fromarray(_grey().astype(np.uint16) * 256).save(folder / "a.png", "TIFF"), _as_rgb(_grey()), 0),
    "tiff, words of the other order": (lambda folder: Image.fromarray((_grey().astype(np.uint16) * 256 + 7).astype(">u2")).save(folder / "a.png", "TIFF"), _as_rgb(_grey()), 0),
    "jpg that is called png": (_saved(RGB, "a.png", format="JPEG", quality=95), _scene(), 9),
    "png that is called jpg": (_saved(RGB, "a.jpg", format="PNG"), _scene(), 0),
    "gif that is called png": (_saved(RGB.quantize(8), "a.png", format="GIF"), _scene(), 3),
    "ico that is called png": (_saved(RGB, "a.png", format="ICO", sizes=[(64, 48)]), _scene(), 0),
    "pgm that is called png": (_saved(GREY, "a.png", format="PPM"), _as_rgb(_grey()), 0),
    "tga that is called png": (_saved(RGB, "a.png", format="TGA"), _scene(), 0),
    "sgi that is called bmp": (_saved(RGB, "a.bmp", format="SGI"), _scene(), 0),
    "pcx that is called bmp": (_saved(RGB, "a.bmp", format="PCX"), _scene(), 0),
    "ppm of 16 bits that is called png": (lambda folder: (folder / "a.png").write_bytes(b"P5 64 48 65535 " + (_grey().astype(np.uint16) * 256).astype(">u2").tobytes()), _as_rgb(_grey()), 0),
    **{f"jpg, turned by EXIF {n}": (_turned(n, ".jpg"), _scene(), 12) for n in range(1, 9)},
    **{f"webp, turned by EXIF {n}": (_turned(n, ".webp"), _scene(), 24) for n in (3, 6, 8)},
    **{f"png, turned by EXIF {n}": (_turned(n, ".png"), _scene(), 0) for n in (2, 5, 7)},
}  # fmt: skip


def _differs(folder: Path, wanted: Array, tolerance: float) -> str | None:
    """Whether the first frame of a folder is another than it should be, but at its edges."""
    from openvis_rt.runtime.video.reading import open_video

    with open_video(str(folder)) as video:
        found = next(iter(video)).image
    if found.shape != wanted.shape:
        return f"it has {found.shape}, not {wanted.shape}"
    off = np.abs(found.astype(int) - wanted)
    inner = np.concatenate([off[4:20, 4:-36], off[28:-4, 36:-4], off[4:20, 36:-4]])
    worst = int(inner.max())
    return f"a colour differs by {worst}" if worst > tolerance else None


def single(workshop: Workshop) -> Iterator[Case]:
    """One picture of each kind, in a folder and as the source itself: its pixels are right."""
    for title, (write, wanted, tolerance) in SINGLE.items():
        for source in ("in", None) if tolerance == 0 or "jpg" in title else ("in",):

            def make(folder: Path, write: Write = write, source: str | None = source) -> Any:
                (folder / "in").mkdir()
                write(folder / "in")
                [path] = (folder / "in").iterdir()
                return trial(workshop.bundle, source or f"in/{path.name}")

            def check(
                folder: Path,
                outcome: Outcome,
                wanted: Any = wanted,
                tolerance: float = tolerance,
                source: str | None = source,
            ) -> str | None:
                if outcome.code:
                    return f"exit {outcome.code}: {outcome.stderr}"
                [path] = (folder / "in").iterdir()
                return _differs(folder / "in" if source else path, wanted, tolerance)

            where = "in a folder" if source else "by its own name"
            yield Case(f"{title}, {where}", make, check=check)


ROWS = {"pictures, single": single}
