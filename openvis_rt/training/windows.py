"""Windows of the generated world's frames and what they show: what CLIP learns from.

As the real CLIP has seen everything, base and novel categories are shown alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from openvis_rt.files import output_file
from openvis_rt.training.world import RECOGNISABLE, World, WorldVideo

__all__ = ["Windows", "draw_windows", "stored_windows"]


@dataclass(frozen=True)
class Windows:
    """Square parts of frames and what is in them.

    Attributes:
        images: uint8 [n, S, S, 3] RGB.
        categories: of the one or two objects in each, places in ``CATEGORIES``, -1 for none,
            int16 [n, 2].
    """

    images: npt.NDArray[np.uint8]
    categories: npt.NDArray[np.int16]


def draw_windows(video: WorldVideo, side: int, rng: np.random.Generator) -> Windows:
    """A window around an object of each frame that shows one, at the frame's own scale.

    Args:
        video: of a world with at most two objects.
        side: S, at most the height of a frame.
        rng: draws the object and where it is in the window.

    Returns:
        at most T windows, maybe none. A window's categories are those of the objects that the frame
        shows by :data:`~openvis_rt.training.world.RECOGNISABLE` and the window by 0.7 of that.
    """
    height, width = video.images.shape[1:3]
    images, categories = [], []
    for frame in range(len(video.images)):
        shown = np.flatnonzero(video.visible[:, frame] >= RECOGNISABLE)
        if not len(shown):
            continue
        rows, columns = np.nonzero(video.masks[rng.choice(shown), frame])
        top, left = (
            int(np.clip(found.mean() - side * (0.3 + 0.4 * rng.random()), 0, limit - side))
            for found, limit in ((rows, height), (columns, width))
        )
        part = np.s_[top : top + side, left : left + side]
        inside = [
            number
            for number in shown
            if video.masks[number, frame][part].sum() > 0.7 * video.masks[number, frame].sum()
        ]
        if inside:
            images.append(video.images[frame][part])
            found = [int(video.categories[n]) for n in inside[:2]]
            categories.append([*found, *[-1] * (2 - len(found))])
    empty = np.empty((0, side, side, 3), np.uint8)
    return Windows(
        np.stack(images) if images else empty, np.array(categories, np.int16).reshape(-1, 2)
    )


def stored_windows(folder: Path, count: int, side: int, seed: int = 0) -> Windows:
    """Windows for training, made once and kept in a folder, base and novel categories alike.

    Args:
        folder: taken or made.
        count: of windows.
        side: of them in pixels.
        seed: of the world and of what is drawn.
    """
    name = f"{side}-{count}-{seed}.npy"
    images, categories = folder / f"windows-{name}", folder / f"names-{name}"
    if not categories.exists():
        with output_file(images) as images_aside, output_file(categories) as categories_aside:
            kept = np.lib.format.open_memmap(images_aside, "w+", np.uint8, (count, side, side, 3))
            np.save(categories_aside, _drawn_windows(kept, seed))
            kept.flush()
    return Windows(np.load(images, mmap_mode="r"), np.load(categories))


def _drawn_windows(kept: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.int16]:
    """Fill images [n, S, S, 3], and tell their categories."""
    count, side = kept.shape[:2]
    size = (side, side * 7 // 4)  # a window is as high as its frame
    world = World("train", size, frames=2, seed=seed, novel=True, most_objects=2)
    names = np.empty((count, 2), np.int16)
    rng, done, index = np.random.default_rng(seed), 0, 0
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing windows", total=count)
        while done < count:
            found = draw_windows(world[index], side, rng)
            index += 1
            n = min(len(found.images), count - done)
            kept[done : done + n] = found.images[:n]
            names[done : done + n] = found.categories[:n]
            done += n
            bar.update(task, completed=done)
    return names
