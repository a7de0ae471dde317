"""Lists of names: the option `-c`, files of names, and names that CLIP cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from court import Case
from workshop import Workshop

__all__ = ["ROWS"]

TWINS = [
    *(("disc", "Disc"), ("disc", " disc"), ("disc", "disc "), ("a  disc", "a disc")),
    *(("disc", "DISC"), ("dis\u0063", "disc"), ("caf\u00e9", "cafe\u0301"), ("&amp;", "&")),
    *(("disc", "\uff44isc"), ("disc\n", "disc"), ("disc\t", "disc")),
]


def twins(workshop: Workshop) -> Iterator[Case]:
    """Two names of one embedding are one name twice."""
    for pair in TWINS:

        def make(folder: Path, pair: tuple[str, str] = pair) -> Sequence[str | Path]:
            names = [part for name in pair for part in ("-c", name)]
            return ["run", workshop.bundle, workshop.video, *names, "--only", "-o", "out"]

        yield Case(f"{pair[0]!r} and {pair[1]!r}", make, codes=frozenset({2}))


ROWS = {"twins": twins}
