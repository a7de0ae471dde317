"""The plans of a bundle: rewrite, check, compile, write; one process for each graph.

A process of its own gives its memory back when its graph is done, and can be killed at any moment.
What it makes stands in a scratch folder until it is whole; the plan takes its name first and its
sidecar last, and a plan without a matching sidecar does not load. So after Ctrl-C the finished
graphs stay, and the next build goes on with the rest.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openvis_rt import __version__
from openvis_rt.errors import (
    EngineError,
    InputError,
    OpenVISError,
)
from openvis_rt.files import output_errors, output_file, sha256_of
from openvis_rt.plans import (
    Profile,
    Sidecar,
    check_plan,
    precision_of_layers,
    sidecar_path,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from openvis_rt.bundle import Bundle

__all__ = ["BuildResult", "Report", "build_engines", "plan_folder", "plan_path"]

Report = Callable[[str, str, int, int], None]
"""Called as ``report(graph, phase, steps done, steps)``."""


@dataclass(frozen=True)
class BuildResult:
    """One graph's plan.

    Attributes:
        plan: where it is; its sidecar is beside it.
        sidecar: what the sidecar says.
        skipped: an earlier build had made it, and it still fits.
    """

    plan: Path
    sidecar: Sidecar
    skipped: bool


def plan_folder(bundle_path: Path, targets: Sequence[str]) -> Path:
    """Where the TensorRT-RTX plans for these targets stand in a bundle."""
    return bundle_path / "engines" / "-".join(("tensorrt-rtx", *targets))


def plan_path(bundle_path: Path, targets: Sequence[str], graph: str, precision: str) -> Path:
    """Where one graph's TensorRT-RTX plan for these targets stands in a bundle."""
    return plan_folder(bundle_path, targets) / f"{graph}.{precision}.plan"


def build_engines(
    bundle: Bundle,
    *,
    targets: Sequence[str],
    precision: str = "fp32",
    graphs: Sequence[str] | None = None,
    verify: bool = True,
    force: bool = False,
    report: Report | None = None,
) -> list[BuildResult]:
    """Build TensorRT-RTX plans inside a bundle; no GPU is needed.

    Processes are spawned, so a script calls this below ``if __name__ == "__main__":``.

    Args:
        bundle: the bundle; its ``engines`` folder is written.
        targets: compute capabilities such as ``sm86``.
        precision: of the ONNX files to build from.
        graphs: names; all graphs of the bundle if None.
        verify: hold rewritten graphs against the originals in ONNX Runtime.
        force: build also what an earlier build left and still fits.
        report: receives the progress.

    Raises:
        InputError: unknown target or graph, or one that the bundle has not in this precision.
        EngineError: the library refuses a graph.
        UnavailableError: tensorrt_rtx is not installed, or onnxruntime with ``verify``.
        ParityError: a rewritten graph differs from the original.
        OutputError: the bundle cannot be written.
    """
    from openvis_rt.engines import tensorrt_rtx

    targets = tensorrt_rtx.check_targets(targets)
    jobs = [
        _Job(
            graph=graph,
            precision=precision,
            onnx=onnx,
            onnx_sha256=bundle.graph_sha256(graph, precision),
            plan=plan_path(bundle.path, targets, graph, precision),
            targets=targets,
            profiles=tensorrt_rtx.DEFAULT_PROFILES,
            verify=verify,
        )
        for graph, onnx in _onnx_files(bundle, graphs, precision).items()
    ]
    results = []
    for job in jobs:
        earlier = None if force else _earlier_build(job, tensorrt_rtx.VERSION)
        if earlier is not None:
            results.append(BuildResult(job.plan, earlier, skipped=True))
        else:
            results.append(BuildResult(job.plan, _build(job, report), skipped=False))
    return results


@dataclass(frozen=True)
class _Job:
    """Everything that the process of one graph needs."""

    graph: str
    precision: str
    onnx: Path
    onnx_sha256: str
    plan: Path
    targets: tuple[str, ...]
    profiles: Mapping[str, Profile]
    verify: bool

    @property
    def scratch(self) -> Path:
        """Holds what is not finished; a later build of the same plan clears a killed one's."""
        return self.plan.with_suffix(".building")


def _onnx_files(bundle: Bundle, graphs: Sequence[str] | None, precision: str) -> dict[str, Path]:
    known = list(bundle.graphs)
    wanted = known if graphs is None else list(dict.fromkeys(graphs))
    if unknown := [graph for graph in wanted if graph not in known]:
        raise InputError(
            f"{bundle.path} has no graph {', '.join(unknown)}; it has {', '.join(known)}."
        )
    return {graph: bundle.graph_path(graph, precision) for graph in wanted}


def _earlier_build(job: _Job, library_version: str) -> Sidecar | None:
    """The sidecar of a plan that this job would build again just so."""
    try:
        sidecar = check_plan(job.plan, job.onnx_sha256)
    except EngineError:
        return None
    unverified = sidecar.replaced_grid_samples and sidecar.replacement_error is None
    same = (
        sidecar.library_version == library_version
        and sidecar.created_with == __version__
        and sidecar.platform == sysconfig.get_platform()
        and sidecar.targets == job.targets
        and all(job.profiles.get(name) == sizes for name, sizes in sidecar.profiles.items())
        and not (job.verify and unverified)
    )
    return sidecar if same else None


def _build(job: _Job, report: Report | None) -> Sidecar:
    """Run the job in a process of its own and put what it made in place."""
    with output_errors(job.plan):
        shutil.rmtree(job.scratch, ignore_errors=True)
        job.scratch.mkdir(parents=True)
    try:
        sidecar = _run_process(job, report)
        with output_file(job.plan) as partial:
            (job.scratch / job.plan.name).replace(partial)
        sidecar.write(sidecar_path(job.plan))
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)
    return sidecar


def _run_process(job: _Job, report: Report | None) -> Sidecar:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_process_main, args=(job, sender), daemon=True)
    process.start()
    sender.close()  # or the end of the process would not end the pipe
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Sidecar):
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


def _process_main(job: _Job, sender: Connection[Any, Any]) -> None:
    """In the new process: sends (phase, done, steps) any number of times, then one result."""
    # Ctrl-C reaches the parent, which kills this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result: Sidecar | OpenVISError = _compile(job, lambda *step: sender.send(step))
    except OpenVISError as exc:
        result = exc
    except Exception:
        result = OpenVISError(f"building {job.graph} failed:\n{traceback.format_exc()}")
    sender.send(result)


def _compile(job: _Job, progress: Callable[[str, int, int], None]) -> Sidecar:
    """Everything but the final names: the plan is written to the job's scratch folder."""
    from openvis_rt.engines import tensorrt_rtx

    start = time.perf_counter()
    rewritten, replaced, error = _rewrite(job, progress)
    built = tensorrt_rtx.build_plan(
        rewritten, targets=job.targets, profiles=job.profiles, progress=progress
    )
    precision_built = precision_of_layers(built.layers)
    if precision_built != job.precision:
        raise EngineError(
            f"{job.onnx} was to be built as {job.precision}, and its layers compute in "
            f"{precision_built}: {built.layers}. Export the bundle again."
        )
    plan = job.scratch / job.plan.name
    with output_errors(plan):
        plan.write_bytes(built.plan)
    return Sidecar(
        graph=job.graph,
        precision=job.precision,
        precision_built=precision_built,
        plan_sha256=sha256_of(plan),
        plan_bytes=len(built.plan),
        library=tensorrt_rtx.LIBRARY,
        library_version=tensorrt_rtx.VERSION,
        platform=sysconfig.get_platform(),
        targets=job.targets,
        onnx_sha256=job.onnx_sha256,
        replaced_grid_samples=replaced,
        replacement_error=error,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=built.profiles,
        layers=built.layers,
        build_seconds=round(time.perf_counter() - start, 3),
        created_with=__version__,
    )


def _rewrite(
    job: _Job, progress: Callable[[str, int, int], None]
) -> tuple[Path, int, float | None]:
    """The file to compile, how many GridSample nodes became gathers, and their largest error."""
    import onnx

    from openvis_rt.engines.grid_sample import find_grid_samples, replace_grid_sample
    from openvis_rt.engines.grid_sample_check import check_grid_samples, random_inputs

    model = onnx.load(str(job.onnx))
    replaced = len(find_grid_samples(model))
    if not replaced:
        return job.onnx, 0, None
    error = None
    if job.verify:
        progress("Checking gathers against GridSample", 0, 1)
        sizes = {name: profile.usual for name, profile in job.profiles.items()}
        error = check_grid_samples(model, random_inputs(model.graph, sizes))
    rewritten = job.scratch / job.onnx.name
    with output_errors(rewritten):
        onnx.save(replace_grid_sample(model), str(rewritten))
    return rewritten, replaced, error
