"""A generated world to train and test small models of video instance segmentation in.

Textured objects move, turn, grow and shrink, hide each other, leave and come back, before a
cluttered background, and a camera moves over them. What is seen of each object is known to the
pixel. Everything is drawn from a seed, at random access: ``World("train")[7]`` is the same video
whoever asks, and in whatever order.

    train                 base categories only
    validation, test      base and novel categories

Write one as a data set for ``openvis eval`` with::

    python -m openvis_rt.training.world FOLDER --split validation --videos 60
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from openvis_rt.errors import InputError
from openvis_rt.training.command import run_command
from openvis_rt.training.world_categories import BASE, CATEGORIES, NOVEL
from openvis_rt.training.world_files import write_dataset
from openvis_rt.training.world_motion import Actor, draw_occluder, draw_path, edges_of, render
from openvis_rt.training.world_scenes import Camera, Lens, draw_background, draw_camera, draw_lens
from openvis_rt.training.world_sprites import draw_sprite

__all__ = [
    "RECOGNISABLE",
    "SPLITS",
    "Split",
    "World",
    "WorldVideo",
    "write_dataset",
]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
RECOGNISABLE = 0.7
"""The part of an object that must be seen to name it."""
_LEAST_PIXELS = 16  # a track that never shows so many is no track
_OCCLUDED_SCENES = 0.3  # of all scenes have something without a name in front
_SHADED_SCENES = 0.5  # have shadows
_ALIKE = 0.25  # of objects share the shape of another one in the video, or its whole category
_CROSSING = 0.45  # of objects cross another one's way
# edges of sprites in heights of a frame
_SIZE = (0.52, 0.76)


@dataclass(frozen=True, slots=True)
class WorldVideo:
    """One video and what is in it.

    Attributes:
        name: its split and place in the world, such as ``validation-00007``.
        images: uint8 [T, H, W, 3] RGB.
        masks: what is seen of each object, bool [n, T, H, W]; no pixel is of two objects. n >= 1,
            and each is seen in some frame.
        categories: of each object, places in ``CATEGORIES``, int64 [n].
        visible: what part of each object is seen, neither hidden nor outside the frame, 0 .. 1,
            float32 [n, T].
    """

    name: str
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    categories: npt.NDArray[np.int64]
    visible: npt.NDArray[np.float32]


class _Setting(NamedTuple):
    """A scene before anything moves in it."""

    camera: Camera
    background: Image.Image
    lens: Lens
    categories: tuple[int, ...]


class World:
    """Videos without end, ``world[i]`` for every i >= 0.

    The same arguments give the same videos with the same versions of NumPy and Pillow.

    Args:
        split: which part; no video is in two of them.
        size: (H, W) of frames in pixels.
        frames: T, of every video.
        seed: another seed is another world.
        novel: whether novel categories are shown; by default in all splits but ``train``. With
            ``True``, ``train`` is what a CLIP that has seen everything may be trained on.
        most_objects: in a video; there are 1 to so many.

    Raises:
        InputError: the split is unknown, or a size is too small to see anything.
    """

    def __init__(
        self,
        split: Split,
        size: tuple[int, int] = (128, 224),
        frames: int = 24,
        seed: int = 0,
        *,
        novel: bool | None = None,
        most_objects: int = 3,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"the world has no split {split!r}; give one of {', '.join(SPLITS)}")
        if min(size) < 32 or min(frames, most_objects) < 1:
            raise InputError(
                "32x32 pixels, one frame and one object are needed at least; found "
                f"{size[0]}x{size[1]}, {frames} frames and {most_objects} objects"
            )
        self.split, self.size, self.frames, self.seed = split, size, frames, seed
        self.most_objects = most_objects
        self.novel = split != "train" if novel is None else novel

    def __getitem__(self, index: int) -> WorldVideo:
        """The video of a number.

        Raises:
            IndexError: it is negative.
        """
        if index < 0:
            raise IndexError(f"videos are numbered from 0; found {index}")
        for attempt in range(100):
            video = self._video(index, self._generator(index, attempt))
            if len(video.categories):
                return video
        raise AssertionError("a hundred scenes in turn showed no object")

    def planned(self, index: int) -> tuple[int, ...]:
        """Categories that a video means to show, a hundred times faster than drawing it.

        To search many videos. The video itself shows some of them, with few exceptions: an object
        may never come into the frame, and where none does another scene is drawn.

        Args:
            index: the video's number.

        Returns:
            places in ``CATEGORIES``, one for each object.

        Raises:
            IndexError: the number is negative.
        """
        if index < 0:
            raise IndexError(f"videos are numbered from 0; found {index}")
        return self._setting(self._generator(index, 0)).categories

    def _generator(self, index: int, attempt: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS.index(self.split), index, attempt))

    def _setting(self, rng: np.random.Generator) -> _Setting:
        camera, background = draw_camera(self.frames, rng), draw_background(self.size, rng)
        lens = draw_lens(self.frames, self.size, rng)
        return _Setting(camera, background, lens, tuple(self._categories(rng)))

    def _video(self, index: int, rng: np.random.Generator) -> WorldVideo:
        height, width = self.size
        camera, background, lens, categories = self._setting(rng)
        actors = self._actors(categories, rng)
        in_front = [draw_occluder(self.size, rng)] if rng.random() < _OCCLUDED_SCENES else []
        shadows = bool(rng.random() < _SHADED_SCENES)
        images = np.empty((self.frames, height, width, 3), np.uint8)
        masks = np.empty((len(actors), self.frames, height, width), np.bool_)
        areas = np.empty((len(actors), self.frames), np.float32)
        for frame in range(self.frames):
            picture = camera.background(background, frame, self.size)
            seen = render(picture, [*actors, *in_front], camera, frame, shadows=shadows)
            images[frame] = lens.photograph(picture, frame)
            masks[:, frame] = seen[: len(actors)] > 0.5
            areas[:, frame] = seen[: len(actors)].sum((1, 2))
        whole = [self._areas(actor, camera) for actor in actors]
        visible = np.minimum(1, areas / np.array(whole, np.float32))
        kept = masks.sum((2, 3)).max(1) >= _LEAST_PIXELS
        name, indices = f"{self.split}-{index:05}", np.array(categories)
        return WorldVideo(name, images, masks[kept], indices[kept], visible[kept])

    def _categories(self, rng: np.random.Generator) -> list[int]:
        """What is in a video; novel ones are as frequent as base ones where both are shown."""
        chosen: list[int] = []
        for _ in range(rng.integers(1, self.most_objects + 1)):
            pool = NOVEL if self.novel and rng.random() < 0.5 else BASE
            if chosen and rng.random() < _ALIKE:
                shape = CATEGORIES[chosen[-1]].shape
                shown = (*BASE, *NOVEL) if self.novel else BASE
                pool = tuple(i for i in shown if CATEGORIES[i].shape == shape)
            chosen.append(int(pool[rng.integers(len(pool))]))
        return chosen

    def _areas(self, actor: Actor, camera: Camera) -> npt.NDArray[np.float64]:
        """Pixels of the whole object in each frame, as if nothing hid it."""
        covered = np.asarray(actor.sprite.getchannel("A")).mean() / 255
        areas: npt.NDArray[np.float64] = (
            covered * edges_of(actor, camera, self.frames, self.size[0]) ** 2
        )
        return areas

    def _actors(self, categories: Sequence[int], rng: np.random.Generator) -> list[Actor]:
        height, width = self.size
        actors: list[Actor] = []
        for index in categories:
            category = CATEGORIES[index]
            size = _SIZE[0] + (_SIZE[1] - _SIZE[0]) * float(rng.random())
            crossed = None
            if actors and rng.random() < _CROSSING:
                crossed = actors[rng.integers(len(actors))].path
            edge = 16 * math.ceil(2.2 * size * height / 16)
            sprite = draw_sprite(category, edge, rng)
            if rng.random() < 0.5:
                sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            path = draw_path(size, self.frames, width / height, crossed, rng)
            actors.append(Actor(sprite, path))
        return actors


def _write(
    folder: Annotated[Path, typer.Argument(help="To make: annotations, frames and split file.")],
    split: Annotated[Split, typer.Option(help="train, validation or test.")] = "validation",
    videos: Annotated[int, typer.Option(min=1, help="How many.")] = 60,
    frames: Annotated[int, typer.Option(min=1, help="Of every video.")] = 24,
    height: Annotated[int, typer.Option(min=32, help="Of frames in pixels.")] = 128,
    width: Annotated[int, typer.Option(min=32, help="Of frames in pixels.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier one.")] = False,
) -> None:
    """Write videos of the generated world as a data set for `openvis eval`.

    Example: `python -m openvis_rt.training.world out --split validation --videos 60`
    """
    world = World(split, (height, width), frames, seed)
    console = Console(stderr=True)
    numbers = track(
        range(videos),
        "generating",
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    write_dataset(folder, split, (world[index] for index in numbers), overwrite=overwrite)


def main() -> None:
    """Run the command; an error of ours becomes its message and exit code."""
    run_command(_write)


if __name__ == "__main__":
    main()
