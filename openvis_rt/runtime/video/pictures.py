"""Pictures in files, one after the other, as the frames of a video (Pillow)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from openvis_rt.errors import VideoError
from openvis_rt.runtime.video.container import DEFAULT_FPS, DamagedError

__all__ = ["PICTURE_ERRORS", "ImageReader", "is_one_picture", "rgb_of"]

Image8 = npt.NDArray[np.uint8]

_WORDS = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})  # Pillow's names of grey in 16 bits
PICTURE_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, AttributeError, EOFError),
    *(ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
"""What Pillow raises of files that it cannot read; its plugins raise whatever happens to them."""
_DARK = 1 << 13  # of 65536: pictures of 12 bits and less end below


class ImageReader:
    """Pictures as frames, 25 a second.

    Args:
        name: of the video, for messages.
        paths: of the pictures, in their order.

    Attributes:
        warnings: what a user should know, when it was seen.
    """

    live = False
    fps = DEFAULT_FPS

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self._paths = name, paths
        self.frame_count: int | None = len(paths)
        self.start: float | None = 0.0
        self.warnings: list[str] = []
        self._moves = False  # said already

    def frames(self, stride: int = 1) -> Iterator[tuple[int, float | None, Image8]]:
        """Index, time and image of every picture whose index the stride divides.

        Raises:
            DamagedError: one cannot be read.
            VideoError: its numbers have no known range.
        """
        for index, path in list(enumerate(self._paths))[::stride]:
            if not path.is_file():  # a pipe would be waited for
                raise DamagedError(
                    f"{path.name} is named as a picture, and is no file or a link to none"
                )
            try:
                with Image.open(path) as picture:
                    self._note(picture, path.name)
                    image, brightest = rgb_of(picture, path.name)
            except PICTURE_ERRORS as exc:
                raise DamagedError(f"{path.name} cannot be read as an image ({exc})") from exc
            if brightest is not None and index == 0 and brightest < _DARK:
                self.warnings.append(
                    f"the pictures of {self.name} have 16 bits, and the brightest value of the "
                    f"first is {brightest} of 65535, so it is almost black; stretch them to the "
                    "whole range if that is not what they show"
                )
            yield index, float(index / self.fps), image

    def _note(self, picture: Image.Image, name: str) -> None:
        """Say once that a file holds more than the picture that is seen."""
        if not self._moves and getattr(picture, "is_animated", False):
            self._moves = True
            self.warnings.append(
                f"{name} holds several pictures, and the first is taken; write them into files of "
                "their own, or as a video, to have them all"
            )

    def close(self) -> None:
        """Nothing to do: each picture is closed as soon as it is read."""


def is_one_picture(path: Path) -> bool:
    """Whether Pillow knows a file, and it holds one picture; FFmpeg may know others."""
    try:
        with Image.open(path) as picture:
            return not getattr(picture, "is_animated", False)
    except PICTURE_ERRORS:
        return False


def rgb_of(picture: Image.Image, name: str) -> tuple[Image8, int | None]:
    """A picture's pixels, upright by its EXIF orientation.

    Of 16 bits a colour the high eight are taken, as libpng and OpenCV do. What a picture holds
    beside its colours, such as how opaque it is, is left out.

    Args:
        picture: opened by Pillow, of any kind; changed.
        name: of its file, for messages.

    Returns:
        uint8 [H, W, 3], C-contiguous, the caller's own; and of grey in 16 bits the largest value.

    Raises:
        VideoError: the numbers are floats or have 32 bits, and their range is not known.
        Exception: one of PICTURE_ERRORS, where Pillow cannot read it.
    """
    ImageOps.exif_transpose(picture, in_place=True)  # without the copy that it else makes
    if picture.mode in _WORDS or picture.mode == "F":
        return _rgb_of_words(picture, name)
    picture.info.pop("transparency", None)  # of a palette, which Pillow would warn about
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    seen = np.asarray(picture)
    picture.close()  # frees its own pixels before they are copied
    return np.array(seen), None


def _rgb_of_words(picture: Image.Image, name: str) -> tuple[Image8, int]:
    values = np.asarray(picture)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise VideoError(
            f"{name} holds {values.dtype} values from {values.min()} to {values.max()}, and which "
            "of them are black and white is not known. Give pictures of 8 or 16 bits a colour."
        )
    return np.stack([(values >> 8).astype(np.uint8)] * 3, axis=-1), int(values.max())
