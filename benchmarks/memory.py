"""Memory of a whole run, frame by frame, in both modes.

    python benchmarks/memory.py BUNDLE [--lengths 100 1000]

For each mode a process of its own runs a generated video with everything that `openvis run` does,
and notes its resident memory as frames go by. Loading the graphs takes the most for a moment, so a
peak says nothing of growth: the figures are the resident memory after each of the lengths, and the
slope from the first to the last. Streaming must be flat; in video mode the slope is what a frame
costs. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from pathlib import Path

from openvis_rt import Pipeline
from openvis_rt.runtime.pipeline import Mode
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.sample_video import SAMPLE_CLASSES, write_sample_video


def resident() -> float:
    """Resident memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(bundle: Path, video: Path, mode: Mode, lengths: list[int]) -> dict[int, float]:
    """Resident memory in MB after each of the lengths, while a video is run."""
    found: dict[int, float] = {}

    def note(phase: str, done: int, _total: int | None) -> None:
        if phase == "segmenting" and done in lengths:
            found[done] = resident()

    with (
        tempfile.TemporaryDirectory() as work,
        Pipeline.open(bundle, vocabulary=SAMPLE_CLASSES, mode=mode) as pipeline,
    ):
        run_video(pipeline, str(video), Path(work) / "out", RunOptions(), note)
    return found


def main() -> None:
    """Print a table and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000], metavar="FRAMES")
    options = parser.parse_args()
    first, last = min(options.lengths), max(options.lengths)
    everything = {}
    with tempfile.TemporaryDirectory() as work:
        video = Path(work) / "video.mp4"
        write_sample_video(video, width=640, height=360, fps=10, seconds=last / 10)
        for mode in ("stream", "video"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measure, (options.bundle, video, mode, options.lengths))
            slope = (found[last] - found[first]) / (last - first) * 1000
            listing = "   ".join(f"{n} frames {mb:.1f} MB" for n, mb in found.items())
            print(f"{mode:7s} {listing}   {slope:.1f} KB a frame", flush=True)
            everything[mode] = found
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
