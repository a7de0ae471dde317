"""TensorRT and TensorRT-RTX as a backend: one library, one device, the engines that fit both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.engines.gpu import driver_cuda_version
from openvis_rt.engines.library import Messages, new_logger, tensorrt_library
from openvis_rt.engines.plan import Sidecar, find_plan
from openvis_rt.runtime.backends.tensorrt.bindings import CudaChoice, open_cuda
from openvis_rt.runtime.backends.tensorrt.session import IN_FLIGHT, TensorRtSession

__all__ = ["TensorRt"]


class TensorRt:
    """The backend: one library, one device.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        cuda: the CUDA binding.
        warn: told what should be known, when it arises.
        tell: told of what takes minutes, before it begins; None for ``warn``.
        cuda_graphs: run as CUDA graphs, where the binding has them.

    Raises:
        DependencyError: the library or a CUDA binding is not installed.
        BackendError: there is no GPU.
    """

    slots = IN_FLIGHT

    def __init__(
        self,
        name: str,
        cuda: CudaChoice = "auto",
        warn: Callable[[str], None] = lambda _: None,
        *,
        tell: Callable[[str], None] | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.name, self._cuda_graphs = name, cuda_graphs
        self._warn, self._tell = warn, tell or warn
        self._library = tensorrt_library(name)
        self._cuda = open_cuda(cuda)
        self._plans: dict[tuple[str, str], tuple[Path, Sidecar]] = {}
        self._sessions: list[TensorRtSession] = []
        self._seconds = 0.0  # of sessions that are closed
        self._log = Messages()
        self._logger = new_logger(self._library.module, self._log)

    @property
    def device(self) -> str:
        """The GPU, the library and the binding, for people."""
        graphs = ", CUDA graphs" if self._cuda.has_graphs and self._cuda_graphs else ""
        kept = bool(self._sessions) and all(s.kernels_were_kept for s in self._sessions)
        return (
            f"{self._cuda.device_name}, {self._library.version}, {self._cuda.binding}{graphs}"
            + ", kernels of an earlier run" * kept
        )

    def check(self, bundle: Bundle, precision: str) -> None:
        """Find an engine for every graph of the bundle.

        Raises:
            EngineError: a graph has none that fits; the message names the command that builds it.
        """
        for graph in bundle.graphs:
            self._plan(bundle, graph, precision)

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> TensorRtSession:
        """Open one graph of a bundle; see :class:`TensorRtSession`."""
        for closed in [session for session in self._sessions if session.closed]:
            self._sessions.remove(closed)
            self._seconds += closed.device_seconds
        session = TensorRtSession(
            self._library,
            self._cuda,
            self._log,
            self._logger,
            *self._plan(bundle, graph, precision),
            bundle.graph(graph, precision).spec,
            constants=bundle.manifest.preprocess.mask_sizes,  # that an engine has built in
            slots=slots,
            fetched=fetched,
            warn=self._warn,
            tell=self._tell,
            cuda_graphs=self._cuda_graphs,
        )
        self._sessions.append(session)
        return session

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return self._cuda.device_name

    @property
    def library(self) -> str:
        """The library's name and version, and the newest CUDA that the driver serves."""
        driver = driver_cuda_version()
        where = f" with a driver for CUDA {driver}" if driver else ""
        return f"{self.name} {self._library.version}{where}"

    def engine(self, bundle: Bundle, graph: str, precision: str) -> tuple[Path, Sidecar]:
        """The engine of a graph and its sidecar; EngineError if none fits."""
        return self._plan(bundle, graph, precision)

    def counters(self) -> dict[str, float]:
        """Seconds on the device, bytes over the bus and launches of CUDA graphs since the opening.

        TensorRT-RTX launches its own CUDA graphs, which are not counted.
        """
        return {
            "device_seconds": sum((s.device_seconds for s in self._sessions), self._seconds),
            "bytes_to_device": float(self._cuda.bytes_in),
            "bytes_to_host": float(self._cuda.bytes_out),
            "cuda_graph_launches": float(self._cuda.launches),
        }

    def close(self) -> None:
        """Close what is still open, and give the device back, whatever fails on the way."""
        with ExitStack() as stack:
            stack.callback(self._cuda.close)
            for session in self._sessions:  # the last one is closed first
                stack.callback(session.close)
            self._sessions.clear()

    def _plan(self, bundle: Bundle, graph: str, precision: str) -> tuple[Path, Sidecar]:
        """The engine of a graph, checked once: its hash takes a while."""
        key = graph, precision
        if key not in self._plans:
            self._plans[key] = find_plan(
                bundle,
                graph,
                precision,
                backend=self.name,
                version=self._library.version,
                capability=self._cuda.capability,
                gpu=self._cuda.device_name,
            )
        return self._plans[key]
