"""A source frame onto the network's frame, as the official evaluations do: Pillow's bilinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.bundle import Preprocess
from openvis_rt.variants import resized_size

__all__ = ["Placement", "place_frame", "placement_for"]

Image8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Placement:
    """Where a source frame lies in the network's frame, and how its masks come back.

    Attributes:
        picture: (h, w) of the resized picture at the top left of the network's frame, pixels.
        canvas: (H, W) of the network's whole frame at the source's scale; masks are made at this
            size and cut to ``source``.
        source: (H, W) of the source frame.
        exact: whether this is the official geometry, with nothing left free.
        official: (h, w) that the family's rule would resize this source to.
    """

    picture: tuple[int, int]
    canvas: tuple[int, int]
    source: tuple[int, int]
    exact: bool
    official: tuple[int, int]


def placement_for(height: int, width: int, rule: Preprocess) -> Placement:
    """Fit a source of that size into the network's frame, keeping its shape."""
    network = rule.source_size or rule.network_size  # the graph may resize by itself
    official = resized_size(height, width, rule.short_side, rule.max_side)
    scale = min(network[0] / height, network[1] / width)
    picture = (
        min(network[0], max(1, int(height * scale + 0.5))),
        min(network[1], max(1, int(width * scale + 0.5))),
    )
    canvas = (
        max(height, round(network[0] * height / picture[0])),
        max(width, round(network[1] * width / picture[1])),
    )
    if picture == network:
        canvas = (height, width)
    exact = picture == network and official == rule.network_size
    return Placement(picture, canvas, (height, width), exact, official)


def place_frame(
    image: Image8, placement: Placement, out: Image8, fill: tuple[float, float, float]
) -> None:
    """Resize a frame into the network's frame.

    Args:
        image: uint8 [Hs, Ws, 3], RGB.
        placement: of a source of this size.
        out: uint8 [H, W, 3], overwritten.
        fill: RGB of what stays free: the mean colour, which is near zero after the normalisation.
    """
    height, width = placement.picture
    if image.shape[:2] != (height, width):
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    out[:height, :width] = image
    if (height, width) != out.shape[:2]:
        colour = np.array(fill).round().astype(np.uint8)
        out[height:] = colour
        out[:height, width:] = colour
