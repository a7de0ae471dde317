"""CUDA over ``cuda.bindings.driver`` of NVIDIA's cuda-python, of 12.x or 13.x."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from openvis_rt.errors import BackendError, DependencyError
from openvis_rt.runtime.backends.tensorrt.cuda import Bytes, Cuda, OutOfMemoryError, call_failed

__all__ = ["CudaPython"]

_NEEDED_BY_13 = 12_080  # CUDA 12.8, as cuDriverGetVersion counts
_OLDER_BINDING = "Upgrade the driver, or: pip install 'cuda-python<13'"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class CudaPython(Cuda):
    """Over ``cuda.bindings.driver`` of NVIDIA's cuda-python."""

    has_graphs = True

    def __init__(self) -> None:
        try:
            from cuda.bindings import __version__, driver
        except ImportError as exc:
            raise DependencyError("cuda-python", "tensorrt") from exc
        super().__init__()
        self.binding = f"cuda-python {__version__}"
        self._driver = driver
        try:
            [error] = driver.cuInit(0)
        except RuntimeError as exc:  # where there is no libcuda to load
            raise BackendError(f"there is no NVIDIA driver here: {exc}") from exc
        if int(error):
            raise call_failed("cuInit", str(error.name).removeprefix("CUDA_ERROR_"))
        self._check_versions(__version__)
        device = self._call(driver.cuDeviceGet, 0)
        name = self._call(driver.cuDeviceGetName, 256, device)
        self.device_name = name.split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call(driver.cuDeviceGetAttribute, attribute(which), device)
            for which in (_MAJOR, _MINOR)
        )
        self.capability = f"sm{major}{minor}"
        with ExitStack() as stack:
            context = self._call(driver.cuDevicePrimaryCtxRetain, device)
            stack.callback(self._free, driver.cuDevicePrimaryCtxRelease, device)
            self._call(driver.cuCtxPushCurrent, context)
            stack.callback(self._free, driver.cuCtxPopCurrent)
            self._context = stack.pop_all()

    def stream(self, owner: ExitStack, *, urgent: bool = False) -> int:
        """See :class:`Cuda`."""
        self._check_thread()
        least, greatest = self._call(self._driver.cuCtxGetStreamPriorityRange)
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        priority = greatest if urgent else least
        stream = self._call(self._driver.cuStreamCreateWithPriority, flags, priority)
        owner.callback(self._free, self._driver.cuStreamDestroy, stream)
        return int(stream)

    def event(self, owner: ExitStack) -> Any:
        """See :class:`Cuda`."""
        kinds = self._driver.CUevent_flags
        kind = kinds.CU_EVENT_BLOCKING_SYNC if self.blocking_waits else kinds.CU_EVENT_DEFAULT
        event = self._call(self._driver.cuEventCreate, kind)
        owner.callback(self._free, self._driver.cuEventDestroy, event)
        return event

    def record(self, event: Any, stream: int) -> None:
        """See :class:`Cuda`."""
        self._call(self._driver.cuEventRecord, event, stream)

    def wait(self, stream: int, event: Any) -> None:
        """See :class:`Cuda`."""
        self._call(self._driver.cuStreamWaitEvent, stream, event, 0)

    def synchronize(self, event: Any) -> None:
        """See :class:`Cuda`."""
        self._check_thread()
        self._call(self._driver.cuEventSynchronize, event)

    def synchronize_all(self) -> None:
        """See :class:`Cuda`."""
        self._call(self._driver.cuCtxSynchronize)

    def elapsed(self, begin: Any, end: Any) -> float:
        """See :class:`Cuda`."""
        return float(self._call(self._driver.cuEventElapsedTime, begin, end)) / 1e3

    def memory(self) -> tuple[int, int]:
        """See :class:`Cuda`."""
        free, total = self._call(self._driver.cuMemGetInfo)
        return int(free), int(total)

    def capture(self, owner: ExitStack, stream: int, work: Callable[[], None]) -> Any:
        """See :class:`Cuda`."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(self._driver.cuStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:  # a stream that is left capturing takes no other work
            with contextlib.suppress(BackendError):
                graph = self._call(self._driver.cuStreamEndCapture, stream)
                self._call(self._driver.cuGraphDestroy, graph)
            raise
        graph = self._call(self._driver.cuStreamEndCapture, stream)
        try:
            executable = self._call(self._driver.cuGraphInstantiate, graph, 0)
        finally:
            self._free(self._driver.cuGraphDestroy, graph)
        owner.callback(self._free, self._driver.cuGraphExecDestroy, executable)
        return executable

    def launch(self, graph: Any, stream: int) -> None:
        """See :class:`Cuda`."""
        self._check_thread()
        self._call(self._driver.cuGraphLaunch, graph, stream)
        self.launches += 1

    def _allocate(self, owner: ExitStack, size: int) -> int:
        try:
            pointer = self._call(self._driver.cuMemAlloc, size)
        except OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, self._driver.cuMemFree, pointer)
        return int(pointer)

    def _pinned(self, owner: ExitStack, size: int) -> Bytes:
        try:
            address = int(self._call(self._driver.cuMemAllocHost, size))
        except OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, self._driver.cuMemFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def _copy_in(self, pointer: int, source: Bytes, stream: int) -> None:
        self._call(self._driver.cuMemcpyHtoDAsync, pointer, source.ctypes.data, source.size, stream)

    def _copy_out(self, target: Bytes, pointer: int, stream: int) -> None:
        self._call(self._driver.cuMemcpyDtoHAsync, target.ctypes.data, pointer, target.size, stream)

    def _check_versions(self, binding: str) -> None:
        """Refuse a cuda-python that calls what the driver does not have.

        cuda-python 13 looks for functions of CUDA 12.8, and says so at the first use only.
        """
        found = int(self._call(self._driver.cuDriverGetVersion))
        if int(binding.split(".", maxsplit=1)[0]) >= 13 and found < _NEEDED_BY_13:
            raise BackendError(
                f"cuda-python {binding} needs a driver of CUDA 12.8 or newer, and this one is of "
                f"CUDA {found // 1000}.{found % 1000 // 10}. {_OLDER_BINDING}"
            )

    def _free(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """Give something back; where the context is lost, the driver has done so already."""
        with contextlib.suppress(BackendError):
            self._call(function, *arguments)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """What a driver function returns beside its error; BackendError for that."""
        try:
            error, *values = function(*arguments)
        except Exception as exc:  # a function that the driver lacks is a RuntimeError
            raise BackendError(
                f"{self.binding} cannot call {function.__name__}: {exc}. The driver may be older "
                f"than this cuda-python needs: {_OLDER_BINDING}"
            ) from exc
        if int(error):
            raise call_failed(function.__name__, str(error.name).removeprefix("CUDA_ERROR_"))
        return values[0] if len(values) == 1 else tuple(values)
