"""ONNX file to an engine, by any TensorRT library: parse, configure, compile, look at it.

Networks are strongly typed: every number has the type that the ONNX file gives it, so no flag here
asks for a precision. TensorFloat-32, which the library would use for FP32 on its own account
(10 bits of mantissa), is off: FP32 means FP32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openvis_rt.engines.api import (
    BuilderConfig,
    EngineBuilder,
    HostMemory,
    Logger,
    Network,
    Tensor,
)
from openvis_rt.engines.build.callbacks import Progress, Steps, new_monitor
from openvis_rt.engines.build.compiler_log import CompilerLog, CompilerReport, report_of
from openvis_rt.engines.build.layers import (
    Layers,
    has_heavy_layers,
    inspector_layers,
    network_layers,
    precision_of_layers,
    type_name,
)
from openvis_rt.engines.build.timing_cache import load_timing_cache, save_timing_cache
from openvis_rt.engines.library import Messages, new_logger, without_driver
from openvis_rt.engines.plan import (
    LIBRARY_DEFAULTS,
    BuildOptions,
    Profile,
    ShapeValues,
    capability_number,
)
from openvis_rt.errors import EngineError, InputError
from openvis_rt.systems.graphs import CONTEXT_LENGTH, MASKS_PER_RUN, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    from openvis_rt.engines.library import TensorRtLibrary

__all__ = [
    "DEFAULT_PROFILES",
    "BuildRequest",
    "BuiltPlan",
    "build_plan",
    "check_options",
    "check_targets",
]

DEFAULT_PROFILES: Mapping[str, Profile] = {
    "K": Profile(1, 64, 4096),  # LVIS with every synonym has about 2500 rows
    "B": Profile(1, 64, 128),  # a phrase has at most 14 prompts, the host makes batches
    "L": Profile(2, 16, CONTEXT_LENGTH),  # a class name in a prompt has about 11 tokens
    "n": Profile(1, MASKS_PER_RUN, MASKS_PER_RUN),
}
"""Min, opt and max of dynamic axes of ``openvis_rt.systems.graphs``; T's are the bundle's."""

LARGEST_OPTIMIZATION_LEVEL = 5
LARGEST_WORKSPACE = 1 << 20  # MiB


@dataclass(frozen=True)
class BuildRequest:
    """How to build.

    Attributes:
        targets: compute capabilities such as ``sm86``, where the library takes a list of them.
        profiles: sizes of each symbolic axis.
        shape_values: for each input whose values are sizes.
        options: what else the library is asked.
        timing_cache: file of measured kernel times, read if it is there and written afterwards.
        inspect: load the finished engine and warn where it names products of another precision;
            needs the GPU it is for.
    """

    targets: tuple[str, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=lambda: DEFAULT_PROFILES)
    shape_values: Mapping[str, ShapeValues] = field(default_factory=dict)
    options: BuildOptions = LIBRARY_DEFAULTS
    timing_cache: Path | None = None
    inspect: bool = False


@dataclass(frozen=True)
class BuiltPlan:
    """An engine and what is known about it.

    Attributes:
        plan: the engine, serialized.
        inputs: in the network's order; a dynamic size is its symbol.
        outputs: in the network's order; a size that follows from the inputs is ``?``.
        profiles: the symbols that occur in the inputs.
        shape_values: the inputs whose values are sizes.
        layers: of the parsed network: layer type -> type that it computes in -> number of them.
        warnings: what did not work and was done without.
        report: the compiled kernels in numbers; None where the library does not tell of them.
    """

    plan: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, Profile]
    shape_values: dict[str, ShapeValues]
    layers: Layers
    warnings: tuple[str, ...]
    report: CompilerReport | None


def check_targets(library: TensorRtLibrary, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets without repetition, in ascending order.

    Raises:
        InputError: the library takes no list; or none is given, or it compiles for no such target.
    """
    wanted = {target.strip().lower() for target in targets}
    if not library.compiles_for_a_list:
        if wanted:
            raise InputError(
                f"targets {', '.join(sorted(wanted))}: {library} compiles for the GPU that it runs "
                "on and takes no list. Leave --targets out, or build with --backend tensorrt-rtx."
            )
        return ()
    known = [n.lower() for n in library.module.ComputeCapability.__members__ if n.startswith("SM")]
    unknown = sorted(wanted.difference(known))
    if unknown or not wanted:
        raise InputError(
            f"targets {', '.join(unknown) or '(none)'}: {library} compiles for "
            f"{', '.join(sorted(known, key=capability_number))}. Give some of these with --targets."
        )
    return tuple(sorted(wanted, key=capability_number))


def check_options(library: TensorRtLibrary, options: BuildOptions) -> None:
    """Refuse what the library does not have, rather than to leave it out without a word.

    Raises:
        InputError: an option is out of range, or has no effect in this library.
    """
    level, compatible = options.optimization_level, options.hardware_compatible
    if options.workspace_mib is not None and not 1 <= options.workspace_mib <= LARGEST_WORKSPACE:
        raise InputError(
            f"--workspace-mib is {options.workspace_mib}; give 1 to {LARGEST_WORKSPACE}."
        )
    if level is not None and not 0 <= level <= LARGEST_OPTIMIZATION_LEVEL:
        raise InputError(
            f"--optimization-level is {level}; give 0 to {LARGEST_OPTIMIZATION_LEVEL}."
        )
    if level is not None and library.compiles_for_a_list:
        raise _not_in(library, "--optimization-level", "it makes the same engine at every level")
    if options.version_compatible and library.compiles_for_a_list:
        raise _not_in(library, "--version-compatible", "its engines need exactly its own version")
    levels = library.hardware_compatibility
    if compatible is not None and compatible not in levels:
        has = f"it has {', '.join(levels)}" if levels else "--targets says what its engines are for"
        raise _not_in(library, f"--hardware-compatible {compatible}", has)


def _not_in(library: TensorRtLibrary, option: str, instead: str) -> InputError:
    return InputError(f"{library} has no {option}: {instead}. Leave it out.")


def build_plan(
    onnx_path: Path,
    library: TensorRtLibrary,
    request: BuildRequest,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Parse and compile an ONNX file.

    Args:
        onnx_path: the file, with its external data beside it if it has any.
        library: what to build with.
        request: how to build; its targets and options as they were checked.
        progress: what it raises cancels the build and is raised from here.

    Raises:
        EngineError: the parser or the builder refuses the graph; the message is theirs.
        OutputError: the timing cache cannot be written.
    """
    messages, compiler = Messages(), CompilerLog()
    log = new_logger(library.module, messages, compiler.hear)
    builder = _builder(library, log, messages)
    flag = int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(1 << flag)
    _parse(library, network, log, messages, onnx_path)
    inputs = tuple(_spec(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_spec(network.get_output(i)) for i in range(network.num_outputs))
    shape_inputs = [n.name for n in map(network.get_input, range(len(inputs))) if n.is_shape_tensor]
    profiles = _used_profiles(onnx_path.name, inputs, request.profiles)
    values = _used_values(onnx_path.name, shape_inputs, request.shape_values)

    config = builder.create_builder_config()
    _configure(config, library, request)
    if (profiles or values) and not _add_profile(config, builder, inputs, profiles, values):
        raise EngineError(f"{library} refuses the sizes {profiles} {values}:\n{messages.text()}")
    warnings = load_timing_cache(config, request.timing_cache) if request.timing_cache else []
    plan = _compiled(library, builder, network, config, progress)
    if plan is None:
        targets = f" for {', '.join(request.targets)}" if request.targets else ""
        raise EngineError(f"{library} cannot compile {onnx_path}{targets}:\n{messages.text()}")
    if request.timing_cache:
        save_timing_cache(config, request.timing_cache)
    layers = network_layers(network)
    if request.inspect:
        inspected = _inspected_layers(library, log, plan, request.options)
        warnings += _doubts(onnx_path.name, library, inspected, layers)
    return BuiltPlan(
        plan=bytes(memoryview(plan)),
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
        shape_values=values,
        layers=layers,
        warnings=tuple(warnings),
        report=report_of(compiler),
    )


def _doubts(
    name: str, library: TensorRtLibrary, inspected: Layers, layers: Layers
) -> Iterator[str]:
    """Where the built engine's layers, by their names, are of another precision than the network's.

    A strongly typed network fixes every type, so it is the proof; an inspector names layers as it
    likes, and fuses products into ``kgen`` and ``runtime_fusion``, whose names tell nothing.
    """
    wanted, found = precision_of_layers(layers), precision_of_layers(inspected)
    if has_heavy_layers(inspected) and found != wanted:
        yield (
            f"{name}: the network's types are {wanted}, and the inspector of {library} names "
            f"products that are {found}: {inspected}. The comparison with ONNX Runtime decides"
        )


def _compiled(
    library: TensorRtLibrary,
    builder: EngineBuilder,
    network: Network,
    config: BuilderConfig,
    progress: Progress | None,
) -> HostMemory | None:
    """The plan; what ``progress`` raised is raised from here."""
    steps = Steps(progress)
    config.progress_monitor = new_monitor(library.module, steps)
    plan = builder.build_serialized_network(network, config)
    if steps.error is not None:
        raise steps.error
    return plan


def _builder(library: TensorRtLibrary, log: Logger, messages: Messages) -> EngineBuilder:
    try:
        return library.module.Builder(log)
    except TypeError as exc:  # how the binding says that it got none
        raise EngineError(
            f"{library} does not start on this machine, most often for want of a GPU that it "
            f"knows, of a newer driver, or of memory:\n{messages.text()}"
        ) from exc


def _parse(
    library: TensorRtLibrary, network: Network, log: Logger, messages: Messages, onnx_path: Path
) -> None:
    parser = library.module.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx_path)):
        return
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator() or 'file'} {error.node_name()!r}"
        lines.append(f"  {where}: {without_driver(error.desc())}")
    raise EngineError(
        f"{library} cannot parse {onnx_path}:\n" + ("\n".join(lines) or messages.text())
    )


def _spec(tensor: Tensor) -> TensorSpec:
    shape = tuple(
        size if size >= 0 else tensor.get_dimension_name(axis) or "?"
        for axis, size in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, type_name(tensor.dtype), shape)


def _used_profiles(
    name: str, inputs: Sequence[TensorSpec], profiles: Mapping[str, Profile]
) -> dict[str, Profile]:
    symbols = {size: spec for spec in inputs for size in spec.shape if isinstance(size, str)}
    for symbol, spec in symbols.items():
        if symbol not in profiles:
            raise EngineError(
                f"{name}: input {spec.name!r} has the dynamic axis {symbol!r} in "
                f"{list(spec.shape)}; sizes are known for {', '.join(profiles)} only. "
                "Export with that axis fixed, or named so."
            )
    return {symbol: profiles[symbol] for symbol in sorted(symbols)}


def _used_values(
    name: str, shape_inputs: Sequence[str], values: Mapping[str, ShapeValues]
) -> dict[str, ShapeValues]:
    if unknown := [i for i in shape_inputs if i not in values]:
        raise EngineError(
            f"{name}: input {', '.join(unknown)} holds sizes, and no min and max are "
            f"known for it, only for {', '.join(values) or 'none'}."
        )
    return {i: values[i] for i in shape_inputs}


def _add_profile(
    config: BuilderConfig,
    builder: EngineBuilder,
    inputs: Sequence[TensorSpec],
    profiles: Mapping[str, Profile],
    values: Mapping[str, ShapeValues],
) -> bool:
    """Whether the library takes these sizes."""
    profile = builder.create_optimization_profile()
    for spec in inputs:
        # axes with fixed sizes have the same size three times
        sizes = [profiles[s] if isinstance(s, str) else Profile(s, s, s) for s in spec.shape]
        if any(isinstance(s, str) for s in spec.shape):
            minimum, opt, maximum = zip(*sizes, strict=True)
            profile.set_shape(spec.name, minimum, opt, maximum)
        if spec.name in values:
            profile.set_shape_input(spec.name, *values[spec.name])
    return config.add_optimization_profile(profile) >= 0


def _configure(config: BuilderConfig, library: TensorRtLibrary, request: BuildRequest) -> None:
    trt, options = library.module, request.options
    config.clear_flag(trt.BuilderFlag.TF32)
    # so that an engine inspector can tell the layers' types
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.targets:
        config.num_compute_capabilities = len(request.targets)
    for index, target in enumerate(request.targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible is not None:
        level = library.hardware_compatibility[options.hardware_compatible]
        config.hardware_compatibility_level = level


def _inspected_layers(
    library: TensorRtLibrary, log: Logger, plan: HostMemory, options: BuildOptions
) -> Layers:
    """Layers by the inspector of the loaded engine; none if it does not load."""
    trt = library.module
    runtime = trt.Runtime(log)
    # a version-compatible engine carries the library that loads it; this one was built here
    runtime.engine_host_code_allowed = options.version_compatible
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return {}
    inspector = engine.create_engine_inspector()
    return inspector_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
