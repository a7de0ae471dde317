"""Peak memory of `openvis run` over videos of different lengths, in both modes.

    python benchmarks/memory.py BUNDLE [--lengths 100 1000]

Each run is a process of its own; its peak resident memory is the kernel's figure (`ru_maxrss`).
Streaming must be flat; video mode keeps run-length masks and sums, and the slope is its cost for
one frame. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from openvis_rt.runtime.sample_video import SAMPLE_CLASSES, write_sample_video


def peak_of(command: list[str]) -> float:
    """Peak resident memory of a process in MB; its own output goes to stderr."""
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, 2, 1),
        ],
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with status {status}")
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def main() -> None:
    """Print a table and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lengths", type=int, nargs=2, default=(100, 1000), metavar="FRAMES")
    parser.add_argument("--threshold", default="0.3")
    options = parser.parse_args()
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for length in options.lengths:
            video = Path(work) / f"{length}.mp4"
            write_sample_video(video, width=640, height=360, fps=10, seconds=length / 10)
            for mode in ("stream", "video"):
                command = [sys.executable, "-m", "openvis_rt.cli.main", "run", str(options.bundle)]
                command += [str(video), "-o", f"{work}/{mode}-{length}", "--mode", mode]
                command += ["--threshold", options.threshold]
                for name in SAMPLE_CLASSES:
                    command += ["-c", name]
                peaks.setdefault(mode, []).append(peak_of(command))
    short, long = options.lengths
    for mode, (first, second) in peaks.items():
        slope = (second - first) / (long - short) * 1024
        print(
            f"{mode:7s} {short} frames {first:7.1f} MB   {long} frames {second:7.1f} MB   "
            f"{slope:6.1f} KB a frame"
        )
    print(json.dumps(peaks))


if __name__ == "__main__":
    main()
