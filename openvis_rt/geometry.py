"""Sizes of frames: how the systems' evaluations resize them, and how CLIP looks at them."""

from __future__ import annotations

__all__ = [
    "LARGEST_FRAME_SIDE",
    "LARGEST_PICTURE",
    "centre_crop",
    "frames_at_once",
    "is_very_large",
    "resized_size",
]

LARGEST_FRAME_SIDE = 1 << 15
"""Pixels of a side of a frame, at the most; also where results are read back."""
LARGEST_PICTURE = 178_956_970
"""Pixels of one picture; a header that claims more is refused before memory is taken. It is where
Pillow, too, sees a decompression bomb: 2 GiB of four bytes a pixel, over three."""

_BYTES_AT_ONCE = 256 << 20  # of frames that wait at one place; one waits even if it has more
_VERY_LARGE = 64 << 20  # bytes of an RGB frame; 6K has 61 MiB, and 8K 95


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Size of the resized frame by detectron2's rule (``ResizeShortestEdge``).

    The short side becomes ``short_side``, unless the long one would pass ``max_side``; halves round
    up.
    """
    scale = short_side / min(height, width)
    scaled = (short_side, scale * width) if height < width else (scale * height, float(short_side))
    if max(scaled) > max_side:
        shrink = max_side / max(scaled)
        scaled = (scaled[0] * shrink, scaled[1] * shrink)
    return int(scaled[0] + 0.5), int(scaled[1] + 0.5)


def centre_crop(height: int, width: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """CLIP's look at a whole picture: its short side becomes ``side``, and the centre is cut out.

    Returns:
        (height, width) of the resized picture, its long side rounded down, and (top, left) of the
        square in it, halves rounded to even (torchvision's Resize and CenterCrop).
    """
    long_side = side * max(height, width) // min(height, width)
    resized = (side, long_side) if height <= width else (long_side, side)
    return resized, (round((resized[0] - side) / 2), round((resized[1] - side) / 2))


def frames_at_once(height: int, width: int, most: int) -> int:
    """How many RGB frames of a size may wait at one place: 1 to ``most``, 256 MiB in all."""
    return max(1, min(most, _BYTES_AT_ONCE // (3 * height * width)))


def is_very_large(height: int, width: int) -> bool:
    """Whether frames are drawn and encoded one by one: several at once would take gigabytes."""
    return 3 * height * width > _VERY_LARGE
