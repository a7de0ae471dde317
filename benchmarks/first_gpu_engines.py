"""The first steps of ``first_gpu.py``: the machine, CUDA alone, and every graph by itself."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import version
from statistics import median

import numpy as np
from first_gpu_work import FAILED, NOT_HERE, OK, TOLD, Image8, Row, Work

from openvis_rt import __version__
from openvis_rt.compare.differences import sqnr
from openvis_rt.engines.build.engines import build_engines
from openvis_rt.engines.build.layers import (
    Layers,
    has_heavy_layers,
    inspector_layers,
    precision_of_layers,
)
from openvis_rt.engines.gpu import driver_cuda_version
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import BackendError, ParityError
from openvis_rt.runtime.backends.base import Array, Backend
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.proof import proof_words
from openvis_rt.runtime.backends.proving import prove_graph
from openvis_rt.runtime.backends.tensorrt.backend import TensorRt
from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.verify.checks import Check, gates_of
from openvis_rt.verify.runner import GraphRunner
from openvis_rt.verify.stages import check_calls

PRECISIONS = ("fp32", "fp16")
COPIED = 1 << 20  # bytes
WARM_RUNS, TIMED_RUNS = 5, 20  # of a graph whose layers are timed
SLOWEST = 5  # layers in the table; the JSON has all


def versions(work: Work) -> Iterator[Row]:
    """What is here: libraries, driver, GPU, and the bundle."""
    yield Row("openvis-rt", __version__, TOLD)
    yield Row("system", f"{platform.platform()}, Python {platform.python_version()}", TOLD)
    yield Row("numpy, onnxruntime", f"{version('numpy')}, {_onnxruntime_version()}", TOLD)
    yield Row("library", str(tensorrt_library(work.backend)), OK)
    cuda_version = driver_cuda_version()
    yield Row("driver serves CUDA", cuda_version or "there is no libcuda.so.1", TOLD)
    if shutil.which("nvidia-smi") is None:
        yield Row("nvidia-smi", "is not installed (a Jetson with JetPack 6 has none)", NOT_HERE)
    else:
        yield Row("nvidia-smi", _nvidia_smi(), TOLD)
    with closing(open_cuda(work.cuda)) as cuda:
        free, total = cuda.memory()
        yield Row("GPU", f"{cuda.device_name}, {cuda.capability}", OK)
        yield Row("device memory", f"{free / 1e6:.0f} of {total / 1e6:.0f} MB are free", TOLD)
        yield Row("CUDA binding", cuda.binding, OK)
    manifest = work.bundle.manifest
    yield Row("bundle", f"{manifest.variant}, {', '.join(work.precisions)}", TOLD)
    calls = Counter(call.graph for call in work.reference.record.calls)
    counted = ", ".join(f"{graph} {number}" for graph, number in calls.items())
    yield Row("recorded calls", counted, TOLD)


def events_and_capture(work: Work) -> Iterator[Row]:
    """Copies, events and CUDA graphs by themselves, with no library on top."""
    with closing(open_cuda(work.cuda)) as cuda, ExitStack() as owned:
        stream, other = cuda.stream(owned), cuda.stream(owned)
        pointer = cuda.allocate(owned, COPIED)
        source, target = cuda.pinned(owned, COPIED), cuda.pinned(owned, COPIED)
        begin, end = cuda.event(owned), cuda.event(owned)

        def there_and_back() -> None:
            cuda.copy_in(pointer, source, stream)
            cuda.copy_out(target, pointer, stream)

        _fill(source, target, 1)
        cuda.record(begin, stream)
        there_and_back()
        cuda.record(end, stream)
        cuda.synchronize(end)
        _same_bytes(source, target, "copied to the device and back")
        seconds = cuda.elapsed(begin, end)
        if not 0 <= seconds < 10:
            raise BackendError(f"two events around copies of 1 MiB are {seconds} s apart")
        yield Row("1 MiB there and back", f"the same bytes, {seconds * 1e3:.3f} ms by events", OK)

        _fill(source, target, 2)
        cuda.copy_in(pointer, source, stream)
        cuda.record(begin, stream)
        cuda.wait(other, begin)
        cuda.copy_out(target, pointer, other)
        cuda.record(end, other)
        cuda.synchronize(end)
        _same_bytes(source, target, "copied back by a stream that waited for the other's event")
        yield Row("an event between streams", "is waited for", OK)

        if not cuda.has_graphs:
            yield Row("CUDA graphs", f"{cuda.binding} has none; cuda-python has", NOT_HERE)
            return
        yield from _captured(cuda, owned, stream, there_and_back, source, target)


def _captured(
    cuda: Cuda,
    owned: ExitStack,
    stream: int,
    there_and_back: Callable[[], None],
    source: Image8,
    target: Image8,
) -> Iterator[Row]:
    """The copies as a CUDA graph, launched twice with other bytes."""
    done = cuda.event(owned)
    _fill(source, target, 3)
    graph = cuda.capture(owned, stream, there_and_back)
    cuda.record(done, stream)
    cuda.synchronize(done)
    if target.any():
        raise BackendError("work that was captured into a CUDA graph ran at once")
    for number in (4, 5):
        _fill(source, target, number)
        cuda.launch(graph, stream)
        cuda.record(done, stream)
        cuda.synchronize(done)
        _same_bytes(source, target, f"copied by launch {number - 3} of a CUDA graph")
    yield Row("a captured CUDA graph", "runs when it is launched, with the bytes of then", OK)


def masks(work: Work) -> Iterator[Row]:
    """Build and run the smallest graph alone: sizes as inputs, uint8 as outputs."""
    precision = work.precisions[0]
    yield from _built(work, ["masks"], precision)
    yield from _compared(work, ["masks"], precision)


def text(work: Work) -> Iterator[Row]:
    """The text tower: against PyTorch's recorded answers, and against ONNX Runtime here."""
    if "text" not in work.bundle.graphs:
        yield Row("text", "the bundle has no such graph: its vocabulary is closed", NOT_HERE)
        return
    for precision in (*PRECISIONS, *_others(work)):
        if precision not in work.precisions:
            yield _lacks(work, "text", precision)
            continue
        yield from _built(work, ["text"], precision)
        yield from _compared(work, ["text"], precision)
        yield from _beside_onnxruntime(work, precision)


def networks(work: Work) -> Iterator[Row]:
    """Every output of `propose`, `embed` and `classify`, at every recorded window length."""
    for precision in (*PRECISIONS, *_others(work)):
        if precision not in work.precisions:
            yield _lacks(work, "propose, classify", precision)
            continue
        for graph in work.networks:
            yield from _built(work, [graph], precision)
            yield from _compared(work, [graph], precision)
    if "embed" not in work.networks:
        yield Row("embed", "the bundle has no such graph", NOT_HERE)
    most = work.bundle.manifest.window_length
    points = [c.point for c in work.reference.record.calls if c.graph == "propose"]
    lengths = ", ".join(dict.fromkeys(points))
    yield Row("window lengths", f"{lengths}, of windows of at most {most}", OK)


def proofs(work: Work) -> Iterator[Row]:
    """The comparison that every engine passes before it serves, in both slots and as CUDA graphs.

    Raises:
        ParityError: an engine does not pass; the comparison's record says all.
    """
    with closing(TensorRt(work.backend, work.cuda)) as backend:
        for precision in work.precisions:
            for graph in work.bundle.graphs:
                proof = prove_graph(
                    backend, work.bundle, graph, precision, lambda what: work.tell(what, 0, None)
                )
                places = len(proof.corners)
                found = f"{places} places and slots; {proof_words([proof])}"
                yield Row(f"proof of {graph} {precision}", found, OK)


def _built(work: Work, graphs: list[str], precision: str) -> Iterator[Row]:
    """Build what an earlier run has not built."""
    rtx = work.backend == "tensorrt-rtx"
    with closing(open_cuda(work.cuda)) as cuda:
        targets = [cuda.capability] if rtx else None
    results = build_engines(
        work.bundle,
        backend=work.backend,
        targets=targets,
        precisions=[precision],
        graphs=graphs,
        options=work.options,
        verify=work.verify,
        report=lambda graph, phase, done, all_: work.tell(f"{graph}: {phase}", done, all_),
    )
    for result in results:
        built = result.sidecar
        what = f"build {built.graph} {built.precision}"
        how = "an earlier build fits" if result.skipped else f"{built.build_seconds:.1f} s"
        yield Row(what, f"{how}, {built.plan_bytes / 1e6:.1f} MB", OK)
        for warning in result.warnings:
            yield Row(what, warning, TOLD)


def _compared(work: Work, graphs: list[str], precision: str) -> Iterator[Row]:
    """Every recorded call of some graphs on the engines.

    Raises:
        ParityError: an output is outside of its gate; every output has its row before.
    """
    failed: list[Check] = []
    with closing(TensorRt(work.backend, work.cuda)) as backend:
        for check in check_calls(
            work.backend,
            work.bundle,
            backend,
            precision,
            work.reference,
            lambda what: work.tell(what, 0, None),
            graphs,
        ):
            yield Row(f"{check.stage} {precision} {check.point} {check.output}", *_judged(check))
            if not check.passed:
                failed.append(check)
    if failed:
        worst = min(failed, key=lambda check: check.margin)
        found, _ = _judged(worst)
        raise ParityError(
            f"{len(failed)} outputs are farther from PyTorch's recorded answers than their gates "
            f"allow; farthest {worst.output!r} of {worst.stage} in {precision} at {worst.point}: "
            f"{found}"
        )


def _beside_onnxruntime(work: Work, precision: str) -> Iterator[Row]:
    """`text` by the engine and by ONNX Runtime's widest precision, on the recorded tokens."""
    widest = work.precisions[0]
    found = _embeddings(work, TensorRt(work.backend, work.cuda), precision)
    wanted = _embeddings(work, OnnxRuntime("cpu"), widest)
    ratio = min(sqnr(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
    gate = gates_of(work.bundle, work.bundle.graph("text", precision).precision)["embeddings"]
    what = f"text {precision} beside ONNX Runtime {widest}"
    yield Row(what, f"{ratio:.1f} dB, gate {gate:g}", OK if ratio >= gate else FAILED)
    if not ratio >= gate:
        raise ParityError(f"{what} has {ratio:.1f} dB, and its gate is {gate:g} dB")


def _embeddings(work: Work, backend: Backend, precision: str) -> list[Array]:
    """The answers to every recorded call of `text`; the backend is closed in the end."""
    with closing(backend), closing(GraphRunner(work.bundle, backend, precision)) as run:
        return [
            run("text", work.reference.inputs(call))["embeddings"]
            for call in work.reference.record.calls
            if call.graph == "text"
        ]


def layer_types(work: Work) -> Iterator[Row]:
    """The types in which the layers of the loaded engines compute."""
    seen = set()
    for graph in work.bundle.graphs:
        for precision in work.precisions:
            own = work.bundle.graph(graph, precision).precision
            if (graph, own) in seen:
                continue
            seen.add((graph, own))
            _, sidecar = work.engine(graph, precision)
            with closing(TensorRt(work.backend, work.cuda)) as backend:
                session = backend.open(work.bundle, graph, precision)
                inspected = inspector_layers(session.layers_json())
            heavy = has_heavy_layers(inspected)
            layers = inspected if heavy else sidecar.layers
            note = "" if heavy else " (the inspector names no convolution or product)"
            built_as = precision_of_layers(layers)
            right = built_as == own
            if not right:  # the typed network is the proof, and the comparisons of the outputs
                note = f" (the network is {own}, and these names are {built_as})"
            counted = _types(layers) or "it has no layer of a type that is told"
            source = "inspector" if heavy else sidecar.layers_from
            verdict = OK if right and layers else TOLD
            yield Row(f"layers of {graph} {own}", f"{source}: {counted}{note}", verdict)


def layer_times(work: Work) -> Iterator[Row]:
    """The slowest layers of each network, by the library's own profiler."""
    precision = work.precisions[-1]
    with closing(TensorRt(work.backend, work.cuda, cuda_graphs=False)) as backend:
        for graph in work.networks:
            work.tell(f"timing the layers of {graph}", 0, None)
            layers = _timed_layers(work, backend, graph, precision)
            if not layers:
                raise BackendError(f"the profiler of {work.backend} told of no layer of {graph}")
            work.details.setdefault("layer_milliseconds", {})[f"{graph} {precision}"] = layers
            total = sum(layers.values())
            told = f"{total:.3f} ms in {len(layers)} layers"
            yield Row(f"time of {graph} {precision}", told, TOLD)
            slowest = sorted(layers.items(), key=lambda layer: -layer[1])[:SLOWEST]
            for name, ms in slowest:
                share = ms / total if total else 0.0
                yield Row(f"  {graph}: {ms:.3f} ms, {share:.0%}", name[:120], TOLD)


def _timed_layers(work: Work, backend: TensorRt, graph: str, precision: str) -> dict[str, float]:
    """Layer -> the median of its milliseconds, at the largest recorded window."""
    calls = [call for call in work.reference.record.calls if call.graph == graph]
    whole = f"T={work.bundle.manifest.window_length}"
    call = next((c for c in calls if c.point.split(" ")[0] == whole), calls[0])
    first = work.bundle.graph(graph, precision).spec.outputs[0].name
    session = backend.open(work.bundle, graph, precision, fetched=[first])
    try:
        types = {t.name: t.dtype for t in session.spec.inputs}
        for name, value in work.reference.inputs(call).items():
            session.write(name, np.ascontiguousarray(value.astype(types[name], copy=False)))
        for _ in range(WARM_RUNS):
            session.run()
        session.fetch(first)
        seconds = session.profile()
        for _ in range(TIMED_RUNS):
            session.run()
        session.fetch(first)
    finally:
        session.close()
    return {name: median(runs) * 1e3 for name, runs in seconds.items()}


def _judged(check: Check) -> tuple[str, str]:
    """A check as the found and the verdict of a row."""
    bound = "at most" if check.measure.endswith("differ") else "at least"
    if check.measure == "SQNR dB":
        found = f"{check.value:.1f} dB, gate {check.gate:g}"
    else:
        found = f"{check.measure}: {check.value:.3g}, {bound} {check.gate:g}"
    return found, OK if check.passed else FAILED


def _lacks(work: Work, what: str, precision: str) -> Row:
    held = ", ".join(work.precisions)
    return Row(
        f"{what} {precision}",
        f"the bundle holds {held} only; openvis export --precision fp32,fp16 makes both",
        NOT_HERE,
    )


def _others(work: Work) -> list[str]:
    return [precision for precision in work.precisions if precision not in PRECISIONS]


def _types(layers: Layers) -> str:
    counts = Counter[str]()
    for of_kind in layers.values():
        counts.update(of_kind)
    return ", ".join(f"{dtype} {number}" for dtype, number in counts.most_common())


def _fill(source: Image8, target: Image8, seed: int) -> None:
    source[:] = np.random.default_rng(seed).integers(0, 256, len(source), np.uint8)
    target[:] = 0


def _same_bytes(source: Image8, target: Image8, what: str) -> None:
    if differing := int((source != target).sum()):
        raise BackendError(f"{differing} of {len(source)} bytes differ that were {what}")


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _nvidia_smi() -> str:
    """Driver, clocks and power of the first GPU."""
    fields = "name,driver_version,clocks.sm,clocks.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return (ended.stdout or ended.stderr).strip()
