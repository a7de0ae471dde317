"""The last steps of ``first_gpu.py``: whole videos."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from first_gpu_work import FAILED, NOT_HERE, OK, TOLD, Row, Work
from memory import resident, vocabulary_of

from openvis_rt import Pipeline
from openvis_rt.errors import BackendError, ParityError
from openvis_rt.runtime.backends.tensorrt.backend import TensorRt
from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.systems.graphs import GraphSpec

SHOWN = Selection(threshold=0.0, limit=10)  # masks of ten instances in every frame
WARM_UP = 10  # frames
SAMPLES = 10  # of the memory, on the way through the video
MOST_GROWTH = 32.0  # MB of host or device memory after the warm-up: of 2,000 frames 16 KB a frame


def same_frames(work: Work) -> Iterator[Row]:
    """Frames streamed and one by one, with CUDA graphs and without: equal to the last bit."""
    by_one = "step" if work.bundle.manifest.window_length == 1 else "one window at a time"
    if by_one != "step":
        told = f"refused by windows of several frames; {by_one} in its place"
        yield Row("step", told, NOT_HERE)
    wanted: list[FrameResult] = []
    for cuda_graphs in (False, True):
        graphs = "CUDA graphs on" if cuda_graphs else "CUDA graphs off"
        for how in (by_one, "stream"):
            what = f"{how}, {graphs}"
            work.tell(what, 0, None)
            found, launches, binding_has = _results(work, how, cuda_graphs=cuda_graphs)
            wanted = wanted or found
            if difference := _first_difference(wanted, found):
                yield Row(what, difference, FAILED)
                raise ParityError(
                    f"{what} is not what {by_one}, CUDA graphs off gave: {difference}"
                )
            shown = sum(len(result.instances) for result in found)
            told = f"{len(found)} frames, {shown} instances, bit-equal"
            yield Row(what, told, OK)
        if cuda_graphs:
            yield _graph_launches(work, launches, binding_has=binding_has)


def _results(work: Work, how: str, *, cuda_graphs: bool) -> tuple[list[FrameResult], int, bool]:
    """Results, launches of CUDA graphs, and whether the binding has any."""
    frames = list(work.video(work.compared))
    with opened(work, len(frames), cuda_graphs=cuda_graphs) as pipeline:
        if how == "step":
            found = [pipeline.step(frame) for frame in frames]
        else:
            found = list(pipeline.stream(frames, in_flight=None if how == "stream" else 1))
        launches = int(pipeline.counters()["cuda_graph_launches"])
        return found, launches, "CUDA graphs" in pipeline.backend


def _graph_launches(work: Work, launches: int, *, binding_has: bool) -> Row:
    """Whether CUDA graphs were in use where they should be.

    Raises:
        BackendError: they were not.
    """
    what, precision = "launches of CUDA graphs", work.precisions[-1]
    if work.backend == "tensorrt-rtx":
        return Row(what, "TensorRT-RTX makes its own, which are not counted", NOT_HERE)
    if not binding_has:
        return Row(what, "pycuda has none; cuda-python has", NOT_HERE)
    fixed = [g for g in work.networks if _is_fixed(work.bundle.graph(g, precision).spec)]
    if not launches and not fixed:
        return Row(what, "none: no graph saw the same sizes twice in a slot", NOT_HERE)
    if not launches:
        raise BackendError(f"{', '.join(fixed)} could run as a CUDA graph, and none was launched")
    return Row(what, f"{launches}, of all graphs together", OK)


def long_video(work: Work) -> Iterator[Row]:
    """Frames a second, the host's share, and memory on the way."""
    count, samples = work.frames, list[tuple[int, float, float]]()
    every = max(count // SAMPLES, 1)
    with (
        closing(open_cuda(work.cuda)) as cuda,
        opened(work, WARM_UP + count) as pipeline,
    ):
        for _ in pipeline.stream(work.video(WARM_UP)):
            pass
        before, begin = pipeline.counters(), time.perf_counter()
        for done, _ in enumerate(pipeline.stream(work.video(count)), 1):
            work.tell("streaming", done, count)
            if done % every == 0 or done == count:
                free, total = cuda.memory()
                samples.append((done, resident(), (total - free) / 1e6))
        wall = time.perf_counter() - begin
        spent = {name: value - before[name] for name, value in pipeline.counters().items()}
    work.details["memory"] = [
        {"frame": n, "host_mb": host, "device_mb": device} for n, host, device in samples
    ]
    work.details["counters"] = spent
    precision = work.precisions[-1]
    yield Row(f"{count} frames, {precision}", f"{count / wall:.2f} frames a second", TOLD)
    for stage in ("place", "submit", "wait", "associate", "masks"):
        seconds = spent[f"{stage}_seconds"]
        share = f"{seconds / count * 1e3:.3f} ms a frame, {seconds / wall:.1%}"
        yield Row(f"host: {stage}", share, TOLD)
    yield Row("device busy", f"{spent['device_seconds'] / wall:.1%} of the time", TOLD)
    for what, key in (("to", "bytes_to_device"), ("from", "bytes_to_host")):
        yield Row(f"bytes {what} the device", f"{spent[key] / count / 1e6:.3f} MB a frame", TOLD)
    yield from _flat("host memory", [host for _, host, _ in samples])
    yield from _flat("device memory", [device for *_, device in samples])


def cold_and_warm_start(work: Work) -> Iterator[Row]:
    """The first frame with no kernel compiled before, and with those that were kept."""
    if work.backend != "tensorrt-rtx":
        told = (
            "engines of tensorrt hold their kernels; run this with --backend tensorrt-rtx as well"
        )
        yield Row("cold and warm start", told, NOT_HERE)
        return
    names = [name for name in work.bundle.graphs if name != "text"]
    kernels = [work.engine(n, work.precisions[-1])[0].with_suffix(".kernels") for n in names]
    for file in kernels:  # a cache: the next start compiles them again
        file.unlink(missing_ok=True)
    first: list[FrameResult] = []
    for start in ("cold", "warm"):
        begin = time.perf_counter()
        with opened(work, 1) as pipeline:
            opening = time.perf_counter() - begin
            found = list(pipeline.stream(work.video(1)))
            seconds = time.perf_counter() - begin
        first = first or found
        if difference := _first_difference(first, found):
            yield Row(f"{start} start", difference, FAILED)
            raise ParityError(f"kernels that were kept give another result: {difference}")
        yield Row(f"{start} start", f"{opening:.2f} s to open, {seconds:.2f} s to a result", TOLD)
        if missing := [file.name for file in kernels if not file.is_file()]:
            raise BackendError(f"the compiled kernels were not kept: there is no {missing}")
    size = sum(file.stat().st_size for file in kernels)
    yield Row("kept kernels", f"{len(kernels)} files, {size / 1e6:.1f} MB, the same result", OK)


@contextmanager
def opened(work: Work, frames: int, *, cuda_graphs: bool = True) -> Iterator[Pipeline]:
    """A streaming pipeline for so many frames, in the bundle's narrowest precision.

    Raises:
        BackendError: the backend did without something, such as a CUDA graph.
    """
    warnings: list[str] = []
    backend = TensorRt(
        work.backend,
        work.cuda,
        warnings.append,
        tell=lambda text: work.tell(text, 0, None),
        cuda_graphs=cuda_graphs,
    )
    with Pipeline.open(
        work.bundle,
        vocabulary=vocabulary_of(work.bundle),
        image_embeddings=work.image_embeddings(frames),
        backend=backend,
        precision=work.precisions[-1],
        mode="stream",
        selection=SHOWN,
    ) as pipeline:
        yield pipeline
    if warnings:
        raise BackendError(warnings[0])


def _first_difference(wanted: list[FrameResult], found: list[FrameResult]) -> str:
    """Where two runs part; empty if they are the same to the last bit."""
    if len(wanted) != len(found):
        return f"{len(found)} frames, and {len(wanted)} were wanted"
    for one, other in zip(wanted, found, strict=True):
        if one == other:
            continue
        where = f"frame {one.index}"
        if len(one.instances) != len(other.instances):
            return f"{where} has {len(other.instances)} instances, not {len(one.instances)}"
        for place, pair in enumerate(zip(one.instances, other.instances, strict=True)):
            for name in ("track_id", "category_id", "score", "box", "segmentation"):
                a, b = (getattr(instance, name) for instance in pair)
                if a != b:
                    shown = "" if name == "segmentation" else f": {b}, not {a}"
                    return f"{where}, instance {place} differs in its {name}{shown}"
        return f"{where} differs"
    return ""


def _flat(what: str, megabytes: list[float]) -> Iterator[Row]:
    """Whether memory stayed as it was after the first part of the video."""
    first, last = megabytes[0], megabytes[-1]
    flat = last - first <= MOST_GROWTH
    told = f"{first:.1f} MB after a tenth, {last:.1f} MB at the end"
    yield Row(what, told, OK if flat else FAILED)
    if not flat:
        raise BackendError(
            f"{what} grew by {last - first:.1f} MB on the way; {MOST_GROWTH:g} MB are allowed"
        )


def _is_fixed(spec: GraphSpec) -> bool:
    """Whether every size of a graph is a number."""
    sizes = [size for t in (*spec.inputs, *spec.outputs) for size in t.shape]
    return not spec.overridable and all(isinstance(size, int) for size in sizes)
