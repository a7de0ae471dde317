"""Memory of a whole run, frame by frame, in both modes; of models of windows also the delay.

    python benchmarks/memory.py BUNDLE [--lengths 100 1000] [--pace FPS]

For each mode a process of its own runs a generated video with everything that `openvis run` does,
and notes its resident memory as frames go by. Loading the graphs takes the most for a moment, so a
peak says nothing of growth: the figures are the resident memory after each of the lengths, and the
slope from the first to the last. Streaming must be flat; in video mode the slope is what a frame
costs.

A model that looks at windows of T frames gives a frame's result when the window's last frame is
there. Of these models, in the same run in streaming mode:

    frames     that were taken from the source after a frame, when its result has come and is drawn
    a window     seconds from the taking of a window's last frame to its first result: the graphs,
               association and masks, with no decoding, drawing or encoding

A backend that keeps two windows in flight gives a file's results a window later, and both tell so.

And in a third process a source that gives its first 200 frames at ``--pace`` frames a second, as a
camera does, straight to `Pipeline.stream` with one window in flight; decoded before, and nothing is
drawn or written. Inside the timed region of a frame: from the moment at which it is due, whether
or not the pipeline is free to take it, to its result; in intervals of the source. Without
computing it would be T - 1 of them for a window's first frame and 0 for its last. Where a window
takes longer than T intervals, the wait would grow without end: then that is said in its place.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.pipeline import Mode
from openvis_rt.runtime.run import RunOptions, run_video
from openvis_rt.runtime.video.generated import SAMPLE_CLASSES, sample_frames, write_sample_video

WIDTH, HEIGHT, FPS = 640, 360, 10  # of the generated video
PACED = 200  # frames of the paced source
DISTINCT = 40  # of them; then they come again


class Watched(Pipeline):
    """A pipeline that notes when it takes a frame, and when it gives a result.

    Attributes:
        taken, given: seconds of a clock, a frame.
    """

    taken: list[float]
    given: list[float]

    def stream(self, frames: Any, **options: Any) -> Iterator[Any]:
        """See :meth:`Pipeline.stream`."""
        self.taken, self.given = [], []
        for result in super().stream(self._noted(frames), **options):
            self.given.append(time.perf_counter())
            yield result

    def _noted(self, frames: Any) -> Iterator[Any]:
        for frame in frames:
            self.taken.append(time.perf_counter())
            yield frame


def resident() -> float:
    """Resident memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def vocabulary_of(bundle: Bundle) -> tuple[str, ...]:
    """The generated video's classes, or as many names as a closed vocabulary has."""
    spec = bundle.graph("classify").spec
    if any(t.name == "text_embeddings" for t in spec.inputs):
        return SAMPLE_CLASSES
    scores = next(t for t in spec.outputs if t.name == "class_scores")
    return tuple(f"class {index}" for index in range(int(scores.shape[-1]) - 1))


def opened(bundle: Path, mode: Mode) -> Watched:
    """A bundle's pipeline."""
    whole = Bundle.open(bundle)
    return Watched.open(whole, vocabulary=vocabulary_of(whole), mode=mode)


def measure(
    bundle: Path, video: Path, mode: Mode, lengths: list[int]
) -> tuple[dict[int, float], dict[str, float]]:
    """Run a video.

    Returns:
        resident memory in MB after each of the lengths; and of a model of windows what its results
        waited for.
    """
    found: dict[int, float] = {}
    waited: list[int] = []

    def note(phase: str, done: int, _total: int | None) -> None:
        if phase == "segmenting":
            waited.append(len(pipeline.taken) - done)
            if done in lengths:
                found[done] = resident()

    with (
        tempfile.TemporaryDirectory() as work,
        opened(bundle, mode) as pipeline,
    ):
        run_video(pipeline, str(video), Path(work) / "out", RunOptions(), note)
        length = pipeline.window_length
        windows = [
            pipeline.given[start] - pipeline.taken[min(start + length, len(waited)) - 1]
            for start in range(0, len(waited), length)
        ]
    if length == 1:
        return found, {}
    return found, {
        "window_length": length,
        "frames_largest": max(waited),
        "frames_mean": mean(waited),
        "window_seconds": median(windows),
    }


def measure_paced(bundle: Path, frames: int, pace: float) -> dict[str, Any]:
    """Waiting times of a paced source's frames, in its intervals."""
    distinct = [f for f, _ in sample_frames(width=WIDTH, height=HEIGHT, seconds=DISTINCT / 25)]
    due: list[float] = []
    waited: list[float] = []

    def source() -> Iterator[np.ndarray]:
        begin = time.perf_counter()
        for index, image in enumerate(islice(cycle(distinct), frames)):
            due.append(begin + index / pace)
            time.sleep(max(0.0, due[-1] - time.perf_counter()))
            yield image

    with opened(bundle, "stream") as pipeline:
        length = pipeline.window_length
        for _ in pipeline.stream(islice(cycle(distinct), 2 * length), in_flight=1):
            pass  # warm
        pipeline.reset()
        for result in pipeline.stream(source(), in_flight=1):
            waited.append((time.perf_counter() - due[result.index]) * pace)
    return {
        "pace": pace,
        "frames": frames,
        "intervals_largest": max(waited),
        "intervals_mean": mean(waited),
        "intervals_by_place": [median(waited[place::length]) for place in range(length)],
    }


def in_process(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def report_delay(bundle: Path, delay: dict[str, Any], frames: int, pace: float) -> None:
    """Print what a model of windows lets its results wait for, and add the paced source's to it."""
    length, seconds = delay["window_length"], delay["window_seconds"]
    print(
        f"delay   windows of {length}: {delay['frames_largest']} frames at most, "
        f"{delay['frames_mean']:.2f} in the mean; a window takes {seconds:.3f} s",
        flush=True,
    )
    if seconds * pace > length:
        print(
            f"paced   not run: at {pace:g} frames a second a window comes every "
            f"{length / pace:.3f} s"
        )
        return
    delay["paced"] = paced = in_process(measure_paced, bundle, frames, pace)
    places = " ".join(f"{value:.2f}" for value in paced["intervals_by_place"])
    print(
        f"paced   {frames} frames at {pace:g} a second: {paced['intervals_largest']:.2f} intervals "
        f"at most, {paced['intervals_mean']:.2f} in the mean; by place in the window {places}",
        flush=True,
    )


def main() -> None:
    """Print a table and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000], metavar="FRAMES")
    parser.add_argument(
        "--pace", type=float, default=FPS, metavar="FPS", help="of models of windows; default: 10"
    )
    options = parser.parse_args()
    first, last = min(options.lengths), max(options.lengths)
    everything = {}
    delay: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        video = Path(work) / "video.mp4"
        write_sample_video(video, width=WIDTH, height=HEIGHT, fps=FPS, seconds=last / FPS)
        for mode in ("stream", "video"):
            found, waited = in_process(measure, options.bundle, video, mode, options.lengths)
            listing = [f"{n} frames {mb:.1f} MB" for n, mb in found.items()]
            if last > first:
                slope = (found[last] - found[first]) / (last - first) * 1000
                listing.append(f"{slope:.1f} KB a frame")
            print(f"{mode:7s} {'   '.join(listing)}", flush=True)
            everything[mode] = found
            delay = delay or waited
    if delay:
        report_delay(options.bundle, delay, min(last, PACED), options.pace)
        everything["delay"] = delay
    print(json.dumps(everything))


if __name__ == "__main__":
    main()
