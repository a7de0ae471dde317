"""Which frames to calibrate on: spread over the sources, and different from each other.

Every source is read once. Of its frames one in ``stride`` is a candidate; of the candidates so many
are chosen that each is as far as possible from those chosen before it (farthest point, Gonzalez
1985), by their colours on a coarse grid. Neighbouring frames of a video tell a histogram the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.errors import InputError, VideoError
from openvis_rt.runtime.video.reading import is_live, open_video

__all__ = ["ChosenFrames", "Source", "choose_frames", "farthest_points"]

_GRID = (8, 8)  # rows and columns of a frame's colours
_MOST_PER_FRAME = 16  # candidates that are kept for each frame that is wanted
_SAME = 1.0  # grey levels of mean difference below which two frames are one
_DARK = 4.0  # grey levels: a frame whose brightest cell is darker shows nothing

Image8 = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Source:
    """Where frames came from.

    Attributes:
        name: as it was given.
        sha256: of the pixels of its candidates, in their order, so that the same frames are known
            again whatever container they came in.
        frames, candidates, chosen: how many it had, offered, and gave.
    """

    name: str
    sha256: str
    frames: int
    candidates: int
    chosen: int


@dataclass(frozen=True)
class ChosenFrames:
    """What is calibrated on.

    Attributes:
        windows: of consecutive candidates, each uint8 [T, H, W, 3].
        sources: where they came from.
        warnings: for people.
    """

    windows: list[list[Image8]]
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]
