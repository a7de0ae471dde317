"""What one system does in its own way, matching and scoring; the systems are a page each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.runtime.tracking.scoring import Detection

__all__ = ["Family", "Scores", "Tracker"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Scores(Protocol):
    """Sums of one video, for N tracks and C classes."""

    def add_output(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame or window; ``output`` is in the queries' order, track j is ``order[j]``."""

    def running_scores(self) -> tuple[Ints, Floats64, Bools]:
        """Best class [N], its score so far [N], and whether that lets the track be shown [N]."""

    def detections(self, count: int) -> list[Detection]:
        """The video's best (track, class) pairs, best first, ``count`` at most."""

    def close(self) -> None:
        """Drop what is kept."""


class Tracker(Protocol):
    """An association rule."""

    def reset(self) -> None:
        """Forget every frame."""

    def step(self, queries: Floats) -> Ints:
        """For each track its query, int64 [N], of embeddings float32 [N, C]."""


class Family(ABC):
    """One system.

    Args:
        tracker: it keeps the video's memory.

    Attributes:
        fetched: for each graph the outputs that the host reads.
        bound: for inputs of `classify`, the graph of which they are tensors, under the same name.
    """

    fetched: Mapping[str, tuple[str, ...]]
    bound: Mapping[str, str]

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def reset(self) -> None:
        """Forget the video."""
        self._tracker.reset()

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """For each track its query, int64 [N]; ``output`` is in the queries' order."""
        return self._tracker.step(output["queries"])

    @abstractmethod
    def scores(self, tracks: int, rows: list[int], *, keep: bool) -> Scores:
        """Sums of a new video.

        Args:
            tracks: N.
            rows: of `classify`'s scores for each class, in order.
            keep: so that they can report the whole of it.
        """
