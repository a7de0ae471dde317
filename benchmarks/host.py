"""What the host costs alone: whole runs of `openvis run` over a backend that answers at once.

    python benchmarks/host.py BUNDLE [--against CHECKOUT [--against-bundle BUNDLE]]
        [--cells REGEX] [--frames 100] [--rounds 5]

BUNDLE is any bundle; its graphs are not run. A cell is a source's size, a mode, an overlay (none;
`sink`, drawn and converted but not encoded; or encoded), where frames are resized, how many objects
are visible, and how long the device takes for a frame. The time is that of the whole run with its
second pass, so frames a second are what a user gets from a device of that speed.

With ``--against`` each cell runs in turn with this code and with that of another checkout, in a
process each, and the ratio is that of the paired rounds, with its 95 % interval. Where the two need
different bundles, ``--against-bundle`` gives the other one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from openvis_rt.bench.markdown import table
from openvis_rt.bench.statistics import ratio_of_pairs
from openvis_rt.runtime.video.generated import write_sample_video

SOURCES = {"720p": (720, 1280), "1080p": (1080, 1920)}  # height, width


@dataclass(frozen=True)
class Cell:
    """One way to run; see the module. ``delay`` is milliseconds of the device for each frame."""

    source: tuple[int, int]
    mode: str
    overlay: str
    resize: str
    visible: int
    delay: float

    def __str__(self) -> str:
        objects = f"{self.visible} visible"
        return (
            f"{self.source[0]}p {self.mode}, overlay {self.overlay}, resize {self.resize}, "
            f"{objects}, {self.delay:g} ms"
        )


class Worker:
    """A process that runs cells with the code of one checkout."""

    def __init__(self, checkout: Path, bundle: Path, folder: Path) -> None:
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("host_worker.py")), bundle, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )

    def run(self, cell: Cell, video: Path, frames: int) -> dict[str, float]:
        """Seconds, and seconds of the processor, of one run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"cell": asdict(cell), "video": str(video), "frames": frames}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self._process.wait()}; its error is above")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def cells_of(pattern: str) -> list[Cell]:
    """All cells whose text the pattern is found in."""
    found = [
        Cell(source, mode, overlay, resize, 10, delay)
        for source in SOURCES.values()
        for mode in ("stream", "video")
        for overlay in ("none", "sink", "encoded")
        for resize in ("host", "graph")
        for delay in (0.0, 5.0)
    ]
    found += [
        Cell(s, "video", "none", r, 100, 0.0) for s in SOURCES.values() for r in ("host", "graph")
    ]
    return [cell for cell in found if re.search(pattern, str(cell))]


def main() -> None:
    """Print the table and, as the last line, JSON."""
    options = parse()
    cells = cells_of(options.cells)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = {source: sample(folder, source, options.frames) for source in SOURCES.values()}
        here = Path(__file__).resolve().parents[1]
        workers = [Worker(here, options.bundle, folder / "now")]
        if options.against is not None:
            bundle = options.against_bundle or options.bundle
            workers.append(Worker(options.against, bundle, folder / "before"))
        results = []
        for cell in cells:
            results.append(measured(cell, workers, videos[cell.source], options))
            print(f"{cell}: {results[-1][-1]}", file=sys.stderr, flush=True)
        for worker in workers:
            worker.close()
    print("\n".join(table(header(len(workers)), [row for *_, row in results])))
    print(json.dumps([{**asdict(c), "runs": r} for c, (r, _) in zip(cells, results, strict=True)]))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--against-bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--cells", default="", metavar="REGEX")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def sample(folder: Path, source: tuple[int, int], frames: int) -> Path:
    """A generated video of so many frames."""
    path = folder / f"{source[0]}.mp4"
    write_sample_video(
        path, width=source[1], height=source[0], seconds=-(-frames // 25), audio=False
    )
    return path


def measured(
    cell: Cell, workers: list[Worker], video: Path, options: argparse.Namespace
) -> tuple[list[list[dict[str, float]]], list[str]]:
    """Runs of each worker, in turn and with the order reversed in every other round; the row."""
    runs: list[list[dict[str, float]]] = [[] for _ in workers]
    for worker in workers:  # the first run of a size fills caches
        worker.run(cell, video, min(10, options.frames))
    for number in range(options.rounds):
        pairs = list(zip(workers, runs, strict=True))
        for worker, found in pairs[:: -1 if number % 2 else 1]:
            found.append(worker.run(cell, video, options.frames))
    return runs, [str(cell), *figures(runs, options.frames)]


def figures(runs: list[list[dict[str, float]]], frames: int) -> list[str]:
    """Frames a second and processor time, before and now, and how many times as fast it is."""
    seconds = [[run["seconds"] for run in found] for found in runs]
    used = [[run["cpu_seconds"] for run in found] for found in runs]
    row = [f"{frames / median(found):.0f}" for found in reversed(seconds)]
    row += [f"{1e3 * median(found) / frames:.1f}" for found in reversed(used)]
    if len(runs) == 2 and len(seconds[0]) > 1:
        row += [str(ratio_of_pairs(seconds[1], seconds[0])), str(ratio_of_pairs(used[1], used[0]))]
    return row


def header(workers: int) -> list[str]:
    """Of the table."""
    if workers == 1:
        return ["run", "FPS", "CPU ms a frame"]
    return [
        "run",
        *("FPS before", "now"),
        *("CPU ms a frame before", "now"),
        *("times as fast", "times less CPU"),
    ]


if __name__ == "__main__":
    main()
