"""A source frame onto the network's frame, and to CLIP's picture, as the official code does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.bundle.bundle import Preprocess
from openvis_rt.geometry import centre_crop, resized_size
from openvis_rt.runtime.video.reading import Frame

__all__ = [
    "Letterbox",
    "PreparedFrame",
    "clip_picture",
    "letterbox_for",
    "place_frame",
    "resized_frame",
]

Image8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Letterbox:
    """Where a source frame lies in the graph's frame, and where its masks are cut out.

    Attributes:
        picture: (h, w) of the resized picture at the top left of ``frames``, pixels.
        cut: (h, w) of the picture in network pixels; other than ``picture`` if the graph resizes.
        source: (H, W) of the source frame.
        fills: whether the picture fills ``frames``, so that nothing is left free.
        official: (h, w) that the family's rule would resize this source to.
    """

    picture: tuple[int, int]
    cut: tuple[int, int]
    source: tuple[int, int]
    fills: bool
    official: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PreparedFrame(Frame):
    """A frame that was resized ahead.

    Attributes:
        picture: uint8 [h, w, 3], the image in the size of its letterbox's picture.
        clip: uint8 [side, side, 3], CLIP's look at it; None where the model has none.
    """

    picture: Image8
    clip: Image8 | None


def letterbox_for(height: int, width: int, rule: Preprocess) -> Letterbox:
    """Fit a source of that size (pixels) into the graph's frame, keeping its shape."""
    frame = rule.source_size or rule.network_size  # the graph may resize by itself
    official = resized_size(height, width, rule.short_side, rule.max_side)
    scale = min(frame[0] / height, frame[1] / width)
    picture = _scaled((height, width), (scale, scale), frame)
    if rule.source_size is None and official == frame:
        picture = frame  # the rule rounds each side, so their scales may differ
    inner = (rule.network_size[0] / frame[0], rule.network_size[1] / frame[1])
    return Letterbox(
        picture,
        _scaled(picture, inner, rule.network_size),
        (height, width),
        picture == frame,
        official,
    )


def _scaled(
    size: tuple[int, int], scale: tuple[float, float], most: tuple[int, int]
) -> tuple[int, int]:
    height, width = (
        min(limit, max(1, int(side * s + 0.5)))
        for side, s, limit in zip(size, scale, most, strict=True)
    )
    return height, width


def place_frame(
    image: Image8, placement: Letterbox, out: Image8, fill: tuple[float, float, float]
) -> None:
    """Resize a frame into the network's frame: Pillow's bilinear.

    Args:
        image: uint8 [Hs, Ws, 3], RGB; or [h, w, 3], as :func:`resized_frame` makes it.
        placement: of a source of this size.
        out: uint8 [H, W, 3], overwritten.
        fill: RGB of what stays free: the mean colour, which is near zero after the normalisation.
    """
    height, width = placement.picture
    out[:height, :width] = resized_frame(image, placement)
    if (height, width) != out.shape[:2]:
        colour = np.array(fill).round().astype(np.uint8)
        out[height:] = colour
        out[:height, width:] = colour


def resized_frame(image: Image8, placement: Letterbox) -> Image8:
    """The image, uint8 [Hs, Ws, 3], as the letterbox's picture, uint8 [h, w, 3]; perhaps itself."""
    height, width = placement.picture
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def clip_picture(image: Image8, side: int) -> Image8:
    """CLIP's look at a whole frame: Pillow's bicubic, then the centre (`clip.load`'s preprocess).

    Args:
        image: uint8 [Hs, Ws, 3], RGB.
        side: pixels of the square.

    Returns:
        uint8 [side, side, 3].
    """
    (height, width), (top, left) = centre_crop(image.shape[0], image.shape[1], side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[top : top + side, left : left + side]
