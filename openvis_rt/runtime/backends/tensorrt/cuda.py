"""The few CUDA calls that a session needs; each binding does them in a module of its own.

The bindings drive the driver API and share the device's primary context, so that TensorRT, which
works in the current context, and other libraries of the process see the same memory. The context is
retained when a :class:`Cuda` is opened and given back when it is closed; importing these modules
touches neither CUDA nor a binding. One thread owns a :class:`Cuda`: the context is current on that
thread, and calls from another one are refused, as they would fail or reach another context.

Handles are plain integers: device pointers and streams as TensorRT takes them. What is made belongs
to the ``contextlib.ExitStack`` that is given as its owner, and is freed when that is closed, which
must be before the :class:`Cuda` is.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import BackendError, InputError

__all__ = ["FEW_CORES", "Bytes", "Cuda", "OutOfMemoryError", "call_failed"]

Bytes = npt.NDArray[np.uint8]

_LOST = (  # names as cuda-python gives them, and the driver's texts as pycuda does
    *("ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ECC_UNCORRECTABLE", "ASSERT"),
    *("ILLEGAL_MEMORY_ACCESS", "LAUNCH_FAILURE", "LAUNCH_TIMED_OUT", "UNCORRECTABLE_ECC"),
)
FEW_CORES = 4
"""Of the host; with so many or fewer, who waits for the device sleeps."""


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


class OutOfMemoryError(BackendError):
    """CUDA says so; who asked for memory knows how much it was."""


def call_failed(function: str, name: str) -> BackendError:
    """The error for a driver function that returned another one, named as a binding has it."""
    upper = name.upper().replace(" ", "_")
    if any(lost in upper for lost in _LOST):
        return BackendError(
            f"the device failed ({name}, seen in {function}), and its context is lost with "
            "everything in it. Start the process again; if it happens again, try --backend "
            "onnxruntime, and report it with `openvis doctor`"
        )
    if "OUT_OF_MEMORY" in upper:
        return OutOfMemoryError(f"the device has no memory left ({name}, seen in {function})")
    if any(text in upper for text in ("NO_DEVICE", "INVALID_DEVICE", "NO_CUDA-CAPABLE_DEVICE")):
        return BackendError(f"there is no NVIDIA GPU here that CUDA can use ({name})")
    return BackendError(f"CUDA failed in {function}: {name}")


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
