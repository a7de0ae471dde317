"""One graph on TensorRT or TensorRT-RTX, with nothing copied between graphs.

Every session has a stream for its runs and one for its uploads, so that the next frame goes over
the bus while this one is computed. Events order them: an upload waits for the runs that read what
it overwrites; a run waits for the uploads and for the sources that it is bound to (their outputs
must be there), and for the sessions that read its outputs (they must have read what it will
overwrite). So frame t + 1 may run while the masks of frame t are made, in any order that the host
likes, and no slot is overwritten too early. Where both are ready, frame t goes first
(:data:`URGENT`).

    propose   [slot 0: frame t]----------[slot 1: frame t+1]------
    classify                   [slot 0]--                  [slot 1]
    masks                                     [slot 0]  <- what the host chose of frame t

Who is bound to a tensor takes it at the size that it has in that slot. A session may have more
slots than its sources: slot s reads theirs of number s modulo their number. Buffers are in
:mod:`.buffers`, and runs are queued by :mod:`.launching`. Outputs that the host fetches are copied
to pinned memory at the end of each run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from openvis_rt.engines.api import Logger
from openvis_rt.engines.library import Messages, TensorRtLibrary, new_profiler
from openvis_rt.engines.plan import Sidecar
from openvis_rt.errors import BackendError, EngineError, InputError
from openvis_rt.runtime.backends.base import Array, Session, check_value, check_view
from openvis_rt.runtime.backends.tensorrt.buffers import Buffers
from openvis_rt.runtime.backends.tensorrt.cuda import Cuda
from openvis_rt.runtime.backends.tensorrt.kernel_cache import KernelCache
from openvis_rt.runtime.backends.tensorrt.launching import Launcher, Setting
from openvis_rt.runtime.backends.tensorrt.tensors import check_tensors, read_tensors
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["IN_FLIGHT", "TensorRtSession"]

Shape = tuple[int, ...]

IN_FLIGHT = 2
"""Frames, or windows, that the device may have at once."""

URGENT = frozenset({"classify", "masks"})
"""Graphs of a frame whose result the host waits for, while `propose` has the next one."""


class TensorRtSession:
    """One graph.

    Args:
        library: that built the engine.
        cuda: the device; it outlives the session.
        log, logger: what the library says, and the object that it says it to.
        plan, sidecar: the engine's file, checked, and what is known of it.
        spec: the graph's tensors.
        constants: inputs of ONNX Runtime's graph that may be constants of the engine, and the value
            that they then have.
        slots: see :class:`Session`.
        fetched: outputs that are copied to the host after each run; None for those that the spec
            marks so.
        warn: told what did not stop the work.
        tell: told of what takes minutes, before it begins.
        cuda_graphs: run as a CUDA graph where that is possible.

    Attributes:
        device_seconds: spent in this graph so far, with the copies to the host, by the device's own
            clock.

    Raises:
        EngineError: the library cannot load the engine, or its tensors are not the graph's.
        BackendError: the device has not enough memory.
    """

    def __init__(
        self,
        library: TensorRtLibrary,
        cuda: Cuda,
        log: Messages,
        logger: Logger,
        plan: Path,
        sidecar: Sidecar,
        spec: GraphSpec,
        *,
        constants: dict[str, Shape],
        slots: int,
        fetched: Sequence[str] | None = None,
        warn: Callable[[str], None],
        tell: Callable[[str], None],
        cuda_graphs: bool = True,
    ) -> None:
        self.spec, self.device_seconds = spec, 0.0
        self._warn, self._tell, self._cuda_graphs = warn, tell, cuda_graphs
        self._library, self._cuda = library, cuda
        self._log, self._logger = log, logger
        self._constants, self._slots = constants, slots
        marked = [t.name for t in spec.outputs if t.fetched]
        self._fetched = tuple(marked if fetched is None else fetched)
        if unknown := set(self._fetched) - {t.name for t in spec.outputs}:
            raise InputError(f"graph {spec.name!r} has no output {', '.join(unknown)}")
        self._sources: dict[str, tuple[TensorRtSession, str]] = {}
        self._readers: list[TensorRtSession] = []
        self._unread: set[int] = set()  # runs whose seconds are not counted yet
        self._owned, self._closed = ExitStack(), False
        try:
            self._make_events()
            self._load(plan, sidecar)
            self._allocate()
        except BaseException as exc:
            traceback.clear_frames(exc.__traceback__)  # who keeps the error keeps no engine
            self._release()
            raise

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """See :class:`Session`; the copy to the device begins at once."""
        self._check_open()
        check_value(self.spec, name, value)
        if name not in self._tensors:
            self._check_constant(name, value)
            return
        most = self._tensors[name].max_values
        if most is not None and np.any(np.greater(value, most)):
            raise InputError(
                f"the engine of {self.spec.name!r} takes {name} up to {most.tolist()}, got "
                f"{value.tolist()}; build it for larger ones with `openvis build --max-frame HxW "
                "--force`"
            )
        self._staging(name, value.shape, slot)[...] = value
        self._copy_in(slot, {name})

    def input_view(self, name: str, shape: Shape, slot: int = 0) -> Array:
        """Pinned memory of an input; the copy to the device begins with the next run that reads it.

        That is a run of this session, or of one that is bound to the input.
        """
        self._check_open()
        check_view(self.spec, name, shape)
        return self._staging(name, shape, slot)

    def _staging(self, name: str, shape: Shape, slot: int) -> Array:
        """The host memory of an input at this shape, which holds its value from now on."""
        own = slot % self._slots
        self._buffers[own].check(name, shape)
        self._cuda.synchronize(self._copied[own])  # the last copy out of this staging memory
        self._sources.pop(name, None)
        return self._buffers[own].begin(name, shape)

    def _copy_in(self, slot: int, names: Collection[str]) -> None:
        """Begin to copy those of these inputs that were given on the host and are not copied."""
        own = slot % self._slots
        buffers = self._buffers[own]
        filled = buffers.filled.intersection(names)
        if not filled:
            return
        for event in (*self._runs_of(own), *self._events_of_readers(own)):  # they read it
            self._cuda.wait(self._uploads, event)
        for name in filled:
            self._cuda.copy_in(buffers.device[name], buffers.bytes(name), self._uploads)
        buffers.filled -= filled
        self._cuda.record(self._copied[own], self._uploads)

    def bind(self, name: str, source: Session, output: str) -> None:
        """See :class:`Session`; ``output`` may be an input of source.

        Raises:
            InputError: ``source`` is of another backend.
            EngineError: the two tensors differ in type, rank, fixed sizes, or in what is dynamic.
        """
        if not isinstance(source, TensorRtSession) or source._cuda is not self._cuda:
            raise InputError(f"cannot bind {name!r} to {output!r} of another backend's session")
        if output in source._sources:  # which does not hold it, either
            source, output = source._sources[output]
        mine, theirs = self._tensors[name], source._tensors[output]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            raise EngineError(
                f"the engine of {self.spec.name!r} takes {name!r} as {np.dtype(mine.dtype)} "
                f"{list(mine.shape)}, and that of {source.spec.name!r} gives {output!r} as "
                f"{np.dtype(theirs.dtype)} {list(theirs.shape)}: build both anew, in one precision"
            )
        self._sources[name] = (source, output)
        if self not in source._readers:
            source._readers.append(self)

    def run(self, slot: int = 0) -> None:
        """Queue one execution, and the copies of what is fetched; returns before it is done."""
        self._check_open()
        buffers = self._buffers[slot % self._slots]
        self._copy_in(slot, buffers.filled)
        for source, held in self._sources.values():
            source._check_open()
            source._copy_in(slot, {held})
        for event in self._events_before(slot):
            self._cuda.wait(self._stream, event)
        setting = self._setting(slot)
        self._count_seconds(slot)
        self._cuda.record(self._begun[slot], self._stream)
        buffers.shapes |= self._launcher.run(slot, setting, self._settle)
        for name in self._fetched:
            self._cuda.copy_out(buffers.bytes(name), buffers.device[name], self._stream)
        self._cuda.record(self._done[slot], self._stream)
        self._unread.add(slot)

    def fetch(self, name: str, slot: int = 0) -> Array:
        """See :class:`Session`; only what was asked for at opening."""
        self._check_open()
        own = slot % self._slots
        if name not in self._fetched or name not in self._buffers[own].shapes:
            raise InputError(
                f"output {name!r} of graph {self.spec.name!r} was not run, or stays on the device: "
                f"the host fetches {', '.join(self._fetched) or 'nothing'}"
            )
        for event in self._runs_of(own):
            self._cuda.synchronize(event)
        self._kernels.save_once()  # a process that is killed later compiles nothing anew
        return self._buffers[own].value(name).copy()

    def layers_json(self) -> str:
        """What the library's inspector tells of the engine's layers, in its own JSON."""
        self._check_open()
        json_format = self._library.module.LayerInformationFormat.JSON
        return self._launcher.engine.create_engine_inspector().get_engine_information(json_format)

    def profile(self) -> dict[str, list[float]]:
        """Let the library time every layer from now on; open the backend without CUDA graphs.

        Every run is slower from now on, and waits for the device.

        Returns:
            layer -> seconds of each run, in the order in which they ran; each run adds to it.

        Raises:
            InputError: the session may run as a CUDA graph, of which no layer is timed.
        """
        self._check_open()
        if self._cuda_graphs:
            raise InputError(
                "layers are timed one by one, so not in a CUDA graph; open the backend with "
                "cuda_graphs=False"
            )
        seconds: dict[str, list[float]] = {}
        self._profiler = new_profiler(self._library.module, seconds)  # contexts do not own it
        self._launcher.profile(self._profiler)
        return seconds

    @property
    def kernels_were_kept(self) -> bool:
        """TensorRT-RTX compiled them in an earlier run."""
        return self._kernels.were_kept

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """See :class:`Session`; twice does no harm."""
        if self.closed:
            return
        try:
            self._cuda.synchronize_all()
            for slot in tuple(self._unread):
                self._count_seconds(slot)
            self._kernels.save()
        except BackendError:  # the device failed, and whoever used it was told
            pass
        finally:
            self._release()

    def _release(self) -> None:
        """Free everything on the device, though someone may still refer to the session."""
        self._closed = True
        self._owned.close()

    # opening

    def _make_events(self) -> None:
        cuda, owned = self._cuda, self._owned
        self._stream = cuda.stream(owned, urgent=self.spec.name in URGENT)
        self._uploads = cuda.stream(owned, urgent=self.spec.name in URGENT)
        runs = range(max(IN_FLIGHT, self._slots))
        self._begun = [cuda.event(owned) for _ in runs]
        self._done = [cuda.event(owned) for _ in runs]
        self._copied = [cuda.event(owned) for _ in range(self._slots)]

    def _load(self, plan: Path, sidecar: Sidecar) -> None:
        """The engine with its contexts."""
        self._log.kept.clear()
        self._runtime = self._library.module.Runtime(self._logger)
        if sidecar.options.version_compatible:  # such an engine brings its own runtime along
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise EngineError(
                f"{self._library} cannot load {plan}:\n{self._log.text()}\nBuild it again with: "
                f"openvis build {plan.parents[2]} --backend {self._library.backend} --force"
            )
        if self._log.kept:  # such as that it was built on another GPU
            self._warn(f"{plan.name}, as the library loads it:\n{self._log.text()}")
        self._kernels = KernelCache(engine, plan, self._tell, cuda_graphs=self._cuda_graphs)
        self._launcher = Launcher(
            self._library,
            self._log,
            self._cuda,
            self._stream,
            engine,
            self.spec.name,
            self._kernels,
            slots=self._slots,
            warn=self._warn,
            cuda_graphs=self._cuda_graphs,
            owner=self._owned,
        )
        self._owned.callback(self._launcher.close)

    def _allocate(self) -> None:
        """Every buffer, at the max size that the engine takes."""
        launcher, name = self._launcher, self.spec.name
        module = self._library.module
        self._tensors = read_tensors(module, launcher.engine, launcher.context, name)
        check_tensors(self.spec, self._tensors)
        self._buffers = [
            Buffers(self._cuda, self._owned, self._tensors, self._fetched, name)
            for _ in range(self._slots)
        ]

    # running

    def _events_before(self, slot: int) -> list[Any]:
        """What a run of this slot waits for: its inputs are there, and its outputs were read."""
        there = [
            event
            for source, output in self._sources.values()
            for event in source._holds(output, slot % source._slots)
        ]
        own = slot % self._slots
        before = (*there, self._copied[own], *self._events_of_readers(own))
        return list({id(event): event for event in before}.values())

    def _holds(self, name: str, own: int) -> list[Any]:
        """The events after which a buffer holds what was written, or made."""
        return [self._copied[own]] if self._tensors[name].is_input else self._runs_of(own)

    def _events_of_readers(self, own: int) -> list[Any]:
        """The events after which nobody reads these buffers any more."""
        return [
            done
            for reader in self._readers
            for slot, done in enumerate(reader._done)
            if slot % self._slots == own
        ]

    def _runs_of(self, own: int) -> list[Any]:
        """The ends of the runs in these buffers; a session of one slot runs for all slots in it."""
        return [done for slot, done in enumerate(self._done) if slot % self._slots == own]

    def _check_open(self) -> None:
        if self.closed:
            raise InputError(f"the session of graph {self.spec.name!r} is closed")

    def _settle(self) -> None:
        """Wait for every run."""
        for event in self._done:
            self._cuda.synchronize(event)

    def _setting(self, slot: int) -> Setting:
        """What a run of this slot reads and writes: its own buffers, and those it is bound to."""
        addresses, shapes, values = {}, {}, {}
        for name, tensor in self._tensors.items():
            source, held = self._sources.get(name, (self, name))
            buffers = source._buffers[slot % source._slots]
            if tensor.is_input and held not in buffers.shapes:
                raise source._nothing_in(held)
            if tensor.on_host:
                values[name] = buffers.bytes(name).tobytes()
            else:
                addresses[name] = buffers.device[held]
            if tensor.is_input and -1 in tensor.shape:
                shapes[name] = buffers.shapes[held]
        return Setting(addresses, shapes, values)

    def _nothing_in(self, name: str) -> InputError:
        if self._tensors[name].is_input:
            return InputError(f"input {name!r} of graph {self.spec.name!r} was never written")
        return InputError(f"graph {self.spec.name!r} was never run, to read {name!r} from")

    def _count_seconds(self, slot: int) -> None:
        """Add the time of the last run of a slot, which is over when the next one is queued."""
        if slot in self._unread:
            self._cuda.synchronize(self._done[slot])
            self.device_seconds += self._cuda.elapsed(self._begun[slot], self._done[slot])
            self._unread.discard(slot)

    def _check_constant(self, name: str, value: Array) -> None:
        built = self._constants[name]
        if tuple(value.tolist()) != built:
            raise InputError(
                f"this engine has {name} {list(built)} built in, and the video needs "
                f"{value.tolist()}: export for this video (--source-size, or without it for videos "
                "of any size), and build again"
            )
