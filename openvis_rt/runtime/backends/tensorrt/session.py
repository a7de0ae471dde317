"""One graph on TensorRT or TensorRT-RTX, with nothing copied between graphs.

Every session has a stream of its own. Two kinds of events order them: a run waits for the sources
that it is bound to (their outputs must be there), and for the sessions that read its outputs (they
must have read what it will overwrite). So frame t + 1 may run while the masks of frame t are made,
in any order that the host likes, and no slot is overwritten too early.

    propose   [slot 0: frame t]----------[slot 1: frame t+1]------
    classify                   [slot 0]--                  [slot 1]
    masks                                     [slot 0]  <- what the host chose of frame t

All device memory is allocated when a session is opened: the max sizes of the engine's profile.
A tensor of a dynamic size, such as a window's, fills the beginning of its buffer; who is bound to
it takes it at the size that it has in that slot.
Each slot has an execution context of its own, whose addresses never change, as a CUDA graph needs
it. Outputs that the host fetches are copied to pinned memory at the end of each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.engines.api import Context, Engine, Logger
from openvis_rt.engines.library import Messages, TensorRtLibrary, new_profiler
from openvis_rt.engines.plan import Sidecar
from openvis_rt.errors import BackendError, EngineError, InputError
from openvis_rt.runtime.backends.base import Array, Session, check_value, check_view
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.runtime.backends.tensorrt.kernel_cache import KernelCache
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["IN_FLIGHT", "Shape", "TensorRtSession"]

Shape = tuple[int, ...]

IN_FLIGHT = 2
"""Frames that the device may have at once, and so the most slots of a session."""

_NUMPY_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Tensor:
    """One input or output of an engine.

    Attributes:
        is_input: or else an output.
        dtype: of its elements.
        shape: with -1 for dynamic axes.
        max_shape: the shape of its buffer.
        on_host: a shape input, whose values TensorRT reads from host memory.
    """

    is_input: bool
    dtype: npt.DTypeLike
    shape: Shape
    max_shape: Shape
    on_host: bool

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return math.prod(self.max_shape) * np.dtype(self.dtype).itemsize


class TensorRtSession:
    """One graph.

    Args:
        library: that built the engine.
        cuda: the device; it outlives the session.
        log, logger: what the library says, and the object that it says it to.
        plan, sidecar: the engine's file, checked, and what is known of it.
        spec: the graph's tensors.
        constants: inputs of ONNX Runtime's graph that may be constants of the engine, and the value
            that they then have.
        slots: see :class:`Session`.
        fetched: outputs that are copied to the host after each run; None for those that the spec
            marks so.
        warn: told what did not stop the work.
        cuda_graphs: run as a CUDA graph where that is possible.

    Attributes:
        device_seconds: spent in this graph so far, copies included, by the device's own clock.

    Raises:
        EngineError: the library cannot load the engine, or its tensors are not the graph's.
        BackendError: the device has not enough memory.
    """

    def __init__(
        self,
        library: TensorRtLibrary,
        cuda: Cuda,
        log: Messages,
        logger: Logger,
        plan: Path,
        sidecar: Sidecar,
        spec: GraphSpec,
        *,
        constants: dict[str, Shape],
        slots: int,
        fetched: Sequence[str] | None = None,
        warn: Callable[[str], None],
        cuda_graphs: bool = True,
    ) -> None:
        self.spec, self.device_seconds = spec, 0.0
        self._warn, self._cuda_graphs = warn, cuda_graphs
        self._library, self._cuda = library, cuda
        self._log, self._logger = log, logger
        self._constants, self._slots = constants, slots
        marked = [t.name for t in spec.outputs if t.fetched]
        self._fetched = tuple(marked if fetched is None else fetched)
        self._sources: dict[str, tuple[TensorRtSession, str]] = {}
        self._readers: list[TensorRtSession] = []
        self._owned = ExitStack()
        self._engines: list[Engine] = []  # the one; a frame that names it would keep it alive
        self._contexts: list[Context] = []  # one for each slot
        with ExitStack() as stack:
            stack.callback(self._release)
            self._load(plan, sidecar)
            self._allocate()
            stack.pop_all()

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`; the copy to the device begins at once."""
        self._check_open()
        check_value(self.spec, name, value)
        if name not in self._tensors:
            self._check_constant(name, value)
            return
        if self._tensors[name].on_host and np.any(np.greater(value, self._max_values[name])):
            raise InputError(
                f"the engine of {self.spec.name!r} takes {name} up to "
                f"{self._max_values[name].tolist()}, got {value.tolist()}; build it for larger "
                "ones with `openvis build --max-frame HxW --force`"
            )
        self._staging(name, value.shape, slot)[...] = value
        self._copy_in(slot, {name})

    def input_view(self, name: str, shape: Shape, slot: int = 0) -> Array:
        """Pinned memory of an input; the copy to the device begins with the next run that reads it.

        That is a run of this session, or of one that is bound to the input.
        """
        self._check_open()
        check_view(self.spec, name, shape)
        return self._staging(name, shape, slot)

    def _staging(self, name: str, shape: Shape, slot: int) -> Array:
        """The host memory of an input at this shape, which holds its value from now on."""
        tensor, own = self._tensors[name], slot % self._slots
        dtype = np.dtype(tensor.dtype)
        if any(found > most for found, most in zip(shape, tensor.max_shape, strict=True)):
            raise InputError(
                f"input {name!r} of graph {self.spec.name!r} takes up to {list(tensor.max_shape)}, "
                f"got {list(shape)}; build the engines with larger profiles (`openvis build "
                "--help`), or give it in parts"
            )
        self._cuda.synchronize(self._copied[own])  # the last copy out of this staging memory
        self._read(name, None)
        self._shapes[own][name] = shape
        if not tensor.on_host:
            self._filled[own].add(name)
        staging = self._host[own][name][: math.prod(shape) * dtype.itemsize]
        return staging.view(dtype).reshape(shape)

    def _copy_in(self, slot: int, names: Collection[str]) -> None:
        """Begin to copy those of these inputs that were given on the host and are not copied."""
        own = slot % self._slots
        filled = self._filled[own].intersection(names)
        if not filled:
            return
        for event in self._events_of_readers(own):  # of an input that another session reads too
            self._cuda.wait(self._stream, event)
        for name in filled:
            size = math.prod(self._shapes[own][name]) * self._itemsize(name)
            self._cuda.copy_in(self._device[own][name], self._host[own][name][:size], self._stream)
        self._filled[own] -= filled
        self._cuda.record(self._copied[own], self._stream)

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`; ``output`` may be an input of source.

        Raises:
            InputError: ``source`` is of another backend.
            EngineError: the two tensors differ in type, rank, fixed sizes, or in what is dynamic.
        """
        if not isinstance(source, TensorRtSession) or source._cuda is not self._cuda:
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        if output in source._sources:  # which does not hold it, either
            source, output = source._sources[output]
        mine, theirs = self._tensors[name], source._tensors[output]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            raise EngineError(
                f"the engine of {self.spec.name!r} takes {name!r} as {np.dtype(mine.dtype)} "
                f"{list(mine.shape)}, and that of {source.spec.name!r} gives {output!r} as "
                f"{np.dtype(theirs.dtype)} {list(theirs.shape)}: build both anew, in one precision"
            )
        self._read(name, (source, output))

    def _read(self, name: str, source: tuple[TensorRtSession, str] | None) -> None:
        """Let an input read another session's tensor, or with None its own buffer."""
        if self._sources.get(name) == source:
            return
        self._graphs.clear()  # they hold the addresses of what was read before
        self._sources.pop(name, None)
        if source is not None:
            self._sources[name] = source
            if self not in source[0]._readers:
                source[0]._readers.append(self)

    def run(self, slot: int = 0) -> None:
        """Queue one execution, and the copies of what is fetched; returns before it is done."""
        self._check_open()
        own = slot % self._slots
        self._copy_in(slot, self._filled[own])
        for source, held in self._sources.values():
            source._check_open()
            source._copy_in(slot, {held})
        for event in self._events_before(slot):
            self._cuda.wait(self._stream, event)
        self._set_tensors(slot)
        self._count_seconds(slot)
        self._cuda.record(self._begun[slot], self._stream)
        self._execute(slot)
        self._shapes[own] |= self._output_shapes(own)
        for name in self._fetched:
            size = math.prod(self._shapes[own][name]) * self._itemsize(name)
            target = self._host[own][name][:size]
            self._cuda.copy_out(target, self._device[own][name], self._stream)
        self._cuda.record(self._done[slot], self._stream)
        self._unread.add(slot)

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`; only what was asked for at opening."""
        self._check_open()
        own = slot % self._slots
        if name not in self._fetched or name not in self._shapes[own]:
            raise InputError(
                f"output {name!r} of graph {self.spec.name!r} was not run, or stays on the device: "
                f"the host fetches {', '.join(self._fetched) or 'nothing'}"
            )
        for event in self._runs_of(own):
            self._cuda.synchronize(event)
        self._kernels.save_once()  # a process that is killed later compiles nothing anew
        shape = self._shapes[own][name]
        dtype = np.dtype(self._tensors[name].dtype)
        raw = self._host[own][name][: math.prod(shape) * dtype.itemsize]
        return raw.view(dtype).reshape(shape).copy()

    def layers_json(self) -> str:
        """What the library's inspector tells of the engine's layers, in its own JSON."""
        self._check_open()
        json_format = self._library.module.LayerInformationFormat.JSON
        return self._engine.create_engine_inspector().get_engine_information(json_format)

    def profile(self) -> dict[str, list[float]]:
        """Let the library time every layer from now on; open the backend without CUDA graphs.

        Every run is slower from now on, and waits for the device.

        Returns:
            layer -> seconds of each run, in the order in which they ran; each run adds to it.

        Raises:
            InputError: the session may run as a CUDA graph, of which no layer is timed.
        """
        self._check_open()
        if self._cuda_graphs:
            raise InputError(
                "layers are timed one by one, so not in a CUDA graph; open the backend with "
                "cuda_graphs=False"
            )
        seconds: dict[str, list[float]] = {}
        self._profiler = new_profiler(self._library.module, seconds)  # contexts do not own it
        for context in self._contexts:
            context.profiler = self._profiler
        return seconds

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._contexts

    def close(self) -> None:
        """See :class:`Session`; twice does no harm."""
        if self.closed:
            return
        try:
            self._cuda.synchronize_all()
            for slot in tuple(self._unread):
                self._count_seconds(slot)
            self._kernels.save()
        except BackendError:  # the device failed, and whoever used it was told
            pass
        finally:
            self._release()

    def _release(self) -> None:
        """Free everything on the device, though someone may still refer to the session."""
        self._contexts.clear()
        self._engines.clear()
        self._owned.close()

    # opening

    def _load(self, plan: Path, sidecar: Sidecar) -> None:
        trt = self._library.module
        self._log.kept.clear()
        self._runtime = trt.Runtime(self._logger)
        if sidecar.options.version_compatible:  # such an engine brings its own runtime along
            self._runtime.engine_host_code_allowed = True
        loaded = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if loaded is None:
            raise EngineError(
                f"{self._library} cannot load {plan}:\n{self._log.text()}\nBuild it again with: "
                f"openvis build {plan.parents[2]} --backend {self._library.backend} --force"
            )
        if self._log.kept:  # such as that it was built on another GPU
            self._warn(f"{plan.name}, as the library loads it:\n{self._log.text()}")
        self._engines.append(loaded)
        del loaded
        self._kernels = KernelCache(self._engine, plan, cuda_graphs=self._cuda_graphs)
        for _ in range(self._slots):
            context = self._kernels.context(self._engine)
            if context is not None:
                self._contexts.append(context)
                continue
            free, _ = self._cuda.memory()
            raise BackendError(
                f"{self._cuda.device_name} cannot hold the engine of {self.spec.name!r} "
                f"({free / 1e6:.0f} MB were free):\n{self._log.text()}\nClose other programs on "
                "the device, or export at a smaller --size, or run --precision fp16"
            )

    @property
    def _engine(self) -> Engine:
        return self._engines[0]

    def _allocate(self) -> None:
        """Events, the stream, and every buffer at the max size that the engine takes."""
        cuda, owned = self._cuda, self._owned
        self._stream = cuda.stream(owned)
        runs = range(IN_FLIGHT)
        self._begun = [cuda.event(owned) for _ in runs]
        self._done = [cuda.event(owned) for _ in runs]
        self._unread: set[int] = set()  # runs whose seconds are not counted yet
        self._copied = [cuda.event(owned) for _ in range(self._slots)]
        self._set: list[dict[str, Shape]] = [{} for _ in self._contexts]  # input shapes of each
        self._graphs: dict[int, Any] = {}  # None after a slot's first run
        self._tensors = self._read_tensors()
        self._check_tensors()
        self._device: list[dict[str, int]] = []
        self._host: list[dict[str, npt.NDArray[np.uint8]]] = []
        self._shapes: list[dict[str, Shape]] = []  # of what was written and made in each slot
        self._filled: list[set[str]] = [set() for _ in range(self._slots)]  # inputs not yet copied
        for _ in range(self._slots):
            self._device.append({})
            self._host.append({})
            self._shapes.append({})
            for name, tensor in self._tensors.items():
                if not tensor.on_host:
                    self._device[-1][name] = cuda.allocate(owned, tensor.size)
                if tensor.is_input or name in self._fetched:
                    self._host[-1][name] = cuda.pinned(owned, tensor.size)
        self._static = not any(t.on_host or -1 in t.shape for t in self._tensors.values())

    def _read_tensors(self) -> dict[str, _Tensor]:
        """What the engine says of its tensors; outputs' max shapes are asked of the context."""
        trt, context = self._library.module, self._contexts[0]
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        found: dict[str, _Tensor] = {}
        self._max_values: dict[str, Array] = {}  # of shape inputs, read until outputs are known
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        for name in inputs:
            shape, dtype = tuple(self._engine.get_tensor_shape(name)), self._dtype(name)
            on_host = self._engine.get_tensor_location(name) == trt.TensorLocation.HOST
            max_shape = shape
            if on_host:
                most = self._engine.get_tensor_profile_values(0, name)[2]
                self._max_values[name] = np.array(most, dtype)
                context.set_tensor_address(name, self._max_values[name].ctypes.data)
            elif -1 in shape:
                max_shape = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
                self._set_shape(0, name, max_shape)
            found[name] = _Tensor(True, dtype, shape, max_shape, on_host)
        if missing := list(context.infer_shapes()):
            raise EngineError(f"the engine of {self.spec.name!r} wants sizes of {missing} as well")
        for name in names:
            if name not in found:
                shape = tuple(self._engine.get_tensor_shape(name))
                max_shape = tuple(context.get_tensor_shape(name))
                found[name] = _Tensor(False, self._dtype(name), shape, max_shape, on_host=False)
        return found

    def _check_tensors(self) -> None:
        """Refuse an engine whose tensors are not the graph's."""
        for wanted in (*self.spec.inputs, *self.spec.outputs):
            found = self._tensors.get(wanted.name)
            shape = tuple(-1 if isinstance(size, str) else size for size in wanted.shape)
            if found is not None and not found.is_input and len(found.shape) == len(shape):
                # an output's size is a number where what it follows from is built in
                shape = tuple(f if w < 0 else w for f, w in zip(found.shape, shape, strict=True))
            if found is None or (np.dtype(found.dtype), found.shape) != (
                np.dtype(wanted.dtype),
                shape,
            ):
                held = found and f"{np.dtype(found.dtype)} {list(found.shape)}"
                raise EngineError(
                    f"the engine of {self.spec.name!r} has {wanted.name!r} as {held}, and the "
                    f"bundle as {wanted.dtype} {list(shape)}: it was built from another graph"
                )
        if unknown := set(self._fetched) - {t.name for t in self.spec.outputs}:
            raise InputError(f"graph {self.spec.name!r} has no output {', '.join(unknown)}")

    def _dtype(self, name: str) -> npt.DTypeLike:
        kind = str(self._engine.get_tensor_dtype(name).name)
        if kind not in _NUMPY_TYPES:
            raise EngineError(f"the engine of {self.spec.name!r} has {name!r} of type {kind}")
        return _NUMPY_TYPES[kind]

    # running

    def _events_before(self, slot: int) -> list[Any]:
        """What a run of this slot waits for: its inputs are there, and its outputs were read."""
        there = [
            event
            for source, output in self._sources.values()
            for event in source._holds(output, slot % source._slots)
        ]
        read = self._events_of_readers(slot % self._slots)
        return list({id(event): event for event in (*there, *read)}.values())

    def _holds(self, name: str, own: int) -> list[Any]:
        """The events after which a buffer holds what was written, or made."""
        return [self._copied[own]] if self._tensors[name].is_input else self._runs_of(own)

    def _events_of_readers(self, own: int) -> list[Any]:
        """The events after which nobody reads these buffers any more."""
        runs = [slot for slot in range(IN_FLIGHT) if slot % self._slots == own]
        return [reader._done[slot] for reader in self._readers for slot in runs]

    def _runs_of(self, own: int) -> list[Any]:
        """The ends of the runs in these buffers; a session of one slot runs for all slots in it."""
        return [self._done[slot] for slot in range(IN_FLIGHT) if slot % self._slots == own]

    def _check_open(self) -> None:
        if self.closed:
            raise InputError(f"the session of graph {self.spec.name!r} is closed")

    def _set_tensors(self, slot: int) -> None:
        own = slot % self._slots
        for name, tensor in self._tensors.items():
            source, held = self._sources.get(name, (self, name))
            theirs = slot % source._slots
            if tensor.is_input and held not in source._shapes[theirs]:
                raise source._nothing_in(held)
            if tensor.on_host:
                address = self._host[own][name].ctypes.data
            else:
                address = source._device[theirs][held]
            if not self._contexts[own].set_tensor_address(name, address):
                raise self._failure(f"refuses the address of {name!r}")
            if tensor.is_input and -1 in tensor.shape:
                self._set_shape(own, name, source._shapes[theirs][held])

    def _nothing_in(self, name: str) -> InputError:
        if self._tensors[name].is_input:
            return InputError(f"input {name!r} of graph {self.spec.name!r} was never written")
        return InputError(f"graph {self.spec.name!r} was never run, to read {name!r} from")

    def _set_shape(self, own: int, name: str, shape: Shape) -> None:
        context = self._contexts[own]
        if self._set[own].get(name) == shape:
            return
        if not context.set_input_shape(name, shape):
            raise InputError(
                f"graph {self.spec.name!r} does not take {name!r} of shape {list(shape)}:\n"
                f"{self._log.text()}\nBuild its engine with other sizes: `openvis build --help`"
            )
        self._set[own][name] = shape

    def _output_shapes(self, own: int) -> dict[str, Shape]:
        """Of the run that was queued last."""
        outputs = {name: t.shape for name, t in self._tensors.items() if not t.is_input}
        context = self._contexts[own]
        return {
            name: tuple(context.get_tensor_shape(name)) if -1 in shape else shape
            for name, shape in outputs.items()
        }

    def _execute(self, slot: int) -> None:
        """Queue the engine; from a slot's second run on as a CUDA graph, where that is possible.

        The first run is not captured: TensorRT prepares for new shapes in it. Nor are graphs with
        dynamic sizes. TensorRT-RTX captures by itself.
        """
        context = self._contexts[slot % self._slots]
        allowed = self._cuda_graphs and self._cuda.has_graphs and not self._kernels.captures
        capturable = self._static and allowed
        if capturable and self._graphs.get(slot) is not None:
            self._cuda.launch(self._graphs[slot], self._stream)
            return
        if capturable and slot in self._graphs:
            try:
                graph = self._cuda.capture(
                    self._owned, self._stream, lambda: self._enqueue(context)
                )
            except BackendError as exc:
                self._static = False  # do not try again
                self._warn(f"graph {self.spec.name!r} runs without a CUDA graph: {exc}")
            else:
                self._graphs[slot] = graph
                self._cuda.launch(graph, self._stream)
                return
        self._enqueue(context)
        self._graphs[slot] = None

    def _enqueue(self, context: Context) -> None:
        self._log.kept.clear()
        if not context.execute_async_v3(self._stream):
            raise self._failure("fails to run")

    def _failure(self, what: str) -> BackendError:
        return BackendError(
            f"{self._library} {what} in graph {self.spec.name!r}:\n{self._log.text()}"
        )

    def _count_seconds(self, slot: int) -> None:
        """Add the time of the last run of a slot, which is over when the next one is queued."""
        if slot in self._unread:
            self._cuda.synchronize(self._done[slot])
            self.device_seconds += self._cuda.elapsed(self._begun[slot], self._done[slot])
            self._unread.discard(slot)

    def _itemsize(self, name: str) -> int:
        return np.dtype(self._tensors[name].dtype).itemsize

    def _check_constant(self, name: str, value: Array) -> None:
        built = self._constants[name]
        if tuple(value.tolist()) != built:
            raise InputError(
                f"this engine has {name} {list(built)} built in, and the video needs "
                f"{value.tolist()}: export for this video (--source-size, or without it for videos "
                "of any size), and build again"
            )
