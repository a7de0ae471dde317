"""The graphs of one model on one backend, opened and bound to each other.

    frames --> propose --queries, mask, features or frames stay there--> classify
       |          |                                                         |
       '--embed---+--> image embeddings, of the systems that have them -----'
                  |                                                         |
      queries, object logits, area                             tokens, class scores
                  '------------------------> the host <---------------------'
                                                |
                               selected queries --masks--> masks, a bit a pixel

Which input reads which graph's tensor follows from their names
(:func:`openvis_rt.systems.graphs.bindings`), and what the host reads is marked in the specs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.base import Backend, Session, slots_of
from openvis_rt.runtime.preprocessing import (
    Letterbox,
    PreparedFrame,
    clip_picture,
    place_frame,
    resized_frame,
)
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.systems.graphs import bindings, masks_per_run

__all__ = ["STAGES", "Graphs"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Image8 = npt.NDArray[np.uint8]

_BYTES_A_PIXEL = 5  # of a mask while it is made: a float32 logit and a bool
_BYTES_OF_MASKS = 256 << 20  # of one run; eight masks of 4K have 330 MB, and of 8K 1.3 GB
_LARGEST = 1e15  # of what the host reads; logits have some tens, areas some 10 million

STAGES = ("place", "submit", "wait", "associate", "scores", "masks")
"""What the host does with a window, in order; see ``seconds`` of :class:`Graphs`."""


class Graphs:
    """Sessions of every graph but `text`.

    Args:
        bundle: the model.
        backend: opens the sessions; it outlives them.
        precision: which of the bundle's graphs.
        embeds: compute image embeddings where the system has them; else they are given.

    Attributes:
        queries: N.
        slots: windows that can be in flight.
        seconds: of the host so far, by :data:`STAGES`: placing frames, starting graphs (on a
            backend that computes at once, running them), waiting for the device, association with
            the tracker's recurrence, scores and what is shown, run lengths of masks.
        user: whose classes and sizes are in the sessions, where several use them in turn.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str, *, embeds: bool) -> None:
        self._bundle, self.slots, self._next_slot = bundle, backend.slots, 0
        self._mask_slots = slots_of("masks", self.slots)
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.user: object | None = None
        names = [n for n in bundle.graphs if n != "text" and (embeds or n != "embed")]
        specs = {name: bundle.graph(name, precision).spec for name in names}
        self._sessions: dict[str, Session] = {}
        with ExitStack() as stack:
            stack.callback(self.close)
            for name in names:
                slots = slots_of(name, self.slots)
                self._sessions[name] = backend.open(bundle, name, precision, slots=slots)
            for graph, tensor, source in bindings(specs):
                self._sessions[graph].bind(tensor, self._sessions[source], tensor)
            self._picture_side = 0
            if "embed" in specs:
                if bundle.manifest.preprocess.source_size is None:
                    self._picture_side = int(specs["embed"].inputs[0].shape[1])
                else:  # it resizes by itself
                    self._sessions["embed"].bind("pictures", self._sessions["propose"], "frames")
            stack.pop_all()
        queries = next(t for t in specs["propose"].outputs if t.name == "queries")
        self.queries = int(queries.shape[0])
        self._frame_shape = tuple(int(size) for size in specs["propose"].inputs[0].shape[1:])
        self._window_length = bundle.manifest.window_length
        self._masks_per_run = masks_per_run(self._window_length)
        self._networks = [name for name in names if name != "masks"]

    def set_sizes(self, letterbox: Letterbox) -> None:
        """Make masks of this video's size.

        Raises:
            InputError: the backend makes no masks of that size; or the graphs are closed.
        """
        masks = self._session("masks")
        for slot in range(self._mask_slots):
            masks.write("picture_size", np.array(letterbox.cut, np.int64), slot)
            masks.write("frame_size", np.array(letterbox.source, np.int64), slot)
        height, width = letterbox.source
        query = self._window_length * height * width * _BYTES_A_PIXEL
        most = masks_per_run(self._window_length)
        self._masks_per_run = max(1, min(most, _BYTES_OF_MASKS // query))

    def set_text_embeddings(self, embeddings: Floats) -> None:
        """Classify by other rows, float32 [K, D], in every slot.

        Raises:
            InputError: more rows than the backend takes, and nothing was changed; or the graphs are
                closed.
        """
        for slot in range(self.slots):
            self._session("classify").write("text_embeddings", embeddings, slot)

    def prepared(self, frame: Frame, letterbox: Letterbox) -> Frame:
        """The frame, resized as :meth:`submit` would; any thread may call this."""
        side = self._picture_side
        if not side and frame.image.shape[:2] == letterbox.picture:
            return frame
        return PreparedFrame(
            frame.index,
            frame.time,
            frame.image,
            resized_frame(frame.image, letterbox),
            clip_picture(frame.image, side) if side else None,
        )

    def submit(self, frames: list[Frame], letterbox: Letterbox, embeddings: Floats | None) -> int:
        """Start a window; returns before it is done where the backend can.

        Args:
            frames: with images uint8 [Hs, Ws, 3], RGB, placed straight into the session's input.
            letterbox: where they go.
            embeddings: given image embeddings of the frames, float32 [T, D], or None.

        Returns:
            the window's slot: the one whose window was submitted longest ago, and is collected.

        Raises:
            BackendError: a graph failed.
        """
        slot = self._next_slot
        with self.timed("place"):
            self._place(frames, letterbox, slot)
        with self.timed("submit"):
            if embeddings is not None:
                self._sessions["classify"].write("image_embeddings", embeddings, slot)
            for name in self._networks:
                self._sessions[name].run(slot)
        self._next_slot = (slot + 1) % self.slots
        return slot

    def classify_again(self, slot: int) -> None:
        """Classify a window in flight once more, by the rows that are set now."""
        self._sessions["classify"].run(slot)

    def collect(self, slot: int, frame: int) -> dict[str, Floats]:
        """What the host reads of a window, by output name; float32, in the queries' order.

        Args:
            slot: of the window.
            frame: number of its first frame, for messages.

        Raises:
            BackendError: a graph failed, or gave NaN, infinity or numbers beyond 1e15.
        """
        out: dict[str, Floats] = {}
        for name in ("propose", "classify"):
            session = self._sessions[name]
            for tensor in session.spec.outputs:
                if tensor.fetched:
                    value = np.asarray(session.fetch(tensor.name, slot), np.float32)
                    _refuse_broken(value, name, tensor.name, frame)
                    out[tensor.name] = value
        return out

    def masks(self, queries: Ints, slot: int) -> Iterator[Image8]:
        """Masks of some queries at the source's size, some queries at a time.

        Where windows are in flight, the next masks are begun before these are waited for, in a slot
        of their own that reads the same window: the device makes them while the host has these.

        Args:
            queries: their numbers, int64 [n].
            slot: of their window, collected and not yet submitted again.

        Yields:
            of the next n queries uint8 [n, T, Hs, ceil(Ws / 8)], eight pixels of a row a byte, as
            ``np.packbits`` has them; it is the caller's own.
        """
        session, begun = self._sessions["masks"], deque[int]()
        ahead = self._mask_slots // self.slots
        for number, start in enumerate(range(0, len(queries), self._masks_per_run)):
            own = slot + self.slots * (number % ahead)
            with self.timed("submit"):
                session.write("selected", queries[start : start + self._masks_per_run], own)
                session.run(own)
            begun.append(own)
            if len(begun) == ahead:
                yield self._made_masks(begun.popleft())
        while begun:
            yield self._made_masks(begun.popleft())

    def _made_masks(self, own: int) -> Image8:
        with self.timed("wait"):
            return np.asarray(self._sessions["masks"].fetch("masks", own), np.uint8)

    def close(self) -> None:
        """Close the sessions, those first that read others."""
        for session in reversed(self._sessions.values()):
            session.close()
        self._sessions.clear()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        begin = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - begin

    def _session(self, name: str) -> Session:
        if not self._sessions:
            raise InputError("the pipeline is closed; open another one")
        return self._sessions[name]

    def _place(self, frames: list[Frame], letterbox: Letterbox, slot: int) -> None:
        mean = self._bundle.manifest.preprocess.pixel_mean
        shape = (len(frames), *self._frame_shape)
        view = self._sessions["propose"].input_view("frames", shape, slot)
        for frame, out in zip(frames, view, strict=True):
            image = frame.picture if isinstance(frame, PreparedFrame) else frame.image
            place_frame(image, letterbox, out, mean)
        if side := self._picture_side:
            shape = (len(frames), side, side, 3)
            pictures = self._sessions["embed"].input_view("pictures", shape, slot)
            for index, frame in enumerate(frames):
                ahead = frame.clip if isinstance(frame, PreparedFrame) else None
                pictures[index] = clip_picture(frame.image, side) if ahead is None else ahead


def _refuse_broken(value: Floats, graph: str, output: str, frame: int) -> None:
    """BackendError for NaN, and for numbers whose squares or sums might leave float32."""
    if not (np.abs(value) <= _LARGEST).all():
        raise BackendError(
            f"graph {graph!r} gave NaN, infinity or numbers beyond {_LARGEST:g} in {output!r} at "
            f"frame {frame}: the weights, the precision or the backend do not work; try --backend "
            "onnxruntime --precision fp32"
        )
