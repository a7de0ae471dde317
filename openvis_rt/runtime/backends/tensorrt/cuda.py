"""The few CUDA calls that a session needs, over cuda-python or pycuda.

Both drive the driver API and share the device's primary context, so that TensorRT, which works in
the current context, and other libraries of the process see the same memory. The context is retained
when a :class:`Cuda` is opened and given back when it is closed; importing this module touches
neither CUDA nor a binding. One thread owns a :class:`Cuda`: the context is current on that thread,
and calls from another one are refused, as they would fail or reach another context.

Handles are plain integers: device pointers and streams as TensorRT takes them. What is made belongs
to the ``contextlib.ExitStack`` that is given as its owner, and is freed when that is closed, which
must be before the :class:`Cuda` is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import BackendError, DependencyError, InputError

__all__ = ["Cuda", "CudaChoice", "CudaPython", "PyCuda", "open_cuda"]

CudaChoice = Literal["auto", "cuda-python", "pycuda"]
Bytes = npt.NDArray[np.uint8]

_LOST = (  # names as cuda-python gives them, and the driver's texts as pycuda does
    *("ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ECC_UNCORRECTABLE", "ASSERT"),
    *("ILLEGAL_MEMORY_ACCESS", "LAUNCH_FAILURE", "LAUNCH_TIMED_OUT", "UNCORRECTABLE_ECC"),
)
_NEEDED_BY_13 = 12_080  # CUDA 12.8, as cuDriverGetVersion counts
_OLDER_BINDING = "Upgrade the driver, or: pip install 'cuda-python<13'"
FEW_CORES = 4
"""Of the host; with so many or fewer, who waits for the device sleeps."""
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


class Cuda(ABC):
    """One device, its primary context, and what was allocated in it.

    Attributes:
        binding: the Python binding and its version.
        device_name: as the driver gives it.
        capability: compute capability, such as ``sm87``.
        has_graphs: whether the binding has CUDA graphs: :meth:`capture` and :meth:`launch`.
        blocking_waits: the host sleeps while it waits for an event, as it has few cores
            (:data:`FEW_CORES`); else it asks again and again, which is some 20 us faster and takes
            a whole core, that the decoder and the encoder would need.
        bytes_in, bytes_out: copied to and from the device so far.
        launches: of CUDA graphs so far.
    """

    binding: str
    device_name: str
    capability: str
    has_graphs: bool

    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = self.launches = 0
        self.blocking_waits = _cores() <= FEW_CORES
        self._thread = threading.get_ident()
        self._context = ExitStack()

    def allocate(self, owner: ExitStack, size: int) -> int:
        """Device memory of ``size`` bytes, filled with nothing in particular; its address.

        Raises:
            BackendError: there is not so much; the message says how much was free.
        """
        self._check_thread()
        return self._allocate(owner, max(size, 1))

    def pinned(self, owner: ExitStack, size: int) -> Bytes:
        """Page-locked host memory, uint8 [size], which copies without the driver's own detour.

        Raises:
            BackendError: there is not so much.
        """
        self._check_thread()
        return self._pinned(owner, max(size, 1))[:size]

    def copy_in(self, pointer: int, source: Bytes, stream: int) -> None:
        """Queue a copy to the device; ``source`` is pinned and stays as it is until it is done."""
        self._check_thread()
        if source.size:
            self.bytes_in += source.size
            self._copy_in(pointer, source, stream)

    def copy_out(self, target: Bytes, pointer: int, stream: int) -> None:
        """Queue a copy from the device; ``target`` is pinned and holds it when it is done."""
        self._check_thread()
        if target.size:
            self.bytes_out += target.size
            self._copy_out(target, pointer, stream)

    def close(self) -> None:
        """Give the context back; twice does no harm."""
        self._check_thread()
        self._context.close()

    @abstractmethod
    def stream(self, owner: ExitStack, *, urgent: bool = False) -> int:
        """A new stream, ordered against no other.

        Args:
            owner: destroys it.
            urgent: what is queued on it begins before what waits on streams that are not, where
                both are ready; nothing that runs already is stopped. A binding without priorities
                makes a stream like any other.
        """

    @abstractmethod
    def event(self, owner: ExitStack) -> Any:
        """A new event, done until it is recorded; how it is waited for: :attr:`blocking_waits`."""

    @abstractmethod
    def record(self, event: Any, stream: int) -> None:
        """Let the event be done when all that is queued on the stream so far is."""

    @abstractmethod
    def wait(self, stream: int, event: Any) -> None:
        """Let what is queued on the stream from now on wait for the event."""

    @abstractmethod
    def synchronize(self, event: Any) -> None:
        """Let the host wait for the event. BackendError if the device failed before it."""

    @abstractmethod
    def synchronize_all(self) -> None:
        """Let the host wait for everything. BackendError if the device failed."""

    @abstractmethod
    def elapsed(self, begin: Any, end: Any) -> float:
        """Seconds on the device between two events that are done."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and in all."""

    def capture(self, owner: ExitStack, stream: int, work: Callable[[], None]) -> Any:
        """Run ``work``, which queues on ``stream``, into a CUDA graph in place of the device."""
        raise NotImplementedError

    def launch(self, graph: Any, stream: int) -> None:
        """Queue a captured graph."""
        raise NotImplementedError

    @abstractmethod
    def _allocate(self, owner: ExitStack, size: int) -> int: ...

    @abstractmethod
    def _pinned(self, owner: ExitStack, size: int) -> Bytes: ...

    @abstractmethod
    def _copy_in(self, pointer: int, source: Bytes, stream: int) -> None: ...

    @abstractmethod
    def _copy_out(self, target: Bytes, pointer: int, stream: int) -> None: ...

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise InputError(
                "CUDA belongs to the thread that opened the pipeline; use the pipeline from that "
                "thread, or open one for each thread"
            )

    def _out_of_memory(self, size: int, cause: BaseException | None = None) -> BackendError:
        free, total = self.memory()
        error = BackendError(
            f"{self.device_name} has no {size / 1e6:.0f} MB of memory left for a buffer "
            f"({free / 1e6:.0f} of {total / 1e6:.0f} MB are free). Close other programs on the "
            "device, or export at a smaller --size, or run --precision fp16"
        )
        error.__cause__ = cause
        return error


def open_cuda(choice: CudaChoice = "auto") -> Cuda:
    """The first device (``CUDA_VISIBLE_DEVICES`` chooses which that is), by one of the bindings.

    Args:
        choice: ``auto`` is cuda-python if it is installed, else pycuda.

    Raises:
        DependencyError: the binding is not installed; with ``auto``, neither is.
        BackendError: there is no driver or no device, or it does not work.
    """
    if choice not in get_args(CudaChoice):
        raise InputError(f"there is no CUDA binding {choice!r}; there are: cuda-python, pycuda")
    if choice == "cuda-python":
        return CudaPython()
    if choice == "pycuda":
        return PyCuda()
    try:
        return CudaPython()
    except DependencyError:
        pass
    try:
        return PyCuda()
    except DependencyError as exc:
        raise DependencyError("cuda-python", "tensorrt") from exc


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
            raise _failed("cuInit", str(error.name).removeprefix("CUDA_ERROR_"))
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
        except _OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, self._driver.cuMemFree, pointer)
        return int(pointer)

    def _pinned(self, owner: ExitStack, size: int) -> Bytes:
        try:
            address = int(self._call(self._driver.cuMemAllocHost, size))
        except _OutOfMemoryError as exc:
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
            raise _failed(function.__name__, str(error.name).removeprefix("CUDA_ERROR_"))
        return values[0] if len(values) == 1 else tuple(values)


class PyCuda(Cuda):
    """Over ``pycuda.driver``. It knows neither CUDA graphs nor priorities of streams."""

    has_graphs = False

    def __init__(self) -> None:
        try:
            import pycuda
            from pycuda import driver
        except ImportError as exc:
            raise DependencyError("pycuda", "pycuda") from exc
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
        with self._errors("cuEventRecord"):
            self._events[event].record(self._streams[stream])

    def wait(self, stream: int, event: Any) -> None:
        """See :class:`Cuda`."""
        with self._errors("cuStreamWaitEvent"):
            self._streams[stream].wait_for_event(self._events[event])

    def synchronize(self, event: Any) -> None:
        """See :class:`Cuda`."""
        self._check_thread()
        with self._errors("cuEventSynchronize"):
            self._events[event].synchronize()

    def synchronize_all(self) -> None:
        """See :class:`Cuda`."""
        with self._errors("cuCtxSynchronize"):
            self._driver.Context.synchronize()

    def elapsed(self, begin: Any, end: Any) -> float:
        """See :class:`Cuda`."""
        with self._errors("cuEventElapsedTime"):
            return float(self._events[begin].time_till(self._events[end])) / 1e3

    def memory(self) -> tuple[int, int]:
        """See :class:`Cuda`."""
        with self._errors("cuMemGetInfo"):
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def _allocate(self, owner: ExitStack, size: int) -> int:
        try:
            with self._errors("cuMemAlloc"):
                memory = self._driver.mem_alloc(size)
        except _OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, memory.free)
        return int(memory)

    def _pinned(self, owner: ExitStack, size: int) -> Bytes:
        try:
            with self._errors("cuMemAllocHost"):
                array: Bytes = self._driver.pagelocked_empty(size, np.uint8)
        except _OutOfMemoryError as exc:
            raise self._out_of_memory(size, exc) from exc
        owner.callback(self._free, array.base.free)  # type: ignore[union-attr]
        return array

    def _copy_in(self, pointer: int, source: Bytes, stream: int) -> None:
        with self._errors("cuMemcpyHtoDAsync"):
            self._driver.memcpy_htod_async(pointer, source, self._streams[stream])

    def _copy_out(self, target: Bytes, pointer: int, stream: int) -> None:
        with self._errors("cuMemcpyDtoHAsync"):
            self._driver.memcpy_dtoh_async(target, pointer, self._streams[stream])

    def _free(self, function: Callable[[], object]) -> None:
        """Give something back; where the context is lost, the driver has done so already."""
        with contextlib.suppress(self._driver.Error):
            function()

    @contextlib.contextmanager
    def _errors(self, function: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as exc:
            raise _failed(function, str(exc).partition(" failed: ")[2] or str(exc)) from exc


def _detach(context: Any) -> None:
    """Give a primary context back; pycuda makes it current for that, and leaves it so."""
    context.detach()
    ctypes.CDLL("libcuda.so.1").cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


class _OutOfMemoryError(BackendError):
    """CUDA says so; who asked for memory knows how much it was."""


def _failed(function: str, name: str) -> BackendError:
    upper = name.upper().replace(" ", "_")
    if any(lost in upper for lost in _LOST):
        return BackendError(
            f"the device failed ({name}, seen in {function}), and its context is lost with "
            "everything in it. Start the process again; if it happens again, try --backend "
            "onnxruntime, and report it with `openvis doctor`"
        )
    if "OUT_OF_MEMORY" in upper:
        return _OutOfMemoryError(f"the device has no memory left ({name}, seen in {function})")
    if any(text in upper for text in ("NO_DEVICE", "INVALID_DEVICE", "NO_CUDA-CAPABLE_DEVICE")):
        return BackendError(f"there is no NVIDIA GPU here that CUDA can use ({name})")
    return BackendError(f"CUDA failed in {function}: {name}")


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
