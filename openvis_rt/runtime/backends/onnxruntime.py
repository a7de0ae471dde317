"""ONNX Runtime: the backend that works everywhere, on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, BundleError, DependencyError, InputError
from openvis_rt.runtime.backends.base import Array, Session, check_value, check_view, fetched_value
from openvis_rt.systems.graphs import INT8, INT8_FP32, GraphSpec, TensorSpec

__all__ = ["OnnxRuntime", "OnnxRuntimeSession"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_WRONG = ["WeightBiasQuantization"]
_AGAIN = "export it again"
_LEFT_OUT = {"cpu": ["SkipLayerNormFusion", *_WRONG], "cuda": _WRONG}
"""Of ONNX Runtime's optimisations those that are not made.

The CPU has a slower kernel for a normed sum than for sum and norm. An FP16 bias between INT8 pairs
would become INT32 in steps that FP16 rounds, to 0 below 3e-8: `propose` of the miniatures has
8 dB with it and 35 without (1.32). What is made for a CPU has INT32 biases of its own.
"""
_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
}


class OnnxRuntime:
    """The backend.

    Args:
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where it works, else the CPU, and it says so.
        warn: told so.
        threads: that compute one graph on the CPU; None for the library's choice.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        InputError: there is no such device.
        BackendError: the device was asked for and is not offered.
    """

    name = "onnxruntime"
    slots = 1  # it computes at once

    def __init__(
        self,
        device: str = "auto",
        warn: Callable[[str], None] = lambda _: None,
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise DependencyError("onnxruntime", "cpu") from exc
        offered = onnxruntime.get_available_providers()
        self._warn, self._threads = warn, threads
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
        self._device = device

    @property
    def device(self) -> str:
        """Where sessions run; with ``auto`` it is settled by the first one that is opened."""
        return self._device

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every graph of every bundle runs here; INT8 with FP16 runs slowly on a CPU."""
        if precision == INT8 and self._device == "cpu":
            self._warn(
                f"{INT8} holds FP16, which ONNX Runtime has few kernels for on a CPU; "
                f"{INT8_FP32} has the same products in INT8 and is made for a CPU"
            )

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp32",
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> OnnxRuntimeSession:
        """Open one graph of a bundle; every output can be fetched, and there is one slot."""
        path, entry = str(bundle.graph_path(graph, precision)), bundle.graph(graph, precision)
        data = bundle.read_graph(graph, precision)

        def opened(device: str) -> OnnxRuntimeSession:
            return OnnxRuntimeSession(path, entry.spec, device, self._threads, data)

        try:
            session = opened(self.device)
        except BackendError as exc:  # offered is what was compiled in, not what works here
            if not self._may_fall_back or self.device == "cpu":
                raise
            self._warn(f"running on the CPU: {exc}")
            self._device = "cpu"
            session = opened(self.device)
        self._may_fall_back = False
        return session

    def counters(self) -> dict[str, float]:
        """Nothing: the library does not tell."""
        return {}

    def close(self) -> None:
        """Nothing is left to give back."""


class OnnxRuntimeSession:
    """One graph. An output whose sizes follow from the inputs' has a buffer at the next run.

    It keeps its address while its sizes stay, from the opening on where they are numbers of the
    file. Other outputs, such as masks of the source's size, are the library's own, anew each run.

    It has one slot, and ``run`` returns when the outputs are there. On the CPU a buffer is a numpy
    array that ONNX Runtime writes into, so that a session bound to it reads the very same memory.
    """

    def __init__(
        self,
        path: str,
        spec: GraphSpec,
        device: str,
        threads: int | None = None,
        data: bytes | None = None,
        *,
        made_here: bool = False,
    ) -> None:
        """Open a graph.

        Args:
            path: its ONNX file, or a name for messages where ``data`` is given.
            spec: its tensors.
            device: ``cpu`` or ``cuda``.
            threads: that compute it on a CPU; None for the library's choice.
            data: the file's bytes, where they were read and checked already, or a graph that was
                made in memory, at most 2 GiB; its tensors must be those of ``spec``.
            made_here: ``data`` is no stranger's, so its tensors are not held against ``spec``.

        Raises:
            BundleError: the library cannot load it, or it has other tensors.
            BackendError: the device does not work.
        """
        import onnxruntime as ort

        self.spec = spec
        self._ort, self._device = ort, device
        options = ort.SessionOptions()
        # its errors come as exceptions, too, which are escaped; its log would bring a stranger's
        # texts to the terminal as they are
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(
                path if data is None else data,
                options,
                providers=[_PROVIDERS[device]],
                disabled_optimizers=_LEFT_OUT[device],
                # it says so on stdout, and there is nothing below a CPU
                enable_fallback=int(device != "cpu"),
            )
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
        if data is not None and not made_here:
            _check_tensors(self._session, spec, path)
        self._binding = self._session.io_binding()
        self._hosts: dict[str, Array] = {}  # on a CPU they share their memory with a buffer
        self._filled: set[str] = set()  # inputs that are not on the device yet
        self._overrides: dict[str, Array] = {}
        self._values: dict[str, Any] = {}  # buffers: own inputs, and outputs of known sizes
        self._sources: dict[str, tuple[OnnxRuntimeSession, str]] = {}
        self._bound: dict[str, Any] = {}  # what each input reads; keeps another session's alive
        self._has_run = False
        follow = {d for t in spec.inputs for d in t.shape if isinstance(d, str)}
        self._sized = [t for t in spec.outputs if _symbols(t) <= follow]
        self._unsized = [t.name for t in spec.outputs if not _symbols(t) <= follow]
        for tensor in spec.outputs:
            self._binding.bind_output(tensor.name, device)  # in the order of get_outputs
        self._place([t for t in self._sized if not _symbols(t)], {})

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`. An input keeps its buffer while its shape stays."""
        check_value(self.spec, name, value)
        if any(t.name == name for t in self.spec.overridable):
            # read on the host to shape the work, and copied when bound: so it is bound anew
            self._overrides[name] = np.array(value, order="C")
            override = self._ort.OrtValue.ortvalue_from_numpy(self._overrides[name])
            self._binding.bind_ortvalue_input(name, override)
            return
        self.input_view(name, value.shape)[...] = value

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """See :class:`Session`. An input keeps its buffer while its shape stays."""
        dtype = check_view(self.spec, name, shape)
        self._sources.pop(name, None)
        if name not in self._hosts or self._hosts[name].shape != shape:
            self._hosts[name] = np.zeros(shape, dtype)
            if self._device == "cpu":
                self._values[name] = self._buffer(name, self._hosts[name])
        if self._device != "cpu":
            self._filled.add(name)
        return self._hosts[name]

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`; ``output`` may be an input of ``source``, which both then read.

        Raises:
            InputError: ``source`` is of another backend, or has no buffer of that name.
        """
        if not isinstance(source, OnnxRuntimeSession):
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        if output not in {t.name for t in (*source.spec.inputs, *source._sized)}:
            raise InputError(
                f"graph {source.spec.name!r} has no {output!r} whose size follows from its inputs, "
                f"for {name!r} of graph {self.spec.name!r} to read"
            )
        self._sources[name] = (source, output)

    def run(self, slot: int = 0) -> None:
        """See :class:`Session`.

        Raises:
            InputError: an input was never written, what it is bound to was never run, or one axis
                has two sizes.
        """
        if self._session is None:
            raise InputError(f"the session of graph {self.spec.name!r} is closed")
        self._bind_inputs()
        self._place(self._sized, self._sizes())
        for name in self._unsized:  # else the last run's buffer is kept, with its shape
            self._binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:  # its exceptions share no base of their own
            raise BackendError(f"ONNX Runtime failed in graph {self.spec.name!r}: {exc}") from exc
        self._has_run = True

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`."""
        if not self._has_run:
            raise InputError(f"graph {self.spec.name!r} was never run, to fetch {name!r} from")
        if self._device == "cpu" and name in self._hosts:
            return self._hosts[name].copy()
        index = [t.name for t in self.spec.outputs].index(name)
        return fetched_value(self.spec.outputs[index], self._binding.get_outputs()[index].numpy())

    def close(self) -> None:
        """See :class:`Session`."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._values.clear()
        self._hosts.clear()
        self._sources.clear()
        self._bound.clear()
        self._session = None

    def _copy_in(self, name: str) -> None:
        """Copy what was given on the host; on a CPU the graph reads the host's array itself."""
        held, value = self._values.get(name), self._hosts[name]
        if held is not None and tuple(held.shape()) == value.shape:
            held.update_inplace(value)
        else:
            self._values[name] = self._buffer(name, value)
        self._filled.discard(name)

    def _buffer(self, name: str, value: Array) -> Any:
        # on the CPU the OrtValue shares the array's memory, so the array must live as long
        if self._device == "cpu":
            self._hosts[name] = value
        return self._ort.OrtValue.ortvalue_from_numpy(value, self._device, 0)

    def _place(self, outputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> None:
        """Give outputs buffers of these sizes, where they have others or none."""
        for tensor in outputs:
            name, shape = tensor.name, _numbers(tensor, sizes)
            held = self._values.get(name)
            if held is None or tuple(held.shape()) != shape:
                self._values[name] = self._buffer(name, np.zeros(shape, tensor.dtype))
                self._binding.bind_ortvalue_output(name, self._values[name])

    def _bind_inputs(self) -> None:
        """Let inputs read what holds their values now."""
        for tensor in self.spec.inputs:
            value = self._current(tensor.name)
            if self._bound.get(tensor.name) is not value:
                self._binding.bind_ortvalue_input(tensor.name, value)
                self._bound[tensor.name] = value

    def _current(self, name: str) -> Any:
        """The buffer of an input, which may be another session's, or of the last run's output."""
        if name in self._sources:
            source, output = self._sources[name]
            return source._current(output)
        if name in self._filled:
            self._copy_in(name)
        is_input = any(t.name == name for t in self.spec.inputs)
        if name not in self._values or not (is_input or self._has_run):
            why = "was never written" if is_input else "holds nothing: the graph was never run"
            raise InputError(f"{name!r} of graph {self.spec.name!r} {why}, or is closed")
        return self._values[name]

    def _sizes(self) -> dict[str, int]:
        """A number for each symbol of the inputs, by what they are bound to."""
        sizes: dict[str, int] = {}
        for tensor in self.spec.inputs:
            shape = self._bound[tensor.name].shape()
            for symbol, size in zip(tensor.shape, shape, strict=True):
                if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
                    raise InputError(
                        f"input {tensor.name!r} of graph {self.spec.name!r} has shape "
                        f"{list(shape)}, and axis {symbol} is {sizes[symbol]} in other inputs"
                    )
        return sizes


def _check_tensors(session: Any, spec: GraphSpec, path: str) -> None:
    """BundleError unless a file's inputs and outputs are those of its spec."""
    try:
        given = (*session.get_inputs(), *session.get_overridable_initializers())
        found_in = {v.name: v for v in given}
        found_out = {v.name: v for v in session.get_outputs()}
    except UnicodeDecodeError as exc:
        raise BundleError(f"{path} has a tensor whose name is no text ({exc}); {_AGAIN}") from exc
    for tensors, found in (
        ((*spec.inputs, *spec.overridable), found_in),
        (spec.outputs, found_out),
    ):
        if {t.name for t in tensors} != found.keys():
            raise BundleError(
                f"{path} has the tensors {sorted(found)}, and the manifest says "
                f"{sorted(t.name for t in tensors)}; {_AGAIN}"
            )
        for tensor in tensors:
            value = found[tensor.name]
            dtype = _TYPES.get(value.type)
            packed = tensor.name == "masks" and dtype == "bool"  # the session packs them
            same = dtype == tensor.dtype or packed
            if not same or not _is_shape(tuple(value.shape), tensor.shape):
                raise BundleError(
                    f"{tensor.name!r} of {path} is {dtype} {list(value.shape)}, and the manifest "
                    f"says {tensor.dtype} {list(tensor.shape)}; {_AGAIN}"
                )


def _is_shape(found: tuple[int | str | None, ...], needed: tuple[int | str, ...]) -> bool:
    """Whether a file's shape is a spec's; an axis that the file leaves open may have any symbol."""
    return len(found) == len(needed) and all(
        f == n or (not isinstance(f, int) and isinstance(n, str))
        for f, n in zip(found, needed, strict=True)
    )


def _symbols(tensor: TensorSpec) -> set[str]:
    return {size for size in tensor.shape if isinstance(size, str)}


def _numbers(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
