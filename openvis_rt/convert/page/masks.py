"""The masks of a page: run lengths in parts of some seconds, each compressed by itself.

A browser keeps the parts compressed and opens those around the frame that it shows, so ten minutes
of masks need no more memory than ten seconds. Masks are reduced to every second, third, ... pixel
where a side is above ``MASK_SIDE``: networks make them at a quarter of their input's size.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.video.run_lengths import subsampled

__all__ = ["MASK_SIDE", "PART_FRAMES", "MaskParts"]

MASK_SIDE = 640
"""The longest side of a mask in a page, in pixels."""
PART_FRAMES = 100
"""Frames in a part."""


@dataclass
class MaskParts:
    """Turns results into parts.

    Args:
        height, width: of the frames in pixels.

    Attributes:
        step: every ``step``-th pixel of every ``step``-th row is kept.
        names: of the classes that were met; an instance names one by its place here.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        longest = max(self.height, self.width)
        self.step = min(-(-longest // MASK_SIDE), self.height, self.width)
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def parts(self, frames: Iterable[FrameResult], tracks: dict[int, int]) -> Iterator[bytes]:
        """Gzip of the JSON of each part: a list of frames, each a list of instances.

        An instance is ``[track, name, score, counts]``: the track's place, the name's place, the
        score in thousandths, and COCO's text of the reduced mask.

        Args:
            frames: all of them, in order.
            tracks: the place of each track id on the page.
        """
        part: list[list[Any]] = []
        for result in frames:
            part.append([self._entry(found, tracks) for found in result.instances])
            if len(part) == PART_FRAMES:
                yield _compressed(part)
                part = []
        if part:
            yield _compressed(part)

    def _entry(self, found: Any, tracks: dict[int, int]) -> list[Any]:
        number = self._numbers.setdefault(found.name, len(self.names))
        if number == len(self.names):
            self.names.append(found.name)
        rle = found.segmentation if self.step == 1 else subsampled(found.segmentation, self.step)
        return [tracks[found.track_id], number, round(1000 * found.score), rle["counts"]]


def _compressed(part: list[list[Any]]) -> bytes:
    text = json.dumps(part, separators=(",", ":"))
    return gzip.compress(text.encode("ascii"), 6, mtime=0)
