"""What the script about the miniatures runs: data sets, backends, AP of many settings at once.

A data set is videos of the generated world, written once. Each video is read once and goes through
the pipelines of all settings in turn, so that a network that several of them share computes it once
(:class:`Remembered`), and every difference between settings is one over the same videos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import onnx
from torch import Tensor, nn

from openvis_rt.bench.statistics import ratio_of_pairs
from openvis_rt.bench.timed_backend import TimedBackend
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import Loaded, load_model
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.annotations import Annotations
from openvis_rt.evaluation.metrics import evaluate
from openvis_rt.evaluation.report import Report
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.evaluation.splits import read_split
from openvis_rt.evaluation.vocabularies import vocabulary_for
from openvis_rt.export.bundle import export_bundle
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.models.network import Network
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from openvis_rt.runtime.options import TrackingOptions
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import FrameResult, VideoResult
from openvis_rt.systems.graphs import PRECISIONS
from openvis_rt.training.world import Split, World, write_dataset
from openvis_rt.training.world_files import ANNOTATIONS, IMAGES, SPLIT

SIZE = (128, 224)  # of the world's frames, and of the networks'
MEASURES = ("AP", "AP50", "AP75", "AR10")
GROUPS = ("all", "base", "novel")
ONE_CLASS = "one class"

Figures = dict[str, dict[str, float | None]]
"""For each of GROUPS, and for all classes taken for one, each of MEASURES in percent."""
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class DataSet:
    """Videos of a world, annotated, and which categories are base and novel."""

    videos: Path
    annotations: Annotations
    groups: dict[str, frozenset[int]]


def data_set(folder: Path, split: Split, seed: int, videos: int, progress: Progress) -> DataSet:
    """The first videos of a world, from the folder where they were written, or written now."""
    place = folder / f"{split}-{seed}-{videos}"
    if not place.exists():
        world = World(split, SIZE, seed=seed)
        write_dataset(
            place,
            split,
            (world[index] for index in range(videos)),
            progress=lambda done: progress(f"generating {place.name}", done, videos),
        )
    annotations = read_annotations(place / ANNOTATIONS)
    return DataSet(place / IMAGES, annotations, read_split(place / SPLIT, annotations))


def exported(model: Network, folder: Path, facts: dict[str, Any]) -> Bundle:
    """The bundle of a model in FP32 and FP16, from the folder where it was written, or made now.

    Args:
        model: to export.
        folder: of the bundle; its name says which weights it is of.
        facts: of the weights, for the manifest.
    """
    if folder.exists():
        return Bundle.open(folder)
    return export_bundle(
        model, folder, network_size=SIZE, precisions=PRECISIONS, checkpoint=facts
    ).bundle


def shipped(name: str) -> tuple[Loaded, str]:
    """A miniature with the weights that come with the package, and what tells them from others."""
    loaded = load_model(name)
    parts = (loaded.facts, loaded.facts.get("clip", {}))
    return loaded, "+".join(str(part["sha256"])[:12] for part in parts if "sha256" in part)


class Fp16Emulation(OnnxRuntime):
    """ONNX Runtime with graphs of FP16, and of INT8 and FP16, as their FP16 emulations."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp16",
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> OnnxRuntimeSession:
        """See :class:`~openvis_rt.runtime.backends.base.Backend`."""
        half = bundle.graph(graph, precision).precision in ("fp16", "int8")
        if not half:  # `masks` is FP32 in each precision
            return super().open(bundle, graph, precision)
        path, spec = bundle.graph_path(graph, precision), bundle.graph(graph, precision).spec
        data = fp16_emulation(onnx.load(path)).SerializeToString()
        return OnnxRuntimeSession(graph, spec, "cpu", self._threads, data, made_here=True)


class Remembered:
    """A function of a tensor that computes each value once, until it is told to forget."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self._function = function
        self._known: dict[bytes, Any] = {}

    def __call__(self, frames: Tensor) -> Any:  # by the name that graphs give it by
        """What the function gives; nobody may change it in place."""
        head = f"{frames.shape}{frames.dtype}".encode()
        key = hashlib.sha256(head + frames.numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._function(frames)
        return self._known[key]

    def forget(self) -> None:
        """Give the memory back."""
        self._known.clear()


@dataclass(frozen=True)
class Shared:
    """A method of one tensor that several settings call with the same frames."""

    module: nn.Module
    method: str


@contextmanager
def remembering(shared: Sequence[Shared]) -> Iterator[Callable[[], None]]:
    """Let these methods compute each frame once; the function that is given forgets the frames."""
    methods = [Remembered(getattr(each.module, each.method)) for each in shared]
    for each, method in zip(shared, methods, strict=True):
        setattr(each.module, each.method, method)  # hides the class's

    def forget() -> None:
        for method in methods:
            method.forget()

    try:
        yield forget
    finally:
        for each in shared:
            delattr(each.module, each.method)


def opened(
    bundle: Bundle,
    backend: Backend,
    data: DataSet,
    precision: str = "fp32",
    tracking: TrackingOptions | None = None,
) -> Pipeline:
    """A pipeline that looks for all categories of a data set."""
    words, _ = vocabulary_for(data.annotations)
    return Pipeline.open(
        bundle, vocabulary=words, backend=backend, precision=precision, tracking=tracking
    )


@dataclass
class _Entries:
    """Of a results file, by class and with each track once."""

    by_class: list[dict[str, Any]] = field(default_factory=list)
    by_track: list[dict[str, Any]] = field(default_factory=list)


def measured(
    pipelines: Mapping[str, Pipeline],
    data: DataSet,
    progress: Progress,
    after: Callable[[], None] = lambda: None,
    watch: Callable[[str, list[FrameResult]], None] = lambda *_: None,
) -> dict[str, Figures]:
    """The figures of each pipeline over the same videos.

    Args:
        pipelines: by the names of their settings, open in video mode.
        data: what they look at.
        progress: told before each video.
        after: called after each video.
        watch: told what each of them found in the frames of each video.
    """
    of_class, of_track = (
        vocabulary_for(data.annotations, class_agnostic=agnostic)[1] for agnostic in (False, True)
    )
    found = {name: _Entries() for name in pipelines}
    videos = data.annotations.videos
    for number, video in enumerate(videos):
        progress(f"{len(pipelines)} settings, {video.name}", number, len(videos))
        with annotated_frames(video, data.videos) as source:
            frames = list(source)
        for name, pipeline in pipelines.items():
            seen, result = played(pipeline, frames)
            watch(name, seen)
            found[name].by_class += of_class.entries(result, video.id)
            found[name].by_track += of_track.entries(result, video.id)
        after()
    progress("evaluating", len(videos), len(videos))
    return {name: _figures(entries, data) for name, entries in found.items()}


def played(pipeline: Pipeline, frames: Sequence[Frame]) -> tuple[list[FrameResult], VideoResult]:
    """What is found in each frame of a video, and in the whole."""
    return list(pipeline.stream(frames)), pipeline.finish()


def _figures(entries: _Entries, data: DataSet) -> Figures:
    report = evaluate(data.annotations, entries.by_class, splits=data.groups)
    alone = evaluate(data.annotations, entries.by_track, class_agnostic=True)
    return figures_of(report) | {ONE_CLASS: figures_of(alone)["all"]}


def figures_of(report: Report) -> Figures:
    """MEASURES of the whole and of the groups, in percent; None where nothing is annotated."""
    groups = {"all": report.overall, **report.groups}
    return {
        name: {m: None if (value := of[m]) is None else 100 * value for m in MEASURES}
        for name, of in groups.items()
    }


def seconds_of(
    bundles: Mapping[str, Bundle], data: DataSet, videos: int, threads: int
) -> dict[str, Any]:
    """Times of two bundles on ONNX Runtime, which take turns, video by video.

    Inside the timed region is a whole video: placing, every graph, association, scores and run
    lengths of masks; `classify` is timed within it. The first video warms up and does not count.

    Returns:
        for each bundle ``frame`` and ``classify``, median milliseconds a frame; and under ``ratio``
        the second's over the first's for both, by videos: the geometric mean, and the ends of its
        95 % interval.
    """
    backends = {name: TimedBackend(OnnxRuntime("cpu", threads=threads)) for name in bundles}
    pipelines = {name: opened(bundles[name], backends[name], data) for name in bundles}
    spent: dict[str, dict[str, list[float]]] = {
        name: {"frame": [], "classify": []} for name in bundles
    }
    for video in islice(cycle(data.annotations.videos), videos + 1):
        with annotated_frames(video, data.videos) as source:
            frames = list(source)
        for name, pipeline in pipelines.items():
            begin, before = perf_counter(), backends[name].graph_seconds()["classify"]
            played(pipeline, frames)
            spent[name]["frame"].append((perf_counter() - begin) / len(frames))
            classify = backends[name].graph_seconds()["classify"] - before
            spent[name]["classify"].append(classify / len(frames))
    for pipeline in pipelines.values():
        pipeline.close()
    first, second = bundles
    out: dict[str, Any] = {
        name: {part: 1e3 * median(seconds[1:]) for part, seconds in of.items()}
        for name, of in spent.items()
    }
    ratios = {p: ratio_of_pairs(spent[second][p][1:], spent[first][p][1:]) for p in spent[first]}
    out["ratio"] = {p: [r.value, r.low, r.high] for p, r in ratios.items()}
    return out
