"""One graph on one backend: the protocol that every backend's module implements.

A session owns its buffers and allocates those of fixed size once, when it is opened. An output
buffer is overwritten by the next ``run``; what ``fetch`` returns belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import EngineError, InputError, UnavailableError
from openvis_rt.runtime.backends.tensorrt.cuda import CudaChoice
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["BACKENDS", "Array", "Session", "SessionFactory", "session_factory"]

Array = npt.NDArray[np.generic]


class Session(Protocol):
    """A graph that is ready to run.

    Where a backend keeps several frames in flight, each has a slot, 0 to ``slots - 1``: inputs are
    written, the graph is run and outputs are fetched for one slot, and other slots' buffers stay as
    they are. A session of one slot has its own buffers once, whatever slot is named; what it is
    bound to is read from the named slot.
    """

    spec: GraphSpec

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Copy host data into an input; it stays until it is written again.

        Raises:
            InputError: another type or shape than the graph takes.
        """

    def bind(self, name: str, source: Session, output: str) -> None:
        """Read an input from another session's output buffer: the same memory, no copy."""

    def run(self, slot: int = 0) -> None:
        """Execute, or begin to; the outputs are then in their buffers, or will be.

        Raises:
            BackendError: the backend failed.
        """

    def fetch(self, name: str, slot: int = 0) -> Array:
        """An output on the host, the caller's own copy; waits until it is there.

        Raises:
            BackendError: the backend failed since it was told to run.
        """

    def close(self) -> None:
        """Give the memory back."""


class SessionFactory(Protocol):
    """A backend: opens sessions, and says what it is.

    Attributes:
        name: of the backend.
        device: where it runs, for people.
        slots: frames that it keeps in flight; 1 where ``run`` computes at once.
        warnings: what should be known of that.
    """

    name: str
    device: str
    slots: int
    warnings: list[str]

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        fetched: Sequence[str],
        slots: int = 1,
    ) -> Session:
        """Open one graph of a bundle.

        Args:
            bundle, graph, precision: which.
            fetched: the outputs that the host will fetch; others stay on the device.
            slots: of the session, at most the factory's.
        """

    def counters(self) -> dict[str, float]:
        """What the backend counts: seconds on the device, bytes over the bus; empty if nothing."""

    def close(self) -> None:
        """Give the device back, after every session is closed."""


def _onnxruntime(
    device: str, _bundle: Bundle, _precision: str, _cuda: CudaChoice
) -> SessionFactory:
    from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime(device)


def _tensorrt(name: str) -> _Open:
    def open_factory(
        device: str, bundle: Bundle, precision: str, cuda: CudaChoice
    ) -> SessionFactory:
        from openvis_rt.runtime.backends.tensorrt.backend import TensorRt

        if device == "cpu":
            raise InputError(f"{name} runs on a GPU; --device cpu needs --backend onnxruntime")
        return TensorRt(name, bundle, precision, cuda)

    return open_factory


_Open = Callable[[str, Bundle, str, CudaChoice], SessionFactory]

BACKENDS: dict[str, _Open] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "onnxruntime": _onnxruntime,
}
"""By name, the fastest first; each takes the device, bundle, precision and CUDA binding."""


def session_factory(
    backend: str, device: str, bundle: Bundle, precision: str, cuda: CudaChoice = "auto"
) -> SessionFactory:
    """The backend of that name; ``auto`` is the best that works for this bundle on this machine.

    Args:
        backend: a name of :data:`BACKENDS`, or ``auto``.
        device: ``auto``, ``cpu`` or ``cuda``.
        bundle, precision: what will be run.
        cuda: the CUDA binding for TensorRT: ``auto``, ``cuda-python`` or ``pycuda``.

    Raises:
        InputError: there is none of that name.
        DependencyError: its library is not installed.
        EngineError: the bundle has no engine that fits this machine.
        BackendError: it does not work on this machine.
    """
    if backend != "auto":
        if backend not in BACKENDS:
            raise InputError(
                f"there is no backend {backend!r} to run on; there are: auto, {', '.join(BACKENDS)}"
            )
        return BACKENDS[backend](device, bundle, precision, cuda)
    *engines, last = BACKENDS
    unfit = []
    for name in engines if device != "cpu" else ():
        try:
            return BACKENDS[name](device, bundle, precision, cuda)
        except EngineError as exc:  # library and GPU are there, so an engine is what is missing
            unfit.append(f"not running on {name}: {exc}")
        except UnavailableError:
            continue
    factory = BACKENDS[last](device, bundle, precision, cuda)
    factory.warnings += unfit
    return factory


def check_value(spec: GraphSpec, name: str, value: Array) -> None:
    """Refuse an input of another type or shape than the graph's."""
    taken = (*spec.inputs, *spec.overridable)
    tensor = next((t for t in taken if t.name == name), None)
    if tensor is None:
        names = ", ".join(t.name for t in taken)
        raise InputError(f"graph {spec.name!r} has no input {name!r}; it has {names}")
    wanted: tuple[Any, ...] = tensor.shape
    fits = len(value.shape) == len(wanted) and all(
        isinstance(w, str) or w == f for w, f in zip(wanted, value.shape, strict=True)
    )
    if value.dtype != tensor.dtype or not fits:
        raise InputError(
            f"input {name!r} of graph {spec.name!r} takes {tensor.dtype} {list(wanted)}, "
            f"got {value.dtype} {list(value.shape)}"
        )
