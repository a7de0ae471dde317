"""From the turns of a contender to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openvis_rt.bench.parts import PARTS, host_share, network_seconds
from openvis_rt.bench.player import Spent, Window
from openvis_rt.bench.power import PowerLog, Reading, mean_watts
from openvis_rt.bench.products import Peak
from openvis_rt.bench.report import Electricity, Measured, spread
from openvis_rt.bench.statistics import latency_of, ratio_of_pairs

__all__ = ["Turn", "figures_of"]


@dataclass(frozen=True)
class Turn:
    """One round of one contender.

    Attributes:
        begin, end: of ``time.perf_counter``.
        spent: what the player tells.
        busy: seconds in which the machine's cores were busy meanwhile, all together; None where
            the system does not tell.
    """

    begin: float
    end: float
    spent: Spent
    busy: float | None


def figures_of(
    turns: Sequence[Turn],
    base: Sequence[Turn] | None,
    *,
    peak_bytes: int,
    pid: int | None,
    flow: float | None,
    flops: dict[str, int] | None,
    peak: Peak | None,
    log: PowerLog | None,
) -> Measured:
    """The figures of one contender.

    Args:
        turns: of it, one a round.
        base: of what it is compared with, in the same rounds; None for the base itself.
        peak_bytes, pid: of its process.
        flow: frames a second with several windows in flight.
        flops: operations of a window by graph.
        peak: of the machine.
        log: of the meter.
    """
    windows = [window for turn in turns for window in turn.spent.windows]
    frames = sum(window.frames for window in windows)
    seconds = sum(window.seconds for window in windows)
    network = [network_seconds(window.parts) for window in windows]
    rate = None if flops is None else sum(flops.values()) * len(windows) / _networks(windows)
    counted = {
        name: sum(turn.spent.counters[name] for turn in turns) / frames
        for name in turns[0].spent.counters
    }
    return Measured(
        tuple(turn.spent.windows for turn in turns),
        latency_of([window.seconds for window in windows]),
        latency_of(network),
        {g: latency_of([w.graphs[g] for w in windows]) for g in windows[0].graphs},
        {
            part: sum(window.parts.get(part, 0.0) for window in windows) / frames
            for part in PARTS
            if any(part in window.parts for window in windows)
        },
        seconds / frames,
        frames / seconds,
        flow,
        host_share(_summed(windows)),
        None if base is None else ratio_of_pairs(_seconds(turns), _seconds(base)),
        None if base is None else ratio_of_pairs(_in_network(turns), _in_network(base)),
        peak_bytes,
        counted.get("bytes_to_device"),
        counted.get("bytes_to_host"),
        flops,
        rate,
        None if rate is None or peak is None else rate / peak.flops,
        None if log is None else electricity_of(turns, frames, log, pid),
    )


def electricity_of(
    turns: Sequence[Turn], frames: int, log: PowerLog, pid: int | None
) -> Electricity | None:
    """What the meter told in these turns; None if it told no power in any of them."""
    joules, counted, readings = 0.0, 0.0, list[Reading]()
    for turn in turns:
        found = log.between(turn.begin, turn.end)
        readings += [reading for _, reading in found]
        if (watts := mean_watts(found)) is not None:
            joules += watts * (turn.end - turn.begin)
            counted += turn.end - turn.begin
    if not counted:
        return None
    whole = sum(turn.end - turn.begin for turn in turns)  # turns too short for a reading
    celsius = [reading.celsius for reading in readings if reading.celsius is not None]
    memory = [used for reading in readings for owner, used in reading.memory if owner == pid]
    return Electricity(
        joules / counted,
        joules * whole / counted / frames,
        spread([reading.gpu_mhz for reading in readings if reading.gpu_mhz is not None]),
        max(celsius, default=None),
        tuple(sorted({reason for reading in readings for reason in reading.throttled})),
        max(memory, default=None),
    )


def _summed(windows: Sequence[Window]) -> dict[str, float]:
    return {part: sum(w.parts.get(part, 0.0) for w in windows) for part in PARTS}


def _networks(windows: Sequence[Window]) -> float:
    """Seconds of all graphs but `masks`, which has no products."""
    return sum(s for w in windows for graph, s in w.graphs.items() if graph != "masks")


def _seconds(turns: Sequence[Turn]) -> list[float]:
    """Of a frame, by rounds."""
    return [_a_frame(turn, sum(w.seconds for w in turn.spent.windows)) for turn in turns]


def _in_network(turns: Sequence[Turn]) -> list[float]:
    return [
        _a_frame(turn, sum(network_seconds(w.parts) for w in turn.spent.windows)) for turn in turns
    ]


def _a_frame(turn: Turn, seconds: float) -> float:
    return seconds / sum(window.frames for window in turn.spent.windows)
