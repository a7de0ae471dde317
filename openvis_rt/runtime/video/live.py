"""Cameras and streams: a source that may stall, break off and come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import VideoError
from openvis_rt.runtime.video.container import ContainerReader, DamagedError
from openvis_rt.runtime.video.watched import WatchedReader

__all__ = ["LiveReader"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds between attempts; each twice the one before
_SHORTEST_TRY = 0.5  # seconds that the last attempt may take
_TOLD = 20  # breaks that are told

Tell = Callable[[str], None]


class LiveReader:
    """A live source that is opened again where it breaks off, with longer and longer pauses.

    Frames are counted on over a break, and their times go on by this machine's clock. The end of
    the data is a break, too: a camera that starts anew ends its stream first.

    Args:
        reader: open.
        again: opens the source once more, within so many seconds; None where that cannot be, and
            the end of the data is the source's own.
        seconds: for which a break is tried to be mended; 0 for not at all.
        tell: told of breaks and returns when they happen, in the thread that reads; None to have
            them in ``warnings``.
        ended: set when nobody reads any longer.

    Attributes:
        name, fps, frame_count, live, start: as those of the first reader.
        reconnections: how often it came back.
    """

    def __init__(
        self,
        reader: ContainerReader | WatchedReader,
        again: Callable[[float], ContainerReader | WatchedReader] | None,
        seconds: float,
        tell: Tell | None,
        ended: threading.Event,
    ) -> None:
        self._reader, self._again, self._seconds = reader, again, seconds
        self._ended = ended
        self.name, self.fps, self.live = reader.name, reader.fps, True
        self.frame_count: int | None = None
        self.start: float | None = None
        self.warnings: list[str] = []
        self._tell = tell or self.warnings.append
        self.reconnections = 0
        self._frames = 0  # that were read, dropped ones with them
        self._clock = _JoinedClock()

    def frames(self, stride: int = 1) -> Iterator[tuple[int, float | None, npt.NDArray[np.uint8]]]:
        """As :meth:`.container.ContainerReader.frames`, over all connections.

        Raises:
            DamagedError: the source broke off and did not come back.
        """
        while True:
            begin, reason = self._frames, "the data ended"
            try:
                for index, moment, image in self._reader.frames(stride):
                    self.start = self._reader.start if self.start is None else self.start
                    self._frames = begin + index + 1
                    yield begin + index, self._clock.place(moment), image
            except DamagedError as exc:
                reason = str(exc)
            else:
                if self._again is None:
                    self._take_warnings()
                    return
            self._take_warnings()
            if not self._frames:
                raise DamagedError(reason)
            self._reconnect(reason)
            self._clock.join()

    def close(self) -> None:
        """Release what is open now."""
        self._reader.close()

    def _reconnect(self, reason: str) -> None:
        if not self._seconds or self._again is None:
            raise DamagedError(reason)
        self._reader.close()
        lost, pause, attempts = time.monotonic(), _FIRST_PAUSE, 0
        silent = self.reconnections >= _TOLD
        last = "; further breaks are only counted" if self.reconnections == _TOLD - 1 else ""
        if not silent:
            self._tell(
                f"{self.name} broke off after {self._frames} frames ({reason}); it is tried again "
                f"for up to {self._seconds:g} s{last}"
            )
        while (left := lost + self._seconds - time.monotonic()) > 0:
            if self._ended.wait(min(pause, left)):
                raise DamagedError(reason)
            pause = min(2 * pause, _LONGEST_PAUSE)
            attempts += 1
            try:
                self._reader = self._again(max(left, _SHORTEST_TRY))
            except (VideoError, OSError):
                continue
            self.reconnections += 1
            if not silent:
                self._tell(f"{self.name} is back after {time.monotonic() - lost:.1f} s")
            return
        raise DamagedError(
            f"{reason}, and {attempts} attempts in {self._seconds:g} s did not bring it back"
        )

    def _take_warnings(self) -> None:
        if self.reconnections >= _TOLD:
            return
        damage = self._reader.damage.words(self.name)
        self.warnings += [*self._reader.warnings, *([damage] if damage else [])]


class _JoinedClock:
    """Times of one connection after the other, joined by what passed here between them."""

    def __init__(self) -> None:
        self._shift = 0.0
        self._last: tuple[float, float] | None = None  # a time, and when it came
        self._joins = False

    def join(self) -> None:
        """The next time is one of a new connection, which counts from 0."""
        self._joins = True

    def place(self, moment: float | None) -> float | None:
        """The time of a frame that comes now."""
        if moment is None:
            return None
        now = time.monotonic()
        if self._joins and self._last is not None:
            last, came = self._last
            self._shift = last + (now - came) - moment
        self._joins = False
        moment += self._shift
        self._last = (moment, now)
        return moment
