"""PyTorch as a backend of the runtime, so that what is compared differs in the networks alone.

The modules that were exported run in place of the graphs, behind the runtime's own protocols:
placing, association, scores and run lengths are the very same code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.export.graph_module import graph_modules
from openvis_rt.models.network import Network
from openvis_rt.runtime.backends.base import Array, Session, check_shape, check_value, fetched_value
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["TorchBackend", "TorchSession"]

Watch = Callable[[str, str, Array], None]

_COMPILED = frozenset({"propose", "embed", "classify"})
"""Graphs whose sizes stay; `masks` takes another number of instances in every frame."""


class TorchBackend:
    """Sessions over one model.

    Args:
        model: the one that the bundle was exported from.
        compiled: run `propose`, `embed` and `classify` through ``torch.compile``; it compiles at
            the first call, which takes minutes.
        half: autocast to float16, on a GPU; else float32 without TF32.
        device: ``cpu``, ``cuda``, or ``auto``: CUDA where it works.
        threads: of a CPU.
        watch: told of each output that is fetched: graph, output, value.

    Raises:
        BackendError: CUDA was asked for and is not here, or float16 on a CPU.
    """

    slots = 1

    def __init__(
        self,
        model: Network,
        *,
        compiled: bool = False,
        half: bool = False,
        device: str = "auto",
        threads: int | None = None,
        watch: Watch = lambda *_: None,
    ) -> None:
        works = torch.cuda.is_available()
        self.device = ("cuda" if works else "cpu") if device == "auto" else device
        if self.device == "cuda" and not works:
            raise BackendError("PyTorch finds no CUDA device; take --device cpu")
        if half and self.device == "cpu":
            raise BackendError(
                "PyTorch's float16 on a CPU is no measure of anything; compare in fp32"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.name = f"torch {torch.__version__}{' compiled' if compiled else ''}"
        self._compiled, self._half = compiled, half
        self._model, self._watch = model.to(self.device), watch
        self._sessions: list[TorchSession] = []

    def check(self, bundle: Bundle, precision: str) -> None:
        """Refuse the bundle of another model.

        Raises:
            InputError: it is of another variant.
        """
        del precision
        if bundle.manifest.variant != self._model.variant.name:
            raise InputError(
                f"the weights are of {self._model.variant.name}, and the bundle is of "
                f"{bundle.manifest.variant}"
            )

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> TorchSession:
        """Open one graph as the module that it was exported from."""
        del precision, slots, fetched
        rule = bundle.manifest.preprocess
        height, width = (side + -side % rule.size_divisor for side in rule.network_size)
        modules = graph_modules(self._model, (height, width), rule.network_size, rule.source_size)
        module: Any = modules[graph].to(self.device)
        if self._compiled and graph in _COMPILED:
            module = torch.compile(module)
        spec = _wide(bundle.graph(graph, next(iter(bundle.manifest.graphs))).spec)
        session = TorchSession(module, spec, self.device, self._half, self._watch)
        self._sessions.append(session)
        return session

    def counters(self) -> dict[str, float]:
        """Seconds on the device, by CUDA events; nothing on a CPU."""
        if self.device == "cpu":
            return {}
        return {"device_seconds": sum(session.device_seconds for session in self._sessions)}

    def close(self) -> None:
        """Bring the model back to the CPU."""
        self._model.to("cpu")


class TorchSession:
    """One module. Its outputs stay on the device until they are fetched.

    Attributes:
        device_seconds: in the module so far; by CUDA events, or on a CPU by the clock.
    """

    def __init__(
        self, module: nn.Module, spec: GraphSpec, device: str, half: bool, watch: Watch
    ) -> None:
        self.spec, self.device_seconds = spec, 0.0
        self._module: Any = module
        self._device, self._half, self._watch = device, half, watch
        self._given: dict[str, Tensor] = {}
        self._sources: dict[str, tuple[TorchSession, str]] = {}
        self._views: dict[str, Array] = {}
        self._outputs: dict[str, Tensor] = {}
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Host memory that the next run copies to the device; on a CPU it is what the run reads."""
        del slot
        dtype = check_shape(self.spec, name, shape)
        if name not in self._views or self._views[name].shape != shape:
            self._views[name] = np.zeros(shape, dtype)
        self._sources.pop(name, None)
        return self._views[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Copy in; sizes of `masks` are the module's own fields."""
        del slot
        check_value(self.spec, name, value)
        if name in ("picture_size", "frame_size"):
            field = {"picture_size": "network_size"}.get(name, name)
            setattr(self._module, field, tuple(value.tolist()))
            return
        self._views.pop(name, None)
        self._sources.pop(name, None)
        self._given[name] = torch.from_numpy(np.array(value)).to(self._device)

    def bind(self, name: str, source: Session, output: str) -> None:
        """Take the other session's tensor, an input or an output, at each run."""
        if not isinstance(source, TorchSession):
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        self._sources[name] = (source, output)

    @torch.inference_mode()
    def run(self, slot: int = 0) -> None:
        """Run the module, or queue it on the device.

        Raises:
            BackendError: PyTorch failed.
        """
        del slot
        for name, view in self._views.items():
            self._given[name] = torch.from_numpy(view).to(self._device)
        taken = {tensor.name: self._input(tensor.name) for tensor in self.spec.inputs}
        begin = time.perf_counter()
        self._begin_event()
        try:
            with torch.autocast(self._device, torch.float16, enabled=self._half):
                found = self._module(**taken)
        except RuntimeError as exc:  # the base of what its compiler and its kernels raise
            raise BackendError(f"PyTorch failed in {self.spec.name!r}: {exc}") from exc
        self._end_event(begin)
        outputs = found if isinstance(found, tuple) else (found,)
        self._outputs = dict(zip((t.name for t in self.spec.outputs), outputs, strict=True))

    def fetch(self, name: str, slot: int = 0) -> Array:
        """To the host, in the contract's type."""
        del slot
        tensor = next(t for t in self.spec.outputs if t.name == name)
        value = np.array(fetched_value(tensor, self._outputs[name].cpu().numpy()))
        self._count()
        self._watch(self.spec.name, name, value)
        return value

    def close(self) -> None:
        """Drop the tensors."""
        self._given.clear()
        self._sources.clear()
        self._views.clear()
        self._outputs.clear()

    def _input(self, name: str) -> Tensor:
        if name not in self._sources:
            return self._given[name]
        source, output = self._sources[name]
        held = source._outputs.get(output)
        return held if held is not None else source._input(output)

    def _begin_event(self) -> None:
        self._count()
        if self._device == "cuda":
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
            self._events[0].record()

    def _end_event(self, begin: float) -> None:
        if self._events is None:
            self.device_seconds += time.perf_counter() - begin
        else:
            self._events[1].record()

    def _count(self) -> None:
        if self._events is not None:
            self._events[1].synchronize()
            self.device_seconds += self._events[0].elapsed_time(self._events[1]) / 1e3
            self._events = None


def _wide(spec: GraphSpec) -> GraphSpec:
    """A graph's tensors with the types that the modules have."""
    inputs, outputs = (
        tuple(replace(t, dtype="float32") if t.dtype == "float16" else t for t in tensors)
        for tensors in (spec.inputs, spec.outputs)
    )
    return replace(spec, inputs=inputs, outputs=outputs)
