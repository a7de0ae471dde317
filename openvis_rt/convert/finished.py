"""What a finished run left: its frames, its names, and a summary of its tracks."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError
from openvis_rt.given_files import given_json
from openvis_rt.printable import shortened
from openvis_rt.runtime.video.container import DEFAULT_FPS
from openvis_rt.runtime.video.results import FrameResult, frames_of_log

__all__ = ["FinishedRun", "Summary", "Track"]

_LARGEST = 64 << 20  # bytes of categories.json


@dataclass
class Track:
    """One object through a video.

    Attributes:
        track_id: as in the results.
        category_id, name: the class that its frames' scores sum up highest for; in video mode all
            frames have the same one.
        score: the highest of its frames under that class.
        frames: places of the frames that show it in the results, from 0, ascending.
        scores: of each of these, 0..1.
    """

    track_id: int
    category_id: int = 0
    name: str = ""
    score: float = 0.0
    frames: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What is known after one look at every frame.

    Attributes:
        height, width: of the frames in pixels.
        times: of every frame in seconds, from 0, strictly ascending; frames without a clock get
            25 a second.
        tracks: in the order of their first frames.
        numbers: of every frame in its source, ascending from 0; a stride and dropped frames leave
            gaps.
    """

    height: int
    width: int
    times: list[float]
    tracks: list[Track]
    numbers: list[int]


@dataclass(frozen=True)
class FinishedRun:
    """The folder of an ``openvis run``.

    Attributes:
        folder: its path.
        categories: the name of every category id, from 1.
    """

    folder: Path
    categories: dict[int, str]

    @classmethod
    def open(cls, folder: Path) -> FinishedRun:
        """Read the names.

        Raises:
            InputError: it is no folder of a run.
        """
        path = folder / "categories.json"
        try:
            entries = given_json(path, _LARGEST)
        except InputError as exc:
            raise InputError(f"{exc}. Give the folder that `openvis run` wrote.") from exc
        try:
            return cls(folder, _categories_of(entries))
        except (ValueError, KeyError, TypeError) as exc:
            raise InputError(f"{path} is no list of categories: {exc!r}") from exc

    def frames(self) -> Iterator[FrameResult]:
        """Every frame's result, read one at a time.

        Raises:
            InputError: the file is missing or damaged, its frames differ in size, or an object has
                another class than the names say.
        """
        size, path = None, self.folder / "frames.jsonl"
        for result in frames_of_log(path):
            size = size or (result.height, result.width)
            if (result.height, result.width) != size:
                raise InputError(
                    f"{path}: frame {result.index} is "
                    f"{result.width}x{result.height}, and those before are {size[1]}x{size[0]}"
                )
            for found in result.instances:
                if self.categories.get(found.category_id) != found.name:
                    raise InputError(
                        f"{path}: frame {result.index} has {shortened(found.name)!r} as the name "
                        f"of category {found.category_id}, and categories.json does not. Give a "
                        "folder whose files are all of one run."
                    )
            yield result

    def summary(self) -> Summary:
        """Look at every frame once.

        Raises:
            InputError: as :meth:`frames`; or there is no frame.
        """
        frames = self.frames()
        first = next(frames, None)
        if first is None:
            raise InputError(f"{self.folder / 'frames.jsonl'} holds no frame")
        times: list[float] = []
        numbers: list[int] = []
        tracks: dict[int, Track] = {}
        classes: dict[int, _Classes] = defaultdict(_Classes)
        for place, result in enumerate(itertools.chain((first,), frames)):
            times.append(_time_of(result, times[-1] if times else None))
            numbers.append(result.index)
            for instance in result.instances:
                track = tracks.setdefault(instance.track_id, Track(instance.track_id))
                track.frames.append(place)
                track.scores.append(instance.score)
                classes[instance.track_id].add(instance.category_id, instance.name, instance.score)
        for track in tracks.values():
            classes[track.track_id].tell(track)
        return Summary(first.height, first.width, times, list(tracks.values()), numbers)


def _categories_of(entries: list[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in entries:
        number, name = entry["id"], entry["name"]
        if type(number) is not int or not isinstance(name, str):
            raise ValueError(f"an id is a whole number and a name a string, found {entry!r:.60}")
        if number in found:
            raise ValueError(f"the id {number} is there twice")
        found[number] = name
    return found


class _Classes:
    """The classes that a track's frames stand under."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = defaultdict(float)
        self._best: dict[int, tuple[float, str]] = {}

    def add(self, category_id: int, name: str, score: float) -> None:
        self._sums[category_id] += score
        self._best[category_id] = max(self._best.get(category_id, (0.0, name)), (score, name))

    def tell(self, track: Track) -> None:
        track.category_id = max(self._sums, key=lambda number: self._sums[number])
        track.score, track.name = self._best[track.category_id]


def _time_of(result: FrameResult, last: float | None) -> float:
    """Seconds; a clock that stands still or goes back counts on by a millisecond."""
    time = result.index / float(DEFAULT_FPS) if result.time is None else result.time
    return time if last is None else max(time, last + 0.001)
