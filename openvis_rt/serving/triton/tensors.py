"""Numpy arrays to Triton's tensors and back, by DLPack.

``pb_utils.Tensor(name, array)`` and ``as_numpy()`` would do, but servers up to 24.10 at least were
compiled before numpy 2 and take every number of its arrays for one of no bytes: what they send is
empty, without any error. DLPack does not pass through numpy's own structures.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "array_of", "tensor_of"]

Array = npt.NDArray[Any]

_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes, _set_name.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_USED = b"used_dltensor"  # kept here, since a capsule keeps only the address of its name


def array_of(tensor: Any) -> Array:
    """The numbers of a tensor on the host, without a copy.

    Args:
        tensor: a ``pb_utils.Tensor`` of numbers, in the host's memory.

    Returns:
        a read-only view, perhaps not aligned; it is good as long as the tensor's request.
    """
    view: Array = np.from_dlpack(tensor)
    return view


def tensor_of(pb: Any, name: str, array: Array) -> Any:
    """A ``pb_utils.Tensor`` of an array.

    Args:
        pb: the module ``triton_python_backend_utils``.
        name: of the tensor.
        array: numbers; Triton copies them into its own memory at once.
    """
    capsule = np.ascontiguousarray(array).reshape(array.shape).__dlpack__()
    tensor = pb.Tensor.from_dlpack(name, capsule)
    # Triton renames a capsule that it took to "used_dlpack". By the name that DLPack's
    # specification has, numpy sees that its memory is Triton's to give back, and not its own.
    _set_name(capsule, _USED)
    return tensor
