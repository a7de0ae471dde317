"""Where the label of an object stands, and how it looks.

A label stands on the largest part of its object's mask, over the middle of that part, so that a
speck elsewhere does not move it. From frame to frame its place is smoothed, track by track.

A label is drawn once and kept: in most frames it says what it said in the frame before.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from openvis_rt.printable import printable
from openvis_rt.runtime.video.results import Instance

__all__ = ["RGB", "Anchor", "Label", "anchor_of", "font_for", "label_of", "place_of"]

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded
Mask = npt.NDArray[np.uint8]
Point = tuple[float, float]  # x, y in pixels
RGB = tuple[int, int, int]  # 0..255

_NAME_LENGTH = 40  # characters; longer names are cut
_NEWEST = 0.4  # weight of the newest frame in a label's place
_CELLS = 96  # a mask's longer side is looked at in so many steps
# Tried in order for the letters that Pillow's own font lacks; searched in the system's font folders
_FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "arial.ttf",
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where the label of a track stands.

    Attributes:
        foot: middle of the label's lower edge, smoothed over time.
        part: a point in the part of the mask that the label stands on, in the newest frame.
    """

    foot: Point
    part: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """A connected part of a mask, as cells of ``step`` x ``step`` pixels.

    Attributes:
        cells: [h, w], True in the part, which is not empty.
        step: pixels of a cell.
        corner: x, y of the first cell in the picture.
    """

    cells: npt.NDArray[np.bool_]
    step: int
    corner: tuple[int, int]


def anchor_of(mask: Mask, corner: tuple[int, int], last: Anchor | None) -> Anchor:
    """The place of a label, a step of exponential smoothing away from that of the last frame.

    Args:
        mask: of the object, cut to its box.
        corner: x, y of the mask in the picture.
        last: of the frame before, if the track was in it.
    """
    part = _largest_part(mask, corner, None if last is None else last.part)
    # The middle of its pixels, and its upper edge there: a raised hand elsewhere does not count
    counts = part.cells.sum(0)
    covered = np.flatnonzero(counts)  # without a gap, since the part is connected
    middle = int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
    reach = max(1, len(covered) // 8)
    near = slice(max(covered[0], middle - reach), min(covered[-1], middle + reach) + 1)
    edges = np.sort(part.cells[:, near].argmax(0))
    inside = int(part.cells[:, middle].argmax() + counts[middle] // 2)
    left, top = part.corner
    x, y = left + part.step * (middle + 0.5), float(top + part.step * edges[len(edges) // 2])
    if last is not None:
        x = _NEWEST * x + (1 - _NEWEST) * last.foot[0]
        y = _NEWEST * y + (1 - _NEWEST) * last.foot[1]
    return Anchor((x, y), (left + part.step * middle, top + part.step * inside))


def _largest_part(mask: Mask, corner: tuple[int, int], before: tuple[int, int] | None) -> _Part:
    """The largest connected part of a mask that is not empty, coarsely where it is large.

    It is the part at the point ``before``, if that has at least half the largest one's size: where
    a post cuts an object into halves, its label does not go to and fro.
    """
    while True:
        step = -(-max(mask.shape) // _CELLS)
        labels, count = ndimage.label(mask[::step, ::step])
        if not count:  # there are only specks between the cells
            step = 1
            labels, _ = ndimage.label(mask)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        chosen = int(sizes.argmax())
        if before is not None:
            column, row = ((b - c) // step for b, c in zip(before, corner, strict=True))
            if 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]:
                there = int(labels[row, column])
                chosen = there if 2 * sizes[there] >= sizes[chosen] else chosen
        rows, columns = ndimage.find_objects(labels, chosen)[-1]
        extent = max(rows.stop - rows.start, columns.stop - columns.start)
        if step == 1 or 2 * (extent + 2) > max(labels.shape):
            return _Part(np.asarray(labels == chosen), step, corner)
        # a small part of a mask that is wide through its specks: look at it more closely
        left, top = max(0, columns.start - 1) * step, max(0, rows.start - 1) * step
        mask = mask[top : (rows.stop + 1) * step, left : (columns.stop + 1) * step]
        corner = corner[0] + left, corner[1] + top


@dataclass(frozen=True, slots=True)
class Label:
    """The tag of an instance.

    Attributes:
        planes: uint8 [3, h, w], red, green and blue.
        inside: bool [h, w], the pixels within its round corners. Both are shared, and never
            written.
    """

    planes: Mask
    inside: npt.NDArray[np.bool_]


def label_of(instance: Instance, color: RGB, size: int) -> Label:
    """The tag with an instance's name, number and score; of synonyms it has the first.

    Args:
        instance: whose.
        color: of its background; the letters are black or white.
        size: height of the letters in pixels.
    """
    first = instance.name.partition(",")[0] or instance.name
    name = printable(" ".join(first.split()))
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1] + "…"
    words = (name, f"#{instance.track_id}", f"{instance.score:.2f}")
    return _label_with(tuple(word for word in words if word), color, size)


@functools.lru_cache(maxsize=512)
def _label_with(words: tuple[str, ...], color: RGB, size: int) -> Label:
    font = font_for("".join(words), size)
    pad, gap = max(2, size // 4), max(5, size // 2)  # pixels; the font's own space is 2 or 3
    widths = [round(font.getlength(word)) for word in words]
    width, height = sum(widths) + gap * (len(words) - 1) + 2 * pad, round(size * 1.25) + pad
    tag, inside = Image.new("RGB", (width, height), color), Image.new("L", (width, height))
    ImageDraw.Draw(inside).rounded_rectangle((0, 0, width - 1, height - 1), pad, fill=1)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    pen, x = ImageDraw.Draw(tag), pad
    for word, extent in zip(words, widths, strict=True):
        pen.text((x, height / 2), word, fill=ink, font=font, anchor="lm")
        x += extent + gap
    planes = np.ascontiguousarray(np.asarray(tag).transpose(2, 0, 1))
    return Label(planes, np.asarray(inside) != 0)


def place_of(
    canvas: tuple[int, int], foot: Point, extent: tuple[int, int], taken: list[Box]
) -> Box:
    """On its foot if that is free, else the nearest free place up or down; in the picture."""
    width, height = extent
    left = max(0, min(round(foot[0] - width / 2), canvas[0] - width))
    lowest = max(0, canvas[1] - height)
    usual = max(0, min(round(foot[1]) - height, lowest))
    place = (left, usual, left + width, usual + height)
    if not _overlaps(place, taken):
        return place
    tops = range(usual % max(1, height // 4), lowest + 1, max(1, height // 4))
    places = (
        (left, top, left + width, top + height)
        for top in sorted(tops, key=lambda top: abs(top - usual))
    )
    return next((other for other in places if not _overlaps(other, taken)), place)


def _overlaps(place: Box, taken: list[Box]) -> bool:
    left, top, right, bottom = place
    return any(left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in taken)


@functools.lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or the first of the system that has more of the text's letters."""
    own = ImageFont.load_default(size)
    if text.isascii() or not isinstance(own, ImageFont.FreeTypeFont):
        return own
    fonts = [own, *(font for name in _FALLBACK_FONTS if (font := _system_font(name, size)))]
    return min(fonts, key=lambda font: sum(_is_missing(font, letter) for letter in set(text)))


@functools.lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _is_missing(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws ``letter`` as it draws a code that no font has."""
    return bytes(font.getmask(letter)) == bytes(font.getmask("\U0010fffe"))
