"""A TensorRT that runs on the fake CUDA driver, with ONNX Runtime underneath.

A plan names an ONNX file, its tensors and the profile. ``execute_async_v3`` queues the graph on the
stream with the addresses and shapes of that moment, and reads and writes device memory only when
the stream comes to it, so that a wrong order or a buffer that is reused too early shows as in the
library. Engines and contexts take device memory (the context's is what ``create_execution_context``
may fail to get) and give it back when nobody refers to them: as with the library, that must be
before the CUDA context is gone.

It is as strict as the library: unset addresses, sizes outside the profile, sizes that are missing,
addresses that are not aligned to 256 bytes, no current context and an engine of another library are
errors, told to the logger. A buffer that is too small is written over by the library; here the
driver finds it.

It is stricter: the values of a shape input may not change between ``set_tensor_address`` and the
moment when the stream comes to the execution; sizes that changed need one execution outside of a
capture first; a context from which a CUDA graph was captured may not be changed and the graph
launched after that; contexts that share their device memory must keep to one stream; a name, a slot
or a shape of the wrong Python type is a TypeError in every case.

It is kinder: two contexts may run at once on any streams; weights are not read from the plan, so a
damaged plan is found at its first bytes only; nothing is said of unsupported layers, which the
builder would refuse; kernels never fail for want of workspace.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import itertools
import json
import math
import struct
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from doubles.fake_cuda import FakeCuda

MAGIC = b"PLAN"
WEIGHTS, WORKSPACE = 1 << 16, 1 << 16  # bytes that an engine and a context take
PERSISTENT = 1 << 10  # that a context takes though its workspace is given to it
ALIGNMENT = 256
VERSIONS = {"tensorrt": "11.4.0", "tensorrt 10": "10.3.0", "tensorrt-rtx": "1.7.1"}


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "bool": DataType.BOOL,
    "uint8": DataType.UINT8,
    "int64": DataType.INT64,
}


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class IProfiler:
    def __init__(self) -> None:
        self.is_made = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


def tensorrt_double(driver: FakeCuda, kind: str = "tensorrt") -> SimpleNamespace:
    """What ``import tensorrt`` would give; ``kind`` is a key of ``VERSIONS``.

    Attributes beside the library's: ``failures``, what went wrong inside of queued work;
    ``compiled``, the kernels that were in no cache; ``strategies``, of CUDA graphs, of the contexts
    of TensorRT-RTX; and ``edit``, called with the outputs of every execution and the ONNX file's
    stem, before they are written.
    """

    class BoundRuntime(Runtime):
        def __init__(self, logger: ILogger) -> None:
            super().__init__(double, logger)

    double = SimpleNamespace(
        **{kind.__name__: kind for kind in (TensorIOMode, TensorLocation, DataType, ILogger)},
        LayerInformationFormat=LayerInformationFormat,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        IProfiler=IProfiler,
        EngineInspector=EngineInspector,
        CudaGraphStrategy=CudaGraphStrategy,
        Runtime=BoundRuntime,
        ICudaEngine=Engine,
        IExecutionContext=Context,
        IRuntimeConfig=RtxConfig,
        IRuntimeCache=RuntimeCache,
        __version__=VERSIONS[kind],
        kind=kind,
        driver=driver,
        failures=[],
        compiled=[],
        strategies=[],
        workspaces={},
        edit=lambda _stem, _outputs: None,
    )
    return double


# plans


@dataclass(frozen=True)
class Plan:
    """What the bytes of a plan hold.

    Attributes:
        kind: the library that made it.
        onnx: path of the graph.
        inputs, outputs: name -> type and shape; a dynamic size is a symbol.
        profiles: symbol -> min, opt, max.
        shape_values: shape input -> min, opt and max values.
        symbols: shape input -> the symbols that its values are the sizes of.
        precision: what the inspector says that convolutions and products compute in.
    """

    kind: str
    onnx: str
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]
    profiles: dict[str, tuple[int, int, int]]
    shape_values: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    symbols: dict[str, tuple[str, ...]] = field(default_factory=dict)
    precision: str = "fp32"

    def to_bytes(self) -> bytes:
        text = json.dumps(self.__dict__).encode()
        return MAGIC + struct.pack("<I", len(text)) + text

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """Inverse of :meth:`to_bytes`; ValueError if it is no plan."""
        if data[:4] != MAGIC or len(data) < 8 or len(data) != 8 + struct.unpack("<I", data[4:8])[0]:
            raise ValueError("magic tag does not match")
        return cls(**json.loads(data[8:]))


@functools.lru_cache(maxsize=16)
def _loaded(path: str, _changed: float) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # many are open at once
    return onnxruntime.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        # as the project's own sessions, to the bit
        disabled_optimizers=["SkipLayerNormFusion", "WeightBiasQuantization"],
    )


# the library


class _Memory:
    """Device memory for as long as it is referred to; falsy if there was not enough."""

    def __init__(self, driver: FakeCuda, size: int) -> None:
        self._driver, self.address = driver, driver.allocate(size)

    def __bool__(self) -> bool:
        return self.address is not None

    def __del__(self) -> None:
        if self.address is not None:
            self._driver.free(self.address)


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, double: SimpleNamespace, logger: ILogger) -> None:
        if not isinstance(logger, ILogger) or not hasattr(logger, "is_made"):
            raise TypeError("logger: ILogger.__init__ was not called")
        self._double, self._logger = double, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        try:
            plan = Plan.from_bytes(bytes(serialized_engine))
        except ValueError as exc:
            return self._fail(f"Serialization assertion failed: {exc}")
        if not self._double.driver.has_context():
            return self._fail("CUDA initialization failure with error: 201 (no context)")
        if plan.kind != self._double.kind:
            return self._fail(f"The engine plan file is of {plan.kind}, this is another library")
        memory = _Memory(self._double.driver, WEIGHTS)
        if not memory:
            return self._fail("Requested amount of GPU memory could not be allocated")
        kind = {"tensorrt 10": Engine10}.get(self._double.kind, Engine)
        return kind(self._double, self._logger, plan, memory)

    def _fail(self, message: str) -> None:
        self._logger.log(Severity.ERROR, message)


class Engine10:
    """Of a release without runtime configurations."""

    def __init__(
        self, double: SimpleNamespace, logger: ILogger, plan: Plan, memory: _Memory
    ) -> None:
        self._double, self._logger, self.plan, self._memory = double, logger, plan, memory
        self._tensors = {**plan.inputs, **plan.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self.plan.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self._tensors[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self._tensors[name][1])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if self.is_shape_inference_io(name) else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.plan.shape_values

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if name not in self.plan.inputs or profile_index != 0:
            raise RuntimeError(f"{name} is no input with a profile {profile_index}")
        shape = self.plan.inputs[name][1]
        ranges = [self.plan.profiles[s] if isinstance(s, str) else (s, s, s) for s in shape]
        return list(zip(*ranges, strict=True))

    def get_tensor_profile_values(self, profile_index: int, name: str) -> list[list[int]]:
        if name not in self.plan.shape_values or profile_index != 0:
            raise RuntimeError(f"{name} is no shape input with a profile {profile_index}")
        return [list(values) for values in self.plan.shape_values[name]]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.plan)

    @property
    def device_memory_size_v2(self) -> int:
        return WORKSPACE

    def create_execution_context(
        self, config: RuntimeConfig | ExecutionContextAllocationStrategy | None = None
    ) -> Context | None:
        owned = config is not ExecutionContextAllocationStrategy.USER_MANAGED
        memory = _Memory(self._double.driver, WORKSPACE if owned else PERSISTENT)
        if not memory:
            self._logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was ...)")
            return None
        if isinstance(config, RtxConfig):
            self._double.strategies.append(config.cuda_graph_strategy.name)
        return Context(self._double, self._logger, self, config, memory, owned)


class Engine(Engine10):
    def create_runtime_config(self) -> RuntimeConfig:
        return (RtxConfig if self._double.kind == "tensorrt-rtx" else RuntimeConfig)()


class EngineInspector:
    """Names the heavy nodes of the ONNX file as layers, in the plan's precision."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        if form is not LayerInformationFormat.JSON:
            raise ValueError(f"{form} is not played")
        tensor = {"Datatype": self._plan.precision.upper()}
        layers = [
            {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}
            for name, kind in _layers(self._plan.onnx)
        ]
        return json.dumps({"Layers": layers})


@functools.lru_cache(maxsize=16)
def _layers(path: str) -> list[tuple[str, str]]:
    """Name and type of the convolutions and products of an ONNX file."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    kinds = {"Conv": "CaskConvolution", "MatMul": "MatrixMultiply", "Gemm": "MatrixMultiply"}
    return [(n.name, kinds[n.op_type]) for n in nodes if n.op_type in kinds]


class RuntimeConfig:
    """Of TensorRT 11: it has nothing that is used here."""


class RtxConfig(RuntimeConfig):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def __init__(self) -> None:
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def deserialize(self, serialized: bytes) -> bool:
        head, _, names = bytes(serialized).partition(b":")
        if head == b"KERNELS":
            self.kernels |= set(names.decode().split(","))
        return head == b"KERNELS"

    def serialize(self) -> bytes:
        return b"KERNELS:" + ",".join(sorted(self.kernels)).encode()


@dataclass
class _Job:
    """One execution, as it was queued."""

    inputs: dict[str, tuple[int, np.dtype, tuple[int, ...]]]
    outputs: dict[str, tuple[int, np.dtype, tuple[int, ...]]]
    values: dict[str, np.ndarray]
    addresses: dict[str, int]  # of the values
    is_captured: bool
    changes: int  # of the context until then


class Context:
    profiler: IProfiler | None = None

    def __init__(
        self,
        double: SimpleNamespace,
        logger: ILogger,
        engine: Engine10,
        config: RuntimeConfig | ExecutionContextAllocationStrategy | None,
        memory: _Memory,
        owns_workspace: bool,
    ) -> None:
        self._double, self._logger, self.engine, self._memory = double, logger, engine, memory
        self._workspace: int | None = memory.address if owns_workspace else None
        self._config = config
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._changes = 0
        self._values: dict[str, np.ndarray] = {}  # of shape inputs, when their address was set
        self._prepared: Any = None  # sizes of the last execution
        self._jobs: dict[int, _Job] = {}
        path = engine.plan.onnx
        self._session = _loaded(path, Path(path).stat().st_mtime)

    def set_device_memory(self, memory: int, size: int) -> None:
        if not isinstance(memory, int) or not isinstance(size, int):
            raise TypeError(f"set_device_memory(int, int): {memory!r}, {size!r}")
        if memory % ALIGNMENT or size < self.engine.device_memory_size_v2:
            self._fail(f"setDeviceMemoryV2: {memory:#x} of {size} bytes is misaligned or too small")
            return
        self._changes += 1
        self._workspace = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not isinstance(name, str) or not isinstance(memory, int):
            raise TypeError(f"set_tensor_address(str, int): {name!r}, {memory!r}")
        if self.engine.get_tensor_mode(name) is TensorIOMode.NONE:
            return self._fail(f"setTensorAddress: no tensor {name}")
        self._changes += 1
        if self.engine.is_shape_inference_io(name):
            self._values[name] = self._read_values(name, memory)
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if not all(isinstance(size, int) for size in shape):
            raise TypeError(f"set_input_shape: {shape!r}")
        if self.engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
            return self._fail(f"setInputShape: no input {name}")
        least, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(least) and all(
            a <= b <= c for a, b, c in zip(least, shape, largest, strict=True)
        )
        if not fits:
            return self._fail(
                f"setInputShape: {name} of {shape} is outside of the profile, {least} to {largest}"
            )
        self._changes += 1
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        plan = self.engine.plan
        missing = [n for n in plan.inputs if -1 in self.engine.get_tensor_shape(n)]
        missing = [n for n in missing if n not in self._shapes]
        return missing + [n for n in plan.shape_values if n not in self._values]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        plan = self.engine.plan
        if name in plan.inputs:
            return self._shapes.get(name, self.engine.get_tensor_shape(name))
        sizes = self._sizes()
        return tuple(sizes.get(s, -1) if isinstance(s, str) else s for s in plan.outputs[name][1])

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not isinstance(stream_handle, int):
            raise TypeError(f"execute_async_v3(int): {stream_handle!r}")
        driver, plan = self._double.driver, self.engine.plan
        if not driver.has_context():
            return self._fail("enqueueV3: no CUDA context is current on this thread")
        problem = self._unready()
        if problem:
            return self._fail(f"enqueueV3: {problem}")
        if self._double.workspaces.setdefault(self._workspace, stream_handle) != stream_handle:
            self._double.failures.append("contexts on two streams share their device memory")
        held = {name: self._addresses[name] for name in self._values}
        is_captured = driver.is_capturing(stream_handle)
        job = _Job({}, {}, dict(self._values), held, is_captured, self._changes)
        sizes = (dict(self._shapes), {n: v.tolist() for n, v in self._values.items()})
        if job.is_captured and (sizes != self._prepared or self._captures_itself()):
            return self._fail("enqueueV3: operation not permitted when stream is capturing")
        if job.is_captured and self.profiler is not None:
            return self._fail("enqueueV3: layers cannot be timed while the stream is capturing")
        self._prepared = sizes
        for group, tensors in ((job.inputs, plan.inputs), (job.outputs, plan.outputs)):
            for name, (dtype, _) in tensors.items():
                if name not in self._values:
                    shape = self.get_tensor_shape(name)
                    group[name] = (self._addresses[name], np.dtype(dtype), shape)
        if isinstance(self._config, RtxConfig) and self._config.cache is not None:
            cache, kernel = self._config.cache, Path(plan.onnx).stem
            if kernel not in cache.kernels:
                self._double.compiled.append(kernel)
            cache.kernels.add(kernel)
        key = next(_keys)
        self._jobs[key], _queued[key] = job, weakref.ref(self)
        error = driver.launch(stream_handle, _run, key)
        if error:
            del self._jobs[key], _queued[key]
            return self._fail(f"enqueueV3: Cuda failure {error}")
        if self.profiler is not None:
            self._profile(stream_handle)
        return True

    def _profile(self, stream_handle: int) -> None:
        """Times are made up: the k-th layer takes k + 1 microseconds."""
        if not hasattr(self.profiler, "is_made"):
            raise TypeError("profiler: IProfiler.__init__ was not called")
        self._double.driver.synchronize(stream_handle)
        for index, (name, _) in enumerate(_layers(self.engine.plan.onnx)):
            self.profiler.report_layer_time(name, (index + 1) / 1e3)

    def run(self, key: int) -> None:
        """What the device does when it comes to a job."""
        job = self._jobs[key]
        if not job.is_captured:
            del self._jobs[key], _queued[key]
        try:
            self._compute(job)
        except Exception as exc:
            self._double.failures.append(exc)
            self._double.driver.lose("LAUNCH_FAILED")

    # private

    def _fail(self, message: str) -> bool:
        self._logger.log(Severity.ERROR, message)
        return False

    def _captures_itself(self) -> bool:
        return getattr(self._config, "cuda_graph_strategy", None) is (
            CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        )

    def _read_values(self, name: str, address: int) -> np.ndarray:
        dtype, (count,) = self.engine.plan.inputs[name]
        kind = ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)
        return np.frombuffer(kind.from_address(address), dtype).copy()

    def _sizes(self) -> dict[str, int]:
        plan, sizes = self.engine.plan, {}
        for name, shape in self._shapes.items():
            sizes |= dict(zip(plan.inputs[name][1], shape, strict=True))
        for name, symbols in plan.symbols.items():
            if name in self._values:
                sizes |= dict(zip(symbols, self._values[name].tolist(), strict=True))
        if "Ws" in sizes:
            sizes["Wb"] = -(-sizes["Ws"] // 8)  # bytes of a packed row
        return sizes

    def _twofold(self) -> dict[str, set[int]]:
        """Symbols that are two sizes at once."""
        sizes: dict[str, set[int]] = {}
        for name, shape in self._shapes.items():
            for symbol, size in zip(self.engine.plan.inputs[name][1], shape, strict=True):
                sizes.setdefault(symbol, set()).add(size)
        return {s: found for s, found in sizes.items() if isinstance(s, str) and len(found) > 1}

    def _unready(self) -> str | None:
        plan = self.engine.plan
        if self._workspace is None:
            return "no device memory was set to work in"
        if missing := self.infer_shapes():
            return f"sizes of {missing} are not set"
        if twofold := self._twofold():
            return f"input dimensions of one name must be equal: {twofold}"
        for name in (*plan.inputs, *plan.outputs):
            if not self._addresses.get(name):
                return f"the address of {name} is not set"
            if name in self._values:
                continue
            if self._addresses[name] % ALIGNMENT:
                return f"the address of {name} is misaligned"
        for name, (least, _, largest) in plan.shape_values.items():
            values = self._read_values(name, self._addresses[name])
            if not np.array_equal(values, self._values[name]):
                return f"the values of {name} changed after its address was set"
            if (values < least).any() or (values > largest).any():
                return f"the values {values} of {name} are outside of the profile"
        return None

    def _compute(self, job: _Job) -> None:
        driver, feeds = self._double.driver, dict(job.values)
        if job.is_captured and job.changes != self._changes:
            raise RuntimeError("the context was changed after it was captured into a CUDA graph")
        for name, address in job.addresses.items():
            if not np.array_equal(self._read_values(name, address), job.values[name]):
                raise RuntimeError(f"the values of {name} changed before they were used")
        if driver.bytes_at(self._workspace, 1) is None:
            return
        for name, (address, dtype, shape) in job.inputs.items():
            raw = driver.bytes_at(address, math.prod(shape) * dtype.itemsize)
            if raw is None:
                return
            feeds[name] = raw.view(dtype).reshape(shape).copy()
        outputs = dict(zip(job.outputs, self._session.run(list(job.outputs), feeds), strict=True))
        self._double.edit(Path(self.engine.plan.onnx).stem, outputs)
        for name, (address, dtype, shape) in job.outputs.items():
            value = outputs[name]
            if (value.dtype, value.shape) != (dtype, shape):
                raise TypeError(f"{name} is {value.dtype} {value.shape}, not {dtype} {shape}")
            target = driver.bytes_at(address, value.nbytes)
            if target is None:
                return
            target[:] = np.frombuffer(value.tobytes(), np.uint8)


_keys = itertools.count(1)
_queued: dict[int, weakref.ref[Context]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _run(key: int) -> None:
    context = _queued[key]()
    assert context is not None, "an execution context was destroyed while its work was queued"
    context.run(key)
