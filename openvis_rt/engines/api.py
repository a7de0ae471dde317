"""The part of TensorRT's Python interface that this package uses, and no more of it.

The library has no types of its own. Code that works with it names these protocols, so mypy refuses
a call that is not declared here; a test holds every declaration against each library that is
supported. :class:`Module` says which protocol stands for which class of the library.

A member that is declared as a property is only read; one that is declared as an attribute is
assigned, so it must be assignable in the library as well. Parameters without names are given by
position, and those with a default are given in some calls only. Functions that may give nothing
give None. This module imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

__all__ = [
    "BuilderConfig",
    "Context",
    "Engine",
    "EngineBuilder",
    "HostMemory",
    "Inspector",
    "Layer",
    "Logger",
    "Module",
    "Network",
    "OptimizationProfile",
    "Parser",
    "PlanRuntime",
    "Profiler",
    "ProgressMonitor",
    "RuntimeCache",
    "RuntimeConfig",
    "Tensor",
    "TimingCache",
]


class Logger(Protocol):
    """Receives what the library says; ours derives from it."""

    INTERNAL_ERROR: Any
    ERROR: Any
    WARNING: Any

    def log(self, severity: Any, message: str, /) -> None:
        """One message."""


class ProgressMonitor(Protocol):
    """Receives the progress of a build; ours derives from it."""

    def phase_start(self, phase: str, parent: str | None, steps: int, /) -> None:
        """A phase begins."""

    def phase_finish(self, phase: str, /) -> None:
        """It is over."""

    def step_complete(self, phase: str, step: int, /) -> bool:
        """One more step is done; whether to go on."""


class Profiler(Protocol):
    """Receives the time of every layer of a run; ours derives from it."""

    def report_layer_time(self, layer: str, milliseconds: float, /) -> None:
        """One layer of one run."""


class Named(Protocol):
    """A member of an enumeration."""

    @property
    def name(self) -> str:
        """As the enumeration has it."""


class DataTypes(Named, Protocol):
    """The types of tensors; they are told apart by their names."""

    FLOAT: Any
    HALF: Any
    INT8: Any
    INT32: Any
    INT64: Any
    UINT8: Any
    BOOL: Any


class LayerTypes(Named, Protocol):
    """The kinds of layers; those that do most of the work are told apart by their names."""

    CONVOLUTION: Any
    MATRIX_MULTIPLY: Any


class Enumeration(Protocol):
    """One whose members are asked for by name, as they differ from release to release."""

    __members__: ClassVar[Mapping[str, Any]]


class NetworkDefinitionCreationFlags(Protocol):
    """How a network is made."""

    STRONGLY_TYPED: Any


class BuilderFlags(Protocol):
    """What a build may do."""

    TF32: Any
    VERSION_COMPATIBLE: Any


class ProfilingVerbosities(Protocol):
    """What an engine can tell of itself."""

    DETAILED: Any


class MemoryPoolTypes(Protocol):
    """Kinds of memory that a build limits."""

    WORKSPACE: Any


class LayerInformationFormats(Protocol):
    """The inspector's languages."""

    JSON: Any


class TensorIOModes(Protocol):
    """Whether a tensor goes in or out."""

    INPUT: Any


class TensorLocations(Protocol):
    """Where a tensor's memory is."""

    HOST: Any


class CudaGraphStrategies(Protocol):
    """Whether TensorRT-RTX makes CUDA graphs by itself."""

    DISABLED: Any
    WHOLE_GRAPH_CAPTURE: Any


class ExecutionContextAllocationStrategies(Protocol):
    """Whose memory a context works in."""

    USER_MANAGED: Any


class HostMemory(Protocol):
    """Bytes of the library."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """What ``memoryview`` takes."""


class Tensor(Protocol):
    """Of a network."""

    @property
    def name(self) -> str:
        """As in the ONNX file."""

    @property
    def dtype(self) -> Named:
        """A member of ``DataType``."""

    @property
    def shape(self) -> Sequence[int]:
        """With -1 for dynamic sizes."""

    @property
    def is_shape_tensor(self) -> bool:
        """Its values are sizes."""

    def get_dimension_name(self, axis: int, /) -> str:
        """The symbol of an axis; empty if it has none."""


class Layer(Protocol):
    """Of a network."""

    @property
    def type(self) -> Named:
        """A member of ``LayerType``."""

    @property
    def num_outputs(self) -> int:
        """How many."""

    def get_input(self, index: int, /) -> Tensor:
        """One of its inputs."""

    def get_output(self, index: int, /) -> Tensor:
        """One of its outputs."""


class Network(Protocol):
    """What was parsed."""

    @property
    def num_inputs(self) -> int:
        """How many."""

    @property
    def num_outputs(self) -> int:
        """How many."""

    @property
    def num_layers(self) -> int:
        """How many."""

    def get_input(self, index: int, /) -> Tensor:
        """One of its inputs."""

    def get_output(self, index: int, /) -> Tensor:
        """One of its outputs."""

    def get_layer(self, index: int, /) -> Layer:
        """One of its layers."""


class ParseError(Protocol):
    """Why a file was not parsed."""

    def node_operator(self) -> str:
        """ONNX's name of the operator; empty if it was no node's fault."""

    def node_name(self) -> str:
        """Of the node."""

    def desc(self) -> str:
        """The reason."""


class Parser(Protocol):
    """Reads ONNX into a network."""

    def __init__(self, network: Network, logger: Logger, /) -> None: ...

    @property
    def num_errors(self) -> int:
        """How many."""

    def parse_from_file(self, path: str, /) -> bool:
        """Whether it was read."""

    def get_error(self, index: int, /) -> ParseError:
        """One of the errors."""


class OptimizationProfile(Protocol):
    """Min, opt and max of the inputs' sizes."""

    def set_shape(
        self, name: str, min_: Sequence[int], opt: Sequence[int], max_: Sequence[int], /
    ) -> None:
        """Of an input with dynamic axes."""

    def set_shape_input(
        self, name: str, min_: Sequence[int], opt: Sequence[int], max_: Sequence[int], /
    ) -> None:
        """Of the values of an input that holds sizes."""


class TimingCache(Protocol):
    """Measured times of kernels."""

    def serialize(self) -> HostMemory:
        """To be kept in a file."""


class BuilderConfig(Protocol):
    """How to build."""

    builder_optimization_level: int
    hardware_compatibility_level: Any
    num_compute_capabilities: int
    profiling_verbosity: Any
    progress_monitor: ProgressMonitor

    def set_flag(self, flag: Any, /) -> None:
        """Of ``BuilderFlag``."""

    def clear_flag(self, flag: Any, /) -> None:
        """Of ``BuilderFlag``."""

    def set_memory_pool_limit(self, pool: Any, size: int, /) -> None:
        """Bytes, of one of ``MemoryPoolType``."""

    def set_compute_capability(self, capability: Any, index: int, /) -> bool:
        """One of the GPUs to compile for."""

    def add_optimization_profile(self, profile: OptimizationProfile, /) -> int:
        """Its index; negative if it is refused."""

    def create_timing_cache(self, data: bytes, /) -> TimingCache | None:
        """Of an earlier build's bytes, or new of none."""

    def set_timing_cache(self, cache: TimingCache | None, ignore_mismatch: bool, /) -> bool:
        """Whether it is of this GPU and version."""

    def get_timing_cache(self) -> TimingCache | None:
        """With the times of this build."""


class EngineBuilder(Protocol):
    """Makes networks, and compiles them to plans."""

    def __init__(self, logger: Logger, /) -> None: ...

    def create_network(self, flags: int, /) -> Network:
        """An empty one."""

    def create_builder_config(self) -> BuilderConfig:
        """With the library's defaults."""

    def create_optimization_profile(self) -> OptimizationProfile:
        """An empty one."""

    def build_serialized_network(
        self, network: Network, config: BuilderConfig, /
    ) -> HostMemory | None:
        """The plan."""


class RuntimeCache(Protocol):
    """Kernels that TensorRT-RTX compiled."""

    def serialize(self) -> HostMemory:
        """To be kept in a file."""

    def deserialize(self, data: bytes, /) -> bool:
        """Whether they are of this GPU and version."""


class RuntimeConfig(Protocol):
    """How an engine runs."""

    cuda_graph_strategy: CudaGraphStrategies

    def create_runtime_cache(self) -> RuntimeCache:
        """An empty one."""

    def set_runtime_cache(self, cache: RuntimeCache, /) -> bool:
        """Whether it was taken."""


class Context(Protocol):
    """One execution of an engine at a time."""

    profiler: Profiler

    def set_device_memory(self, address: int, size: int, /) -> None:
        """What it works in, where it was made without; contexts that never run at once share it."""

    def set_tensor_address(self, name: str, address: int, /) -> bool:
        """Whether it was taken; of device memory, or of host memory for a shape input."""

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool:
        """Whether the profile allows it."""

    def get_tensor_shape(self, name: str, /) -> Sequence[int]:
        """As it follows from the inputs' shapes."""

    def infer_shapes(self) -> Sequence[str]:
        """The inputs whose sizes are missing."""

    def execute_async_v3(self, stream: int, /) -> bool:
        """Whether it was queued."""


class Inspector(Protocol):
    """Tells of an engine's layers."""

    def get_engine_information(self, form: Any, /) -> str:
        """In one of ``LayerInformationFormat``."""


class Engine(Protocol):
    """A plan that is loaded."""

    @property
    def num_io_tensors(self) -> int:
        """How many."""

    def get_tensor_name(self, index: int, /) -> str:
        """Of one of the inputs and outputs."""

    def get_tensor_mode(self, name: str, /) -> Any:
        """A member of ``TensorIOMode``."""

    def get_tensor_dtype(self, name: str, /) -> Named:
        """A member of ``DataType``."""

    def get_tensor_shape(self, name: str, /) -> Sequence[int]:
        """With -1 for dynamic sizes."""

    def get_tensor_location(self, name: str, /) -> Any:
        """A member of ``TensorLocation``."""

    def get_tensor_profile_shape(self, name: str, profile: int, /) -> Sequence[Sequence[int]]:
        """Min, opt and max of an input's shape."""

    def get_tensor_profile_values(self, profile: int, name: str, /) -> Sequence[Sequence[int]]:
        """Min, opt and max of a shape input's values."""

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that one of its contexts works in, at most."""

    def create_execution_context(
        self, config: RuntimeConfig | ExecutionContextAllocationStrategies = ..., /
    ) -> Context | None:
        """None if the device has not enough memory."""

    def create_runtime_config(self) -> RuntimeConfig:
        """With the library's defaults; TensorRT 10.3 has none."""

    def create_engine_inspector(self) -> Inspector:
        """Of this engine."""


class PlanRuntime(Protocol):
    """Loads plans."""

    engine_host_code_allowed: bool

    def __init__(self, logger: Logger, /) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes | HostMemory, /) -> Engine | None:
        """None if it is not a plan of this library and GPU."""


class Module(Protocol):
    """``tensorrt`` or ``tensorrt_rtx``: its classes, each by a protocol that stands for it."""

    __version__: str

    # classes that are called or derived from
    Builder: type[EngineBuilder]
    OnnxParser: type[Parser]
    Runtime: type[PlanRuntime]
    ILogger: type[Logger]
    IProgressMonitor: type[ProgressMonitor]
    IProfiler: type[Profiler]

    # classes of what these give
    INetworkDefinition: type[Network]
    ITensor: type[Tensor]
    ILayer: type[Layer]
    ParserError: type[ParseError]
    IBuilderConfig: type[BuilderConfig]
    IOptimizationProfile: type[OptimizationProfile]
    ITimingCache: type[TimingCache]
    IHostMemory: type[HostMemory]
    ICudaEngine: type[Engine]
    EngineInspector: type[Inspector]
    IExecutionContext: type[Context]
    IRuntimeConfig: type[RuntimeConfig]
    IRuntimeCache: type[RuntimeCache]

    # enumerations
    DataType: type[DataTypes]
    LayerType: type[LayerTypes]
    NetworkDefinitionCreationFlag: type[NetworkDefinitionCreationFlags]
    BuilderFlag: type[BuilderFlags]
    ProfilingVerbosity: type[ProfilingVerbosities]
    MemoryPoolType: type[MemoryPoolTypes]
    LayerInformationFormat: type[LayerInformationFormats]
    TensorIOMode: type[TensorIOModes]
    TensorLocation: type[TensorLocations]
    CudaGraphStrategy: type[CudaGraphStrategies]
    ExecutionContextAllocationStrategy: type[ExecutionContextAllocationStrategies]
    ComputeCapability: type[Enumeration]
    HardwareCompatibilityLevel: type[Enumeration]
