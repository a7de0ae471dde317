"""Which binding of CUDA is used: cuda-python if it is installed, else pycuda."""

from __future__ import annotations

from typing import Literal, get_args

from openvis_rt.errors import DependencyError, InputError
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.runtime.backends.tensorrt.cuda_python import CudaPython
from openvis_rt.runtime.backends.tensorrt.pycuda import PyCuda

__all__ = ["CudaChoice", "open_cuda"]

CudaChoice = Literal["auto", "cuda-python", "pycuda"]


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
