"""PyTorch as a backend of the runtime, so that a benchmark compares like with like.

The modules that were exported run in place of the graphs, behind the runtime's own `Session`
protocol: placing, association, scores and run lengths are the very same code.

    fp32          eager, without TF32
    fp16+compile  autocast to float16 and torch.compile, PyTorch's own best
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError
from openvis_rt.export.graph_module import graph_modules
from openvis_rt.models.network import Network
from openvis_rt.runtime.backends.base import Array, Session


class TorchBackend:
    """A factory of sessions over one model.

    Args:
        model: that the bundle was exported from.
        mode: ``fp32`` or ``fp16+compile``.
    """

    slots = 1

    def __init__(self, model: Network, mode: str) -> None:
        self.name, self.mode = f"torch {torch.__version__}", mode
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if mode != "fp32" and self.device == "cpu":
            raise BackendError("PyTorch's float16 on a CPU is no measure of anything")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._model = model.to(self.device)
        self._sessions: list[TorchSession] = []

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
        """Open one graph as the module that it was exported from."""
        assert slots == 1
        del precision, fetched
        rule = bundle.manifest.preprocess
        height, width = (side + -side % rule.size_divisor for side in rule.network_size)
        modules = graph_modules(self._model, (height, width), rule.network_size, rule.source_size)
        module = modules[graph].to(self.device)
        if self.mode == "fp16+compile" and graph in ("propose", "embed", "classify"):
            module = torch.compile(module)
        session = TorchSession(module, bundle.graph(graph).spec, self.device, self.mode)
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

    def __init__(self, module: nn.Module, spec, device: str, mode: str) -> None:
        self.spec, self.device_seconds = spec, 0.0
        self._module, self._device = module, device
        self._half = mode != "fp32"
        self._inputs: dict[str, Tensor | tuple[TorchSession, str]] = {}
        self._views: dict[str, Array] = {}
        self._outputs: dict[str, Tensor] = {}
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Host memory that the next run copies to the device."""
        del slot
        dtype = next(t.dtype for t in self.spec.inputs if t.name == name)
        if name not in self._views or self._views[name].shape != shape:
            self._views[name] = np.zeros(shape, dtype)
        self._inputs.pop(name, None)
        return self._views[name]

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Copy to the device; sizes of `masks` are the module's own fields."""
        del slot
        if name in ("picture_size", "frame_size"):
            field = {"picture_size": "network_size"}.get(name, name)
            setattr(self._module, field, tuple(value.tolist()))
            return
        self._inputs[name] = torch.from_numpy(np.array(value)).to(self._device)

    def bind(self, name: str, source: Session, output: str) -> None:
        """Take the other session's tensor, an input or an output, at each run."""
        assert isinstance(source, TorchSession)
        self._inputs[name] = (source, output)

    @torch.inference_mode()
    def run(self, slot: int = 0) -> None:
        """Queue the module on the device."""
        del slot
        for name, view in self._views.items():
            if name not in self._inputs:
                self._inputs[name] = torch.from_numpy(view.copy()).to(self._device)
        taken = {
            name: held if isinstance(held, Tensor) else held[0]._tensor(held[1])
            for name, held in self._inputs.items()
        }
        begin = time.perf_counter()
        self._begin_event()
        with torch.autocast(self._device, torch.float16, enabled=self._half):
            found = self._module(**taken)
        self._end_event(begin)
        outputs = found if isinstance(found, tuple) else (found,)
        self._outputs = dict(zip((t.name for t in self.spec.outputs), outputs, strict=True))

    def _tensor(self, name: str) -> Tensor:
        held = self._outputs.get(name, self._inputs.get(name))
        assert isinstance(held, Tensor)
        return held

    def fetch(self, name: str, slot: int = 0) -> Array:
        """To the host, in the contract's type."""
        del slot
        wanted = next(t.dtype for t in self.spec.outputs if t.name == name)
        value: Array = self._outputs[name].cpu().numpy().astype(wanted)
        self._count()
        return value

    def close(self) -> None:
        """Drop the tensors."""
        self._inputs.clear()
        self._outputs.clear()

    def _begin_event(self) -> None:
        self._count()
        if self._device == "cuda":
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
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
