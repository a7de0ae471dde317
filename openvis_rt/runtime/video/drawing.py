"""Drawing results on frames: masks, contours and labels.

A frame is drawn as three planes, red, green and blue, because numpy blends a plane several times as
fast as every third byte of a picture; and only the box of each object is touched. A pixel under a
mask becomes what Pillow's ``paste`` makes of it:

    x = pixel (255 - opacity) + color opacity + 128;    pixel' = (x + x // 256) // 256
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.video.labels import (
    RGB,
    Anchor,
    Box,
    Label,
    anchor_of,
    font_for,
    label_of,
    place_of,
)
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.video.run_lengths import decode_box

__all__ = ["RGB", "Drawer", "Planes", "Style", "color_of", "draw", "font_for"]

Plane = npt.NDArray[np.uint8]
Planes = tuple[Plane, Plane, Plane]
"""Red, green and blue, each uint8 [H, W]; rows may lie apart in memory."""

_CONTOUR = 240  # its opacity, of 255
_GOLDEN = 0.618033988749895  # the fractions of its multiples keep the widest gaps


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
        self._anchors: dict[int, Anchor] = {}

    def draw(self, image: npt.NDArray[np.uint8], result: FrameResult) -> npt.NDArray[np.uint8]:
        """Draw masks, contours and labels.

        Args:
            image: uint8 [H, W, 3] RGB; not changed.
            result: the objects of this frame; those with an empty mask are left out.

        Returns:
            A new array of the same shape, C-contiguous.
        """
        planes = np.array(image.transpose(2, 0, 1), order="C")
        self.paint((planes[0], planes[1], planes[2]), result)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def paint(self, planes: Planes, result: FrameResult) -> None:
        """Draw masks, contours and labels into a frame in place.

        Args:
            planes: of the frame, changed.
            result: as for :meth:`draw`.
        """
        height, width = planes[0].shape
        if (result.height, result.width) != (height, width):
            raise ValueError(
                f"the image has {width}x{height} pixels, its result {result.width}x{result.height}"
            )
        seen = [instance for instance in result.instances if instance.box[2] and instance.box[3]]
        seen.sort(key=lambda instance: -instance.box[2] * instance.box[3])  # small ones on top
        style = self._style.at(height)
        anchors: dict[int, Anchor] = {}
        for instance in seen:
            mask, corner = decode_box(instance.segmentation, instance.box), instance.box[:2]
            _blend(planes, corner, _opacity(mask, style), self._color(instance.track_id))
            last = self._anchors.get(instance.track_id)
            anchors[instance.track_id] = anchor_of(mask, corner, last)
        self._anchors = anchors
        taken: list[Box] = []
        for instance in sorted(seen, key=lambda instance: instance.track_id) if style.text else ():
            label = label_of(instance, self._color(instance.track_id), style.text or 0)
            rows, columns = label.inside.shape
            foot = anchors[instance.track_id].foot
            taken.append(place_of((width, height), foot, (columns, rows), taken))
            _put(planes, label, taken[-1])


def _opacity(mask: Plane, style: Style) -> Plane:
    """Of each pixel in a mask's box, of 255: nothing, the inside's or the contour's."""
    inside = _eroded(mask, style.contour or 0)
    return mask * np.uint8(_CONTOUR) - inside * np.uint8(_CONTOUR - style.fill)


def _blend(planes: Planes, corner: tuple[int, int], opacity: Plane, color: RGB) -> None:
    """Mix a colour into the box of a mask; see the module."""
    (left, top), (height, width) = corner, opacity.shape
    rest = 255 - opacity
    for plane, value in zip(planes, color, strict=True):
        region = plane[top : top + height, left : left + width]
        mixed = np.multiply(region, rest, dtype=np.uint16)
        mixed += np.multiply(opacity, np.uint16(value), dtype=np.uint16)
        mixed += np.uint16(128)
        mixed += mixed >> 8
        mixed >>= 8
        region[:] = mixed


def _put(planes: Planes, label: Label, place: Box) -> None:
    """Put a label at its place, as far as that lies in the picture."""
    left, top, right, bottom = place
    for plane, tag in zip(planes, label.planes, strict=True):
        region = plane[top:bottom, left:right]
        seen = np.s_[: region.shape[0], : region.shape[1]]
        np.copyto(region, tag[seen], where=label.inside[seen])


def _eroded(mask: Plane, steps: int) -> Plane:
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
