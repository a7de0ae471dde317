"""The engines of a bundle: which are to be built for what, and which an earlier build left.

Graphs are built one after the other, each in a process of its own; so after Ctrl-C the finished
ones stay, and the next build goes on with the rest.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from openvis_rt import __version__
from openvis_rt.bundle.attention import long_attention
from openvis_rt.engines.build.builder import (
    DEFAULT_PROFILES,
    BuildRequest,
    check_options,
    check_targets,
)
from openvis_rt.engines.build.compiler_log import CompilerReport
from openvis_rt.engines.build.job import Job, Machine, Report, run_job
from openvis_rt.engines.gpu import gpu_of_this_machine
from openvis_rt.engines.library import TensorRtLibrary, tensorrt_library
from openvis_rt.engines.plan import (
    AMPERE_PLUS,
    LIBRARY_DEFAULTS,
    BuildOptions,
    Profile,
    ShapeValues,
    Sidecar,
    capability_number,
    check_plan,
    plan_folder,
    plan_path,
)
from openvis_rt.errors import EngineError, InputError, UnavailableError
from openvis_rt.systems.graphs import INT8, INT8_FP32, masks_per_run

if TYPE_CHECKING:
    from pathlib import Path

    from openvis_rt.bundle.bundle import Bundle

__all__ = [
    "DEFAULT_TARGETS",
    "LARGEST_FRAME",
    "BuildResult",
    "Report",
    "build_engines",
    "default_backend",
]

DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
"""What TensorRT-RTX compiles for if nothing else is asked: GeForce RTX 30, 40 and 50."""

_OPT_FRAME, LARGEST_FRAME = (1080, 1920), (2304, 4096)  # height, width of a video


@dataclass(frozen=True)
class BuildResult:
    """One graph's engine.

    Attributes:
        plan: where it is; its sidecar is beside it.
        sidecar: what the sidecar says.
        skipped: an earlier build had made it, and it still fits.
        warnings: what did not work and was done without.
        compiled: the kernels in numbers, where it was built now and the library tells of them.
    """

    plan: Path
    sidecar: Sidecar
    skipped: bool
    warnings: tuple[str, ...] = ()
    compiled: CompilerReport | None = None


def default_backend() -> str:
    """The backend to build with where none is named: the one that can, of what is installed.

    With both, ``tensorrt`` where there is a GPU, which it compiles for, and else ``tensorrt-rtx``.
    """
    if find_spec("tensorrt") is None:
        return "tensorrt-rtx"
    if find_spec("tensorrt_rtx") is None or gpu_of_this_machine() is not None:
        return "tensorrt"
    return "tensorrt-rtx"


def build_engines(
    bundle: Bundle,
    *,
    backend: str,
    targets: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    graphs: Sequence[str] | None = None,
    options: BuildOptions = LIBRARY_DEFAULTS,
    max_classes: int | None = None,
    max_frame: tuple[int, int] = LARGEST_FRAME,
    timing_cache: bool | None = None,
    verify: bool = True,
    force: bool = False,
    report: Report | None = None,
) -> list[BuildResult]:
    """Build engines inside a bundle. TensorRT-RTX needs no GPU for it, TensorRT builds for its own.

    A graph whose file serves several of the precisions is built once. Processes are spawned, so a
    script calls this below ``if __name__ == "__main__":``.

    Args:
        bundle: the bundle; its ``engines`` folder is written.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        targets: for TensorRT-RTX, compute capabilities such as ``sm86``; DEFAULT_TARGETS if None.
        precisions: of the bundle's graphs.
        graphs: names; all graphs of the bundle if None.
        options: what else is asked of the library.
        max_classes: most text embeddings that an engine takes; DEFAULT_PROFILES' if None.
        max_frame: largest height and width of the masks that an engine makes.
        timing_cache: keep measured kernel times in the bundle; None is yes where they are measured.
        verify: hold rewritten graphs against the originals in ONNX Runtime.
        force: build also what an earlier build left and still fits.
        report: receives the progress.

    Raises:
        InputError: unknown backend, target or graph, a graph that the bundle has not in this
            precision, ``int8-fp32``, or an option that the library does not have.
        EngineError: the library refuses a graph, or computes in another precision.
        UnavailableError: the library is not installed, or lacks a GPU; or onnxruntime is not
            installed, with ``verify``.
        ParityError: a rewritten graph differs from the original.
        OutputError: the bundle cannot be written.
    """
    if INT8_FP32 in precisions:
        raise InputError(
            f"{INT8_FP32} is for ONNX Runtime on a CPU, and TensorRT takes no INT32 biases; build "
            f"{INT8}, which `openvis calibrate` makes of the same ranges in a bundle with FP16"
        )
    library = tensorrt_library(backend)
    check_options(library, options)
    wanted = _wanted_graphs(bundle, graphs)
    machine = _machine(library, targets, options)
    cache = _timing_cache(library, plan_folder(bundle.path, backend, machine.targets), timing_cache)
    request = BuildRequest(
        targets=machine.targets if library.compiles_for_a_list else (),
        profiles=_profiles(max_classes, bundle.manifest.window_length),
        options=options,
        timing_cache=cache,
        inspect=machine.runs_here,
    )
    jobs: dict[Path, Job] = {}
    for precision in precisions:
        for graph in wanted:
            sizes = _shape_values(bundle, graph, precision, max_frame)
            sized = replace(request, shape_values=sizes)
            job = _job(bundle, graph, precision, library, machine, sized, verify=verify)
            jobs[job.plan] = job
    results = [_result(job, library, force=force, report=report) for job in jobs.values()]
    return [_with_long_attention_told(result, bundle) for result in results]


def _with_long_attention_told(result: BuildResult, bundle: Bundle) -> BuildResult:
    """A warning more where the attention of an FP16 engine may overflow."""
    told = long_attention(bundle, result.sidecar.graph, result.sidecar.precision)
    return replace(result, warnings=(*result.warnings, told)) if told else result


def _job(
    bundle: Bundle,
    graph: str,
    precision: str,
    library: TensorRtLibrary,
    machine: Machine,
    request: BuildRequest,
    *,
    verify: bool,
) -> Job:
    own = bundle.graph(graph, precision).precision  # which may be wider
    return Job(
        backend=library.backend,
        graph=graph,
        precision=own,
        onnx=bundle.graph_path(graph, precision),
        onnx_sha256=bundle.graph_sha256(graph, precision),
        plan=plan_path(bundle.path, library.backend, machine.targets, graph, own),
        machine=machine,
        request=request,
        verify=verify,
    )


def _wanted_graphs(bundle: Bundle, graphs: Sequence[str] | None) -> list[str]:
    known = list(bundle.graphs)
    wanted = known if graphs is None else list(dict.fromkeys(graphs))
    if unknown := [graph for graph in wanted if graph not in known]:
        raise InputError(
            f"{bundle.path} has no graph {', '.join(unknown)}; it has {', '.join(known)}."
        )
    return wanted


def _machine(
    library: TensorRtLibrary, targets: Sequence[str] | None, options: BuildOptions
) -> Machine:
    gpu = gpu_of_this_machine()
    if library.compiles_for_a_list:
        checked = check_targets(library, DEFAULT_TARGETS if targets is None else targets)
        return Machine(None, checked, gpu is not None and gpu[1] in checked)
    check_targets(library, targets or ())
    if gpu is None:
        raise UnavailableError(
            f"{library} needs an NVIDIA GPU and its driver to build, and there is none here. Build "
            "on the machine that is to run the engines, or with --backend tensorrt-rtx, which "
            "compiles for GeForce RTX GPUs without one."
        )
    name, capability = gpu
    if options.hardware_compatible != AMPERE_PLUS:
        return Machine(name, (capability,), runs_here=True)
    if capability_number(capability) < 80:
        raise UnavailableError(
            f"--hardware-compatible {AMPERE_PLUS} needs a GPU of compute capability 8.0 or more to "
            f"build on; {name} is {capability}. Leave it out."
        )
    return Machine(name, (AMPERE_PLUS,), runs_here=True)


def _timing_cache(library: TensorRtLibrary, folder: Path, asked: bool | None) -> Path | None:
    measures = not library.compiles_for_a_list
    if asked and not measures:
        raise InputError(
            f"{library} measures no kernels, so it has no --timing-cache. Leave it out."
        )
    return folder / "timing.cache" if measures and asked is not False else None


def _profiles(max_classes: int | None, window_length: int) -> dict[str, Profile]:
    masks = masks_per_run(window_length)
    profiles = {
        **DEFAULT_PROFILES,
        "T": Profile(1, window_length, window_length),
        "n": Profile(1, masks, masks),
    }
    if max_classes is not None:
        if max_classes < 1:
            raise InputError(f"--max-classes is {max_classes}; give 1 or more.")
        profiles["K"] = Profile(1, min(profiles["K"].opt, max_classes), max_classes)
    return profiles


def _shape_values(
    bundle: Bundle, graph: str, precision: str, max_frame: tuple[int, int]
) -> dict[str, ShapeValues]:
    """Ranges of the sizes that a caller gives; none where the bundle is for one size of video."""
    rule = bundle.manifest.preprocess
    if rule.source_size is not None:
        return {}
    opt = (min(_OPT_FRAME[0], max_frame[0]), min(_OPT_FRAME[1], max_frame[1]))
    known = {
        "picture_size": ShapeValues((1, 1), rule.network_size, rule.network_size),
        "frame_size": ShapeValues((1, 1), opt, max_frame),
    }
    return {t.name: known[t.name] for t in bundle.graph(graph, precision).spec.overridable}


def _result(
    job: Job, library: TensorRtLibrary, *, force: bool, report: Report | None
) -> BuildResult:
    earlier = None if force else _earlier_build(job, library.version)
    if earlier is not None:
        job.clear_scratch()
        return BuildResult(job.plan, earlier, skipped=True)
    done = run_job(job, report)
    return BuildResult(job.plan, done.sidecar, False, done.warnings, done.compiled)


def _earlier_build(job: Job, library_version: str) -> Sidecar | None:
    """The sidecar of an engine that this job would build again just so."""
    try:
        sidecar = check_plan(job.plan, job.onnx_sha256)
    except EngineError:
        return None
    unverified = sidecar.replaced_grid_samples and sidecar.replacement_error is None
    same = (
        sidecar.backend == job.backend
        and sidecar.library_version == library_version
        and sidecar.created_with == __version__
        and sidecar.platform == sysconfig.get_platform()
        and (sidecar.gpu, sidecar.targets) == (job.machine.gpu, job.machine.targets)
        and sidecar.options == job.request.options
        and sidecar.shape_values == job.request.shape_values
        and all(job.request.profiles.get(name) == sizes for name, sizes in sidecar.profiles.items())
        and not (job.verify and unverified)
    )
    return sidecar if same else None
