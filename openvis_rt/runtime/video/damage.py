"""How much of a stream arrived damaged: stretches, and the frames that its clock misses there."""

from __future__ import annotations

__all__ = ["Damage"]


class Damage:
    """Counts what a demuxer and a decoder complain of.

    Signs that follow each other without a good frame between them are one stretch. A pause of the
    clock counts as missing frames if it begins within a second of a sign; other pauses are the
    source's own.

    Args:
        rate: frames a second.

    Attributes:
        stretches: damaged ones so far.
        missing: frames that the clock misses in them.
        first: the clock where the first one began, in seconds; None where it is not known.
    """

    def __init__(self, rate: float) -> None:
        self.stretches = self.missing = 0
        self.first: float | None = None
        self._rate = rate
        self._within = False  # a sign was seen, and no good frame since
        self._patience = 0  # good frames after a sign whose pauses still count
        self._last: float | None = None  # time of the last frame

    def sign(self) -> None:
        """Something is broken here."""
        if not self._within:
            self.stretches += 1
            self.first = self._last if self.stretches == 1 else self.first
        self._within = True
        self._patience = max(1, round(self._rate))

    def frame(self, time: float | None) -> None:
        """A good frame came, whose time is ``time`` seconds."""
        if time is not None and self._last is not None and self._patience:
            self.missing += max(0, round((time - self._last) * self._rate) - 1)
        self._within = False
        self._patience = max(0, self._patience - 1)
        self._last = time

    def words(self, name: str) -> str | None:
        """What to tell of it, or None if nothing was damaged."""
        if not self.stretches:
            return None
        s = "" if self.stretches == 1 else "es"
        first = "" if self.first is None else f", the first after {self.first:.1f} s"
        lost = f"; by its clock {self.missing} frames are missing there" if self.missing else ""
        return f"{name} arrived damaged: {self.stretches} stretch{s}{first}{lost}"
