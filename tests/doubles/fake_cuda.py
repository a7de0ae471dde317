"""Builds ``libcuda.c``, loads it as the process's CUDA driver, and asks it what happened.

Bindings look for a loaded library of the name ``libcuda.so.1`` before they search for one, so it is
enough to load the built file first. It cannot be unloaded, and every library of the process that
looks for a driver finds it: hence only tests marked ``own_process`` may load it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

SOURCE = Path(__file__).with_name("libcuda.c")
SCHEDULES = ("late", "others", "at once", "random")
ERRORS = {"OUT_OF_MEMORY": 2, "ILLEGAL_ADDRESS": 700, "LAUNCH_FAILED": 719, "UNKNOWN": 999}
KINDS = ("allocation", "pinned", "stream", "event", "graph", "executable", "context", "pushed")


def build(folder: Path) -> Path:
    """The driver, compiled into a folder."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        reason = "the fake CUDA driver needs Linux and a C compiler"
        if os.environ.get("OPENVIS_REQUIRE_REFERENCE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    command = [compiler, *flags, f"-Wl,-soname,{library.name}", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-pthread"], check=True)
    return library


class FakeCuda:
    """The loaded driver. Errors are named as in ``ERRORS``."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        found = ctypes.CDLL(library.name)
        if not hasattr(found, "fake_cuda_live"):
            pytest.fail("another CUDA driver was loaded before")
        c = self._library
        c.fake_cuda_violations.restype = ctypes.c_char_p
        c.fake_cuda_calls.restype = ctypes.c_long
        c.fake_cuda_set_memory.argtypes = [ctypes.c_size_t]
        c.fake_cuda_bytes.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
        c.fake_cuda_bytes.restype = ctypes.c_void_p
        c.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def reset(self) -> None:
        """As if the process had just begun."""
        self._library.fake_cuda_reset()

    def live(self) -> dict[str, int]:
        """What exists, by kind; what does not is left out."""
        counts = {kind: self._library.fake_cuda_live(kind.encode()) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def made(self, kind: str, *, flags: int = 0, priority: int = 0) -> int:
        """How many live with these flags, of events, or of this priority, of streams."""
        return self._library.fake_cuda_made(kind.encode(), flags, priority)

    def violations(self) -> str:
        """What no caller should do, a line each."""
        return self._library.fake_cuda_violations().decode()

    def calls(self, function: str) -> int:
        """How often a function was called; by its name without a version."""
        return self._library.fake_cuda_calls(function.encode())

    def fail_next(self, function: str, error: str, *, skip: int = 0) -> None:
        """Let a later call of a function fail, or ``work`` on the device."""
        self._library.fake_cuda_fail_next(function.encode(), ERRORS[error], skip)

    def lose(self, error: str = "LAUNCH_FAILED") -> None:
        """Let the context be lost from now on."""
        self._library.fake_cuda_lose(ERRORS[error])

    def schedule(self, name: str, seed: int = 1) -> None:
        """Choose when queued work runs; see ``libcuda.c``."""
        self._library.fake_cuda_set_schedule(SCHEDULES.index(name), seed)

    def set_memory(self, size: int) -> None:
        """Bytes of the device in all."""
        self._library.fake_cuda_set_memory(size)

    def set_devices(self, number: int) -> None:
        """How many devices there are: 0 or 1."""
        self._library.fake_cuda_set_devices(number)

    def has_context(self) -> bool:
        """Whether a context is current on this thread."""
        return self._library.fake_cuda_live(b"pushed") > 0

    def bytes_at(self, address: int, size: int) -> npt.NDArray[np.uint8] | None:
        """Device memory, for work that runs in a host function; None if it is no such memory."""
        if not size:
            return np.zeros(0, np.uint8)
        found = self._library.fake_cuda_bytes(address, size)
        if not found:
            return None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(found))

    def launch(self, stream: int, function: ctypes._FuncPointer, data: int) -> int:
        """Queue ``function(data)``, a ``ctypes.CFUNCTYPE(None, c_void_p)`` that must live on."""
        return self._library.cuLaunchHostFunc(stream, ctypes.cast(function, ctypes.c_void_p), data)

    def is_capturing(self, stream: int) -> bool:
        """Whether what is queued on the stream goes into a graph."""
        status = ctypes.c_int()
        self._library.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value != 0

    def synchronize(self, stream: int) -> None:
        """As a library that waits for a stream."""
        self._library.cuStreamSynchronize(ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int | None:
        """As a library that allocates for itself; None if it cannot."""
        address = ctypes.c_uint64()
        failed = self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        return None if failed else address.value

    def free(self, address: int) -> None:
        """What :meth:`allocate` gave."""
        self._library.cuMemFree_v2(ctypes.c_uint64(address))

    def check(self) -> None:
        """Nothing is left, and nothing was done that must not be."""
        assert self.violations() == "", self.violations()
        assert self.live() == {}
