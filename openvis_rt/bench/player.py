"""One contender with its pipeline, its video and its overlay: it runs windows and times the parts.

Inside the timed region of a window, from the first to the last of :data:`.parts.PARTS`: decoding
its frames in this thread, everything that ``Pipeline.stream`` does with one window in flight,
drawing, and encoding. Outside: opening the video again at its end, and everything between windows.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bench.contenders import Contender, backend_of
from openvis_rt.bench.parts import PARTS
from openvis_rt.bench.timed_backend import TimedBackend
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError
from openvis_rt.runtime.backends.base import Array, Backend
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.options import Selection, TrackingOptions
from openvis_rt.runtime.pipeline import Mode, Pipeline
from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import Frame, VideoSource, open_video
from openvis_rt.runtime.video.results import FrameResult

__all__ = ["Player", "Playing", "Run", "Spent", "Window", "vocabulary_of"]

Image8 = npt.NDArray[np.uint8]
Warn = Callable[[str], None]

_STAGES = {  # counters of the pipeline by part
    "place": "place_seconds",
    "recurrence": "recurrence_seconds",
    "scores": "scores_seconds",
    "run_lengths": "masks_seconds",
}


@dataclass(frozen=True)
class Run:
    """What every contender does alike.

    Attributes:
        video: read again from its beginning when it ends.
        overlay: folder for the drawn video, which is thrown away; None to draw and write nothing.
        mode: ``video`` keeps run lengths of every query that has a pixel; ``stream`` makes them of
            shown instances only.
        selection: what is shown of a frame.
        classes: rows of the text classifier, random and the same for the same number.
        window_length: frames of a window, at most the bundle's; None for those.
    """

    video: str
    overlay: Path | None
    mode: Mode = "stream"
    selection: Selection = field(default_factory=lambda: Selection(threshold=0.0, limit=10))
    classes: int = 40
    window_length: int | None = None


@dataclass(frozen=True)
class Window:
    """One window, or one frame of models that work frame by frame.

    Attributes:
        frames: how many.
        seconds: of all parts together, by one clock around them.
        parts: seconds of each.
        graphs: seconds of each graph, by the device's own clock where it has one.
    """

    frames: int
    seconds: float
    parts: dict[str, float]
    graphs: dict[str, float]


@dataclass(frozen=True)
class Spent:
    """What a turn took besides its windows.

    Attributes:
        windows: in order.
        cpu_seconds: of this process, all threads together.
        counters: bytes over the bus and seconds on the device that the backend counted.
    """

    windows: tuple[Window, ...]
    cpu_seconds: float
    counters: dict[str, float]


class Playing(Protocol):
    """A :class:`Player`, here or in a process of its own."""

    def facts(self) -> dict[str, Any]:
        """Device, names, sizes, seconds of opening."""

    def outputs(self, windows: int) -> tuple[list[dict[str, Array]], list[FrameResult]]:
        """What the first windows of the video give; nothing is timed."""

    def turn(self, windows: int) -> Spent:
        """Run the next windows."""

    def flow(self, windows: int) -> float:
        """Seconds of so many windows, with as many in flight as the backend keeps."""

    def peak_bytes(self) -> int:
        """The most resident memory of the process so far."""

    def close(self) -> None:
        """Give everything back."""


class Player:
    """See the module.

    Args:
        contender: who.
        run: what.
        warn: told what the backend and the pipeline warn of.
        backend: in place of the contender's own; it is closed with the player.
    """

    def __init__(
        self,
        contender: Contender,
        run: Run,
        warn: Warn = lambda _: None,
        backend: Backend | None = None,
    ) -> None:
        begin = perf_counter()
        self._run, self._stack = run, ExitStack()
        bundle = Bundle.open(contender.bundle, sha256=contender.sha256)
        words, classifier = vocabulary_of(bundle, run.classes)
        self._backend = TimedBackend(backend or backend_of(contender, bundle, warn))
        with ExitStack() as stack:
            stack.enter_context(
                pipeline := Pipeline.open(
                    bundle,
                    vocabulary=words,
                    classifier=classifier,
                    backend=self._backend,
                    precision=contender.precision,
                    mode=run.mode,
                    selection=run.selection,
                    tracking=TrackingOptions(window_length=run.window_length),
                    warn=warn,
                )
            )
            self._pipeline = pipeline
            self._video = _Loop(run.video, pipeline.reset)
            stack.callback(self._video.close)
            self._writer: OverlayWriter | None = None
            if run.overlay is not None:
                source = self._video.source
                path = run.overlay / f"overlay-{id(self)}.mp4"
                self._writer = stack.enter_context(
                    OverlayWriter(path, source.width, source.height, source.fps)
                )
            self._stack = stack.pop_all()
        self._drawer, self._drawn = Drawer(), 0
        self._seconds_to_open = perf_counter() - begin

    def facts(self) -> dict[str, Any]:
        """See :class:`Playing`."""
        source = self._video.source
        return {
            "backend": self._backend.name,
            "device": self._backend.device,
            "slots": self._backend.slots,
            "window_length": self._pipeline.window_length,
            "source_size": [source.height, source.width],
            "open_seconds": self._seconds_to_open,
        }

    def outputs(self, windows: int) -> tuple[list[dict[str, Array]], list[FrameResult]]:
        """See :class:`Playing`; then the video begins anew.

        Returns:
            for each window what the host fetches of the graphs, by name; and every frame's result.
        """
        self._video.rewind()
        self._backend.recording = True
        fetched, results = [], []
        for _ in range(windows):
            frames = self._video.take(self._pipeline.window_length)
            results += list(self._pipeline.stream(frames, in_flight=1))
            fetched.append({k: v for k, v in self._backend.fetched.items() if k != "masks"})
            self._backend.fetched = {}
        self._backend.recording = False
        self._video.rewind()
        return fetched, results

    def turn(self, windows: int) -> Spent:
        """See :class:`Playing`."""
        before, cpu = self._backend.counters(), _cpu_seconds()
        done = tuple(self._window() for _ in range(windows))
        after = self._backend.counters()
        counted = {name: after[name] - before.get(name, 0.0) for name in after}
        return Spent(done, _cpu_seconds() - cpu, counted)

    def flow(self, windows: int) -> float:
        """See :class:`Playing`. The frames are in memory, and nothing is drawn."""
        frames = [
            frame
            for _ in range(windows)
            for frame in self._video.take(self._pipeline.window_length)
        ]
        begin = perf_counter()
        for _ in self._pipeline.stream(frames):
            pass
        return perf_counter() - begin

    def peak_bytes(self) -> int:
        """See :class:`Playing`."""
        return peak_resident()

    def close(self) -> None:
        """See :class:`Playing`. The overlay's file is left to whoever made its folder."""
        if self._writer is not None and not self._drawn:  # it refuses a video of no frame
            self._write([frame.image for frame in self._video.take(1)])
        self._stack.close()

    def _window(self) -> Window:
        self._video.make_sure(self._pipeline.window_length)
        before, begin = self._state(), perf_counter()
        frames = self._video.take(self._pipeline.window_length)
        decoded = perf_counter()
        results = list(self._pipeline.stream(frames, in_flight=1))
        segmented = perf_counter()
        drawn = self._draw(frames, results)
        overlaid = perf_counter()
        self._write(drawn)
        end = perf_counter()
        after = self._state()
        parts = {part: after[0][part] - before[0][part] for part in before[0]}
        parts |= {"decode": decoded - begin, "overlay": overlaid - segmented}
        parts["encode"] = end - overlaid
        if self._writer is None:
            parts |= {"overlay": 0.0, "encode": 0.0}
        parts["other"] = end - begin - sum(parts.values())
        graphs = {graph: after[1][graph] - before[1][graph] for graph in after[1]}
        ordered = {part: parts[part] for part in PARTS if part in parts}
        return Window(len(frames), end - begin, ordered, graphs)

    def _state(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds so far by part, as far as they are counted, and by graph."""
        counted = self._pipeline.counters()
        parts = {part: counted[name] for part, name in _STAGES.items()}
        parts["association"] = counted["associate_seconds"] - counted["recurrence_seconds"]
        return {**parts, **self._backend.seconds()}, self._backend.graph_seconds()

    def _draw(self, frames: list[Frame], results: list[FrameResult]) -> list[Image8]:
        if self._writer is None:
            return []
        pairs = zip(frames, results, strict=True)
        return [self._drawer.draw(frame.image, result) for frame, result in pairs]

    def _write(self, images: list[Image8]) -> None:
        for image in images:
            if self._writer is not None:
                self._writer.write(image)
                self._drawn += 1


class _Loop:
    """A video that begins anew when it ends; a window never reaches over its end."""

    def __init__(self, path: str, restarted: Callable[[], None]) -> None:
        self._path, self._restarted = path, restarted
        self.source = self._open()

    def make_sure(self, count: int) -> None:
        """Begin anew now if fewer frames than these are left, as far as the container tells."""
        total = self.source.frame_count
        if total is not None and self._given + count > total:
            self.rewind()

    def take(self, count: int) -> list[Frame]:
        """The next frames; from the beginning again if fewer are left."""
        frames = [frame for _, frame in zip(range(count), self.source, strict=False)]
        self._given += len(frames)
        if len(frames) == count:
            return frames
        if self._given < count:
            raise InputError(
                f"{self._path} has {self._given} frames, and a window takes {count}; give a "
                "longer video"
            )
        self.rewind()
        return self.take(count)

    def rewind(self) -> None:
        """Begin anew: for the pipeline it is another video."""
        self.source.close()
        self.source = self._open()
        self._restarted()

    def close(self) -> None:
        """Close the video."""
        self.source.close()

    def _open(self) -> VideoSource:
        self._given = 0
        return open_video(self._path, ahead=False)


def vocabulary_of(bundle: Bundle, classes: int) -> tuple[tuple[str, ...], Classifier | None]:
    """Names, and random rows for them; of a closed vocabulary as many names as it has.

    Returns:
        the names; and a classifier of float32 [classes, D] unit rows, the same for the same
        number, or None where the vocabulary is closed.
    """
    spec = bundle.graph("classify", next(iter(bundle.manifest.graphs))).spec
    width = next((t.shape[-1] for t in spec.inputs if t.name == "text_embeddings"), None)
    if width is None:
        scores = next(t for t in spec.outputs if t.name == "class_scores")
        return _names(int(scores.shape[-1]) - 1), None
    rows = np.random.default_rng(0).standard_normal((classes, int(width)), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return _names(classes), Classifier(_names(classes), [1] * classes, rows)


def peak_resident() -> int:
    """Bytes; by the kernel's high-water mark where it tells, which begins anew with a program."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
