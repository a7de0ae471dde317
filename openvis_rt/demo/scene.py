"""A video of the generated world to show systems on, and the phrases to look for in it.

The video is one of the split ``test``, which nothing is trained on. Which one, a seed decides: of
some videos the one that shows the most, each object as long as possible; with given phrases, of
thousands the one that shows the most of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.files import output_errors
from openvis_rt.runtime.video.results import FrameResult, Instance
from openvis_rt.runtime.video.run_lengths import box_of, encode_masks
from openvis_rt.training.world import World, WorldVideo
from openvis_rt.training.world_categories import CATEGORIES
from openvis_rt.training.world_files import track_entries
from openvis_rt.vocabulary import Vocabulary

__all__ = ["ANNOTATIONS", "VIDEO", "Scene", "choose_scene", "some_phrases", "write_scene"]

ANNOTATIONS, VIDEO = "annotations.json", "video"
_NUMBERS = 100_000  # videos of the split that a seed draws from
_SEARCHED = 4000  # of which so many are looked through for given phrases
_DRAWN = 12  # and so many are drawn in full
_DISTRACTORS = 4

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """A video and what is looked for in it.

    Attributes:
        video: with what is seen of each object.
        vocabulary: the names to look for.
        names: of each object the place in the vocabulary, from 0; None where it has no name there.
        remarks: for people, such as that no video shows a phrase.
    """

    video: WorldVideo
    vocabulary: Vocabulary
    names: tuple[int | None, ...]
    remarks: tuple[str, ...] = ()

    @property
    def objects(self) -> tuple[str, ...]:
        """Of each object the world's phrase."""
        return tuple(CATEGORIES[index].phrase for index in self.video.categories)

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the vocabulary that the video shows, in its order."""
        places = sorted({place for place in self.names if place is not None})
        return tuple(self.vocabulary.names[place] for place in places)

    def truth(self) -> list[FrameResult]:
        """What is seen in each frame, as a perfect system would say it: object i is track i + 1."""
        masks = self.video.masks.astype(np.uint8)
        _, frames, height, width = masks.shape
        runs = [encode_masks(of_object) for of_object in masks]
        found: list[FrameResult] = []
        for frame in range(frames):
            instances = tuple(
                Instance(
                    track_id=number + 1,
                    category_id=0 if place is None else place + 1,
                    name=phrase,
                    score=1.0,
                    box=box_of(runs[number][frame]),
                    segmentation=runs[number][frame],
                )
                for number, (phrase, place) in enumerate(zip(self.objects, self.names, strict=True))
                if masks[number, frame].any()
            )
            found.append(FrameResult(frame, None, height, width, instances))
        return found


def choose_scene(
    phrases: Sequence[str] = (),
    *,
    seed: int = 0,
    size: tuple[int, int] = (128, 224),
    frames: int = 24,
    progress: Progress = lambda *_: None,
) -> Scene:
    """Choose a video, and without phrases also the phrases.

    Args:
        phrases: to look for; any words, ``"red ring, red hoop"`` is one name with a synonym. None
            are given: those that the video shows, and some that it does not show.
        seed: of the choice; the same seed and phrases choose the same.
        size: (H, W) of frames in pixels.
        frames: of the video.
        progress: told how many videos were looked through.

    Raises:
        VocabularyError: the phrases cannot be used as class names.
        InputError: the size is too small.
    """
    words = Vocabulary(tuple(phrases)) if phrases else None
    place_of = {} if words is None else _places_in_world(words)
    world = World("test", size, frames)
    numbers = np.random.default_rng((seed, 0)).integers(0, _NUMBERS, _SEARCHED).tolist()
    if place_of:
        numbers = _most_promising(world, numbers, set(place_of), progress)
    video = _fullest(world, numbers[:_DRAWN], set(place_of) or None, progress)
    if words is None:
        words = _vocabulary_for(video, np.random.default_rng((seed, 1)))
        place_of = _places_in_world(words)
    scene = Scene(video, words, tuple(place_of.get(int(index)) for index in video.categories))
    return Scene(video, words, scene.names, _remarks(scene, place_of, seed) if phrases else ())


def some_phrases(count: int, seed: int = 0) -> tuple[str, ...]:
    """Some phrases that the world has, as examples."""
    chosen = np.random.default_rng((seed, 2)).choice(len(CATEGORIES), count, replace=False)
    return tuple(CATEGORIES[index].phrase for index in chosen)


def write_scene(folder: Path, scene: Scene) -> None:
    """Write the frames without loss, and what they show as YTVIS annotations.

    ``openvis eval BUNDLE --annotations FOLDER/annotations.json --videos FOLDER -o OUT`` reads both;
    the categories are the vocabulary's names, with ids from 1.

    Args:
        folder: there already; takes ``video/00000.png``, ... and ``annotations.json``.
        scene: what is written.

    Raises:
        OutputError: the place cannot be written.
    """
    count, height, width, _ = scene.video.images.shape
    files = [f"{VIDEO}/{frame:05}.png" for frame in range(count)]
    ids = [None if place is None else place + 1 for place in scene.names]
    data = {
        "info": {"description": f"{scene.video.name} of the generated world"},
        "videos": [
            {"id": 1, "height": height, "width": width, "length": count, "file_names": files}
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(scene.vocabulary.names, 1)],
        "annotations": track_entries(scene.video, 1, ids),
    }
    with output_errors(folder):
        (folder / VIDEO).mkdir()
        for name, image in zip(files, scene.video.images, strict=True):
            Image.fromarray(image).save(folder / name)
        (folder / ANNOTATIONS).write_text(json.dumps(data) + "\n", encoding="utf-8")


def _places_in_world(words: Vocabulary) -> dict[int, int]:
    """Place in ``CATEGORIES`` -> place in the vocabulary, of names that the world knows."""
    known = {category.phrase: index for index, category in enumerate(CATEGORIES)}
    found: dict[int, int] = {}
    for place, name in enumerate(words.names):
        for phrase in words.synonyms_of(name):
            index = known.get(phrase.lower())
            if index is not None:
                found.setdefault(index, place)
    return found


def _most_promising(
    world: World, numbers: list[int], wanted: set[int], progress: Progress
) -> list[int]:
    """The videos that mean to show the most of the wanted categories, in the order of that."""
    counts: dict[int, int] = {}
    for done, number in enumerate(numbers):
        counts[number] = len(wanted & set(world.planned(number)))
        progress("looking for a video", done + 1, len(numbers))
    return sorted(counts, key=lambda number: -counts[number])


def _fullest(
    world: World, numbers: list[int], wanted: set[int] | None, progress: Progress
) -> WorldVideo:
    """The video that shows the most of the wanted categories, and shows them best.

    Args:
        world: of the videos.
        numbers: those to draw, at least one.
        wanted: categories; None for all.
        progress: told of each.
    """
    best: tuple[tuple[int, float], WorldVideo] | None = None
    for done, number in enumerate(numbers):
        progress("drawing videos", done, len(numbers))
        video = world[number]
        seen: dict[int, float] = {}
        for index, visible in zip(video.categories.tolist(), video.visible, strict=True):
            if wanted is None or index in wanted:
                seen[index] = max(seen.get(index, 0.0), float(visible.mean()))
        shows = len(seen), sum(seen.values())
        if best is None or shows > best[0]:
            best = shows, video
    assert best is not None  # there is a number
    return best[1]


def _vocabulary_for(video: WorldVideo, rng: np.random.Generator) -> Vocabulary:
    """The phrases of a video's objects and others: half of them differ from one in one word."""
    shown = list(dict.fromkeys(int(index) for index in video.categories))
    others = [index for index in range(len(CATEGORIES)) if index not in shown]
    alike = [index for index in others if any(_are_alike(index, other) for other in shown)]
    near = _drawn(alike, _DISTRACTORS // 2, rng)
    far = _drawn([i for i in others if i not in alike], _DISTRACTORS - len(near), rng)
    return Vocabulary(tuple(CATEGORIES[index].phrase for index in (*shown, *near, *far)))


def _are_alike(one: int, other: int) -> bool:
    first, second = CATEGORIES[one], CATEGORIES[other]
    return first.shape == second.shape or first.attribute == second.attribute


def _drawn(places: list[int], count: int, rng: np.random.Generator) -> list[int]:
    drawn: npt.NDArray[np.int64] = rng.choice(places, min(count, len(places)), replace=False)
    return [int(place) for place in drawn]


def _remarks(scene: Scene, place_of: dict[int, int], seed: int) -> tuple[str, ...]:
    """What should be said of the phrases that were given."""
    names = scene.vocabulary.names
    unknown = [n for place, n in enumerate(names) if place not in place_of.values()]
    absent = [n for n in names if n not in scene.shown and n not in unknown]
    remarks = []
    if not scene.shown:
        remarks.append(
            f"none of the {_SEARCHED} videos that were looked through shows any of: "
            f"{'; '.join(names)}. The generated world has phrases such as "
            f"{'; '.join(some_phrases(6, seed))}"
        )
        return tuple(remarks)
    if unknown:
        remarks.append(f"the generated world knows no {'; no '.join(unknown)}")
    if absent:
        remarks.append(
            f"of {_SEARCHED} videos none shows all of the phrases; this one shows no "
            f"{'; no '.join(absent)}"
        )
    return tuple(remarks)
