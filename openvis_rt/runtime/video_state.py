"""One video on its way: its windows go to the device and come back to tracks, sums and masks.

A window is submitted and collected. Where the backend keeps two in flight, the device works on the
next one while the host associates this one.

It is made at the first frame and dropped at the end. In video mode the masks of every query that
has any are kept as run lengths, because only the end of the video tells which ones are reported. In
streaming mode only the shown ones are made, and nothing grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from openvis_rt.errors import InputError
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.graphs import Graphs
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.preprocessing import Letterbox
from openvis_rt.runtime.tracking.rules import Matcher, Scores
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import FrameResult, Instance, VideoInstance, VideoResult
from openvis_rt.runtime.video.run_lengths import (
    RLE,
    RunLengths,
    box_of,
    empty_rle,
    join,
    run_lengths,
)

__all__ = ["VideoState"]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Image8 = npt.NDArray[np.uint8]

_BLAS = ThreadpoolController().select(user_api="blas")
"""Products of 100x100x256 take a millisecond on one thread. On several they wait for each other
wherever decoding or another process has a core: 280 ms were seen on two busy cores."""


@dataclass(frozen=True)
class _Window:
    """A window that the device has and the host has not seen the outputs of.

    Attributes:
        frames: number and time of each.
        slot: in which its buffers are.
    """

    frames: tuple[tuple[int, float | None], ...]
    slot: int


@dataclass(frozen=True, slots=True)
class _WindowMasks:
    """Masks of some tracks in every frame of a window.

    Attributes:
        places: int16 [N], of each track the place among those that have masks, or -1.
        length: frames T of the window.
        runs: the masks, T of each track.
    """

    places: npt.NDArray[np.int16]
    length: int
    runs: RunLengths

    def of(self, track: int, t: int) -> RLE | None:
        """The mask of a track in the window's frame ``t``; None if it has none."""
        place = int(self.places[track])
        return None if place < 0 else self.runs[place * self.length + t]


class VideoState:
    """Everything that is known of one video, made at its first frame and dropped at its end.

    Args:
        graphs: of the model; masks are made at the size of this video from now on.
        letterbox: where its frames go.
        matcher: gives each track its query; reset for this video.
        classifier: what is looked for.
        new_scores: makes empty sums for a classifier.
        selection: what is shown of a frame.
        image_embeddings: of every frame of the video, float32 [frames, D], in place of what the
            graph `embed` would compute; None to compute them, where the system has any.
        keep: video mode, so that :meth:`result` can report the whole video.

    Attributes:
        letterbox: see above.
        waiting: frames of the window that is not submitted yet.
        in_flight: how many windows the device has.
        begun: a window was collected or is in flight.
        best: the best score of a visible object so far and the name of its class, shown or not.
    """

    def __init__(
        self,
        graphs: Graphs,
        letterbox: Letterbox,
        matcher: Matcher,
        classifier: Classifier,
        new_scores: Callable[[Classifier], Scores],
        selection: Selection,
        image_embeddings: Floats | None,
        *,
        keep: bool,
    ) -> None:
        graphs.set_sizes(letterbox)  # a size that the backend refuses begins no video
        matcher.reset()
        self._graphs, self.letterbox, self._keeps = graphs, letterbox, keep
        self._matcher, self._selection, self._new_scores = matcher, selection, new_scores
        self._classifier, self._scores = classifier, new_scores(classifier)
        self._given_embeddings = image_embeddings
        self._kept: list[_WindowMasks] = []
        self.waiting: list[Frame] = []
        self._in_flight: deque[_Window] = deque()
        self._submitted = self._collected = 0  # frames
        self._torn = False  # a window failed half-way: tracks and sums do not fit together
        self.best: tuple[float, str] = (0.0, "")

    @property
    def in_flight(self) -> int:
        """Windows that are submitted and not collected."""
        return len(self._in_flight)

    @property
    def begun(self) -> bool:
        """A window was collected or is in flight."""
        return bool(self._collected or self._in_flight)

    def set_classifier(self, classifier: Classifier) -> None:
        """Look for other classes; tracks go on, class averages start anew.

        Windows in flight are classified again, by the rows that the graphs have now.
        """
        self._scores.close()
        self._classifier, self._scores = classifier, self._new_scores(classifier)
        if classifier.embeddings is not None and self._in_flight:
            torn, self._torn = self._torn, True  # until every window has the new classes
            for window in self._in_flight:
                self._graphs.classify_again(window.slot)
            self._torn = torn

    def take(self, frame: Frame | Image8) -> None:
        """Add the next frame to the waiting ones.

        Args:
            frame: with its own number and time, or an image, uint8 [H, W, 3] in RGB, which gets
                the next number. It is read when its window is submitted.

        Raises:
            InputError: the image has another size than the first; or an earlier window failed.
        """
        self.refuse_torn()
        image = frame.image if isinstance(frame, Frame) else frame
        if image.shape[:2] != self.letterbox.source:
            height, width = self.letterbox.source
            raise InputError(
                f"a frame of {image.shape[1]}x{image.shape[0]} came after frames of "
                f"{width}x{height}; call reset() before a video of another size"
            )
        if not isinstance(frame, Frame):
            frame = Frame(self._submitted + len(self.waiting), None, frame)
        self.waiting.append(frame)

    def submit(self) -> None:
        """Give the waiting frames to the device as one window; nothing happens without any.

        Raises:
            InputError: the image embeddings that were given end.
            BackendError: a graph failed.
        """
        if not self.waiting:
            return
        embeddings = self._next_embeddings(len(self.waiting))
        slot = self._graphs.submit(self.waiting, self.letterbox, embeddings)
        self._in_flight.append(_Window(tuple((f.index, f.time) for f in self.waiting), slot))
        self._submitted += len(self.waiting)
        self.waiting = []

    def collect(self) -> list[FrameResult]:
        """The oldest window in flight, associated with what came before it.

        Returns:
            for each of its frames the instances that are known now.

        Raises:
            InputError: an earlier window failed.
            BackendError: a graph failed, or gave NaN, infinity or numbers beyond 1e15.
        """
        self.refuse_torn()
        graphs, window = self._graphs, self._in_flight.popleft()
        self._torn = True  # until tracker, sums and masks all have this window
        with graphs.timed("wait"):
            output = graphs.collect(window.slot, window.frames[0][0])
        with _BLAS.limit(limits=1):
            with graphs.timed("associate"):
                order = self._matcher.step(output)
            with graphs.timed("scores"):
                visible = output["mask_area"].reshape(len(order), -1)[order] > 0  # [N, T]
                self._scores.add_output(output, order)
                chosen = self._choose(visible)
        shown = np.array(sorted(set().union(*chosen)), np.int64)
        tracks = np.flatnonzero(visible.any(1)) if self._keeps else shown
        masks = self._masks(tracks, order, window)
        if self._keeps:
            self._kept.append(masks)
        self._collected += len(window.frames)
        self._torn = False
        with graphs.timed("masks"):
            return [
                self._frame_result(frame, chosen[t], masks, t)
                for t, frame in enumerate(window.frames)
            ]

    def discard(self) -> None:
        """Forget frames that wait and windows in flight, which become no part of the video."""
        self.waiting = []
        self._in_flight.clear()
        self._submitted = self._collected

    def result(self, detections: int) -> VideoResult:
        """The whole video by the official scoring, ``detections`` instances at most."""
        height, width = self.letterbox.source
        empty, names = empty_rle(height, width), self._classifier.names
        found = self._scores.detections(detections)
        masks = {d.track: self._masks_of(d.track, empty) for d in found}  # some have many classes
        instances = tuple(
            VideoInstance(
                d.track,
                d.category + 1,
                names[d.category],
                d.score,
                tuple(
                    mask if shown else empty
                    for mask, shown in zip(masks[d.track], d.shown, strict=True)
                ),
            )
            for d in found
        )
        return VideoResult(height, width, self._collected, instances)

    def close(self) -> None:
        """Drop what is kept."""
        self.discard()
        self._kept.clear()
        self._scores.close()

    def refuse_torn(self) -> None:
        """InputError if a window failed half-way."""
        if self._torn:
            raise InputError("an earlier frame of this video failed half-way; call reset() first")

    def _next_embeddings(self, count: int) -> Floats | None:
        if self._given_embeddings is None:
            return None
        given = self._given_embeddings[self._submitted : self._submitted + count]
        if len(given) < count:
            raise InputError(
                f"image embeddings were given for {len(self._given_embeddings)} frames, and the "
                "video has more; they must be one for each frame, in order"
            )
        return given

    def _choose(self, visible: Bools) -> list[dict[int, tuple[int, float]]]:
        """For each frame the tracks to show, best first: their class and their score so far."""
        categories, scores, shown = self._scores.running_scores()
        frames = [np.where(seen & shown, scores, 0.0) for seen in visible.T]
        for frame in frames:
            track = int(frame.argmax())
            if frame[track] > self.best[0]:
                self.best = float(frame[track]), self._classifier.names[int(categories[track])]
        return [self._best(categories, frame) for frame in frames]

    def _best(self, categories: Ints, scores: Floats64) -> dict[int, tuple[int, float]]:
        best = np.argsort(-scores, kind="stable")[: self._selection.limit]
        return {
            int(t): (int(categories[t]), float(scores[t]))
            for t in best
            if scores[t] >= self._selection.threshold and scores[t] > 0
        }

    def _masks(self, tracks: Ints, order: Ints, window: _Window) -> _WindowMasks:
        """Make the masks of some tracks, which have the queries ``order`` in this window."""
        graphs, (height, width) = self._graphs, self.letterbox.source
        runs = []
        for rows in graphs.masks(order[tracks].astype(np.int64), window.slot):
            with graphs.timed("masks"):
                runs.append(run_lengths(rows.reshape(-1, *rows.shape[2:]), width))
        places = np.full(len(order), -1, np.int16)
        places[tracks] = np.arange(len(tracks))
        return _WindowMasks(places, len(window.frames), join(runs, height, width))

    def _masks_of(self, track: int, empty: RLE) -> list[RLE]:
        """The kept masks of a track, a frame; ``empty`` where it had none."""
        return [
            empty if (rle := masks.of(track, t)) is None else rle
            for masks in self._kept
            for t in range(masks.length)
        ]

    def _frame_result(
        self,
        frame: tuple[int, float | None],
        chosen: dict[int, tuple[int, float]],
        masks: _WindowMasks,
        t: int,
    ) -> FrameResult:
        names = self._classifier.names
        instances: Iterable[Instance] = (
            Instance(track, category + 1, names[category], score, box, rle)
            for track, (category, score) in chosen.items()
            if (rle := masks.of(track, t)) is not None and (box := box_of(rle))[2] > 0
        )
        return FrameResult(*frame, *self.letterbox.source, tuple(instances))
