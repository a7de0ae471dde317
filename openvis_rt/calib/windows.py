"""The windows of frames that a bundle is calibrated and measured on, as large as it sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.frames import ChosenFrames, choose_frames
from openvis_rt.runtime.preprocessing import letterbox_for, place_frame

__all__ = ["DEFAULT_FRAMES", "CalibrationFrames", "windows_for"]

DEFAULT_FRAMES = 128
_HELD_OUT = 8  # one window in so many is measured on, but at least
_LEAST_HELD_OUT = 4

Image8 = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class CalibrationFrames:
    """Which frames are taken: arguments of :func:`~openvis_rt.calib.frames.choose_frames`."""

    count: int = DEFAULT_FRAMES
    stride: int = 5
    seed: int = 0
    allow_few: bool = False


def windows_for(
    bundle: Bundle,
    sources: Sequence[str],
    frames: CalibrationFrames,
    *,
    shrink: bool,
    progress: Progress,
) -> ChosenFrames:
    """Choose frames of some sources.

    Args:
        bundle: says how many frames a window has.
        sources: see :mod:`openvis_rt.calib.sources`.
        frames: how many, and which.
        shrink: make each frame as large as the network sees it, which saves memory; not for a
            graph that looks at the frame's own pixels.
        progress: told what is done.

    Raises:
        InputError, VideoError: see :func:`~openvis_rt.calib.frames.choose_frames`.
    """
    rule, length = bundle.manifest.preprocess, bundle.manifest.window_length
    windows = -(-frames.count // length)

    def shrunk(image: Image8) -> Image8:
        """The frame as large as the network sees it, as the runtime makes it."""
        letterbox = letterbox_for(image.shape[0], image.shape[1], rule)
        out = np.empty((*letterbox.picture, 3), np.uint8)
        place_frame(image, letterbox, out, rule.pixel_mean)
        return out

    return choose_frames(
        sources,
        frames.count,
        held_out=max(_LEAST_HELD_OUT, windows // _HELD_OUT),
        stride=frames.stride,
        window_length=length,
        seed=frames.seed,
        allow_few=frames.allow_few,
        keep=shrunk if shrink else lambda image: image,
        progress=progress,
    )
