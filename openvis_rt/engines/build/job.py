"""One graph's engine, made in a process of its own: rewrite, check, compile, look, write.

The process gives its memory back when its graph is done, and can be killed at any moment. What it
makes stands in a scratch folder until it is whole; the engine takes its name first and its
sidecar last, and an engine without a matching sidecar does not load.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import signal
import sysconfig
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openvis_rt import __version__
from openvis_rt.engines.build.builder import BuildRequest, BuiltPlan, build_plan
from openvis_rt.engines.build.callbacks import Progress
from openvis_rt.engines.build.compiler_log import CompilerReport
from openvis_rt.engines.build.layers import precision_of_layers
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.engines.plan import Sidecar, sidecar_path
from openvis_rt.errors import BundleError, DependencyError, EngineError, OpenVISError
from openvis_rt.files import output_errors, output_file, sha256_of
from openvis_rt.given_files import given_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

__all__ = ["Done", "Job", "Machine", "Report", "run_job"]

Report = Callable[[str, str, int, int], None]
"""Called as ``report(graph, phase, steps done, steps)``."""

_LARGEST_GRAPH = 2 << 30  # bytes; no protocol buffer is larger


@dataclass(frozen=True)
class Machine:
    """What the engines are for.

    Attributes:
        gpu: name of the GPU that takes part in the build.
        targets: as in the sidecar.
        runs_here: a finished engine can be loaded on this machine.
    """

    gpu: str | None
    targets: tuple[str, ...]
    runs_here: bool


@dataclass(frozen=True)
class Job:
    """Everything that the process of one graph needs."""

    backend: str
    graph: str
    precision: str
    onnx: Path
    onnx_sha256: str
    plan: Path
    machine: Machine
    request: BuildRequest
    verify: bool

    @property
    def scratch(self) -> Path:
        """Holds what is not finished; a later build of the same engine clears a killed one's."""
        return self.plan.with_suffix(".building")

    def clear_scratch(self) -> None:
        """Remove what this job, or a killed one of the same engine, has not finished."""
        shutil.rmtree(self.scratch, ignore_errors=True)


@dataclass(frozen=True)
class Done:
    """What the process of one graph sends at its end."""

    sidecar: Sidecar
    warnings: tuple[str, ...]
    compiled: CompilerReport | None


def run_job(job: Job, report: Report | None) -> Done:
    """Run the job in a process of its own and put what it made in place."""
    with output_errors(job.plan):
        job.clear_scratch()
        job.scratch.mkdir(parents=True)
    try:
        done = _run_process(job, report)
        with output_file(job.plan) as partial:
            (job.scratch / job.plan.name).replace(partial)
        done.sidecar.write(sidecar_path(job.plan))
    finally:
        job.clear_scratch()
    return done


def _run_process(job: Job, report: Report | None) -> Done:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_process_main, args=(job, sender), daemon=True)
    process.start()
    sender.close()  # or the end of the process would not end the pipe
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Done):
                return message
            if isinstance(message, OpenVISError):
                raise message
            if report is not None:
                report(job.graph, *message)
    except EOFError:
        process.join()
        raise EngineError(
            f"the process that built {job.graph} ended with code {process.exitcode} and no result. "
            "Code -9 is most often the system's: out of memory. Nothing was left; build it again."
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _process_main(job: Job, sender: Connection[Any, Any]) -> None:
    """In the new process: sends (phase, done, steps) any number of times, then one result."""
    # Ctrl-C reaches the parent, which kills this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result: Done | OpenVISError = _compile(job, lambda *step: sender.send(step))
    except OpenVISError as exc:
        result = exc
    except Exception:
        result = OpenVISError(f"building {job.graph} failed:\n{traceback.format_exc()}")
    sender.send(result)


def _compile(job: Job, progress: Progress) -> Done:
    """Everything but the final names: the engine is written to the job's scratch folder."""
    start = time.perf_counter()
    library = tensorrt_library(job.backend)
    file, replaced, error = _file_to_compile(job, progress)
    built = build_plan(file, library, job.request, progress)
    _checked_graph(job)  # what the library read lay there for a while
    precision_built = _checked_precision(job, built)
    plan = job.scratch / job.plan.name
    with output_errors(plan):
        plan.write_bytes(built.plan)
    sidecar = Sidecar(
        graph=job.graph,
        precision=job.precision,
        precision_built=precision_built,
        plan_sha256=sha256_of(plan),
        plan_bytes=len(built.plan),
        backend=job.backend,
        library_version=library.version,
        platform=sysconfig.get_platform(),
        gpu=job.machine.gpu,
        targets=job.machine.targets,
        options=job.request.options,
        onnx_sha256=job.onnx_sha256,
        replaced_grid_samples=replaced,
        replacement_error=error,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=built.profiles,
        shape_values=built.shape_values,
        layers=built.layers,
        layers_from="network",
        build_seconds=round(time.perf_counter() - start, 3),
        created_with=__version__,
    )
    return Done(sidecar, built.warnings, built.report)


def _checked_precision(job: Job, built: BuiltPlan) -> str:
    """The precision that was built, which must be the one that was asked for."""
    precision = precision_of_layers(built.layers)
    if precision != job.precision:
        raise EngineError(
            f"{job.onnx} was to be built as {job.precision}, and by its network its "
            f"layers compute in {precision}: {built.layers}. Export the bundle again."
        )
    return precision


def _checked_graph(job: Job) -> bytes:
    """The bytes of the job's ONNX file, which must be those that the engine will be known by."""
    data = given_bytes(job.onnx, _LARGEST_GRAPH, BundleError)
    if hashlib.sha256(data).hexdigest() != job.onnx_sha256:
        raise BundleError(
            f"{job.onnx} was changed since the bundle was opened here; no engine was made of it. "
            "Build again"
        )
    return data


def _file_to_compile(job: Job, progress: Progress) -> tuple[Path, int, float | None]:
    """The file to compile, how many GridSample nodes became gathers, and their largest error."""
    try:
        import onnx
    except ModuleNotFoundError as exc:
        raise DependencyError("onnx", job.backend.removeprefix("tensorrt-")) from exc
    from openvis_rt.engines.rewrites.rewrite import rewrite

    progress("Rewriting", 0, 1)
    profiles = job.request.profiles.items()
    # a batch may be wrong at one size and right at another
    sizes = [{n: p.opt for n, p in profiles}, {n: p.min for n, p in profiles}]
    model = onnx.load_from_string(_checked_graph(job))
    rewritten = rewrite(model, job.request.shape_values.keys(), sizes, verify=job.verify)
    if rewritten.model is None:
        return job.onnx, 0, None
    file = job.scratch / job.onnx.name
    with output_errors(file):
        onnx.save(rewritten.model, str(file))
    return file, rewritten.replaced_grid_samples, rewritten.replacement_error
