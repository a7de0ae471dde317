"""What the host costs alone: the pipeline over a backend that answers at once.

    python benchmarks/host.py BUNDLE [--source HxW] [--frames 200] [--mode stream]
        [--instances 10] [--classes 40] [--lengths 100 300 1000]

The backend answers with what it made when it was opened: queries that stay themselves, scores, and
masks that are discs of many sizes, at the source's size. So every part of a frame's time but the
graphs is what it would be with a device that takes no time: the most frames a second that this host
can serve. Inside the timed region is a frame from the encoded video to the encoded overlay, as in
`openvis bench`; the second table is ``finish``, in video mode, after so many frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from variants import size

from openvis_rt import Pipeline, Selection
from openvis_rt.bench.contenders import Contender
from openvis_rt.bench.markdown import table
from openvis_rt.bench.parts import HOST
from openvis_rt.bench.player import Player, Run, Window, vocabulary_of
from openvis_rt.bench.statistics import latency_of
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Array, Session, check_shape
from openvis_rt.runtime.video.generated import write_sample_video
from openvis_rt.systems.graphs import GraphSpec, TensorSpec


class Instant:
    """A backend whose graphs take no time."""

    name, device, slots = "instant", "nowhere", 1

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every bundle."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> InstantSession:
        """One graph's answers."""
        return InstantSession(bundle.graph(graph, precision).spec)

    def counters(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing."""


class InstantSession:
    """Keeps what it answered for each set of sizes."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self._sizes: dict[str, int] = {"T": 1}
        self._views: dict[str, Array] = {}
        self._sources: list[InstantSession] = []
        self._answers: dict[tuple[Any, ...], Array] = {}

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Memory of the input."""
        dtype = check_shape(self.spec, name, shape)
        if name not in self._views or self._views[name].shape != shape:
            self._views[name] = np.zeros(shape, dtype)
        tensor = next(t for t in self.spec.inputs if t.name == name)
        self._note(tensor, shape)
        return self._views[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Keep the sizes."""
        if name == "frame_size":
            self._sizes |= {"Hs": int(value[0]), "Wb": -(-int(value[1]) // 8)}
        for tensor in self.spec.inputs:
            if tensor.name == name:
                self._note(tensor, value.shape)

    def bind(self, name: str, source: Session, output: str) -> None:
        """Take the sizes of what is read."""
        assert isinstance(source, InstantSession)
        self._sources.append(source)

    def run(self, slot: int = 0) -> None:
        """At once."""

    def fetch(self, name: str, slot: int = 0) -> Array:
        """A copy, as every backend's."""
        sizes = dict(self._sizes)
        for source in self._sources:
            sizes |= source._sizes
        tensor = next(t for t in self.spec.outputs if t.name == name)
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        if (name, shape) not in self._answers:
            self._answers[name, shape] = answer(tensor, shape)
        return self._answers[name, shape].copy()

    def close(self) -> None:
        """Forget the answers."""
        self._answers.clear()

    def _note(self, tensor: TensorSpec, shape: tuple[int, ...]) -> None:
        self._sizes |= {
            d: n for d, n in zip(tensor.shape, shape, strict=True) if isinstance(d, str)
        }


def answer(tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Seeded values of an output; masks are discs, areas are above 0."""
    rng = np.random.default_rng(0)
    if tensor.name == "masks":
        return np.packbits(discs(rng, (*shape[:-1], 8 * shape[-1])), axis=-1)
    if tensor.name in ("mask_area", "mask_mass"):
        return np.full(shape, 100, tensor.dtype)
    if tensor.name == "mask_iou":
        return np.full(shape, 0.8, tensor.dtype)
    if tensor.name == "object_logits":  # class 0 is an object, class 1 is none
        return np.tile(np.array([2, -2], tensor.dtype), (*shape[:-1], 1))
    values = rng.standard_normal(shape, np.float32)
    if tensor.name == "class_scores" and tensor.doc.startswith("softmax"):
        values = softmax(values, axis=-1)
    return values.astype(tensor.dtype)


def discs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """uint8 [n, T, Hs, Ws] of discs, a twelfth to a third of the height in radius."""
    count, length, height, width = shape
    y, x = np.ogrid[:height, :width]
    out = np.zeros(shape, np.uint8)
    for mask in out.reshape(count * length, height, width):
        centre, radius = rng.random(2), height * rng.uniform(1 / 12, 1 / 3)
        inside = (y - centre[0] * height) ** 2 + (x - centre[1] * width) ** 2 < radius**2
        mask[inside] = 1
    return out


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
