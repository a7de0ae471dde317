"""How the runs of one engine are queued: plainly at first, then as CUDA graphs.

    sizes that come for the first time    a context is set to them and run plainly, in which
                                          TensorRT prepares for them
    for the second time                   that context is captured into a CUDA graph
    from then on                          the graph is launched

A CUDA graph is right only while nobody changes the context that it was captured from, nor the
addresses that it names (NVIDIA's developer guide, "CUDA Graphs"). So each set of sizes has a
context of its own in each slot, up to :data:`SIZES_A_SLOT` of them; after that the one that was
used longest ago is set anew, and the others keep their graphs. All contexts of an engine work in
one block of device memory, since they run one after the other on one stream.

TensorRT-RTX captures by itself, and pycuda has no CUDA graphs: both keep one context a slot, which
is set anew when the sizes change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openvis_rt.engines.api import Context, Engine, Profiler
from openvis_rt.engines.library import Messages, TensorRtLibrary
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.base import Array
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.runtime.backends.tensorrt.kernel_cache import KernelCache

__all__ = ["SIZES_A_SLOT", "Launcher", "Setting", "Shape"]

Shape = tuple[int, ...]

SIZES_A_SLOT = 8
"""Sets of sizes that keep a CUDA graph in each slot; `masks` is run for as many numbers of them."""


@dataclass(frozen=True)
class Setting:
    """What a context is set to before it runs, and what its CUDA graph holds for.

    Attributes:
        addresses: of every tensor in device memory, by name.
        shapes: of the inputs that have dynamic axes, by name.
        values: of the inputs that TensorRT reads on the host, by name: their bytes.
    """

    addresses: Mapping[str, int]
    shapes: Mapping[str, Shape]
    values: Mapping[str, bytes]


@dataclass
class _Prepared:
    """A context, what it is set to, and its CUDA graph once it has one."""

    context: Context
    setting: Setting | None = None
    outputs: dict[str, Shape] | None = None  # None until it ran at this setting
    values: list[Array] = field(default_factory=list)  # the host memory that it reads
    graph: Any = None
    owned: ExitStack = field(default_factory=ExitStack)  # the graph


class Launcher:
    """The contexts and the CUDA graphs of one engine, on one stream.

    Args:
        library, log: that loaded the engine, and what it says.
        cuda, stream: where runs are queued.
        engine, name: what is run, and its graph's name for messages. :meth:`close` comes before the
            engine is dropped.
        kernels: of the engine; it makes the contexts of TensorRT-RTX.
        slots: that have buffers, and so a context from the beginning.
        warn: told once where there can be no CUDA graphs, or no more of them.
        cuda_graphs: capture, where the binding and the library allow it.
        owner: of the device memory that the contexts work in; it is closed after :meth:`close`.

    Raises:
        BackendError: the device has not enough memory.
    """

    def __init__(
        self,
        library: TensorRtLibrary,
        log: Messages,
        cuda: Cuda,
        stream: int,
        engine: Engine,
        name: str,
        kernels: KernelCache,
        *,
        slots: int,
        warn: Callable[[str], None],
        cuda_graphs: bool,
        owner: ExitStack,
    ) -> None:
        self._library, self._log, self._warn = library, log, warn
        self._cuda, self._stream, self._name, self._slots = cuda, stream, name, slots
        self._engines, self._kernels = [engine], kernels
        self.captures = cuda_graphs and cuda.has_graphs and not kernels.captures
        self._may_capture = self.captures  # until it fails
        self._limit = SIZES_A_SLOT if self.captures else 1
        self._memory: tuple[int, int] | None = None  # of TensorRT-RTX its contexts' own
        if not kernels.captures:
            size = int(engine.device_memory_size_v2)
            self._memory = cuda.allocate(owner, size), size
        self._pools: dict[int, list[_Prepared]] = {}  # by slot; what was used last is at the end
        for slot in range(slots):
            context = self._new_context()
            if context is None:
                raise self._no_memory()
            self._pools[slot] = [_Prepared(context)]

    @property
    def engine(self) -> Engine:
        """It may not be kept."""
        return self._engines[0]

    @property
    def context(self) -> Context:
        """One that was not run yet, to ask for the shapes of outputs."""
        return self._pools[0][0].context

    def run(self, slot: int, setting: Setting, settle: Callable[[], None]) -> dict[str, Shape]:
        """Queue one execution.

        Args:
            slot: whose addresses these are; each has contexts of its own where graphs are captured.
            setting: addresses and sizes.
            settle: waits until everything that was queued on the stream is done.

        Returns:
            the shapes of the outputs, by name.

        Raises:
            InputError: the engine does not take these sizes.
            BackendError: the library fails.
        """
        pool = self._pools.setdefault(slot if self.captures else slot % self._slots, [])
        found = next((one for one in pool if one.setting == setting), None)
        prepared = found or self._chosen(pool)
        if found is None:
            self._set(prepared, setting, settle)
        pool.remove(prepared)
        pool.append(prepared)
        self._queue(prepared)
        return prepared.outputs or {}

    def profile(self, profiler: Profiler) -> None:
        """Let every context report the times of its layers; the profiler is kept by the caller."""
        for pool in self._pools.values():
            for prepared in pool:
                prepared.context.profiler = profiler

    def close(self) -> None:
        """Drop graphs, contexts and the engine; nothing may be queued. Twice does no harm."""
        for pool in self._pools.values():
            for prepared in pool:
                prepared.owned.close()
        self._pools.clear()
        self._engines.clear()

    def _queue(self, prepared: _Prepared) -> None:
        """As a CUDA graph from the second run at a setting on, where that is possible."""
        if prepared.graph is None and prepared.outputs is not None and self._may_capture:
            self._capture(prepared)
        if prepared.graph is not None:
            self._cuda.launch(prepared.graph, self._stream)
            return
        self._enqueue(prepared.context)
        if prepared.outputs is None:
            prepared.outputs = self._output_shapes(prepared.context)

    def _capture(self, prepared: _Prepared) -> None:
        context = prepared.context
        try:
            prepared.graph = self._cuda.capture(
                prepared.owned, self._stream, lambda: self._enqueue(context)
            )
        except BackendError as exc:
            self._may_capture = False
            self._warn(f"graph {self._name!r} runs without a CUDA graph: {exc}")

    def _chosen(self, pool: list[_Prepared]) -> _Prepared:
        """What is set to new sizes: a new context, or the one that was used longest ago."""
        unused = next((one for one in pool if one.setting is None), None)
        if unused is not None:
            return unused
        if len(pool) < self._limit:
            context = self._new_context()
            if context is not None:
                pool.append(_Prepared(context))
                return pool[-1]
            if not pool:
                raise self._no_memory()
            self._limit = len(pool)
            self._warn(
                f"the device has no memory for more than {self._limit} contexts a slot of graph "
                f"{self._name!r}: where more sizes alternate, CUDA graphs are captured anew"
            )
        return pool[0]

    def _set(self, prepared: _Prepared, setting: Setting, settle: Callable[[], None]) -> None:
        """Set a context to other sizes or addresses, and drop the graph that it had."""
        if prepared.graph is not None or prepared.values:
            settle()  # the device may still run the graph, or the library read the values
        prepared.owned.close()
        prepared.setting = prepared.outputs = prepared.graph = None
        context = prepared.context
        prepared.values = [np.frombuffer(v, np.uint8).copy() for v in setting.values.values()]
        held = zip(setting.values, prepared.values, strict=True)
        on_host = {name: int(value.ctypes.data) for name, value in held}
        for name, address in {**setting.addresses, **on_host}.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(f"refuses the address of {name!r}")
        for name, shape in setting.shapes.items():
            if not context.set_input_shape(name, shape):
                raise InputError(
                    f"graph {self._name!r} does not take {name!r} of shape {list(shape)}:\n"
                    f"{self._log.text()}\nBuild its engine with other sizes: `openvis build --help`"
                )
        prepared.setting = setting

    def _enqueue(self, context: Context) -> None:
        self._log.kept.clear()
        if not context.execute_async_v3(self._stream):
            raise self._failure("fails to run")

    def _output_shapes(self, context: Context) -> dict[str, Shape]:
        engine, given = self.engine, self._library.module.TensorIOMode.INPUT
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return {
            name: tuple(context.get_tensor_shape(name))
            for name in names
            if engine.get_tensor_mode(name) != given
        }

    def _new_context(self) -> Context | None:
        """None if the device cannot hold it."""
        engine = self.engine
        if self._memory is None:
            return self._kernels.context(engine)
        strategies = self._library.module.ExecutionContextAllocationStrategy
        context = engine.create_execution_context(strategies.USER_MANAGED)
        if context is not None:
            context.set_device_memory(*self._memory)
        return context

    def _failure(self, what: str) -> BackendError:
        return BackendError(f"{self._library} {what} in graph {self._name!r}:\n{self._log.text()}")

    def _no_memory(self) -> BackendError:
        free, _ = self._cuda.memory()
        return BackendError(
            f"{self._cuda.device_name} cannot hold the engine of {self._name!r} "
            f"({free / 1e6:.0f} MB were free):\n{self._log.text()}\nClose other programs on "
            "the device, or export at a smaller --size, or run --precision fp16"
        )
