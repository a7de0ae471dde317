"""Times of a source that only move forward.

A camera's clock may be set, a recorder may begin anew within a file, and a transport stream's
counter may be started again, or set to what no clock shows. What follows such a jump continues
where the times before it ended.
"""

from __future__ import annotations

__all__ = ["LATEST_TIME", "LONGEST_GAP", "Timeline"]

RESTART = 0.5
"""Seconds; a clock that goes back by less only jitters."""

LONGEST_GAP = 3600.0
"""Seconds; a longer pause between two frames or packets is one of the clock, not of what it
times. MP4 can write pauses of less than a day."""

LATEST_TIME = 1e9
"""Seconds, some 30 years; a later time is none that anybody filmed."""


class Timeline:
    """Gives each time of a source, in its order, a place on a line without steps back.

    Attributes:
        restarts: how often the clock was seen to begin anew.
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._shift = 0.0
        self._last: float | None = None

    def place(self, time: float, step: float) -> float:
        """Where a time stands, in seconds.

        Args:
            time: by the source's clock, in seconds.
            step: the usual time between two of them: the distance to the one before where the
                clock begins anew.

        Returns:
            not less than for the time before: one that is less than half a second back stands where
            that stood. At most :data:`LATEST_TIME`.
        """
        place = time + self._shift
        if self._last is not None and not self._last - RESTART <= place <= LATEST_TIME:
            self.restarts += 1
            place = self._last + step
            self._shift = place - time
        self._last = place if self._last is None else min(max(place, self._last), LATEST_TIME)
        return self._last
