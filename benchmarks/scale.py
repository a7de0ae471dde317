"""A thousand GPUs, simulated: how long a queue of videos takes, what is lost, what it costs.

    python benchmarks/scale.py [--videos 40000] [--seeds 3] [--plot docs/pictures/scale.png]
        [--json FILE] [any field of Figures, such as --device-ms 17]

Workers take videos from one queue, as `openvis batch` on Ray does. A video takes its frames' time
on its GPU and a constant. A worker fails at a constant rate; its video is lost and goes back to the
queue, until it was begun as often as the retries allow; the worker starts again after a while. Some
GPUs are slow. Every hand-over passes the driver, which does one at a time.

Each scenario differs from the base in one point, and runs with the same seeds. Needs simpy and
matplotlib; no GPU.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import simpy

HOUR = 3600.0
_WIDEST = 300  # %, of the drawn bars


@dataclass(frozen=True)
class Figures:
    """What goes in; docs/scale.md says of each whether it was measured or is assumed.

    Attributes:
        gpus: workers, with a GPU each.
        device_ms: of a frame on its GPU.
        host_ms: of a frame on the host, which works at the same time; the longer one counts.
        video_s: of a video beside its frames: files, records, the hand-over's wait.
        driver_ms: of a hand-over, one at a time.
        restart_s: from a worker's death to its next video.
        fps: of the videos.
        minutes: the mean length of a video.
        spread: of the lengths: sigma of a log-normal distribution; 0 for equal lengths.
        mtbf_h: mean hours between two failures of a worker.
        slow_share, slow_factor: how many GPUs are slow, and how many times as long they take.
        poison: share of videos that kill any worker, half-way.
        retries: further attempts at a video.
        longest_first: hand out long videos first; else in random order.
        price: dollars of a GPU's hour.
    """

    gpus: int = 1000
    device_ms: float = 17.0
    host_ms: float = 5.0
    video_s: float = 0.3
    driver_ms: float = 26.0
    restart_s: float = 120.0
    fps: float = 25.0
    minutes: float = 10.0
    spread: float = 1.0
    mtbf_h: float = 100.0
    slow_share: float = 0.05
    slow_factor: float = 2.0
    poison: float = 1e-4
    retries: int = 1
    longest_first: bool = True
    price: float = 1.0

    def video_seconds(self, minutes: float, factor: float) -> float:
        """Of a worker for a video of that length, on a GPU that takes ``factor`` times as long."""
        frame = max(self.device_ms * factor, self.host_ms) / 1e3
        return minutes * 60 * self.fps * frame + self.video_s


@dataclass
class Outcome:
    """What came of a queue; hours are of GPUs, but for ``makespan``."""

    video_hours: float
    useful: float = 0.0
    lost: float = 0.0
    restarting: float = 0.0
    makespan: float = 0.0
    repeated: int = 0
    given_up: int = 0
    given_up_sound: int = 0

    def table_row(self, figures: Figures) -> dict[str, float]:
        """The figures of the report."""
        ideal = self.video_hours * HOUR * figures.fps * figures.device_ms / 1e3 / HOUR
        reserved = figures.gpus * self.makespan
        done = self.useful + self.lost + self.restarting
        per_hour = figures.price / self.video_hours * 1e6
        return {
            "makespan_h": self.makespan,
            "over_ideal": reserved / ideal - 1,
            "lost_share": self.lost / reserved,
            "restart_share": self.restarting / reserved,
            "idle_share": 1 - done / reserved,
            "repeated": self.repeated,
            "given_up": self.given_up,
            "given_up_sound": self.given_up_sound,
            "cost_reserved": reserved * per_hour,
            "cost_released": done * per_hour,
        }


class Farm:
    """One run of the simulation."""

    def __init__(self, figures: Figures, videos: int, seed: int) -> None:
        self.figures, self.env = figures, simpy.Environment()
        rng = np.random.default_rng(seed)
        spread = figures.spread
        lengths = figures.minutes * np.exp(rng.normal(-(spread**2) / 2, spread, videos))
        poison = rng.random(videos) < figures.poison
        order = np.argsort(-lengths) if figures.longest_first else np.arange(videos)
        self.queue = [
            (place, float(lengths[video]), bool(poison[video]), 0)
            for place, video in enumerate(order)
        ]
        self.slow = rng.random(figures.gpus) < figures.slow_share
        self.rng, self.busy_now, self.open = rng, 0, videos
        self.driver = simpy.Resource(self.env, 1)
        self.back = self.env.event()  # a lost video is in the queue again, or all are done
        self.busy: list[tuple[float, int]] = []
        self.outcome = Outcome(float(lengths.sum()) / 60)

    def run(self) -> Outcome:
        """Until every video is done or given up."""
        for slow in self.slow:
            self.env.process(self.worker(self.figures.slow_factor if slow else 1.0))
        self.env.run()
        return self.outcome

    def worker(self, factor: float) -> Generator[simpy.Event, Any, None]:
        """Take videos until there are none, dying now and then."""
        figures, env = self.figures, self.env
        death = self.rng.exponential(figures.mtbf_h * HOUR)  # seconds of work from now
        while self.open:
            if not self.queue:
                yield self.back
                continue
            place, minutes, poison, attempts = heapq.heappop(self.queue)
            with self.driver.request() as turn:
                yield turn
                yield env.timeout(figures.driver_ms / 1e3)
            needed = figures.video_seconds(minutes, factor)
            self.count(1)
            if not poison and needed < death:
                yield env.timeout(needed)
                death -= needed
                self.outcome.useful += needed / HOUR
                self.count(-1)
                self.end()
                continue
            lived = needed / 2 if poison else death
            yield env.timeout(lived)
            self.outcome.lost += lived / HOUR
            self.count(-1)
            self.lose(place, minutes, attempts + 1, poison=poison)
            yield env.timeout(figures.restart_s)
            self.outcome.restarting += figures.restart_s / HOUR
            death = self.rng.exponential(figures.mtbf_h * HOUR)

    def lose(self, place: int, minutes: float, attempts: int, *, poison: bool) -> None:
        """A worker died over a video: back to the front of the queue, or given up."""
        if attempts > self.figures.retries:
            self.outcome.given_up += 1
            self.outcome.given_up_sound += not poison
            self.end()
            return
        self.outcome.repeated += 1
        heapq.heappush(self.queue, (place, minutes, poison, attempts))
        self.wake()

    def end(self) -> None:
        """A video is done or given up."""
        self.open -= 1
        if not self.open:
            self.outcome.makespan = self.env.now / HOUR
            self.wake()

    def wake(self) -> None:
        """Let idle workers look at the queue again."""
        self.back.succeed()
        self.back = self.env.event()

    def count(self, change: int) -> None:
        """Note how many workers are busy."""
        self.busy_now += change
        self.busy.append((self.env.now / HOUR, self.busy_now))


def scenarios(base: Figures) -> dict[str, dict[str, Figures]]:
    """By what is varied, and its value."""
    return {
        "base": {"": base},
        "MTBF, h": {f"{h:g}": replace(base, mtbf_h=h) for h in (5, 20, 500)},
        "slow GPUs": {
            "none": replace(base, slow_share=0.0),
            "20 %": replace(base, slow_share=0.2),
            "5 %, 5 times": replace(base, slow_factor=5.0),
        },
        "lengths": {
            "equal": replace(base, spread=0.0),
            "sigma 1.5": replace(base, spread=1.5),
            "sigma 1.5, random order": replace(base, spread=1.5, longest_first=False),
            "mean 1 min": replace(base, minutes=1.0),
            "mean 60 min": replace(base, minutes=60.0),
        },
        "retries": {
            "0": replace(base, retries=0),
            "3": replace(base, retries=3),
            "0, MTBF 5 h": replace(base, retries=0, mtbf_h=5.0),
            "3, MTBF 5 h": replace(base, retries=3, mtbf_h=5.0),
        },
        "restart, s": {f"{s:g}": replace(base, restart_s=s) for s in (10, 900)},
        "driver, ms": {f"{ms:g}": replace(base, driver_ms=ms) for ms in (100, 500)},
        "host, ms a frame": {f"{ms:g}": replace(base, host_ms=ms) for ms in (23, 44)},
        "order": {"random": replace(base, longest_first=False)},
    }


def simulated(figures: Figures, videos: int, seeds: int) -> dict[str, dict[str, float]]:
    """Mean, least and most of each figure over the seeds."""
    count = max(figures.gpus, round(videos * Figures.minutes / figures.minutes))  # the same hours
    rows = [Farm(figures, count, seed).run().table_row(figures) for seed in range(seeds)]
    return {
        name: {
            "mean": mean(row[name] for row in rows),
            "min": min(row[name] for row in rows),
            "max": max(row[name] for row in rows),
        }
        for name in rows[0]
    }


def table(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """The report in Markdown."""
    lines = [
        "| varied | to | makespan, h | GPU hours over ideal | lost | restarting | idle at the end "
        "| repeated | given up (sound) | $ a million video hours: released / all kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for varied, values in found.items():
        for value, row in values.items():
            r = {name: figure["mean"] for name, figure in row.items()}
            span = row["over_ideal"]
            lines.append(
                f"| {varied} | {value} | {r['makespan_h']:.2f} | {100 * r['over_ideal']:.1f} % "
                f"[{100 * span['min']:.1f}, {100 * span['max']:.1f}] "
                f"| {100 * r['lost_share']:.2f} % | {100 * r['restart_share']:.2f} % "
                f"| {100 * r['idle_share']:.1f} % | {r['repeated']:.0f} "
                f"| {r['given_up']:.0f} ({r['given_up_sound']:.0f}) "
                f"| {r['cost_released'] / 1e3:.0f} k / {r['cost_reserved'] / 1e3:.0f} k |"
            )
    return "\n".join(lines)


def by_minutes(busy: list[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """Hours, and the mean number of busy GPUs in each minute."""
    times, counts = (np.array(column, float) for column in zip(*busy, strict=True))
    edges = np.arange(0, times[-1] + 1 / 60, 1 / 60)
    until = np.concatenate([[0], np.cumsum(counts[:-1] * np.diff(times))])  # GPU hours so far
    return list(edges[:-1]), list(np.diff(np.interp(edges, times, until)) * 60)


def draw(
    path: Path,
    base: Figures,
    found: dict[str, dict[str, dict[str, dict[str, float]]]],
    videos: int,
) -> None:
    """GPUs that are busy over time, and what each scenario adds to the ideal GPU hours."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), width_ratios=(1, 1.25))
    shown = {
        "base": base,
        "random order": replace(base, longest_first=False),
        "lengths with sigma 1.5": replace(base, spread=1.5),
        "MTBF 5 h": replace(base, mtbf_h=5.0),
        "5 % of GPUs 5 times slower": replace(base, slow_factor=5.0),
    }
    for name, figures in shown.items():
        farm = Farm(figures, videos, 0)
        farm.run()
        left.plot(*by_minutes(farm.busy), label=name, linewidth=1.2)
    end = found["base"][""]["makespan_h"]["mean"]
    left.set(xlabel="hours", ylabel="GPUs that work on a video", xlim=(0, 2 * end))
    left.set(ylim=(0, base.gpus * 1.05))
    left.legend(loc="upper right", fontsize=9)
    left.grid(alpha=0.3)
    rows = [
        (f"{varied} {value}".strip(), row)
        for varied, v in found.items()
        for value, row in v.items()
    ]
    names, cells = zip(*reversed(rows), strict=True)
    bottom = np.zeros(len(names))
    over = np.array([100 * cell["over_ideal"]["mean"] for cell in cells])
    parts = ("lost_share", "restart_share", "idle_share")
    labels = ("lost with workers", "restarting", "idle, waiting for the driver or the last videos")
    for part, label in zip(parts, labels, strict=True):
        width = np.array([cell[part]["mean"] for cell in cells]) * (100 + over)
        right.barh(names, width, left=bottom, label=label)
        bottom += width
    right.barh(names, over - bottom, left=bottom, label="slow GPUs, host, time beside the frames")
    for place, value in enumerate(over):
        if value > _WIDEST:
            right.text(_WIDEST, place, f"{value:.0f} % ", ha="right", va="center", color="white")
    right.set(xlabel="GPU hours over the ideal ones, %, if all GPUs are kept", xlim=(0, _WIDEST))
    right.legend(fontsize=9, loc="upper right")
    right.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Simulate every scenario, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=40_000, help="of the base's mean length")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    for field in fields(Figures):
        if field.name != "longest_first":
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    base = Figures(**{f.name: given[f.name] for f in fields(Figures) if f.name in given})
    found = {
        varied: {
            value: simulated(figures, given["videos"], given["seeds"])
            for value, figures in values.items()
        }
        for varied, values in scenarios(base).items()
    }
    print(table(found))
    if given["json"]:
        report = {"figures": asdict(base), "found": found}
        given["json"].write_text(json.dumps(report, indent=1) + "\n")
    if given["plot"]:
        draw(given["plot"], base, found, given["videos"])


if __name__ == "__main__":
    main()
