"""The memory of one engine's tensors: on the device and page-locked on the host, for each slot.

Each buffer has the max size of the engine's profile, and is allocated once: those of outputs when
the session is opened, those of an input when it is given for the first time, since an input that is
bound to another session's tensor never needs one. A tensor of a dynamic size, such as a window's,
fills the beginning of its buffer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError
from openvis_rt.runtime.backends.base import Array
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.runtime.backends.tensorrt.tensors import Tensor

__all__ = ["Buffers"]

Shape = tuple[int, ...]


class Buffers:
    """The memory of one slot.

    Args:
        cuda: the device.
        owner: frees the memory.
        tensors: of the engine, by name.
        fetched: outputs that have host memory too.
        graph: its name, for messages.

    Attributes:
        device: address of each tensor that has device memory.
        shapes: of what each tensor holds; what was never written or made is not in it.
        filled: inputs that were given on the host, and whose copy to the device has not begun.

    Raises:
        BackendError: there is not so much memory.
    """

    def __init__(
        self,
        cuda: Cuda,
        owner: ExitStack,
        tensors: dict[str, Tensor],
        fetched: Collection[str],
        graph: str,
    ) -> None:
        self._tensors, self._graph = tensors, graph
        self._cuda, self._owner = cuda, owner
        self.device: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        self.filled: set[str] = set()
        self._host: dict[str, npt.NDArray[np.uint8]] = {}
        for name, tensor in tensors.items():
            if not tensor.is_input:
                self._allocate(name, on_host=name in fetched)

    def begin(self, name: str, shape: Shape) -> Array:
        """The host memory of an input at this shape, which holds its value from now on.

        Raises:
            InputError: the engine takes no such size, and nothing was changed.
            BackendError: there is no memory for it, nor was there an earlier value.
        """
        self.check(name, shape)
        if name not in self._host:
            self._allocate(name, on_host=True)
        self.shapes[name] = shape
        if not self._tensors[name].on_host:
            self.filled.add(name)
        return self.value(name)

    def check(self, name: str, shape: Shape) -> None:
        """InputError if an input is larger than the engine takes."""
        tensor = self._tensors[name]
        if any(found > most for found, most in zip(shape, tensor.max_shape, strict=True)):
            raise InputError(
                f"input {name!r} of graph {self._graph!r} takes up to {list(tensor.max_shape)}, "
                f"got {list(shape)}; build the engines with larger profiles (`openvis build "
                "--help`), or give it in parts"
            )

    def bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The host memory of a tensor at the shape that it holds, uint8; it stays the buffers'."""
        size = math.prod(self.shapes[name]) * self._tensors[name].itemsize
        return self._host[name][:size]

    def value(self, name: str) -> Array:
        """As :meth:`bytes`, in the tensor's own type and shape."""
        return self.bytes(name).view(self._tensors[name].dtype).reshape(self.shapes[name])

    def _allocate(self, name: str, *, on_host: bool) -> None:
        tensor = self._tensors[name]
        if tensor.on_host:
            self._host[name] = np.zeros(tensor.size, np.uint8)
            return
        if name not in self.device:
            self.device[name] = self._cuda.allocate(self._owner, tensor.size)
        if on_host:
            self._host[name] = self._cuda.pinned(self._owner, tensor.size)
