"""What a run does at this moment, for those who look on: figures, and the tracks now visible."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from openvis_rt.printable import printable, without_password
from openvis_rt.runtime.video.drawing import color_of
from openvis_rt.runtime.video.results import FrameResult, Instance

__all__ = ["Board", "Phase", "Setting"]

Phase = Literal["opening", "running", "finishing", "ended", "stopped", "failed"]

_LINGER = 2.0  # seconds for which a track that is no longer seen stays listed
_SPAN = 5.0  # seconds over which the rate is taken
_NAMES = 40  # names of the vocabulary that are listed


@dataclass(frozen=True)
class Setting:
    """What does not change during a run.

    Attributes:
        source: file, camera or address; a password in it is not shown.
        model: variant of the bundle.
        backend: where the graphs run.
        mode: ``video`` or ``stream``.
        names: what is looked for.
        frame_count: frames of the source; None where unknown.
        size: width and height of its frames in pixels.
        rate: its frames a second.
    """

    source: str
    model: str
    backend: str
    mode: str
    names: tuple[str, ...]
    frame_count: int | None
    size: tuple[int, int]
    rate: Fraction = Fraction(25)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, safe to show."""
        names = [_shown(name) for name in self.names[:_NAMES]]
        texts = {key: _shown(getattr(self, key)) for key in ("source", "model", "backend", "mode")}
        return {
            **texts,
            "names": names,
            "more_names": max(0, len(self.names) - _NAMES),
            "frame_count": self.frame_count,
            "size": list(self.size),
        }


@dataclass
class _Track:
    """A track as it is listed; ``since`` in seconds of the video, or of the run."""

    id: int
    name: str
    score: float
    color: str
    since: float
    seen: bool = True


class Board:
    """Keeps the newest facts of a run; any thread may read and write it.

    Memory is bounded: a track that was not seen for two seconds is forgotten.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._id, self._begin = secrets.token_hex(8), clock()
        self._phase: Phase = "opening"
        self._words = ""
        self._setting: dict[str, Any] = {}
        self._frames, self._time = 0, 0.0
        self._came: deque[float] = deque()  # when the last frames came
        self._tracks: dict[int, tuple[_Track, float]] = {}  # and when it was seen last
        self._age: float | None = None
        self._dropped: int | None = None

    def begin(self, setting: Setting) -> None:
        """The source is open."""
        with self._lock:
            self._phase, self._setting, self._begin = "running", setting.to_json(), self._clock()

    def turn(self, phase: Phase, words: str = "") -> None:
        """The run comes to another phase; ``words`` say more of it."""
        with self._lock:
            self._phase, self._words = phase, _shown(words)

    def count(self, dropped: int | None, age: float | None) -> None:
        """Of a live source: frames dropped so far, and how old the newest result is, in seconds."""
        with self._lock:
            self._dropped, self._age = dropped, age

    def write(self, result: FrameResult) -> None:
        """A frame's result is known."""
        now = self._clock()
        with self._lock:
            self._frames += 1
            self._time = now - self._begin if result.time is None else result.time
            self._came.append(now)
            while now - self._came[0] > _SPAN and len(self._came) > 2:
                self._came.popleft()
            for track, _ in self._tracks.values():
                track.seen = False
            for instance in result.instances:
                if instance.box[2] and instance.box[3]:
                    self._see(instance, now)
            gone = [key for key, (_, last) in self._tracks.items() if now - last > _LINGER]
            for key in gone:
                del self._tracks[key]

    def to_json(self) -> dict[str, Any]:
        """Everything that is known, as JSON types."""
        now = self._clock()
        with self._lock:
            tracks = [asdict(track) for _, (track, _) in sorted(self._tracks.items())]
            return {
                "run": self._id,
                "phase": self._phase,
                "words": self._words,
                **self._setting,
                "frames": self._frames,
                "time": round(self._time, 3),
                "seconds": round(now - self._begin, 3),
                "quiet": round(now - self._came[-1], 3) if self._came else None,
                "frames_per_second": self._rate(now),
                "age": None if self._age is None else round(self._age, 3),
                "dropped": self._dropped,
                "tracks": tracks,
            }

    def _see(self, instance: Instance, now: float) -> None:
        score = round(instance.score, 3)
        known = self._tracks.get(instance.track_id)
        if known is None:
            color = "#{:02x}{:02x}{:02x}".format(*color_of(instance.track_id))
            track = _Track(instance.track_id, _shown(instance.name), score, color, self._time)
        else:
            track = known[0]
            track.name, track.score, track.seen = _shown(instance.name), score, True
        self._tracks[instance.track_id] = (track, now)

    def _rate(self, now: float) -> float | None:
        """Frames a second of late; of the whole run when its last frame has come.

        While no frame comes it falls.
        """
        if len(self._came) < 2:
            return None
        if self._phase not in ("opening", "running"):
            return round(self._frames / (self._came[-1] - self._begin), 2)
        span = max(self._came[-1] - self._came[0], now - self._came[0] - 1.0)
        return round((len(self._came) - 1) / span, 2) if span > 0 else None


def _shown(text: str) -> str:
    return without_password(printable(" ".join(text.split())))
