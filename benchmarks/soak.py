"""Memory, descriptors and threads of a process that goes on for long; they must be flat.

    python benchmarks/soak.py BUNDLE [--frames 10000] [--cycles 200] [--dropped 30]

    stream   frames of a live source's kind through one pipeline; every 10 frames other names, eight
             that it has never met or some that it knows, by turns
    opened   pipelines that are opened, see a frame and are closed, one after the other
    dropped  pipelines that are opened and left to the garbage collector without a close

A line is printed at every tenth of the way: resident memory in MB, what of it is left when glibc
has given its free pages back (malloc_trim), open descriptors, threads. The first tenth warms up
(libraries, allocator, text cache); the last line of each part gives the growth from there to the
end.

Where the memory of ``opened`` is (clip-vis-mini, 200 cycles, trimmed at every tenth): resident
memory is 238.5 MB after 40 cycles and 237.9 MB after 200, of which about 60 MB are pages that glibc
keeps free for the next sessions. Without them 173.4 MB after 40 cycles become 177.6 MB after 200,
and the growth slows: 44 kB a cycle from 40 to 60, 15 kB from 180 to 200. Bare sessions of ONNX
Runtime on the same graphs, which never run, go from 147.0 to 147.5 MB: 3 kB a cycle. What the
difference is made of has not been found.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from openvis_rt import Bundle, Pipeline
from openvis_rt.runtime.video.generated import sample_frames

NAMES = ["ring", "star", "disc", "box", "triangle", "cross", "heart", "moon", "arrow", "cat"]


def state() -> tuple[float, int, int]:
    """Resident MB, descriptors and threads of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = (sum(1 for _ in Path("/proc/self", n).iterdir()) for n in ("fd", "task"))
    return pages * resource.getpagesize() / 1e6, files, threads


def trimmed() -> float:
    """Resident MB after the C library gave its free pages back, where it can (glibc)."""
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)
    return state()[0]


def watched(part: str, steps: int, step: Callable[[int], None]) -> dict[str, float]:
    """Do the steps, print ten states, and give the growth after the first tenth."""
    seen, kept = [], []
    for index in range(steps):
        step(index)
        if (index + 1) % max(1, steps // 10) == 0:
            gc.collect()
            seen.append(state())
            kept.append(trimmed())
            megabytes = f"{seen[-1][0]:8.1f} MB, {kept[-1]:.1f} trimmed"
            print(f"{part:8s} {index + 1:6d} {megabytes} {seen[-1][1:]}", flush=True)
    growth = [after - before for before, after in zip(seen[0], seen[-1], strict=True)]
    used = kept[-1] - kept[0]
    print(
        f"{part:8s} grew by {growth[0]:.2f} MB ({used:.2f} trimmed), {growth[1]} descriptors, "
        f"{growth[2]} threads"
    )
    names = ("mb", "descriptors", "threads")
    return {**dict(zip(names, growth, strict=True)), "trimmed_mb": used}


def streamed(bundle: Bundle, pictures: list[np.ndarray], frames: int) -> dict[str, float]:
    """One pipeline, many frames, other names every 10: new ones and known ones by turns."""
    with Pipeline.open(
        bundle, vocabulary=NAMES[:2], mode="stream", backend="onnxruntime"
    ) as pipeline:
        results: Iterator[object] = pipeline.stream(islice(cycle(pictures), frames), in_flight=1)

        def step(index: int) -> None:
            change, within = divmod(index, 10)
            if within == 0 and change % 2:
                pipeline.set_vocabulary([f"{name} {change}" for name in NAMES[:8]])
            elif within == 0:
                first = change % len(NAMES)
                pipeline.set_vocabulary([*NAMES, *NAMES][first : first + 1 + change % 5])
            next(results)

        return watched("stream", frames, step)


def main() -> None:
    """Print the states and, as the last line, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--frames", type=int, default=10000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--dropped", type=int, default=30)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    pictures = [picture for picture, _ in sample_frames(width=160, height=96, seconds=1)]

    def open_close(_: int) -> None:
        with Pipeline.open(
            bundle, vocabulary=NAMES[:2], mode="stream", backend="onnxruntime"
        ) as pipeline:
            next(iter(pipeline.stream(pictures[:1])))

    def drop(_: int) -> None:
        Pipeline.open(bundle, vocabulary=NAMES[:2], mode="stream", backend="onnxruntime")

    found = {
        "opened": watched("opened", options.cycles, open_close),
        "dropped": watched("dropped", options.dropped, drop),
        "stream": streamed(bundle, pictures, options.frames),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
