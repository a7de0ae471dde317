"""What an engine says of its inputs and outputs, held against the graph that it was built from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvis_rt.engines.api import Context, Engine, Module
from openvis_rt.errors import EngineError
from openvis_rt.runtime.backends.base import Array
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["Tensor", "check_tensors", "read_tensors"]

Shape = tuple[int, ...]

_NUMPY_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    """One input or output of an engine.

    Attributes:
        is_input: or else an output.
        dtype: of its elements.
        shape: with -1 for dynamic axes.
        max_shape: the shape of its buffer.
        max_values: of a shape input, whose values TensorRT reads from host memory, the largest that
            the engine takes; None for every other tensor.
    """

    is_input: bool
    dtype: npt.DTypeLike
    shape: Shape
    max_shape: Shape
    max_values: Array | None = None

    @property
    def on_host(self) -> bool:
        """A shape input."""
        return self.max_values is not None

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes of its buffer."""
        return math.prod(self.max_shape) * self.itemsize


def read_tensors(module: Module, engine: Engine, context: Context, graph: str) -> dict[str, Tensor]:
    """Every tensor of an engine by name; outputs' max shapes are asked of a context.

    Args:
        module: the library.
        engine: what is asked.
        context: of the engine; afterwards it is set to the max sizes of its inputs.
        graph: the graph's name, for messages.

    Raises:
        EngineError: a tensor is of a type that no graph has, or the engine does not tell its sizes.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    found = {name: _input(module, engine, context, graph, name) for name in inputs}
    if missing := list(context.infer_shapes()):
        raise EngineError(f"the engine of {graph!r} wants sizes of {missing} as well")
    for name in names:
        if name not in found:
            shape = tuple(engine.get_tensor_shape(name))
            max_shape = tuple(context.get_tensor_shape(name))
            found[name] = Tensor(False, _dtype(engine, graph, name), shape, max_shape)
    return found


def _input(module: Module, engine: Engine, context: Context, graph: str, name: str) -> Tensor:
    """One input, to whose max size or values the context is set."""
    shape, dtype = tuple(engine.get_tensor_shape(name)), _dtype(engine, graph, name)
    if engine.get_tensor_location(name) == module.TensorLocation.HOST:
        most = np.array(engine.get_tensor_profile_values(0, name)[2], dtype)
        context.set_tensor_address(name, most.ctypes.data)
        return Tensor(True, dtype, shape, shape, most)
    max_shape = shape
    if -1 in shape:
        max_shape = tuple(engine.get_tensor_profile_shape(name, 0)[2])
        if not context.set_input_shape(name, max_shape):
            raise EngineError(f"the engine of {graph!r} refuses the max shape of its own {name!r}")
    return Tensor(True, dtype, shape, max_shape)


def check_tensors(spec: GraphSpec, tensors: dict[str, Tensor]) -> None:
    """Refuse an engine whose tensors are not the graph's.

    Raises:
        EngineError: the message has the first that is missing or otherwise.
    """
    for wanted in (*spec.inputs, *spec.outputs):
        found = tensors.get(wanted.name)
        shape = tuple(-1 if isinstance(size, str) else size for size in wanted.shape)
        if found is not None and not found.is_input and len(found.shape) == len(shape):
            # an output's size is a number where what it follows from is built in
            shape = tuple(f if w < 0 else w for f, w in zip(found.shape, shape, strict=True))
        is_same = found is not None and (np.dtype(found.dtype), found.shape) == (
            np.dtype(wanted.dtype),
            shape,
        )
        if not is_same:
            held = found and f"{np.dtype(found.dtype)} {list(found.shape)}"
            raise EngineError(
                f"the engine of {spec.name!r} has {wanted.name!r} as {held}, and the "
                f"bundle as {wanted.dtype} {list(shape)}: it was built from another graph"
            )


def _dtype(engine: Engine, graph: str, name: str) -> npt.DTypeLike:
    kind = str(engine.get_tensor_dtype(name).name)
    if kind not in _NUMPY_TYPES:
        raise EngineError(f"the engine of {graph!r} has {name!r} of type {kind}")
    return _NUMPY_TYPES[kind]
