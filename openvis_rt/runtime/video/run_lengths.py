"""Masks as COCO's run lengths, made from packed rows, all masks of a window at once.

COCO counts runs down each column, one column after the other, beginning with a run of zeros. Where
a run ends, a pixel differs from the one above it; at the top of a column, from the one at the
bottom of the column before:

    rows [m, H, B], eight pixels a byte --XOR with the row above--> bits where runs end
      --nonzero--> (mask, y, x) --> mask H W + x H + y, sorted --> differences: the run lengths

No mask is ever unpacked or turned. The numbers then become COCO's text, ``rleToString`` of
cocoapi's ``common/maskApi.c``: five bits a letter, low ones first, and from a mask's fourth number
on the difference to the number two before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

__all__ = [
    "RLE",
    "RunLengths",
    "box_of",
    "check_runs",
    "decode_box",
    "decode_mask",
    "empty_rle",
    "encode_masks",
    "join",
    "run_lengths",
    "subsampled",
]

Image8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class RLE(TypedDict):
    """A mask as COCO compressed run lengths."""

    size: list[int]  # [H, W] in pixels
    counts: str


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Some masks of one size. Nothing is kept but their texts, one after the other.

    Attributes:
        height, width: of each mask in pixels.
        text: COCO's text of every mask.
        ends: int32 [m], where the text of each mask ends.
    """

    height: int
    width: int
    text: bytes
    ends: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> RLE:
        """One mask, ``index`` from 0."""
        start = int(self.ends[index - 1]) if index else 0
        counts = self.text[start : int(self.ends[index])].decode("ascii")
        return {"size": [self.height, self.width], "counts": counts}

    def __iter__(self) -> Iterator[RLE]:
        return map(self.__getitem__, range(len(self)))


def run_lengths(rows: Image8, width: int) -> RunLengths:
    """Run lengths of masks that are packed by rows.

    Args:
        rows: uint8 [m, H, ceil(width / 8)] as ``np.packbits(masks, axis=-1)``: the first pixel is a
            byte's highest bit, and bits beyond the width are 0.
        width: of the masks in pixels.
    """
    count, height, _ = rows.shape
    if not count:
        return join([], height, width)
    pixels = height * width
    edges = _edges(rows, width)
    last = np.searchsorted(edges, pixels * np.arange(1, count + 1)) + np.arange(count)
    ends = np.empty(len(edges) + count, np.int64)  # of runs; a mask's last run ends with the mask
    inner = np.ones(len(ends), np.bool_)
    inner[last] = False
    ends[inner], ends[last] = edges, pixels * np.arange(1, count + 1)
    text, letters = _text(np.diff(ends, prepend=0), last)
    return RunLengths(height, width, text, letters)


def join(parts: Sequence[RunLengths], height: int, width: int) -> RunLengths:
    """The masks of all ``parts``, each of ``height`` and ``width``, in their order."""
    ends, length = [np.empty(0, np.int32)], 0
    for part in parts:
        ends.append(part.ends + np.int32(length))
        length += len(part.text)
    text = b"".join(part.text for part in parts)
    return RunLengths(height, width, text, np.concatenate(ends))


def encode_masks(masks: Image8) -> list[RLE]:
    """Run lengths of masks, uint8 [n, H, W] of 0 and 1, equal to ``pycocotools.mask.encode``."""
    return list(run_lengths(np.packbits(masks, axis=-1), masks.shape[-1]))


def decode_box(rle: RLE, box: tuple[int, int, int, int]) -> Image8:
    """The part of :func:`decode_mask` within a box, without making the rest.

    Args:
        rle: of the whole frame.
        box: x, y, width, height in pixels, within the frame.

    Returns:
        uint8 [height, width] of 0 and 1, C-contiguous.
    """
    (left, top, width, height), rows = box, rle["size"][0]
    ends = _counts(rle["counts"]).cumsum().clip(left * rows, (left + width) * rows)
    values = (np.arange(len(ends)) % 2).astype(np.uint8)
    columns = np.repeat(values, np.diff(ends, prepend=left * rows)).reshape(width, rows)
    return np.ascontiguousarray(columns[:, top : top + height].T)


def subsampled(rle: RLE, step: int) -> RLE:
    """Every ``step``-th pixel of every ``step``-th row, without making the mask.

    Pixel (x, y) of the result is (step x + step // 2, step y + step // 2) of the mask. A run's end
    at place p of the mask, column by column, is at N(p) of the result, where N counts the taken
    pixels before p; where two ends come to the same place, the run between them is gone.

    Args:
        rle: of a mask [H, W].
        step: at least 1, and at most 2 min(H, W).

    Returns:
        a mask [floor((H + step - 1 - step // 2) / step), likewise W].
    """
    height, width = rle["size"]
    rows, columns = (_taken(np.array(size), step).item() for size in (height, width))
    x, y = np.divmod(_counts(rle["counts"]).cumsum()[:-1], height)
    inside = np.where(x % step == step // 2, _taken(y, step), 0)
    ends, times = np.unique(_taken(x, step) * rows + inside, return_counts=True)
    ends = ends[(times % 2 == 1) & (ends < rows * columns)]
    counts = np.diff(ends, prepend=0, append=rows * columns)
    text, _ = _text(counts, np.array([len(counts) - 1]))
    return {"size": [rows, columns], "counts": text.decode("ascii")}


def _taken(places: Ints, step: int) -> Ints:
    """How many of the places below each are taken: those that are step // 2 modulo step."""
    return (places + step - 1 - step // 2) // step


def empty_rle(height: int, width: int) -> RLE:
    """Run lengths of a mask without a pixel."""
    text, _ = _text(np.array([height * width]), np.array([0]))
    return {"size": [height, width], "counts": text.decode("ascii")}


def box_of(rle: RLE) -> tuple[int, int, int, int]:
    """The tight box x, y, width, height of a mask in pixels; zeros if it is empty."""
    x, y, width, height = (int(value) for value in coco.toBbox(rle))
    return x, y, width, height


def check_runs(rle: RLE, height: int, width: int) -> None:
    """See that a mask that anyone may have written has this size, before anything is decoded.

    Raises:
        ValueError: its size is another, or its text is no run lengths that sum to height x width.
    """
    size, text = rle["size"], rle["counts"]
    if list(size) != [height, width]:
        raise ValueError(f"a mask has the size {size}, and its frame {[height, width]}")
    whole = isinstance(text, str) and text.isascii() and text != ""
    letters = np.frombuffer(text.encode(), np.uint8) if whole else np.zeros(0, np.uint8)
    if not len(letters) or letters.min() < 48 or letters.max() > 111 or (letters[-1] - 48) & 32:
        raise ValueError("the counts of a mask are no run lengths as COCO writes them")
    counts = _counts(text)
    # a run that is longer than the frame might make up for a negative one, or overflow
    if counts.min() < 0 or counts.max() > height * width or counts.sum() != height * width:
        raise ValueError(f"the runs of a mask do not sum to its {height * width} pixels")


def decode_mask(rle: RLE) -> Image8:
    """The mask as uint8 [H, W] of 0 and 1, C-contiguous; equal to ``pycocotools.mask.decode``.

    That function warns on each call under numpy 2, and takes twice the time.
    """
    height, width = rle["size"]
    counts = _counts(rle["counts"])  # of zeros, ones, zeros, ...
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    columns = np.repeat(values, counts).reshape(width, height)
    left = int(counts[0]) // height
    right = width - (int(counts[-1]) // height if len(counts) % 2 else 0)
    mask = np.zeros((height, width), np.uint8)
    mask[:, left:right] = columns[left:right].T  # turning the empty columns, too, takes longer
    return mask


def _edges(rows: Image8, width: int) -> Ints:
    """Where a pixel differs from the one before it: mask H W + x H + y, ascending."""
    _, height, row_bytes = rows.shape
    size = rows.size
    changed = np.zeros(size + -size % 8, np.uint8)  # whole words, of which most are 0
    planes = changed[:size].reshape(rows.shape)
    np.bitwise_xor(rows[:, 1:], rows[:, :-1], out=planes[:, 1:])
    np.bitwise_xor(rows[:, 0], _moved_right(rows[:, -1], width), out=planes[:, 0])
    words = np.flatnonzero(changed.view(np.uint64) != 0)  # much faster on bool than on numbers
    byte = np.flatnonzero(changed.reshape(-1, 8)[words].ravel() != 0)
    place = words[byte >> 3] * 8 + (byte & 7)
    bit = np.flatnonzero(np.unpackbits(changed[place]).view(np.bool_))
    line = place // row_bytes
    mask, column = line // height, place - line * row_bytes
    start = mask * ((width - 1) * height) + column * (8 * height) + line  # y: line - mask H
    edges: Ints = start[bit >> 3] + (bit & 7) * height
    edges.sort()
    return edges


def _moved_right(rows: Image8, width: int) -> Image8:
    """Packed rows [m, B] whose pixel x is what x - 1 was; 0 comes in, the last one falls out."""
    moved: Image8 = np.right_shift(rows, np.uint8(1))
    moved[:, 1:] |= np.left_shift(rows[:, :-1], np.uint8(7))
    if width % 8:
        moved[:, -1] &= 0xFF << (-width % 8) & 0xFF
    return moved


def _text(counts: Ints, last: Ints) -> tuple[bytes, npt.NDArray[np.int32]]:
    """COCO's text of the numbers of some masks.

    Args:
        counts: int64 [k], the numbers.
        last: int64 [m], the index of each mask's last one.

    Returns:
        the texts, and where each mask's ends.
    """
    numbers = counts.copy()
    numbers[2:] -= counts[:-2]
    first = np.concatenate(([0], last[:-1] + 1))
    for place in range(3):  # of a shorter mask it is one of the next mask's first three
        whole = np.minimum(first + place, len(counts) - 1)
        numbers[whole] = counts[whole]
    sizes = numbers ^ (numbers >> 63)  # two numbers of one size need the same letters
    letters = np.ones(len(numbers), np.int64)
    more, bits = np.flatnonzero(sizes >= 16), 9
    while len(more):
        letters[more] += 1
        more, bits = more[sizes[more] >> bits > 0], bits + 5
    ends = np.cumsum(letters)
    text = np.empty(int(ends[-1]), np.uint8)
    starts, place, left = ends - letters, 0, numbers
    while len(starts):
        further = letters > 1
        text[starts + place] = (left & 31) + 48 + 32 * further
        starts, letters, left = starts[further], letters[further] - 1, left[further] >> 5
        place += 1
    return text.tobytes(), ends[last].astype(np.int32)


def _counts(text: str) -> Ints:
    """The run lengths in COCO's text: ``rleFrString`` of cocoapi's ``common/maskApi.c``.

    Each letter less 48 holds five bits of a number, low ones first, and the bit 32 if more follow;
    the bit 16 of a number's last letter is its sign. From the fourth number on, a number is the
    difference to the one two before.
    """
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = (letters & 32) == 0
    first = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    place = np.arange(len(letters)) - np.repeat(first, np.diff(np.append(first, len(letters))))
    numbers = np.add.reduceat((letters & 31) << 5 * place, first)
    negative = (letters[last] & 16) != 0
    numbers[negative] -= 32 << 5 * place[last][negative]
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
