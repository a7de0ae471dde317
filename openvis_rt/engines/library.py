"""The TensorRT libraries, one Python interface, and the few differences between them.

                                 tensorrt 10.3 ... 11.4      tensorrt-rtx 1.x
    compiles for                 the GPU that it runs on     a list of compute capabilities
    needs a GPU to compile       yes                         no
    timing cache                 yes                         accepted and ignored, deprecated
    optimization levels          yes                         accepted; every level, the same engine
    version-compatible engines   yes                         no (needs a library it comes without)
    engines for other GPUs       Ampere and newer; newer     its list is that
                                 releases: same capability
    cache of compiled kernels    no                          yes, kept by the runtime

All of them take strongly typed networks, and nothing else is used here. Importing this module loads
none of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from openvis_rt.engines.api import Logger, Module, Profiler
from openvis_rt.errors import BackendError, DependencyError, InputError, UnavailableError

__all__ = [
    "TENSORRT_BACKENDS",
    "Messages",
    "TensorRtLibrary",
    "new_logger",
    "new_profiler",
    "tensorrt_library",
    "version_numbers",
    "without_driver",
]


@dataclass(frozen=True)
class TensorRtLibrary:
    """A TensorRT that is installed here.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        module: the Python module, ``tensorrt`` or ``tensorrt_rtx``.
        version: what it says it is, such as ``10.3.0``.
    """

    backend: str
    module: Module
    version: str

    def __str__(self) -> str:
        return f"{self.backend} {self.version}"

    @property
    def compiles_for_a_list(self) -> bool:
        """Compiles without a GPU for a list of compute capabilities, and only so."""
        return self.backend == "tensorrt-rtx"

    @property
    def hardware_compatibility(self) -> dict[str, Any]:
        """What ``--hardware-compatible`` may ask for, and the library's value for it."""
        if self.compiles_for_a_list:
            return {}
        levels = self.module.HardwareCompatibilityLevel.__members__
        return {
            name.lower().replace("_plus", "+").replace("_", "-"): level
            for name, level in levels.items()
            if name != "NONE"
        }


@dataclass(frozen=True)
class _Backend:
    """Where a library comes from: its module, this distribution's extra, the first that works."""

    module: str
    extra: str
    minimum: tuple[int, int]


_BACKENDS = {
    "tensorrt": _Backend("tensorrt", "tensorrt", (10, 3)),  # JetPack 6
    "tensorrt-rtx": _Backend("tensorrt_rtx", "rtx", (1, 0)),
}
TENSORRT_BACKENDS = tuple(_BACKENDS)
"""Names of the backends that this module knows."""


def tensorrt_library(backend: str) -> TensorRtLibrary:
    """Import a backend's library.

    Raises:
        InputError: there is no such backend.
        DependencyError: the library is not installed.
        BackendError: it is installed and cannot be imported.
        UnavailableError: it is older than what this package was made for.
    """
    if backend not in _BACKENDS:
        raise InputError(
            f"{backend!r} is none of the TensorRT libraries; there are {', '.join(_BACKENDS)}."
        )
    known = _BACKENDS[backend]
    try:
        module: Any = import_module(known.module)
    except ModuleNotFoundError as exc:
        if exc.name == known.module:
            raise DependencyError(known.module, known.extra) from exc
        raise _broken(known, exc) from exc
    except (ImportError, OSError, RuntimeError) as exc:  # a shared library is missing, or is older
        raise _broken(known, exc) from exc
    version = str(getattr(module, "__version__", ""))
    if not version:  # a folder of that name is enough for Python
        raise BackendError(f"{known.module} that is imported here has no version: {module}")
    if version_numbers(version)[:2] < known.minimum:
        minimum = ".".join(map(str, known.minimum))
        raise UnavailableError(
            f"{known.module} {version} is installed, and openvis-rt needs {minimum} or newer. On a "
            "Jetson it comes with JetPack 6; elsewhere: "
            f"pip install --upgrade 'openvis-rt[{known.extra}]'"
        )
    return TensorRtLibrary(backend, module, version)


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare it with another."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def without_driver(message: str) -> str:
    """The message without complaints about the missing driver, which compiling does not need."""
    return "\n".join(line for line in message.splitlines() if "catchCudaError" not in line)


class Messages:
    """Warnings and errors of the library."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def text(self) -> str:
        """One message a line, each set in."""
        kept = [without_driver(message) for message in self.kept]
        return "\n".join(f"  {message}" for message in kept if message) or "  (it gave no reason)"


def new_logger(
    trt: Module, messages: Messages, hear: Callable[[str], None] | None = None
) -> Logger:
    """A logger that keeps warnings and errors and prints nothing.

    Args:
        trt: the library.
        messages: where they are kept.
        hear: is called with every message, of whatever severity.
    """
    severities = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    base: Any = trt.ILogger

    class Kept(base):  # type: ignore[misc]  # a class of the library, which has no types
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                messages.kept.append(message)
            if hear is not None:
                hear(message)

    logger: Logger = Kept()
    return logger


def new_profiler(trt: Module, seconds: dict[str, list[float]]) -> Profiler:
    """A profiler that adds to ``seconds``: for each layer, in their order, one number a run."""
    base: Any = trt.IProfiler

    class Kept(base):  # type: ignore[misc]  # a class of the library, which has no types
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer: str, milliseconds: float) -> None:
            seconds.setdefault(layer, []).append(milliseconds / 1e3)

    profiler: Profiler = Kept()
    return profiler


def _broken(known: _Backend, error: Exception) -> BackendError:
    return BackendError(
        f"{known.module} is installed, and importing it fails: {error}. "
        f"Install it anew: pip install --force-reinstall 'openvis-rt[{known.extra}]'"
    )
