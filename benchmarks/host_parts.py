"""What each part of the host costs alone: the pipeline over a backend that answers at once.

    python benchmarks/host_parts.py BUNDLE [--source HxW] [--frames 200] [--mode stream]
        [--instances 10] [--classes 40] [--lengths 100 300 1000]

See ``instant.py`` for what the backend answers. Every part of a frame's time but the
graphs is what it would be with a device that takes no time: the most frames a second that this host
can serve. Inside the timed region is a frame from the encoded video to the encoded overlay, as in
`openvis bench`; the second table is ``finish``, in video mode, after so many frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from instant import Instant
from variants import size

from openvis_rt import Pipeline, Selection
from openvis_rt.bench.contenders import Contender
from openvis_rt.bench.markdown import table
from openvis_rt.bench.parts import HOST
from openvis_rt.bench.player import Player, Run, Window, vocabulary_of
from openvis_rt.bench.statistics import latency_of
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.video.generated import write_sample_video


def main() -> None:
    """Print both tables and, as the last line, JSON."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        height, width = options.source
        write_sample_video(video, width=width, height=height, seconds=2, audio=False)
        windows = measured(options, video, Path(folder))
    print("\n".join(part_table(windows)))
    print()
    ends = [(length, finishing(options, length)) for length in options.lengths]
    rows = [[str(length), f"{seconds * 1e3:.1f}"] for length, seconds in ends]
    print("\n".join(table(["frames of the video", "finish, ms"], rows)))
    parts = {p: [w.parts.get(p, 0.0) for w in windows] for p in HOST}
    print(json.dumps({"parts": parts, "finish": ends}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--source", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--mode", choices=["stream", "video"], default="stream")
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--lengths", nargs="*", type=int, default=[100, 300, 1000])
    return parser.parse_args()


def measured(options: argparse.Namespace, video: Path, folder: Path) -> list[Window]:
    """Windows of a player over the instant backend."""
    selection = Selection(threshold=0.0, limit=options.instances)
    run = Run(str(video), folder, options.mode, selection, options.classes)
    player = Player(Contender(options.bundle, "instant"), run, backend=Instant())
    length = player.facts()["window_length"]
    player.turn(10)
    windows = player.turn(max(1, options.frames // length)).windows
    player.close()
    return list(windows)


def part_table(windows: list[Window]) -> list[str]:
    """Milliseconds a window of each part, and of all of them."""
    rows = []
    for part in (*HOST, "all"):
        seconds = [
            sum(w.parts.get(p, 0.0) for p in (HOST if part == "all" else (part,))) for w in windows
        ]
        found = latency_of(seconds)
        values = (found.mean, found.p50, found.p90, found.p99)
        rows.append([part.replace("_", " "), *(f"{value * 1e3:.3f}" for value in values)])
    return table(["part", "mean ms a window", "p50", "p90", "p99"], rows)


def finishing(options: argparse.Namespace, frames: int) -> float:
    """Seconds of ``finish`` after a video of so many frames."""
    bundle = Bundle.open(options.bundle)
    names, classifier = vocabulary_of(bundle, options.classes)
    image = np.full((*options.source, 3), 127, np.uint8)
    with Pipeline.open(
        bundle, vocabulary=names, classifier=classifier, backend=Instant(), mode="video"
    ) as pipeline:
        for _ in pipeline.stream(image for _ in range(frames)):
            pass
        begin = time.perf_counter()
        pipeline.finish()
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
