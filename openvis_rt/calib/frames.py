"""Which frames to calibrate on: spread over the sources, and different from each other.

One frame in ``stride`` is a candidate. Of the candidates so many are chosen that each is as far as
possible from those chosen before it, by their colours on a coarse grid (farthest point: Gonzalez
1985, doi:10.1016/0304-3975(85)90224-5): neighbouring frames of a video tell a histogram the same.

Files are read twice, first for the colours of all candidates and then for the pixels of the chosen
ones, so that memory does not grow with them. A camera or stream is read once, until it gave a few
candidates for each frame that is wanted; their pixels are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.calib.sources import FrameSource, sources_from
from openvis_rt.errors import InputError, VideoError

__all__ = ["FEWEST", "ChosenFrames", "Source", "choose_frames", "colours_of", "farthest_points"]

FEWEST = 32
"""Frames; of fewer the ranges depend on which ones they are."""
_GRID = 8  # rows and columns of a frame's colours
_PER_WANTED = 4  # candidates of a stream for each window that is wanted
_SAME = 1.0  # grey levels of mean difference below which two windows show the same
_DARK = 8.0  # grey levels: a window whose brightest cell is darker shows nothing

Image8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Keep = Callable[[Image8], Image8]
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Source:
    """Where frames came from.

    Attributes:
        name: as it was given; of a data set with the video's name.
        sha256: of the pixels of its candidates, in their order, so that the same frames are known
            again whatever container they came in.
        frames: that were read.
        candidates, chosen: windows that it offered and that were taken.
    """

    name: str
    sha256: str
    frames: int
    candidates: int
    chosen: int

    def __post_init__(self) -> None:
        """Refuse numbers that no source has.

        Raises:
            InputError: more windows chosen than offered, or more offered than there are frames.
        """
        if not 0 <= self.chosen <= self.candidates <= self.frames:
            raise InputError(
                f"of {self.frames} frames {self.candidates} are said to be candidates, and "
                f"{self.chosen} chosen"
            )


@dataclass(frozen=True)
class ChosenFrames:
    """What is calibrated on, and what the result is tried on.

    Attributes:
        windows: for the ranges; each has uint8 [H, W, 3] frames, as ``keep`` gave them.
        places: of each of these windows its source and its first frame there, for people.
        held_out: others, for measuring.
        sources: where they came from.
        warnings: for people.
    """

    windows: list[list[Image8]]
    places: list[str]
    held_out: list[list[Image8]]
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A window of a source: its number there, its colours, and its pixels if they are kept."""

    source: int
    number: int
    colours: Floats
    sha256: str
    images: list[Image8] | None


def choose_frames(
    sources: Sequence[str],
    count: int,
    *,
    held_out: int = 0,
    stride: int = 5,
    window_length: int = 1,
    seed: int = 0,
    allow_few: bool = False,
    keep: Keep = lambda image: image,
    progress: Progress = lambda *_: None,
) -> ChosenFrames:
    """Choose frames to calibrate on.

    Args:
        sources: as :mod:`openvis_rt.calib.sources` has them, at least one.
        count: frames to calibrate on; with windows as many windows as hold them.
        held_out: further windows, to measure on.
        stride: frames from one candidate to the next; at least ``window_length``.
        window_length: consecutive frames that a model sees together.
        seed: of the first window, and of which ones are held out.
        allow_few: take fewer than :data:`FEWEST` frames.
        keep: what is made of a chosen frame's pixels, such as shrinking it to the network's size.
        progress: told what is done.

    Raises:
        InputError: fewer frames than :data:`FEWEST` are wanted, or fewer that differ are there
            than are wanted.
        VideoError: a source cannot be read to its end; the message has its name.
    """
    _check_wanted(sources, count, stride, seed, allow_few=allow_few)
    windows = -(-count // window_length)
    wanted, step = windows + held_out, max(stride, window_length)
    opened = [found for text in sources for found in sources_from(text)]
    candidates, facts, warnings = list[_Candidate](), list[tuple[str, int]](), list[str]()
    for index, source in enumerate(opened):
        progress(f"looking at {source.name}", index, len(opened))
        most = _PER_WANTED * wanted if source.once else None
        scan = _Scan(index, step, window_length, keep, source.once)
        found = list(scan.candidates(source, most))
        facts.append((_digest(c.sha256 for c in found), scan.frames))
        bright = [c for c in found if c.colours.max() >= _DARK]
        if dark := len(found) - len(bright):
            warnings.append(f"{source.name}: {dark} of {len(found)} candidates are black; left out")
        candidates += bright
    taken = farthest_points(np.array([c.colours for c in candidates]), wanted, seed)
    if len(taken) < wanted:
        raise InputError(_too_few(len(taken), windows, held_out, window_length, warnings))
    chosen = [candidates[i] for i in np.random.default_rng(seed).permutation(taken)]
    pixels = _pixels(chosen, opened, step, window_length, keep, progress)
    return ChosenFrames(
        pixels[:windows],
        [f"frame {c.number * step} of {opened[c.source].name}" for c in chosen[:windows]],
        pixels[windows:],
        tuple(
            Source(
                source.name,
                *facts[i],
                sum(c.source == i for c in candidates),
                sum(c.source == i for c in chosen),
            )
            for i, source in enumerate(opened)
        ),
        tuple(warnings),
    )


def colours_of(image: Image8) -> Floats:
    """Mean colours of a frame's cells, float32 [192], 0..255: 8 rows, 8 columns, RGB."""
    rows, columns = (np.arange(_GRID) * side // _GRID for side in image.shape[:2])
    sums = np.add.reduceat(image, rows, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, columns, axis=1)
    height, width = (
        np.maximum(np.diff(np.append(starts, side)), 1)
        for starts, side in zip((rows, columns), image.shape[:2], strict=True)
    )
    means: Floats = (sums / (height[:, None] * width)[..., None]).astype(np.float32)
    return means.ravel()


def farthest_points(points: Floats, count: int, seed: int) -> list[int]:
    """Indices of points of which each is as far as possible from all before it.

    Args:
        points: float32 [n, d], in grey levels; the distance of two is their mean absolute
            difference.
        count: of points that are wanted.
        seed: of the first.

    Returns:
        at most ``count``: fewer where all others are less than one grey level from a chosen one.
    """
    if not len(points):
        return []
    taken = [int(np.random.default_rng(seed).integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    while len(taken) < count:
        nearest = np.minimum(nearest, np.abs(points - points[taken[-1]]).mean(1))
        farthest = int(nearest.argmax())
        if nearest[farthest] < _SAME:
            break
        taken.append(farthest)
    return taken


class _Scan:
    """The candidates of one source, while it is read.

    Attributes:
        frames: read so far.
    """

    def __init__(self, index: int, step: int, length: int, keep: Keep, keeps: bool) -> None:
        self._index, self._step, self._length = index, step, length
        self._keep, self._keeps = keep, keeps
        self.frames = 0

    def candidates(self, source: FrameSource, most: int | None) -> Iterator[_Candidate]:
        """At most so many, in order."""
        with closing(self.windows(source)) as windows:
            for number, images in enumerate(windows):
                yield _Candidate(
                    self._index,
                    number,
                    np.mean([colours_of(image) for image in images], axis=0),
                    _sha256(images),
                    [self._keep(image) for image in images] if self._keeps else None,
                )
                if number + 1 == most:
                    return

    def windows(self, source: FrameSource) -> Generator[list[Image8], None, None]:
        """Consecutive frames, one window in each step; a source shorter than one gives it all."""
        window, any_whole = list[Image8](), False
        with source.open() as frames:
            for place, frame in enumerate(frames):
                self.frames += 1
                if place % self._step == 0:
                    window = []
                if place % self._step < self._length:
                    window.append(frame.image)
                if place % self._step == self._length - 1:
                    any_whole = True
                    yield window
        if window and not any_whole:
            yield window


def _pixels(
    chosen: list[_Candidate],
    sources: list[FrameSource],
    step: int,
    length: int,
    keep: Keep,
    progress: Progress,
) -> list[list[Image8]]:
    """The frames of the chosen windows, in their order; files are read again for them."""
    found = {i: c.images for i, c in enumerate(chosen) if c.images is not None}
    for index, source in enumerate(sources):
        wanted = {c.number: i for i, c in enumerate(chosen) if c.source == index}
        wanted = {number: i for number, i in wanted.items() if i not in found}
        if not wanted:
            continue
        progress(f"reading {source.name}", len(found), len(chosen))
        with closing(_Scan(index, step, length, keep, keeps=False).windows(source)) as windows:
            for number, images in enumerate(windows):
                if (place := wanted.pop(number, None)) is None:
                    continue
                if _sha256(images) != chosen[place].sha256:
                    raise VideoError(f"{source.name} changed while it was read. Try again.")
                found[place] = [keep(image) for image in images]
                if not wanted:
                    break
        if wanted:
            raise VideoError(
                f"{source.name} is shorter now than when it was read first. Try again."
            )
    return [found[i] for i in range(len(chosen))]


def _check_wanted(
    sources: Sequence[str], count: int, stride: int, seed: int, *, allow_few: bool
) -> None:
    if not sources:
        raise InputError("give at least one video, folder, data set or stream to calibrate on")
    if seed < 0:
        raise InputError(f"the seed is 0 or more; got {seed}")
    if stride < 1 or count < 1:
        raise InputError(f"frames and stride are 1 or more; got {count} frames, stride {stride}")
    if count < FEWEST and not allow_few:
        raise InputError(
            f"{count} frames are too few to calibrate on: ranges from fewer than {FEWEST} depend "
            "on which frames they are. Ask for more, or allow few (--allow-few) to try something."
        )


def _too_few(found: int, windows: int, held_out: int, length: int, warnings: list[str]) -> str:
    what = "frames" if length == 1 else f"windows of {length} frames"
    text = (
        f"the sources have {found} {what} that differ from each other, and {windows + held_out} "
        f"are wanted: {windows} to calibrate on and {held_out} to try the result on. Give more or "
        "other sources, a smaller --stride, or fewer --frames"
    )
    return ". ".join([text, *warnings])


def _sha256(images: list[Image8]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(image.shape).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _digest(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
