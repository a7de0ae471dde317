"""Masks of annotation and results files: every form becomes COCO compressed run lengths.

    polygons            [[x, y, x, y, ...], ...]                        COCO, YTVIS
    uncompressed        {"size": [H, W], "counts": [12, 3, ...]}        YTVIS, OVIS
    compressed          {"size": [H, W], "counts": "PPYo1..."}          LV-VIS, BURST, results

A frame without the object is None; an empty list or object counts as None, as in the official
``ytvoseval.py`` (``if seg:``). ``pycocotools`` does not check the text of run lengths and reads
past its end where it is cut off, so every text is decoded here once, which gives its area, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from openvis_rt.errors import InputError

if TYPE_CHECKING:
    from openvis_rt.runtime.video.run_lengths import RLE

__all__ = ["areas_of", "rle_from_json", "shared_pixels"]

_MOST_LETTERS = 7  # of one number: 32 bits of a run in groups of five
_FARTHEST = 1 << 16  # pixels of a corner: pycocotools allocates by the length of an edge
_POLYGON_NUMBERS = 6  # of the smallest polygon: three corners


def rle_from_json(segmentation: object, height: int, width: int) -> RLE | None:
    """The mask of one frame as compressed run lengths; None where there is none.

    Args:
        segmentation: a value of one of the forms in this module's docstring, or None.
        height, width: of the frame in pixels.

    Raises:
        InputError: it has another form or another size. The text of compressed run lengths is
            checked by :func:`areas_of`.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return _rle_from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise InputError(
            "a segmentation is null, a list of polygons, or an object with size and counts; found "
            f"{str(segmentation)[:60]}"
        )
    size, counts = segmentation.get("size"), segmentation["counts"]
    if size != [height, width]:
        raise InputError(
            f"a mask has the size {size}, and its video's frames have [{height}, {width}] (height, "
            "width)"
        )
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise InputError("the counts of a mask are a string, or a list of run lengths from 0 up")
    if sum(counts) != height * width:
        raise InputError(
            f"the runs of a mask sum to {sum(counts)}, and a frame of {height}x{width} has "
            f"{height * width} pixels"
        )
    return _text_form(coco.frPyObjects({"size": size, "counts": counts}, height, width))


def _rle_from_polygons(polygons: list[Any], height: int, width: int) -> RLE:
    for polygon in polygons:
        if (
            not isinstance(polygon, list)
            or len(polygon) < _POLYGON_NUMBERS
            or len(polygon) % 2
            or not all(isinstance(n, int | float) and abs(n) <= _FARTHEST for n in polygon)
        ):
            raise InputError(
                "a polygon is a list x, y, x, y, ... of at least three corners; found "
                f"{str(polygon)[:60]}"
            )
    return _text_form(coco.merge(coco.frPyObjects(polygons, height, width)))


def _text_form(rle: dict[str, Any]) -> RLE:
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode()}


def areas_of(rles: Sequence[RLE | None], height: int, width: int) -> npt.NDArray[np.int64]:
    """Pixels of each mask, int64 [frames]; 0 where there is none.

    All texts are decoded in one go: ``rleFrString`` of cocoapi's ``common/maskApi.c``. A letter
    less 48 holds five bits of a number, low ones first, and the bit 32 if more follow; the bit 16
    of a number's last letter is its sign. From the fourth number of a text on, a number is the
    difference to the one two before.

    Raises:
        InputError: a text is no run lengths of a mask of this size.
    """
    areas = np.zeros(len(rles), np.int64)
    frames = [index for index, rle in enumerate(rles) if rle is not None]
    texts = [rle["counts"] for rle in rles if rle is not None]
    if not texts:
        return areas
    ends = np.cumsum([len(text) for text in texts])
    letters = np.frombuffer("".join(texts).encode("utf-8", "replace"), np.uint8) - np.uint8(48)
    last = (letters & 32) == 0
    if not all(texts) or len(letters) != ends[-1] or letters.max() > 63 or not last[ends - 1].all():
        raise _not_run_lengths(height, width)
    number_ends = np.flatnonzero(last)
    first = np.concatenate(([0], number_ends[:-1] + 1))
    numbers = _numbers(letters, first, number_ends)
    starts = np.searchsorted(first, np.concatenate(([0], ends[:-1])))  # each text's first number
    lengths = np.diff(np.append(starts, len(numbers)))
    runs, is_ones = _runs(numbers, starts, lengths)
    totals = np.add.reduceat(runs, starts)
    if runs.min() < 0 or (totals != height * width).any():
        raise _not_run_lengths(height, width)
    runs[~is_ones] = 0
    areas[frames] = np.add.reduceat(runs, starts)
    return areas


def _numbers(
    letters: npt.NDArray[np.uint8], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Numbers (int64 [n]) from letters less 48, given each number's first and last letter."""
    numbers = (letters[first] & 31).astype(np.int64)
    longer = np.flatnonzero(last > first)
    for place in range(1, _MOST_LETTERS):
        if not longer.size:
            break
        digits = (letters[first[longer] + place] & 31).astype(np.int64)
        numbers[longer] |= digits << 5 * place
        longer = longer[last[longer] > first[longer] + place]
    if longer.size:
        numbers[longer] = -1  # no frame has so many pixels; refused as a negative run
    negative = np.flatnonzero(letters[last] & 16)
    numbers[negative] -= np.int64(32) << 5 * (last - first)[negative]
    return numbers


def _runs(
    numbers: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Run lengths from numbers that are differences, text by text, and which are runs of ones.

    Within a text the first number stands alone; the odd ones are running sums of the odd ones, and
    the even ones from the third on of the even ones.
    """
    position = np.arange(len(numbers)) - np.repeat(starts, lengths)
    is_ones = (position & 1).astype(np.bool_)
    alone = numbers[starts]
    odd = np.where(is_ones, numbers, 0)
    even = numbers - odd
    even[starts] = 0
    runs = np.empty_like(numbers)
    for chain, chosen in ((odd, is_ones), (even, ~is_ones)):
        sums = np.cumsum(chain)
        before = sums[starts] - chain[starts]
        np.copyto(runs, sums - np.repeat(before, lengths), where=chosen)
    runs[starts] = alone
    return runs, is_ones


def _not_run_lengths(height: int, width: int) -> InputError:
    return InputError(
        f"the counts of a mask are no COCO run lengths of a frame of {height}x{width} (height x "
        "width)"
    )


def shared_pixels(
    iou: npt.NDArray[np.float64], areas: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Pixels that two masks share, from their IoU and the sum of their areas, int64 [n].

    ``pycocotools`` gives r = i / u for many pairs in one call, and u = s - i for the areas' sum s,
    so i = r s / (1 + r). That is a whole number, and the rounding of r moves it by far less than a
    half, since s is below 2^33.
    """
    return np.rint(iou * areas / (1 + iou)).astype(np.int64)
