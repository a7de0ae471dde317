"""One graph on one backend: the protocol that every backend's module implements.

A session owns its buffers and allocates those of fixed size once, when it is opened. An output
buffer is overwritten by the next ``run``; what ``fetch`` returns belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle import Bundle
from openvis_rt.errors import InputError
from openvis_rt.graphs import GraphSpec

__all__ = ["BACKENDS", "Array", "Session", "SessionFactory", "session_factory"]

Array = npt.NDArray[np.generic]


class Session(Protocol):
    """A graph that is ready to run."""

    spec: GraphSpec

    def write(self, name: str, value: Array) -> None:
        """Copy host data into an input; it stays until it is written again.

        Raises:
            InputError: another type or shape than the graph takes.
        """

    def bind(self, name: str, source: Session, output: str) -> None:
        """Read an input from another session's output buffer: the same memory, no copy."""

    def run(self) -> None:
        """Execute; the outputs are then in their buffers."""

    def fetch(self, name: str) -> Array:
        """An output on the host, the caller's own copy."""

    def close(self) -> None:
        """Give the memory back."""


class SessionFactory(Protocol):
    """A backend: opens sessions, and says what it is."""

    name: str
    device: str
    warnings: list[str]

    def open(self, bundle: Bundle, graph: str, precision: str) -> Session:
        """Open one graph of a bundle."""


def _onnxruntime(device: str) -> SessionFactory:
    from openvis_rt.runtime.onnxruntime_session import OnnxRuntime

    return OnnxRuntime(device)


BACKENDS: dict[str, Callable[[str], SessionFactory]] = {"onnxruntime": _onnxruntime}
"""By name; each takes the device, ``auto``, ``cpu`` or ``cuda``."""


def session_factory(backend: str, device: str = "auto") -> SessionFactory:
    """The backend of that name; ``auto`` is the best that works on this machine.

    Raises:
        InputError: there is none of that name.
        DependencyError: its library is not installed.
        BackendError: it does not work on this machine.
    """
    name = "onnxruntime" if backend == "auto" else backend
    if name not in BACKENDS:
        raise InputError(
            f"there is no backend {backend!r} to run on; there are: auto, {', '.join(BACKENDS)}"
        )
    return BACKENDS[name](device)


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
