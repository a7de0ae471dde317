"""The backends by name, and what ``auto`` tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import DependencyError, InputError, UnavailableError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.tensorrt.bindings import CudaChoice

__all__ = ["BACKENDS", "LARGEST_THREADS", "BackendOptions", "Device", "open_backend"]

Device = Literal["auto", "cpu", "cuda"]
Warn = Callable[[str], None]


LARGEST_THREADS = 1024
"""Of one graph on a CPU."""


@dataclass(frozen=True)
class BackendOptions:
    """How a backend is opened.

    Attributes:
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where it works.
        cuda: the CUDA binding of the TensorRT backends: ``cuda-python`` (it has CUDA graphs),
            ``pycuda``, or ``auto``, the first of them that is installed.
        threads: that compute one graph on the CPU; None for the library's choice.
        cuda_graphs: let the TensorRT backends use CUDA graphs where they can; without them every
            kernel is launched by itself, which is slower and gives the same numbers.
        verify: compare each engine with ONNX Runtime before it serves for the first time on this
            machine; without, a warning says for good that it was not.
    """

    device: Device = "auto"
    cuda: CudaChoice = "auto"
    threads: int | None = None
    cuda_graphs: bool = True
    verify: bool = True

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        for what, value, known in (
            ("device", self.device, get_args(Device)),
            ("CUDA binding", self.cuda, get_args(CudaChoice)),
        ):
            if value not in known:
                raise InputError(f"there is no {what} {value!r}; there are: {', '.join(known)}")
        if self.threads is not None and not 1 <= self.threads <= LARGEST_THREADS:
            raise InputError(
                f"a graph is computed by 1 to {LARGEST_THREADS} threads; got {self.threads}"
            )


def _tensorrt(name: str) -> Callable[[BackendOptions, Warn], Backend]:
    def opened(options: BackendOptions, warn: Warn) -> Backend:
        from openvis_rt.runtime.backends.tensorrt.backend import TensorRt

        if options.device == "cpu":
            raise InputError(f"{name} runs on a GPU; --device cpu needs --backend onnxruntime")
        return TensorRt(name, options.cuda, warn, cuda_graphs=options.cuda_graphs)

    return opened


def _onnxruntime(options: BackendOptions, warn: Warn) -> Backend:
    from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime(options.device, warn, options.threads)


BACKENDS: dict[str, Callable[[BackendOptions, Warn], Backend]] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
    "onnxruntime": _onnxruntime,
}
"""By name, in the order in which ``auto`` tries them; the last one works everywhere."""
_OF_ENGINES = ("tensorrt", "tensorrt-rtx")


def open_backend(
    name: str,
    bundle: Bundle,
    precision: str,
    options: BackendOptions | None = None,
    warn: Warn = lambda _: None,
) -> Backend:
    """The backend of that name; ``auto`` is the first that works for this bundle on this machine.

    Args:
        name: of :data:`BACKENDS`, or ``auto``.
        bundle, precision: what will be run.
        options: see its class.
        warn: told why ``auto`` passed a backend over, and what the backend has to say later. It is
            silent only about libraries that are not installed.

    Raises:
        InputError: there is none of that name.
        DependencyError: its library is not installed.
        EngineError: the bundle has no engine that fits this machine.
        BackendError: it does not work on this machine.
        ParityError: an engine does not give ONNX Runtime's numbers on this machine.
    """
    options = options or BackendOptions()
    if name != "auto":
        if name not in BACKENDS:
            raise InputError(
                f"there is no backend {name!r} to run on; there are: auto, {', '.join(BACKENDS)}"
            )
        return _checked(name, bundle, precision, options, warn)
    *others, last = BACKENDS
    for other in others if options.device != "cpu" else ():
        try:
            return _checked(other, bundle, precision, options, warn)
        except UnavailableError as exc:
            if not _is_absent(other, exc):
                warn(f"not running on {other}: {exc}")
    return _checked(last, bundle, precision, options, warn)


def _is_absent(name: str, error: UnavailableError) -> bool:
    """Whether the backend's own library is not installed; that CUDA's binding is not, is told."""
    return isinstance(error, DependencyError) and error.module == name.replace("-", "_")


def _prove(
    backend: Backend, bundle: Bundle, precision: str, options: BackendOptions, warn: Warn
) -> None:
    from openvis_rt.runtime.backends.proving import prove
    from openvis_rt.runtime.backends.tensorrt.backend import TensorRt

    if isinstance(backend, TensorRt) and options.verify:
        prove(backend, bundle, precision, warn)
    elif isinstance(backend, TensorRt):
        warn(f"the engines of {bundle.path} serve without having been compared with ONNX Runtime")


def _checked(
    name: str, bundle: Bundle, precision: str, options: BackendOptions, warn: Warn
) -> Backend:
    backend = BACKENDS[name](options, warn)
    try:
        backend.check(bundle, precision)
        if name in _OF_ENGINES:
            _prove(backend, bundle, precision, options, warn)
    except BaseException:
        backend.close()
        raise
    return backend
