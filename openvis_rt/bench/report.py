"""What a benchmark found, as it stands in its JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvis_rt.bench.machine import Machine
from openvis_rt.bench.player import Window
from openvis_rt.bench.products import Peak
from openvis_rt.bench.statistics import Interval, Latency
from openvis_rt.files import output_file
from openvis_rt.records import json_from_record

__all__ = [
    "SCHEMA",
    "Agreement",
    "Electricity",
    "Measured",
    "Report",
    "Result",
    "write_report",
]

SCHEMA = "1.0"
"""Major and minor version of the file, as in the bundle's manifest."""


@dataclass(frozen=True)
class Agreement:
    """How close a contender's results are to the base's on the same frames.

    Attributes:
        frames: that were compared.
        sqnr: in dB of each output that the host reads, the median over windows, from -200 to 200.
        same_classes: share of the base's shown instances whose track has the same class here.
        mask_iou: mean over tracks that both show; null if there is none.
        passed: every SQNR is above the gate, or nothing was to be held against it.
        gate: in dB; null where graphs of another precision or model are compared.
    """

    frames: int
    sqnr: dict[str, float]
    same_classes: float
    mask_iou: float | None
    passed: bool
    gate: float | None


@dataclass(frozen=True)
class Electricity:
    """What the meter told while a contender ran.

    Attributes:
        watts: mean.
        joules_a_frame: of everything that the meter measures, idle power included.
        gpu_mhz: slowest, mean and fastest clock; null where it is not told.
        celsius: the highest.
        throttled: every reason that was told for a clock that is held down.
        gpu_bytes: the most of this process; null where it is not told.
    """

    watts: float
    joules_a_frame: float
    gpu_mhz: tuple[float, float, float] | None
    celsius: float | None
    throttled: tuple[str, ...]
    gpu_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """The figures of a contender that ran.

    Attributes:
        rounds: every window, by the rounds in which the contenders took turns.
        window: end-to-end seconds of a window: all parts.
        network: seconds of a window in the graphs and in waiting for them.
        graphs: seconds of each graph in a window, by the device's clock where it has one.
        parts: mean seconds a frame; they add up to ``seconds_a_frame``.
        seconds_a_frame, fps: end to end; one is the other's reciprocal.
        fps_in_flight: frames a second of the pipeline alone, with as many windows in flight as the
            backend keeps; null where it keeps one.
        host_share: of all that is not in graphs or waiting for them, 0..1.
        ratio, network_ratio: times the base's seconds, paired by rounds; null for the base itself.
        peak_bytes: the most resident memory of the process, with opening and loading.
        bytes_to_device, bytes_to_host: over the bus for a frame; null on a CPU.
        flops: operations of a window by graph; null where they were not counted.
        flops_a_second: of `propose`, `embed` and `classify` over the seconds of the network.
        share_of_peak: of the measured matrix product, 0..1.
        electricity: null where power was not measured.
    """

    rounds: tuple[tuple[Window, ...], ...]
    window: Latency
    network: Latency
    graphs: dict[str, Latency]
    parts: dict[str, float]
    seconds_a_frame: float
    fps: float
    fps_in_flight: float | None
    host_share: float
    ratio: Interval | None
    network_ratio: Interval | None
    peak_bytes: int
    bytes_to_device: float | None
    bytes_to_host: float | None
    flops: dict[str, int] | None
    flops_a_second: float | None
    share_of_peak: float | None
    electricity: Electricity | None

    def trtexec(self) -> dict[str, Any]:
        """The figures that trtexec prints too, under its names; milliseconds, of `propose`.

        ``Latency`` there is one query with its copies; here it is the graph with none.
        """
        latency = self.graphs["propose"]
        return {
            "Throughput": {"qps": 1 / latency.mean},
            "Latency": {
                "min": latency.smallest * 1e3,
                "max": latency.largest * 1e3,
                "mean": latency.mean * 1e3,
                "median": latency.p50 * 1e3,
                "percentile(90%)": latency.p90 * 1e3,
                "percentile(99%)": latency.p99 * 1e3,
            },
        }


@dataclass(frozen=True)
class Result:
    """One contender.

    Attributes:
        name: unique in the report.
        bundle, model, precision: what it ran.
        backend, device: on what.
        network_size, source_size: (H, W) in pixels.
        window_length: frames of a window.
        not_run: why there are no figures; empty if there are.
        agreement: with the base; null for the base itself and for other models.
        measured: null if it was not run.
    """

    name: str
    bundle: str
    model: str
    precision: str
    backend: str
    device: str
    network_size: tuple[int, int]
    source_size: tuple[int, int]
    window_length: int
    open_seconds: float
    not_run: str
    agreement: Agreement | None
    measured: Measured | None
    trtexec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A benchmark.

    Attributes:
        made: when it began, ISO 8601 with the zone.
        machine: where.
        settings: what was asked: windows, rounds, warm-up, mode, selection, classes, threads.
        results: the base first.
        timed: what is inside the timed region, in words.
        peak: of the machine's matrix product; null if it was not measured.
        not_measured: what is missing, and why.
        load: load averages of one minute at the begin and at the end.
        others: share of the cores' time that other processes took in the timed turns, 0..1; null
            where the system does not tell.
        cpu_mhz: slowest, mean and fastest clock of the CPU; null where the kernel does not tell.
        cpu_throttled: thermal events while it ran; null likewise.
        meter: what measured power; empty if nothing did.
        warnings: what was told.
        schema: :data:`SCHEMA`.
    """

    made: str
    machine: Machine
    settings: dict[str, Any]
    results: tuple[Result, ...]
    timed: str
    peak: Peak | None
    not_measured: tuple[str, ...]
    load: tuple[float, float]
    others: float | None
    cpu_mhz: tuple[float, float, float] | None
    cpu_throttled: int | None
    meter: str
    warnings: tuple[str, ...]
    schema: str = SCHEMA

    @property
    def base(self) -> Result:
        """What the others are compared with."""
        return self.results[0]


def write_report(report: Report, path: Path) -> None:
    """Write the JSON.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps(json_from_record(report), indent=1)
    with output_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Smallest, mean and largest; None of nothing."""
    if not values:
        return None
    return min(values), sum(values) / len(values), max(values)
