"""A video frame by frame: networks on the device, association and sums on the host.

    frame --place--> propose --mask, features or frame stay on the device--> classify
                        |                                                       |
            queries, object logits, area                            tokens, class scores
                        '----------------> association, scores <----------------'
                                               |
                              selected queries --masks--> bit masks --> run lengths

What a system does in its own way, matching and scoring, is its :class:`Family`.

A frame is submitted and collected. Where the backend keeps two frames in flight, the device works
on frame t + 1 while the host associates frame t; each has a slot of buffers of its own.

In video mode the masks of every query that has any are kept as run lengths, because only the end of
the video tells which ones are reported. In streaming mode only the shown ones are made, and nothing
grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from openvis_rt.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.graphs import MASKS_A_RUN
from openvis_rt.runtime.preprocess import Placement, place_frame, placement_for
from openvis_rt.runtime.results import (
    RLE,
    FrameResult,
    Instance,
    VideoInstance,
    VideoResult,
    box_of,
    empty_rle,
    encode_masks,
)
from openvis_rt.runtime.scoring import Detection
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.session import Session, SessionFactory
from openvis_rt.vocabulary import Vocabulary

__all__ = ["STAGES", "Family", "FramePipeline", "Scores"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Image8 = npt.NDArray[np.uint8]

STAGES = ("place", "submit", "wait", "associate", "masks")
"""What the host does with a frame, in order; see ``seconds`` of :class:`FramePipeline`."""

_BLAS = ThreadpoolController().select(user_api="blas")
"""Products of 100x100x256 take a millisecond on one thread. On several they wait for each other
wherever decoding or another process has a core: 280 ms were seen on two busy cores."""


class Scores(Protocol):
    """Sums of one video, for N tracks and C classes."""

    def add_frame(self, output: Mapping[str, Floats], order: Ints) -> None:
        """Add a frame; ``output`` is in the queries' order, track j is query ``order[j]``."""

    def now(self) -> tuple[Ints, Floats64, Bools]:
        """Best class [N], its score so far [N], and whether the last frame shows the track [N]."""

    def detections(self, count: int) -> list[Detection]:
        """The video's best (track, class) pairs, best first, ``count`` at most."""

    def close(self) -> None:
        """Drop what is kept."""


class Family(Protocol):
    """What one system does in its own way; a page each.

    Attributes:
        fetched: for each graph the outputs that the host reads.
        bound: inputs of `classify` that are tensors of `propose`, under the same names.
    """

    fetched: Mapping[str, tuple[str, ...]]
    bound: tuple[str, ...]

    def reset(self) -> None:
        """Forget the video."""

    def match(self, output: Mapping[str, Floats]) -> Ints:
        """For each track its query, int64 [N]; ``output`` is in the queries' order."""

    def scores(self, tracks: int, vocabulary: Vocabulary, *, keep: bool) -> Scores:
        """Sums of a new video; with ``keep`` they can report the whole of it."""


@dataclass(frozen=True)
class _Submitted:
    """A frame that the device has and the host has not seen the outputs of."""

    index: int
    time: float | None
    slot: int


class FramePipeline:
    """Sessions, tracker and sums of one model on one backend.

    Args:
        bundle: of a model that works frame by frame.
        family: how its system matches and scores; it keeps the tracker's memory.
        factory: the backend.
        precision: which of the bundle's graphs.
        selection: what is shown of a frame.
        keep_video: video mode, so that :meth:`finish` can report the whole video.

    Attributes:
        seconds: of the host so far, by :data:`STAGES`: placing frames, starting graphs (on a
            backend that computes at once, running them), waiting for the device, association and
            scores, run lengths of masks.
    """

    def __init__(
        self,
        bundle: Bundle,
        family: Family,
        factory: SessionFactory,
        precision: str,
        selection: Selection,
        *,
        keep_video: bool,
    ) -> None:
        self._bundle, self.selection, self.keep_video = bundle, selection, keep_video
        self._family = family
        self._slots = factory.slots
        self._fetched = {**family.fetched, "masks": ("masks",)}

        def opened(graph: str, slots: int = 1) -> Session:
            return factory.open(bundle, graph, precision, fetched=self._fetched[graph], slots=slots)

        self._propose = opened("propose", self._slots)
        self._classify = opened("classify", self._slots)
        self._masks = opened("masks")
        for name in family.bound:
            self._classify.bind(name, self._propose, name)
        self._masks.bind("mask_logits", self._propose, "mask_logits")
        spec = self._propose.spec
        shapes = {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}
        self._queries = int(shapes["queries"][0])
        self._frame = np.zeros([int(d) for d in shapes["frames"]], np.uint8)
        self._placement: Placement | None = None
        self._vocabulary = Vocabulary(("object",))
        self._scores: Scores | None = None
        self._torn = False
        self._kept: list[list[RLE]] = []  # run lengths of every track, a frame
        self._submitted: deque[_Submitted] = deque()
        self._next_slot = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @property
    def in_flight(self) -> int:
        """Frames that are submitted and not collected."""
        return len(self._submitted)

    @property
    def most_in_flight(self) -> int:
        """Frames that may be in flight at once."""
        return self._slots

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: Floats) -> None:
        """Look for other classes from now on; tracks go on, class averages start anew.

        Frames in flight are classified again.

        Args:
            vocabulary: the classes.
            embeddings: float32 [K, D] of its phrases.

        Raises:
            InputError: in video mode, in the middle of a video: its averages cannot mix
                vocabularies.
        """
        self.check_vocabulary_may_change()
        self._vocabulary = vocabulary
        for slot in range(self._slots):
            self._classify.write("text_embeddings", embeddings, slot)
        for frame in self._submitted:
            self._classify.run(frame.slot)
        self._restart_scores()

    def check_vocabulary_may_change(self) -> None:
        """Refuse in the middle of a video in video mode; see :meth:`set_vocabulary`."""
        if self.keep_video and (self._kept or self._submitted):
            raise InputError(
                "the vocabulary cannot change in the middle of a video in video mode; "
                "call reset() first, or open the pipeline for streaming"
            )

    def reset(self) -> None:
        """Forget the video: tracks, sums and masks."""
        self.discard()
        self._family.reset()
        self._torn = False
        self._placement = None
        self._kept.clear()
        self._restart_scores()

    def placement(self, height: int, width: int) -> Placement:
        """Where a source frame of this size lies in the network's frame."""
        return placement_for(height, width, self._bundle.manifest.preprocess)

    def submit(self, image: Image8, index: int, time: float | None) -> None:
        """Give the device the next frame; returns before it is done where the backend can.

        Args:
            image: uint8 [Hs, Ws, 3], RGB, every frame of a video of the same size; read only.
            index: its number, for the result.
            time: its time in seconds, for the result.

        Raises:
            InputError: the image is not RGB of 8 bits, or of another size than the first; or too
                many frames are in flight.
            BackendError: a graph failed.
        """
        if self._torn:
            raise InputError("an earlier frame of this video failed half-way; call reset() first")
        if len(self._submitted) == self._slots:
            raise InputError(f"{self._slots} frames are in flight already; collect one first")
        slot = self._next_slot
        with self._timed("place"):
            self._place(image)
        with self._timed("submit"):
            self._propose.write("frames", self._frame, slot)
            self._propose.run(slot)
            self._classify.run(slot)
        self._submitted.append(_Submitted(index, time, slot))
        self._next_slot = (slot + 1) % self._slots

    def collect(self) -> FrameResult:
        """The oldest frame in flight, associated with what came before it.

        Returns:
            the instances that are known now.

        Raises:
            InputError: no frame is in flight.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        if not self._submitted:
            raise InputError("no frame was submitted")
        assert self._placement is not None
        frame = self._submitted.popleft()
        self._torn = True  # until tracker, sums and masks all have this frame
        with self._timed("wait"):
            output = self._fetch_outputs(frame)
        with self._timed("associate"), _BLAS.limit(limits=1):
            order = self._family.match(output)
            self._add_scores(output, order)
            visible = output["mask_area"][order] > 0
            wanted = self._choose(visible)
        shown = np.array(sorted(wanted), np.int64)
        tracks = np.flatnonzero(visible) if self.keep_video else shown
        found = dict(zip(tracks.tolist(), self._make_masks(order[tracks], frame.slot), strict=True))
        source = self._placement.source
        if self.keep_video:
            empty = empty_rle(*source)
            self._kept.append([found.get(t, empty) for t in range(self._queries)])
        self._torn = False
        instances = [
            Instance(track, category, self._vocabulary.names[category], score, box, found[track])
            for track, (category, score) in wanted.items()
            if (box := box_of(found[track]))[2] > 0
        ]
        return FrameResult(frame.index, frame.time, *source, tuple(instances))

    def discard(self) -> None:
        """Forget the frames in flight; they become no part of the video."""
        self._submitted.clear()

    def finish(self) -> VideoResult:
        """The whole video's result by the official scoring; the next frame starts a new video.

        Raises:
            InputError: no frame was given, or the pipeline was opened for streaming.
        """
        if not self.keep_video:
            raise InputError("a pipeline opened for streaming keeps no video to report")
        if self._torn:
            raise InputError("a frame of this video failed half-way; call reset() first")
        if self._submitted:
            raise InputError(f"{len(self._submitted)} frames are in flight; collect them first")
        if self._placement is None or self._scores is None:
            raise InputError("no frame was given, so there is no video to report")
        height, width = self._placement.source
        empty = empty_rle(height, width)
        instances = [
            VideoInstance(
                d.track,
                d.category,
                self._vocabulary.names[d.category],
                d.score,
                tuple(
                    kept[d.track] if shown else empty
                    for kept, shown in zip(self._kept, d.shown, strict=True)
                ),
            )
            for d in self._scores.detections(self._bundle.manifest.detections)
        ]
        result = VideoResult(height, width, len(self._kept), tuple(instances))
        self.reset()
        return result

    def close(self) -> None:
        """Close the sessions."""
        for session in (self._masks, self._classify, self._propose):
            session.close()
        if self._scores is not None:
            self._scores.close()

    def _restart_scores(self) -> None:
        if self._scores is not None:
            self._scores.close()
        self._scores = None

    def _place(self, image: Image8) -> Placement:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"a frame is uint8 [H, W, 3] in RGB; got {image.dtype} {list(image.shape)}"
            )
        if self._placement is None:
            self._placement = self.placement(*image.shape[:2])
            self._masks.write("picture_size", np.array(self._placement.cut, np.int64))
            self._masks.write("frame_size", np.array(self._placement.source, np.int64))
        if image.shape[:2] != self._placement.source:
            raise InputError(
                f"a frame of {image.shape[1]}x{image.shape[0]} came after frames of "
                f"{self._placement.source[1]}x{self._placement.source[0]}; "
                "call reset() before a video of another size"
            )
        mean = self._bundle.manifest.preprocess.pixel_mean
        place_frame(image, self._placement, self._frame[0], mean)
        return self._placement

    def _fetch_outputs(self, frame: _Submitted) -> dict[str, Floats]:
        """What the host needs of a frame, by output name; float32, in the order of the queries."""
        out: dict[str, Floats] = {}
        for session in (self._propose, self._classify):
            for name in self._fetched[session.spec.name]:
                out[name] = np.asarray(session.fetch(name, frame.slot), np.float32)
                if not np.isfinite(out[name]).all():
                    raise BackendError(
                        f"graph {session.spec.name!r} gave NaN or infinity in {name!r} at frame "
                        f"{frame.index}: the weights, the precision or the backend do not work; "
                        "try --backend onnxruntime --precision fp32"
                    )
        return out

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - begin

    def _add_scores(self, output: dict[str, Floats], order: Ints) -> None:
        if self._scores is None:
            self._scores = self._family.scores(
                self._queries, self._vocabulary, keep=self.keep_video
            )
        self._scores.add_frame(output, order)

    def _choose(self, visible: npt.NDArray[np.bool_]) -> dict[int, tuple[int, float]]:
        """Tracks to show, best first: their class and their score so far."""
        assert self._scores is not None
        categories, scores, shown = self._scores.now()
        scores = np.where(visible & shown, scores, 0.0)
        best = np.argsort(-scores, kind="stable")[: self.selection.limit]
        return {
            int(t): (int(categories[t]), float(scores[t]))
            for t in best
            if scores[t] >= self.selection.threshold and scores[t] > 0
        }

    def _make_masks(self, queries: Ints, slot: int) -> Sequence[RLE]:
        """Run lengths of some queries' masks at the source's size."""
        out: list[RLE] = []
        for start in range(0, len(queries), MASKS_A_RUN):
            chosen = queries[start : start + MASKS_A_RUN].astype(np.int64)
            with self._timed("submit"):
                self._masks.write("selected", chosen, slot)
                self._masks.run(slot)
            with self._timed("wait"):
                masks = np.asarray(self._masks.fetch("masks", slot), np.uint8)
            with self._timed("masks"):
                out += encode_masks(masks[:, 0])
        return out
