"""ONNX file to a TensorRT-RTX plan, compiled without a GPU for a list of compute capabilities.

The only module of the build that touches ``tensorrt_rtx``; importing it needs the library, not a
driver. Networks are strongly typed: every number has the type that the ONNX file gives it.
TensorFloat-32, which the library would use for FP32 on its own account (10 bits of mantissa), is
off: FP32 means FP32.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openvis_rt.errors import DependencyError, EngineError, InputError
from openvis_rt.graphs import TensorSpec
from openvis_rt.plans import Profile

if TYPE_CHECKING:
    from pathlib import Path

try:
    import tensorrt_rtx as trt
except ModuleNotFoundError as exc:
    raise DependencyError("tensorrt_rtx", "rtx") from exc

__all__ = [
    "DEFAULT_PROFILES",
    "LIBRARY",
    "VERSION",
    "BuiltPlan",
    "Progress",
    "build_plan",
    "check_targets",
]

LIBRARY = "tensorrt_rtx"
VERSION: str = trt.__version__

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, steps done, steps)``, one call at a time, from any thread."""

DEFAULT_PROFILES: Mapping[str, Profile] = {
    "K": Profile(1, 64, 4096),  # LVIS with every synonym has about 2500 rows
    "B": Profile(1, 64, 128),  # a phrase has at most 14 prompts, the host makes batches
    "n": Profile(1, 10, 100),
}
"""Least, usual and largest size of each dynamic axis of ``openvis_rt.graphs``."""

_TYPE_NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what the parsed network says about it.

    Attributes:
        plan: the serialized engine.
        inputs: in the network's order; a dynamic size is its symbol.
        outputs: in the network's order; a size that follows from the inputs is ``?``.
        profiles: the symbols that occur in the inputs.
        layers: layer type -> type of its first output -> number of layers, before any fusion.
    """

    plan: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, Profile]
    layers: dict[str, dict[str, int]]


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets without repetition, in ascending order.

    Raises:
        InputError: none is given, or the installed library compiles for no such target.
    """
    known = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    wanted = {target.strip().lower() for target in targets}
    unknown = sorted(wanted.difference(known))
    if unknown or not wanted:
        raise InputError(
            f"targets {', '.join(unknown) or '(none)'}: tensorrt_rtx {VERSION} compiles for "
            f"{', '.join(sorted(known, key=_capability))}. Give some of these with --targets."
        )
    return tuple(sorted(wanted, key=_capability))


def build_plan(
    onnx_path: Path,
    *,
    targets: Sequence[str],
    profiles: Mapping[str, Profile] = DEFAULT_PROFILES,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Parse and compile an ONNX file.

    Args:
        onnx_path: the file, with its external data beside it if it has any.
        targets: compute capabilities such as ``sm86``.
        profiles: sizes of each symbolic axis.
        progress: what it raises cancels the build and is raised from here.

    Raises:
        InputError: unknown targets.
        EngineError: the parser or the builder refuses the graph; the message is theirs.
    """
    targets = check_targets(targets)
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(
        1
        << int(
            trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        )  # the only kind that 11 and RTX have
    )
    _parse(network, log, onnx_path)
    inputs = tuple(_spec(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(_spec(network.get_output(i)) for i in range(network.num_outputs))
    used = _used_profiles(onnx_path.name, inputs, profiles)

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    if used:
        _add_profile(builder, config, inputs, used)
    monitor = _Monitor(progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        raise EngineError(
            f"tensorrt_rtx {VERSION} cannot compile {onnx_path} for {', '.join(targets)}:\n"
            f"{log.text()}"
        )
    return BuiltPlan(bytes(memoryview(plan)), inputs, outputs, used, _layer_counts(network))


def _capability(target: str) -> int:
    return int(target.removeprefix("sm"))


def _parse(network: trt.INetworkDefinition, log: _Log, onnx_path: Path) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [
        f"  {e.node_operator() or 'file'} {e.node_name()!r}: {_without_driver(e.desc())}"
        for e in errors
    ]
    raise EngineError(
        f"tensorrt_rtx {VERSION} cannot parse {onnx_path}:\n" + ("\n".join(lines) or log.text())
    )


def _spec(tensor: trt.ITensor) -> TensorSpec:
    shape = tuple(
        size if size >= 0 else tensor.get_dimension_name(axis) or "?"
        for axis, size in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, _type_name(tensor.dtype), shape)


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


def _add_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    inputs: Sequence[TensorSpec],
    used: Mapping[str, Profile],
) -> None:
    profile = builder.create_optimization_profile()
    for spec in inputs:
        # axes with fixed sizes have the same size three times
        sizes = [used[s] if isinstance(s, str) else Profile(s, s, s) for s in spec.shape]
        if any(isinstance(s, str) for s in spec.shape):
            profile.set_shape(spec.name, *zip(*sizes, strict=True))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"tensorrt_rtx {VERSION} refuses the sizes {dict(used)}")


def _layer_counts(network: trt.INetworkDefinition) -> dict[str, dict[str, int]]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    pairs = Counter(
        (layer.type.name, _type_name(layer.get_output(0).dtype))
        for layer in layers
        if layer.num_outputs  # assertions have none
    )
    counts: dict[str, dict[str, int]] = {}
    for (kind, dtype), number in sorted(pairs.items()):
        counts.setdefault(kind, {})[dtype] = number
    return counts


def _type_name(dtype: trt.DataType) -> str:
    name = str(dtype.name)
    return _TYPE_NAMES.get(name, name.lower())


def _without_driver(message: str) -> str:
    """The message without complaints about the missing driver, which compiling does not need."""
    return "\n".join(line for line in message.splitlines() if "catchCudaError" not in line)


class _Log(trt.ILogger):  # type: ignore[misc]  # the library has no types
    """Keeps warnings and errors; prints nothing."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
            self.messages.append(message)

    def text(self) -> str:
        kept = [_without_driver(message) for message in self.messages]
        return "\n".join(f"  {message}" for message in kept if message) or "  (it gave no reason)"


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library has no types
    """Hands progress on; keeps what a callback raises, which the library would swallow."""

    def __init__(self, progress: Progress | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self.error: BaseException | None = None
        self._progress = progress
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()

    def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
        with self._lock:
            self._steps[phase_name] = num_steps

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._steps.pop(phase_name, None)

    def step_complete(self, phase_name: str, step: int) -> bool:
        try:
            with self._lock:
                if self._progress is not None and self.error is None:
                    self._progress(phase_name, step + 1, self._steps.get(phase_name, step + 1))
        except BaseException as exc:
            self.error = exc
        return self.error is None
