"""Drawing results on frames: masks, contours, and labels that stay on their objects.

A label stands on the largest part of its object's mask, over the middle of that part, so that a
speck elsewhere does not move it. From frame to frame its place is smoothed, track by track.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from openvis_rt.runtime.video.results import FrameResult, Instance, decode_mask

__all__ = ["RGB", "Drawer", "Style", "color_of", "draw", "font_for"]

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded
Mask = npt.NDArray[np.uint8]
Point = tuple[float, float]  # x, y in pixels
RGB = tuple[int, int, int]  # 0..255

_CONTOUR = 240  # its opacity, of 255
_GOLDEN = 0.618033988749895  # the fractions of its multiples keep the widest gaps
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


def color_of(track_id: int) -> RGB:
    """The colour of a track as RGB, 0..255; the same in every run, and far from its neighbours'."""
    saturation, value = ((0.78, 1.0), (0.60, 0.95), (0.90, 0.85))[track_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(0.58 + track_id * _GOLDEN, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: npt.NDArray[np.uint8], result: FrameResult) -> npt.NDArray[np.uint8]:
    """Draw one frame by itself; see :meth:`Drawer.draw`, which is for the frames of a video."""
    return Drawer().draw(image, result)


@dataclass(frozen=True, slots=True)
class Style:
    """How masks and labels look.

    Attributes:
        text: height of the labels' letters in pixels, 0 for no labels; None goes by the frame's
            height.
        contour: thickness of a mask's border in pixels; None goes by the frame's height.
        fill: opacity of a mask's inside, 0 to 240.
    """

    text: int | None = None
    contour: int | None = None
    fill: int = 110

    def at(self, height: int) -> Style:
        """The same for a frame of a height in pixels, with nothing left open."""
        text = max(11, round(height / 42)) if self.text is None else self.text
        contour = max(1, round(height / 400)) if self.contour is None else self.contour
        return Style(text, contour, self.fill)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """Where the label of a track stands.

    Attributes:
        foot: middle of the label's lower edge, smoothed over time.
        part: a point in the part of the mask that the label stands on, in the newest frame.
    """

    foot: Point
    part: tuple[int, int]


class Drawer:
    """Draws the frames of one video in their order.

    It remembers where each track's label was in the last frame. A track that is not in a frame is
    forgotten, so when it comes back its label begins at its new place.

    Args:
        style: how masks and labels look.
        color: of a track, by its id.
    """

    def __init__(self, style: Style | None = None, color: Callable[[int], RGB] = color_of) -> None:
        self._style, self._color = style or Style(), color
        self._anchors: dict[int, _Anchor] = {}

    def draw(self, image: npt.NDArray[np.uint8], result: FrameResult) -> npt.NDArray[np.uint8]:
        """Draw masks, contours and labels.

        Args:
            image: uint8 [H, W, 3] RGB; not changed.
            result: the objects of this frame; those with an empty mask are left out.

        Returns:
            A new array of the same shape, C-contiguous.
        """
        height, width = image.shape[:2]
        if (result.height, result.width) != (height, width):
            raise ValueError(
                f"the image has {width}x{height} pixels, its result {result.width}x{result.height}"
            )
        canvas = Image.fromarray(image)  # a copy: Pillow keeps four bytes of an RGB pixel
        seen = [instance for instance in result.instances if instance.box[2] and instance.box[3]]
        seen.sort(key=lambda instance: -instance.box[2] * instance.box[3])  # small ones on top
        style = self._style.at(height)
        anchors: dict[int, _Anchor] = {}
        for instance in seen:
            mask = _mask_of(instance)
            color = self._color(instance.track_id)
            _draw_mask(canvas, color, instance.box[:2], mask, style)
            last = self._anchors.get(instance.track_id)
            anchors[instance.track_id] = _anchor(mask, instance.box[:2], last)
        self._anchors = anchors
        taken: list[Box] = []
        for instance in sorted(seen, key=lambda instance: instance.track_id) if style.text else ():
            foot, color = anchors[instance.track_id].foot, self._color(instance.track_id)
            taken.append(_draw_label(canvas, instance, color, foot, style.text or 0, taken))
        return np.array(canvas)


def _mask_of(instance: Instance) -> Mask:
    """The mask within the instance's box, uint8 of 0 and 1."""
    left, top, width, height = instance.box
    return decode_mask(instance.segmentation)[top : top + height, left : left + width]


def _draw_mask(
    canvas: Image.Image, color: RGB, corner: tuple[int, int], mask: Mask, style: Style
) -> None:
    inside = _eroded(mask, style.contour or 0)
    opacity = mask * np.uint8(_CONTOUR) - inside * np.uint8(_CONTOUR - style.fill)
    canvas.paste(color, corner, Image.fromarray(opacity))


def _eroded(mask: Mask, steps: int) -> Mask:
    """The mask less its border of ``steps`` pixels; what lies outside of the array is not set."""
    for _ in range(steps):
        inside = np.zeros_like(mask)
        inside[1:-1, 1:-1] = mask[1:-1, 1:-1]
        inside[1:] &= mask[:-1]
        inside[:-1] &= mask[1:]
        inside[:, 1:] &= mask[:, :-1]
        inside[:, :-1] &= mask[:, 1:]
        mask = inside
    return mask


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


def _anchor(mask: Mask, corner: tuple[int, int], last: _Anchor | None) -> _Anchor:
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
    return _Anchor((x, y), (left + part.step * middle, top + part.step * inside))


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


def _draw_label(
    canvas: Image.Image,
    instance: Instance,
    color: RGB,
    foot: Point,
    size: int,
    taken: list[Box],
) -> Box:
    """Draw the tag of an instance where it hides no other tag, if shifting helps; its place."""
    name = " ".join(instance.name.split())
    if len(name) > _NAME_LENGTH:
        name = name[: _NAME_LENGTH - 1] + "…"
    words = [word for word in (name, f"#{instance.track_id}", f"{instance.score:.2f}") if word]
    font = font_for("".join(words), size)
    pad, gap = max(2, size // 4), max(5, size // 2)  # pixels; the font's own space is 2 or 3
    widths = [round(font.getlength(word)) for word in words]
    extent = (sum(widths) + gap * (len(words) - 1) + 2 * pad, round(size * 1.25) + pad)
    place = _label_place(canvas.size, foot, extent, taken)
    pen = ImageDraw.Draw(canvas)
    pen.rounded_rectangle((place[0], place[1], place[2] - 1, place[3] - 1), pad, fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 130 else (255, 255, 255)
    x, middle = place[0] + pad, (place[1] + place[3]) / 2
    for word, width in zip(words, widths, strict=True):
        pen.text((x, middle), word, fill=ink, font=font, anchor="lm")
        x += width + gap
    return place


def _label_place(
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
