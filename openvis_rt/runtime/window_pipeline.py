"""A video window by window: networks on the device, association and sums on the host.

    frames --place--> propose --queries, mask, features or frames stay there--> classify
       |                 |                                                         |
       '--embed----------+--> image embeddings, of the systems that have them -----'
                         |                                                         |
             queries, object logits, area                             tokens, class scores
                         '----------------> association, scores <------------------'
                                                |
                               selected queries --masks--> bit masks --> run lengths

Most systems work frame by frame: their windows have one frame. What a system does in its own way,
matching and scoring, is its :class:`~openvis_rt.runtime.family.Family`.

A window is submitted and collected. Where the backend keeps two clips in flight, the device works on
the next one while the host associates this one; each has a slot of buffers of its own.

In video mode the masks of every query that has any are kept as run lengths, because only the end of
the video tells which ones are reported. In streaming mode only the shown ones are made, and nothing
grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BackendError, InputError
from openvis_rt.runtime.backends.base import Backend, Session
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.family import Family, Scores
from openvis_rt.runtime.preprocessing import Letterbox, clip_picture, letterbox_for, place_frame
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import (
    RLE,
    FrameResult,
    Instance,
    VideoInstance,
    VideoResult,
    box_of,
    empty_rle,
    encode_masks,
)
from openvis_rt.systems.graphs import masks_per_run

__all__ = ["STAGES", "WindowPipeline"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Image8 = npt.NDArray[np.uint8]

STAGES = ("place", "submit", "wait", "associate", "masks")
"""What the host does with a frame, in order; see ``seconds`` of :class:`WindowPipeline`."""

_BLAS = ThreadpoolController().select(user_api="blas")
"""Products of 100x100x256 take a millisecond on one thread. On several they wait for each other
wherever decoding or another process has a core: 280 ms were seen on two busy cores."""


@dataclass(frozen=True)
class _Submitted:
    """A window that the device has and the host has not seen the outputs of."""

    frames: tuple[tuple[int, float | None], ...]  # number and time of each
    slot: int


class WindowPipeline:
    """Sessions, tracker and sums of one model on one backend.

    Args:
        bundle: the model.
        family: how its system matches and scores; it keeps the tracker's memory.
        factory: the backend.
        precision: which of the bundle's graphs.
        selection: what is shown of a frame.
        window_length: frames of a window, at most the bundle's; the video's last one may be shorter.
            None for the bundle's.
        detections: most instances that a video's result reports; None for the bundle's.
        image_embeddings: of every frame of the video, float32 [frames, D], in place of what the
            graph `embed` would compute; None to compute them, where the system has any.
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
        factory: Backend,
        precision: str,
        selection: Selection,
        *,
        window_length: int | None = None,
        detections: int | None = None,
        image_embeddings: Floats | None = None,
        keep_video: bool,
    ) -> None:
        self._bundle, self.selection, self.keep_video = bundle, selection, keep_video
        self._family = family
        self.window_length = window_length or bundle.manifest.window_length
        self._detections = detections or bundle.manifest.detections
        self._slots = factory.slots
        self._fetched = {"embed": (), **family.fetched, "masks": ("masks",)}
        self._given_embeddings = image_embeddings

        def opened(graph: str, slots: int = 1) -> Session:
            return factory.open(bundle, graph, precision, slots=slots)

        self._propose = opened("propose", self._slots)
        self._classify = opened("classify", self._slots)
        self._masks = opened("masks")
        self._embed: Session | None = None
        sources = {"propose": self._propose}
        if image_embeddings is None and "embed" in family.bound.values():
            self._embed = sources["embed"] = opened("embed", self._slots)
        for name, graph in family.bound.items():
            if graph in sources:
                self._classify.bind(name, sources[graph], name)
        self._masks.bind("mask_logits", self._propose, "mask_logits")
        self._queries = int(_shape(self._propose, "queries")[0])
        self._frames = np.zeros(
            (self.window_length, *_shape(self._propose, "frames")[1:]), np.uint8
        )
        self._pictures: Image8 | None = None
        if self._embed is not None and bundle.manifest.preprocess.source_size is not None:
            self._embed.bind("pictures", self._propose, "frames")  # it resizes by itself
        elif self._embed is not None:
            shape = _shape(self._embed, "pictures")[1:]
            self._pictures = np.zeros((self.window_length, *shape), np.uint8)
        self._letterbox: Letterbox | None = None
        self._classifier: Classifier | None = None
        self._scores: Scores | None = None
        self._torn = False
        self._placed = 0  # frames of the video so far
        self._kept: list[list[RLE]] = []  # run lengths of every track, a frame
        self._submitted: deque[_Submitted] = deque()
        self._next_slot = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @property
    def in_flight(self) -> int:
        """Clips that are submitted and not collected."""
        return len(self._submitted)

    @property
    def given_embeddings(self) -> int | None:
        """Frames for which image embeddings were given; None if they are computed or not needed."""
        return None if self._given_embeddings is None else len(self._given_embeddings)

    @property
    def most_in_flight(self) -> int:
        """Clips that may be in flight at once."""
        return self._slots

    def set_classifier(self, classifier: Classifier) -> None:
        """Look for other classes from now on; tracks go on, class averages start anew.

        Clips in flight are classified again.

        Raises:
            InputError: in video mode, in the middle of a video: its averages cannot mix
                vocabularies; or more rows than the backend takes. All stays as it was.
        """
        self.check_classifier_may_change()
        if classifier.embeddings is not None:
            for slot in range(self._slots):  # refused before anything is changed, if at all
                self._classify.write("text_embeddings", classifier.embeddings, slot)
        self._classifier = classifier
        self._restart_scores()
        if classifier.embeddings is not None and self._submitted:
            torn, self._torn = self._torn, True  # until every window in flight has the new classes
            for window in self._submitted:
                self._classify.run(window.slot)
            self._torn = torn

    def check_classifier_may_change(self) -> None:
        """Refuse in the middle of a video in video mode; see :meth:`set_classifier`."""
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
        self._letterbox = None
        self._placed = 0
        self._kept.clear()
        self._restart_scores()

    def placement(self, height: int, width: int) -> Letterbox:
        """Where a source frame of this size lies in the network's frame."""
        return letterbox_for(height, width, self._bundle.manifest.preprocess)

    def check_frame(self, image: Image8) -> None:
        """Refuse what cannot be the video's next frame.

        Raises:
            InputError: the image is not RGB of 8 bits, or of another size than the first; or an
                earlier window failed.
        """
        self._refuse_torn()
        if not isinstance(image, np.ndarray):
            raise InputError(f"a frame is a numpy array; got {type(image).__name__}")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"a frame is uint8 [H, W, 3] in RGB; got {image.dtype} {list(image.shape)}"
            )
        if self._letterbox is None:
            placement = self.placement(*image.shape[:2])
            self._masks.write("picture_size", np.array(placement.cut, np.int64))
            self._masks.write("frame_size", np.array(placement.source, np.int64))
            self._letterbox = placement  # a size that the backend refuses stays refused
        if image.shape[:2] != self._letterbox.source:
            raise InputError(
                f"a frame of {image.shape[1]}x{image.shape[0]} came after frames of "
                f"{self._letterbox.source[1]}x{self._letterbox.source[0]}; "
                "call reset() before a video of another size"
            )

    def submit(self, window: Sequence[Frame]) -> None:
        """Give the device the next window; returns before it is done where the backend can.

        Args:
            window: 1 to ``window_length`` frames whose images are uint8 [Hs, Ws, 3], RGB, of one size
                through the video; read only. Their numbers and times go into the results.

        Raises:
            InputError: as :meth:`check_frame`; the window is empty or longer; too many clips are in
                flight; or the image embeddings that were given end.
            BackendError: a graph failed.
        """
        if not 1 <= len(window) <= self.window_length:
            raise InputError(f"a window has 1 to {self.window_length} frames; got {len(window)}")
        for frame in window:
            self.check_frame(frame.image)
        if len(self._submitted) == self._slots:
            raise InputError(f"{self._slots} windows are in flight already; collect one first")
        slot, count = self._next_slot, len(window)
        embeddings = self._next_embeddings(count)
        with self._timed("place"):
            self._place([frame.image for frame in window])
        with self._timed("submit"):
            self._propose.write("frames", self._frames[:count], slot)
            self._propose.run(slot)
            if self._pictures is not None and self._embed is not None:
                self._embed.write("pictures", self._pictures[:count], slot)
            if self._embed is not None:
                self._embed.run(slot)
            if embeddings is not None:
                self._classify.write("image_embeddings", embeddings, slot)
            self._classify.run(slot)
        self._placed += count
        self._submitted.append(_Submitted(tuple((f.index, f.time) for f in window), slot))
        self._next_slot = (slot + 1) % self._slots

    def collect(self) -> list[FrameResult]:
        """The oldest window in flight, associated with what came before it.

        Returns:
            for each of its frames the instances that are known now.

        Raises:
            InputError: no window is in flight, or an earlier one failed.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        if not self._submitted:
            raise InputError("no frame was submitted")
        self._refuse_torn()
        window = self._submitted.popleft()
        self._torn = True  # until tracker, sums and masks all have this window
        with self._timed("wait"):
            output = self._fetch_outputs(window)
        with self._timed("associate"), _BLAS.limit(limits=1):
            order = self._family.match(output)
            visible = output["mask_area"].reshape(self._queries, -1)[order] > 0  # [N, T]
            self._add_scores(output, order)
            wanted = self._choose(visible)
        shown = np.array(sorted(set().union(*wanted)), np.int64)
        tracks = np.flatnonzero(visible.any(1)) if self.keep_video else shown
        masks = self._make_masks(order[tracks], window.slot)
        found = dict(zip(tracks.tolist(), masks, strict=True))
        if self.keep_video:
            self._keep(found, len(window.frames))
        self._torn = False
        return [
            self._result(
                window.frames[t], wanted[t], {track: found[track][t] for track in wanted[t]}
            )
            for t in range(len(window.frames))
        ]

    def discard(self) -> int:
        """Forget the windows in flight, which become no part of the video; how many frames."""
        count = sum(len(window.frames) for window in self._submitted)
        self._submitted.clear()
        self._placed -= count
        return count

    def finish(self) -> VideoResult:
        """The whole video's result by the official scoring; the next frame starts a new video.

        Raises:
            InputError: no frame was given, or the pipeline was opened for streaming.
        """
        if not self.keep_video:
            raise InputError("a pipeline opened for streaming keeps no video to report")
        self._refuse_torn()
        if self._submitted:
            raise InputError("a stream is still open: take it to its end, or close it, first")
        if self._letterbox is None or self._scores is None or self._classifier is None:
            raise InputError("no frame was given, so there is no video to report")
        height, width = self._letterbox.source
        empty = empty_rle(height, width)
        instances = [
            VideoInstance(
                d.track,
                d.category,
                self._classifier.names[d.category],
                d.score,
                tuple(
                    kept[d.track] if shown else empty
                    for kept, shown in zip(self._kept, d.shown, strict=True)
                ),
            )
            for d in self._scores.detections(self._detections)
        ]
        result = VideoResult(height, width, len(self._kept), tuple(instances))
        self.reset()
        return result

    def close(self) -> None:
        """Close the sessions."""
        for session in (self._masks, self._classify, self._embed, self._propose):
            if session is not None:
                session.close()
        if self._scores is not None:
            self._scores.close()

    def _refuse_torn(self) -> None:
        if self._torn:
            raise InputError("an earlier frame of this video failed half-way; call reset() first")

    def _restart_scores(self) -> None:
        if self._scores is not None:
            self._scores.close()
        self._scores = None

    def _next_embeddings(self, count: int) -> Floats | None:
        if self._given_embeddings is None:
            return None
        given = self._given_embeddings[self._placed : self._placed + count]
        if len(given) < count:
            raise InputError(
                f"image embeddings were given for {len(self._given_embeddings)} frames, and the "
                "video has more; they must be one for each frame, in order"
            )
        return given

    def _place(self, images: Sequence[Image8]) -> None:
        assert self._letterbox is not None
        mean = self._bundle.manifest.preprocess.pixel_mean
        for index, image in enumerate(images):
            place_frame(image, self._letterbox, self._frames[index], mean)
            if self._pictures is not None:
                self._pictures[index] = clip_picture(image, self._pictures.shape[1])

    def _fetch_outputs(self, window: _Submitted) -> dict[str, Floats]:
        """What the host needs of a window, by output name; float32, in the order of the queries."""
        out: dict[str, Floats] = {}
        for session in (self._propose, self._classify):
            for name in self._fetched[session.spec.name]:
                out[name] = np.asarray(session.fetch(name, window.slot), np.float32)
                if not np.isfinite(out[name]).all():
                    raise BackendError(
                        f"graph {session.spec.name!r} gave NaN or infinity in {name!r} at frame "
                        f"{window.frames[0][0]}: the weights, the precision or the backend do not "
                        "work; try --backend onnxruntime --precision fp32"
                    )
        return out

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - begin

    def _add_scores(self, output: dict[str, Floats], order: Ints) -> None:
        assert self._classifier is not None
        if self._scores is None:
            rows = self._classifier.rows
            self._scores = self._family.scores(self._queries, rows, keep=self.keep_video)
        self._scores.add_output(output, order)

    def _choose(self, visible: Bools) -> list[dict[int, tuple[int, float]]]:
        """For each frame the tracks to show, best first: their class and their score so far."""
        assert self._scores is not None
        categories, scores, shown = self._scores.running_scores()
        return [self._best(categories, np.where(seen & shown, scores, 0.0)) for seen in visible.T]

    def _best(self, categories: Ints, scores: Floats64) -> dict[int, tuple[int, float]]:
        best = np.argsort(-scores, kind="stable")[: self.selection.limit]
        return {
            int(t): (int(categories[t]), float(scores[t]))
            for t in best
            if scores[t] >= self.selection.threshold and scores[t] > 0
        }

    def _keep(self, found: dict[int, list[RLE]], frames: int) -> None:
        assert self._letterbox is not None
        none = [empty_rle(*self._letterbox.source)] * frames
        tracks = [found.get(track, none) for track in range(self._queries)]
        self._kept += [[masks[t] for masks in tracks] for t in range(frames)]

    def _result(
        self,
        frame: tuple[int, float | None],
        wanted: dict[int, tuple[int, float]],
        masks: dict[int, RLE],
    ) -> FrameResult:
        assert self._letterbox is not None
        assert self._classifier is not None
        names = self._classifier.names
        instances = [
            Instance(track, category, names[category], score, box, masks[track])
            for track, (category, score) in wanted.items()
            if (box := box_of(masks[track]))[2] > 0
        ]
        return FrameResult(*frame, *self._letterbox.source, tuple(instances))

    def _make_masks(self, queries: Ints, slot: int) -> list[list[RLE]]:
        """For some queries the run lengths of their masks at the source's size, frame by frame."""
        out: list[list[RLE]] = []
        step = masks_per_run(self._bundle.manifest.window_length)
        for start in range(0, len(queries), step):
            chosen = queries[start : start + step].astype(np.int64)
            with self._timed("submit"):
                self._masks.write("selected", chosen, slot)
                self._masks.run(slot)
            with self._timed("wait"):
                masks = np.asarray(self._masks.fetch("masks", slot), np.uint8)  # [n, T, Hs, Ws]
            with self._timed("masks"):
                out += [encode_masks(window) for window in masks]
        return out


def _shape(session: Session, tensor: str) -> tuple[int, ...]:
    """Of an input or output; an axis without a number is -1."""
    tensors = (*session.spec.inputs, *session.spec.outputs)
    found = next(t for t in tensors if t.name == tensor)
    return tuple(-1 if isinstance(size, str) else size for size in found.shape)
