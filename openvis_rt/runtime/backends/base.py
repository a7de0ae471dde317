"""What a backend is: it opens graphs of a bundle as sessions, and a session runs one graph.

A new backend is a module with two classes of these shapes, and a line in :mod:`.registry`; one that
is not in the registry is given to ``Pipeline.open(backend=...)`` as an object.

A session owns its buffers and allocates those of fixed size once, when it is opened. An output
buffer is overwritten by the next ``run``; what ``fetch`` returns belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = [
    "Array",
    "Backend",
    "ForwardingSession",
    "Session",
    "check_shape",
    "check_value",
    "check_view",
]

Array = npt.NDArray[np.generic]


class Session(Protocol):
    """A graph that is ready to run.

    Where a backend keeps several windows in flight, each has a slot, 0 to ``slots - 1``: inputs are
    written, the graph is run and outputs are fetched for one slot, and other slots' buffers stay as
    they are. A session of one slot has its own buffers once, whatever slot is named; what it is
    bound to is read from the named slot.
    """

    spec: GraphSpec

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """The host memory of an input, to be filled by the caller before :meth:`run`.

        Args:
            name: of an input of the graph.
            shape: of the value, with a number for each axis.
            slot: see the class.

        Returns:
            an array of the input's type and this shape, C-contiguous, with what was in it before.
            It belongs to the session and may be written until the next :meth:`run` of this slot
            that reads it: pinned memory where there is a GPU, and on a CPU the very buffer that the
            graph reads.

        Raises:
            InputError: the graph takes no such shape; or the input holds sizes that the graph has
                defaults for, which can only be written.
        """

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Copy host data into an input, which is bound to nothing from now on.

        It stays until it is written again.

        Raises:
            InputError: another type or shape than the graph takes.
        """

    def bind(self, name: str, source: Session, output: str) -> None:
        """Read an input from another session's output, or input: the same memory, no copy."""

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


class ForwardingSession:
    """A session whose every call goes to another one, for sessions that add something to a call.

    Attributes:
        session: the other one.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.spec = session, session.spec

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """See :class:`Session`."""
        return self.session.input_view(name, shape, slot)

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`."""
        self.session.write(name, value, slot)

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`; the two inner sessions are bound."""
        inner = source.session if isinstance(source, type(self)) else source
        self.session.bind(name, inner, output)

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`."""
        self.session.run(slot)

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        return self.session.fetch(name, slot)

    def close(self) -> None:
        """See :class:`Session`."""
        self.session.close()


@runtime_checkable
class Backend(Protocol):
    """Opens sessions on one device.

    Attributes:
        name: of the backend.
        device: where it runs, for people.
        slots: windows that it keeps in flight; 1 where ``run`` computes at once.
    """

    name: str
    slots: int

    @property
    def device(self) -> str:
        """Where it runs, for people."""

    def check(self, bundle: Bundle, precision: str) -> None:
        """Refuse a bundle that cannot be run here, before anything is allocated.

        Raises:
            EngineError: a graph has no engine that fits this machine.
        """

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> Session:
        """Open one graph of a bundle.

        Args:
            bundle, graph, precision: which.
            slots: of the session: one, or a multiple of the backend's; those beyond the backend's
                number read their sources' slots once more, from the first on.
            fetched: outputs that can be fetched, others may stay on the device; None for those that
                the graph's spec marks so.
        """

    def counters(self) -> dict[str, float]:
        """What the backend counts: seconds on the device, bytes over the bus; empty if nothing."""

    def close(self) -> None:
        """Give the device back, after every session is closed."""


def slots_of(graph: str, windows: int) -> int:
    """Slots of a graph's session where so many windows are in flight.

    `masks` has two for each window, so that the next masks are made while the host has the last.
    """
    return 2 * windows if graph == "masks" and windows > 1 else windows


def fetched_value(tensor: TensorSpec, value: Array) -> Array:
    """An output as a session gives it, of what an ONNX file or a module computes.

    The masks, which are bool there, are packed: ``np.packbits`` of each row. Engines do it by
    themselves.
    """
    if value.dtype == np.bool_ and tensor.dtype == "uint8":
        return np.packbits(value.astype(np.bool_, copy=False), axis=-1)
    return value.astype(tensor.dtype, copy=False)


def check_value(spec: GraphSpec, name: str, value: Array) -> None:
    """Refuse an input of another type or shape than the graph's.

    Raises:
        InputError: the message has what was given and what the graph takes.
    """
    dtype = check_shape(spec, name, value.shape)
    if value.dtype != dtype:
        raise InputError(
            f"input {name!r} of graph {spec.name!r} takes {dtype} {list(value.shape)}, "
            f"got {value.dtype} {list(value.shape)}"
        )


def check_view(spec: GraphSpec, name: str, shape: tuple[int, ...]) -> np.dtype[Any]:
    """The type of an input whose host memory is asked for, if it takes this shape.

    Raises:
        InputError: as :func:`check_shape`; or the input holds sizes, which are checked when they
            are written.
    """
    dtype = check_shape(spec, name, shape)
    if any(t.name == name for t in spec.overridable):
        raise InputError(
            f"input {name!r} of graph {spec.name!r} holds sizes, which are checked when they are "
            "written: call write() instead of input_view()"
        )
    return dtype


def check_shape(spec: GraphSpec, name: str, shape: tuple[int, ...]) -> np.dtype[Any]:
    """The type of an input, if it takes this shape.

    Raises:
        InputError: the graph has no such input, or one of another shape.
    """
    taken = (*spec.inputs, *spec.overridable)
    tensor = next((t for t in taken if t.name == name), None)
    if tensor is None:
        names = ", ".join(t.name for t in taken)
        raise InputError(f"graph {spec.name!r} has no input {name!r}; it has {names}")
    fits = len(shape) == len(tensor.shape) and all(
        isinstance(w, str) or w == f for w, f in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {name!r} of graph {spec.name!r} takes {tensor.dtype} {list(tensor.shape)}, "
            f"got {list(shape)}"
        )
    return np.dtype(tensor.dtype)
