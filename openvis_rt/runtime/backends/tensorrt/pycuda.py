"""CUDA over ``pycuda.driver``, as Jetson users have it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from openvis_rt.errors import BackendError, DependencyError
from openvis_rt.runtime.backends.tensorrt.cuda import Bytes, Cuda, OutOfMemoryError, call_failed

__all__ = ["PyCuda"]


class PyCuda(Cuda):
    """Over ``pycuda.driver``. It knows neither CUDA graphs nor priorities of streams."""

    has_graphs = False

    def __init__(self) -> None:
        try:
            import pycuda
        except ImportError as exc:
            raise DependencyError("pycuda", "pycuda") from exc
        try:
            from pycuda import driver
        except ImportError as exc:  # of what it was linked with
            raise BackendError(
                f"pycuda is installed and cannot be loaded: {exc}. It needs the driver (libcuda) "
                "and libcurand of the CUDA version that it was built with"
            ) from exc
        super().__init__()
        self.binding = f"pycuda {pycuda.VERSION_TEXT}"
        self._driver = driver
        self._streams: dict[int, Any] = {}  # pycuda frees what nobody holds
        self._events: dict[int, Any] = {}
        with self._errors("cuInit"), ExitStack() as stack:
            driver.init()
            device = driver.Device(0)
            self.device_name = str(device.name())
            self.capability = "sm{}{}".format(*device.compute_capability())
            context = device.retain_primary_context()
            stack.callback(self._free, lambda: _detach(context))
            context.push()
            stack.callback(self._free, context.pop)
            self._context = stack.pop_all()

    def stream(self, owner: ExitStack, *, urgent: bool = False) -> int:
        """See :class:`Cuda`; urgent or not, they are alike."""
        del urgent
        self._check_thread()
        with self._errors("cuStreamCreate"):
            stream = self._driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        handle = int(stream.handle)
        self._streams[handle] = stream
        owner.callback(self._streams.pop, handle)
        return handle

    def event(self, owner: ExitStack) -> Any:
        """See :class:`Cuda`."""
        with self._errors("cuEventCreate"):
            kinds = self._driver.event_flags
            kind = kinds.BLOCKING_SYNC if self.blocking_waits else kinds.DEFAULT
            event = self._driver.Event(kind)
        self._events[id(event)] = event
        owner.callback(self._events.pop, id(event))
        return id(event)

    def record(self, event: Any, stream: int) -> None:
        """See :class:`Cuda`."""
        recorded, of = self._events[event], self._streams[stream]
        with self._errors("cuEventRecord"):
            recorded.record(of)

    def wait(self, stream: int, event: Any) -> None:
        """See :class:`Cuda`."""
        waiting, awaited = self._streams[stream], self._events[event]
        with self._errors("cuStreamWaitEvent"):
            waiting.wait_for_event(awaited)

    def synchronize(self, event: Any) -> None:
        """See :class:`Cuda`."""
        self._check_thread()
        awaited = self._events[event]
        with self._errors("cuEventSynchronize"):
            awaited.synchronize()

    def synchronize_all(self) -> None:
        """See :class:`Cuda`."""
        with self._errors("cuCtxSynchronize"):
            self._driver.Context.synchronize()

    def elapsed(self, begin: Any, end: Any) -> float:
        """See :class:`Cuda`."""
        first, last = self._events[begin], self._events[end]
        with self._errors("cuEventElapsedTime"):
            return float(first.time_till(last)) / 1e3

    def memory(self) -> tuple[int, int]:
        """See :class:`Cuda`."""
        with self._errors("cuMemGetInfo"):
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def _allocate(self, owner: ExitStack, size: int) -> int:
        try:
            with self._errors("cuMemAlloc"):
                memory = self._driver.mem_alloc(size)
        except OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, memory.free)
        return int(memory)

    def _pinned(self, owner: ExitStack, size: int) -> Bytes:
        try:
            with self._errors("cuMemAllocHost"):
                array: Bytes = self._driver.pagelocked_empty(size, np.uint8)
        except OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, array.base.free)  # type: ignore[union-attr]
        return array

    def _copy_in(self, pointer: int, source: Bytes, stream: int) -> None:
        on = self._streams[stream]
        with self._errors("cuMemcpyHtoDAsync"):
            self._driver.memcpy_htod_async(pointer, source, on)

    def _copy_out(self, target: Bytes, pointer: int, stream: int) -> None:
        on = self._streams[stream]
        with self._errors("cuMemcpyDtoHAsync"):
            self._driver.memcpy_dtoh_async(target, pointer, on)

    def _free(self, function: Callable[[], object]) -> None:
        """Give something back; where the context is lost, the driver has done so already."""
        with contextlib.suppress(BackendError), self._errors("release"):
            function()

    @contextlib.contextmanager
    def _errors(self, function: str) -> Iterator[None]:
        """Whatever pycuda raises in a call of the driver is a BackendError."""
        try:
            yield
        except self._driver.Error as exc:
            raise call_failed(function, str(exc).partition(" failed: ")[2] or str(exc)) from exc
        except Exception as exc:  # of a function that this build, or the driver, does not have
            raise BackendError(
                f"{self.binding} cannot call {function}: {type(exc).__name__}: {exc}. It may have "
                "been built for another CUDA; install it again, or use cuda-python (--cuda)"
            ) from exc


def _detach(context: Any) -> None:
    """Give a primary context back; pycuda makes it current for that, and leaves it so."""
    context.detach()
    ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
