"""Which instances are shown; light, so that the command can name its defaults."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """What a frame's result shows: scores from ``threshold`` on, at most ``limit`` instances."""

    threshold: float = 0.3
    limit: int = 20
