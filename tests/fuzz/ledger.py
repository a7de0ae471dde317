"""What the fuzzed cases of a run came to: how many over which borders, and how they ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Border", "Ledger", "table_of"]

FELL = "FELL: "


@dataclass
class Border:
    """The cases of one test.

    Attributes:
        name: of the test's file and function.
        cases: how many inputs there were; one may be used in several ways.
        ends: how often each use ended how: ``done``, an error's name, or ``FELL: `` and an
            exception's name. Hypothesis repeats a case that falls, to make it smaller.
        slowest: seconds of the slowest use.
        largest: MB by which one use raised the most memory that the process ever had.
    """

    name: str
    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: float = 0.0

    @property
    def fell(self) -> list[str]:
        """The kinds of fall."""
        return sorted(end for end in self.ends if end.startswith(FELL))


class Ledger:
    """Counts the uses of one process."""

    def __init__(self) -> None:
        self._borders: dict[str, Border] = {}
        self._case: object = None

    def write(self, border: str, case: object, end: str, seconds: float, megabytes: float) -> None:
        """Count a use; ``case`` is the same object for all uses of one input, None for one use."""
        found = self._borders.setdefault(border, Border(border))
        if case is None or case is not self._case:
            found.cases += 1
        self._case = case
        found.ends[end] += 1
        found.slowest = max(found.slowest, seconds)
        found.largest = max(found.largest, megabytes)

    def entries(self) -> list[dict[str, Any]]:
        """A JSON object for each border."""
        borders = self._borders.values()
        return [{**vars(border), "ends": dict(border.ends)} for border in borders]


def table_of(entries: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each border, and one for all of them."""
    borders = [Border(**{**entry, "ends": Counter(entry["ends"])}) for entry in entries]
    lines = []
    for border in sorted(borders, key=lambda border: border.name):
        ends = ", ".join(f"{count} {end}" for end, count in border.ends.most_common())
        lines.append(
            f"{border.cases:6d}  {border.name}: {ends}; at most {border.slowest:.1f} s, "
            f"{border.largest:.0f} MB"
        )
    fell = sum(bool(border.fell) for border in borders)
    total = sum(border.cases for border in borders)
    return [*lines, f"{total:6d}  cases over {len(borders)} borders; {fell} borders fell"]
