"""The parts of a window's time, in the order in which they follow each other.

They do not overlap, and with ``other`` they add up to the window's seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GRAPHS", "HOST", "NETWORK", "PARTS", "host_share", "network_seconds"]

GRAPHS = ("propose", "embed", "classify", "masks")
"""Graphs that run for each window; `text` runs once for each new name."""

PARTS: dict[str, str] = {
    "decode": "decoding the frames, in the measuring thread",
    "place": "resizing, if the graph does not, and placing them into the graph's input",
    "propose": "running the graph, or starting it where a device works by itself",
    "embed": "the same, of the systems that have it",
    "classify": "the same",
    "masks": "the same, for the instances that are shown or kept",
    "wait": "waiting for the device, and copying outputs to the host",
    "association": "matching with the tracks, without the recurrence",
    "recurrence": "the tracker's RNN, GRU, LSTM, linear layer or MLP, where there is one",
    "scores": "sums of scores, and choosing what is shown",
    "run_lengths": "masks to run lengths",
    "overlay": "drawing",
    "encode": "colour conversion, H.264 and writing",
    "other": "what no other part covers: checks, casts, boxes, results, Python between the parts",
}

NETWORK = (*GRAPHS, "wait")
HOST = tuple(part for part in PARTS if part not in NETWORK)
"""What a faster backend does not make faster."""


def host_share(parts: Mapping[str, float]) -> float:
    """Share of the host in the seconds of all parts, 0..1."""
    total = sum(parts.values())
    return sum(parts.get(part, 0.0) for part in HOST) / total if total else 0.0


def network_seconds(parts: Mapping[str, float]) -> float:
    """Seconds of the graphs with waiting for them."""
    return sum(parts.get(part, 0.0) for part in NETWORK)
