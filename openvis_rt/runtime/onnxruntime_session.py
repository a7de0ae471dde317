"""ONNX Runtime: the backend that works everywhere, on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openvis_rt.bundle import Bundle
from openvis_rt.errors import BackendError, BundleError, DependencyError, InputError
from openvis_rt.graphs import GraphSpec
from openvis_rt.runtime.session import Array, Session, check_value

__all__ = ["OnnxRuntime", "OnnxRuntimeSession"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """The backend.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where it works, else the CPU, and it says so.

    Attributes:
        device: where sessions run; with ``auto`` it is settled by the first one that is opened.
        warnings: what should be known of that.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        InputError: there is no such device.
        BackendError: the device was asked for and is not offered.
    """

    name = "onnxruntime"
    slots = 1  # it computes at once

    def __init__(self, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise DependencyError("onnxruntime", "cpu") from exc
        offered = onnxruntime.get_available_providers()
        self.warnings: list[str] = []
        self._may_fall_back = device == "auto"
        if device == "auto":
            device = "cuda" if _PROVIDERS["cuda"] in offered else "cpu"
        if device not in _PROVIDERS:
            raise InputError(f"there is no device {device!r}; there are: auto, cpu, cuda")
        if _PROVIDERS[device] not in offered:
            raise BackendError(
                f"this ONNX Runtime ({onnxruntime.__version__}) has no {_PROVIDERS[device]}, only "
                f"{', '.join(offered)}. For CUDA: pip uninstall onnxruntime; "
                "pip install 'openvis-rt[gpu]' (the two packages must never be installed together)"
            )
        self.device = device

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp32",
        *,
        fetched: Sequence[str] = (),
        slots: int = 1,
    ) -> OnnxRuntimeSession:
        """Open one graph of a bundle; every output can be fetched, and there is one slot."""
        path, spec = str(bundle.graph_path(graph, precision)), bundle.graph(graph, precision).spec
        try:
            session = OnnxRuntimeSession(path, spec, self.device)
        except BackendError as exc:  # offered is what was compiled in, not what works here
            if not self._may_fall_back or self.device == "cpu":
                raise
            self.warnings.append(f"running on the CPU: {exc}")
            self.device = "cpu"
            session = OnnxRuntimeSession(path, spec, self.device)
        self._may_fall_back = False
        return session

    def counters(self) -> dict[str, float]:
        """Nothing: the library does not tell."""
        return {}

    def close(self) -> None:
        """Nothing is left to give back."""


class OnnxRuntimeSession:
    """One graph. Outputs of fixed shape are allocated at once and keep their address.

    It has one slot, and ``run`` returns when the outputs are there. On the CPU an output buffer is
    a numpy array that ONNX Runtime writes into, so that a session bound to it reads the very same
    memory.
    """

    def __init__(self, path: str, spec: GraphSpec, device: str) -> None:
        import onnxruntime as ort

        self.spec = spec
        self._ort, self._device = ort, device
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about node placement
        try:
            self._session = ort.InferenceSession(path, options, providers=[_PROVIDERS[device]])
        except Exception as exc:  # its exceptions share no base of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {exc}. The file may be "
                "damaged, or newer than this ONNX Runtime: export it again or upgrade ONNX Runtime."
            ) from exc
        if _PROVIDERS[device] not in self._session.get_providers():
            raise BackendError(
                f"ONNX Runtime fell back from {_PROVIDERS[device]} to "
                f"{', '.join(self._session.get_providers())}: the CUDA libraries that it "
                "needs could not be loaded. `openvis doctor` says more; --device cpu "
                "runs without."
            )
        self._binding = self._session.io_binding()
        self._hosts: dict[str, Array] = {}  # numpy arrays that share memory with a buffer
        self._overrides: dict[str, Array] = {}
        self._values: dict[str, Any] = {}
        self._dynamic = [t.name for t in spec.outputs if any(isinstance(d, str) for d in t.shape)]
        self._fixed = [t.name for t in spec.outputs if t.name not in self._dynamic]
        for tensor in spec.outputs:
            if tensor.name in self._fixed:
                value = self._buffer(
                    tensor.name, np.zeros([int(d) for d in tensor.shape], tensor.dtype)
                )
                self._values[tensor.name] = value
                self._binding.bind_ortvalue_output(tensor.name, value)

    def _buffer(self, name: str, value: Array) -> Any:
        # on the CPU the OrtValue shares the array's memory, so the array must live as long
        if self._device == "cpu":
            self._hosts[name] = value
        return self._ort.OrtValue.ortvalue_from_numpy(value, self._device, 0)

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`. An input of fixed shape keeps its buffer from the first call on."""
        check_value(self.spec, name, value)
        if any(t.name == name for t in self.spec.overridable):
            # read on the host to shape the work, and copied when bound: so it is bound anew
            self._overrides[name] = np.array(value, order="C")
            override = self._ort.OrtValue.ortvalue_from_numpy(self._overrides[name])
            self._binding.bind_ortvalue_input(name, override)
            return
        held = self._values.get(name)
        if held is not None and tuple(held.shape()) == value.shape:
            held.update_inplace(np.ascontiguousarray(value))
            return
        self._values[name] = self._buffer(name, np.array(value, order="C"))
        self._binding.bind_ortvalue_input(name, self._values[name])

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`.

        Raises:
            InputError: ``source`` is of another backend, or its output has no buffer of fixed
                shape.
        """
        if not isinstance(source, OnnxRuntimeSession):
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        if output not in source._values:
            source._allocate_input(output)
        self._binding.bind_ortvalue_input(name, source._values[output])

    def _allocate_input(self, name: str) -> None:
        """The buffer of an input that another session reads too, before it is written first."""
        tensor = next((t for t in self.spec.inputs if t.name == name), None)
        if tensor is None or any(isinstance(size, str) for size in tensor.shape):
            raise InputError(f"{name!r} of graph {self.spec.name!r} has no buffer of fixed shape")
        self.write(name, np.zeros([int(size) for size in tensor.shape], tensor.dtype))

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`."""
        if self._session is None:
            raise InputError(f"the session of graph {self.spec.name!r} is closed")
        for name in self._dynamic:  # else the last run's buffer is kept, with its shape
            self._binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:  # its exceptions share no base of their own
            raise BackendError(f"ONNX Runtime failed in graph {self.spec.name!r}: {exc}") from exc

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        if name in self._hosts:
            return self._hosts[name].copy()
        bound = [*self._fixed, *self._dynamic]  # the order in which they were bound first
        out: Array = self._binding.get_outputs()[bound.index(name)].numpy()
        return out

    def close(self) -> None:
        """See :class:`Session`."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._values.clear()
        self._hosts.clear()
        self._session = None
