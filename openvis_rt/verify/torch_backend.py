"""PyTorch as a backend of the runtime, so that what is compared differs in the networks alone.

The modules that were exported run in place of the graphs, behind the runtime's own ``Session``
protocol: placing, association, scores and run lengths are the very same code. FP32 is without TF32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError
from openvis_rt.export.graph_module import graph_modules
from openvis_rt.models.network import Network
from openvis_rt.runtime.backends.base import Array, Session, check_value, check_view
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["TorchBackend", "TorchMode", "TorchSession"]

TorchMode = Literal["eager", "compile", "fp16+compile"]
"""How the modules run: as they are; by ``torch.compile``; or, on CUDA alone, under autocast to
float16 and ``torch.compile``, which is PyTorch's own best."""

Watch = Callable[[str, str, Array], None]


class TorchBackend:
    """The backend.

    Args:
        model: that the bundle was exported from. It is moved to the device, and back at the end.
        mode: see :data:`TorchMode`.
        watch: told of each output that is fetched: graph, output, value.

    Raises:
        BackendError: the mode does not work on this machine.
    """

    slots = 1

    def __init__(
        self, model: Network, mode: TorchMode = "eager", watch: Watch = lambda *_: None
    ) -> None:
        self.name, self.mode, self._watch = f"torch {torch.__version__} {mode}", mode, watch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if mode == "fp16+compile" and self._device == "cpu":
            raise BackendError(
                "PyTorch's float16 on a CPU says nothing of a GPU; take eager or compile"
            )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._model = model.to(self._device).eval()
        self._sessions: list[TorchSession] = []

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._device

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every bundle of the model."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> TorchSession:
        """Open one graph as the module that it was exported from; FP32, whatever the precision."""
        del precision, slots, fetched
        rule = bundle.manifest.preprocess
        height, width = (side + -side % rule.size_divisor for side in rule.network_size)
        modules = graph_modules(self._model, (height, width), rule.network_size, rule.source_size)
        module = modules[graph].to(self._device)
        if self.mode != "eager" and graph in ("propose", "embed", "classify"):
            module = torch.compile(module)  # type: ignore[assignment] # a module still
        spec = bundle.graph(graph, next(iter(bundle.manifest.graphs))).spec
        session = TorchSession(module, _wide(spec), self._device, self.mode, self._watch)
        self._sessions.append(session)
        return session

    def counters(self) -> dict[str, float]:
        """Seconds on the device, by CUDA events; on a CPU by the clock."""
        return {"device_seconds": sum(session.device_seconds for session in self._sessions)}

    def close(self) -> None:
        """Bring the model back to the CPU."""
        self._model.to("cpu")


class TorchSession:
    """One module."""

    def __init__(
        self, module: nn.Module, spec: GraphSpec, device: str, mode: TorchMode, watch: Watch
    ) -> None:
        self.spec, self.device_seconds = spec, 0.0
        self._module, self._device, self._watch = module, device, watch
        self._half = mode == "fp16+compile"
        self._inputs: dict[str, Tensor | tuple[TorchSession, str]] = {}
        self._views: dict[str, Array] = {}
        self._outputs: dict[str, Tensor] = {}
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Host memory that the next run copies to the device."""
        dtype = check_view(self.spec, name, shape)
        if name not in self._views or self._views[name].shape != shape:
            self._views[name] = np.zeros(shape, dtype)
        self._inputs.pop(name, None)
        return self._views[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Copy to the device; sizes of `masks` are the module's own fields."""
        check_value(self.spec, name, value)
        if name in ("picture_size", "frame_size"):
            field = {"picture_size": "network_size"}.get(name, name)
            setattr(self._module, field, tuple(value.tolist()))
            return
        self._views.pop(name, None)
        self._inputs[name] = torch.from_numpy(np.array(value)).to(self._device)

    def bind(self, name: str, source: Session, output: str) -> None:
        """Take the other session's tensor, an input or an output, at each run."""
        if not isinstance(source, TorchSession):
            raise TypeError(f"a session of PyTorch cannot read one of {type(source).__name__}")
        self._inputs[name] = (source, output)

    @torch.inference_mode()
    def run(self, slot: int = 0) -> None:
        """Queue the module on the device."""
        for name, view in self._views.items():
            if name not in self._inputs:
                self._inputs[name] = torch.from_numpy(view.copy()).to(self._device)
        taken = {
            name: held if isinstance(held, Tensor) else held[0].tensor(held[1])
            for name, held in self._inputs.items()
        }
        begin = time.perf_counter()
        self._begin_event()
        with torch.autocast(self._device, torch.float16, enabled=self._half):
            found = self._module(**taken)
        self._end_event(begin)
        for name in self._views:  # a view is read anew at each run
            self._inputs.pop(name, None)
        outputs = found if isinstance(found, tuple) else (found,)
        names = (tensor.name for tensor in self.spec.outputs)
        self._outputs = {**taken, **dict(zip(names, outputs, strict=True))}

    def tensor(self, name: str) -> Tensor:
        """An input or output of the last run, on the device."""
        return self._outputs[name]

    def fetch(self, name: str, slot: int = 0) -> Array:
        """To the host, in the contract's type."""
        wanted = next(t.dtype for t in self.spec.outputs if t.name == name)
        value: Array = self._outputs[name].cpu().numpy().astype(wanted)
        self._count()
        self._watch(self.spec.name, name, value)
        return value

    def close(self) -> None:
        """Drop the tensors."""
        self._inputs.clear()
        self._outputs.clear()

    def _begin_event(self) -> None:
        self._count()
        if self._device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events = begin, end
            begin.record()

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
