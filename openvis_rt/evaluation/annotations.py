"""What is annotated in each video, whatever the format of the data set's file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openvis_rt.runtime.video.run_lengths import RLE

__all__ = ["Annotations", "Category", "Format", "Track", "Video"]

Format = Literal["ytvis", "burst", "uvo"]


@dataclass(frozen=True, slots=True)
class Video:
    """One annotated video.

    Attributes:
        id: as results files name it.
        name: of its folder or file, below the folder of all videos.
        height, width: of its frames in pixels.
        frames: the annotated frames, as paths below the folder of all videos.
        negative: ids of categories of which it is known that the video shows none; None where every
            category is annotated in every video.
        not_exhaustive: ids of categories of which more objects may be seen than are annotated.
    """

    id: int
    name: str
    height: int
    width: int
    frames: tuple[str, ...]
    negative: frozenset[int] | None = None
    not_exhaustive: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Category:
    """One class: its id in the file and its name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Track:
    """One annotated object.

    Attributes:
        video_id, category_id: the video and the class it belongs to.
        crowd: it stands for many objects; a match with it counts neither as right nor as wrong.
        segmentations: one for each frame of the video, None where the object is not seen.
        pixels: of each segmentation, int64 [frames].
        area: the mean over the frames that show it, in pixels; by the file's own ``areas`` where it
            has them, as in the official evaluation.
    """

    video_id: int
    category_id: int
    crowd: bool
    segmentations: tuple[RLE | None, ...]
    pixels: npt.NDArray[np.int64]
    area: float


@dataclass(frozen=True)
class Annotations:
    """An annotation file.

    Attributes:
        format: of the file.
        videos: in the order of the file.
        categories: in the order of their ids.
        tracks: in the order of the file; empty for files that are made public without annotations.
        class_agnostic: whether the data set is evaluated without classes.
        splits: name of a group of classes -> its category ids, as far as the file says them.
        left_out: ids of videos that the file has and that are not evaluated.
        split: the file's name for its part of the data set, such as ``val``; only BURST's.
        merged: ids of categories in results that are taken for another one.
        unused: ids of categories that results may have and that are not evaluated.
    """

    format: Format
    videos: tuple[Video, ...]
    categories: tuple[Category, ...]
    tracks: tuple[Track, ...]
    class_agnostic: bool = False
    splits: dict[str, frozenset[int]] = field(default_factory=dict)
    left_out: frozenset[int] = frozenset()
    split: str = ""
    merged: dict[int, int] = field(default_factory=dict)
    unused: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Refuse ids that stand twice or point nowhere."""
        videos = _checked_ids("video", (video.id for video in self.videos))
        categories = _checked_ids("category", (category.id for category in self.categories))
        for track in self.tracks:
            if track.video_id not in videos:
                raise InputError(
                    f"an annotation is of video {track.video_id}, which 'videos' does not list. "
                    "Give the file as its data set has it."
                )
            if track.category_id not in categories:
                raise InputError(
                    f"an annotation is of category {track.category_id}, which 'categories' does "
                    "not list. Give the file as its data set has it."
                )

    def first(self, count: int) -> Annotations:
        """The first so many videos; results of the others are passed over."""
        kept = self.videos[:count]
        ids = {video.id for video in kept}
        return replace(
            self,
            videos=kept,
            tracks=tuple(track for track in self.tracks if track.video_id in ids),
            left_out=self.left_out | {video.id for video in self.videos[count:]},
        )


def _checked_ids(kind: str, ids: Iterable[int]) -> set[int]:
    counts = Counter(ids)
    twice = [str(number) for number, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            f"the {kind} ids {', '.join(twice[:5])} stand twice. Give the file as its data set has "
            "it."
        )
    if not counts:
        raise InputError(f"it lists no {kind}")
    return set(counts)
