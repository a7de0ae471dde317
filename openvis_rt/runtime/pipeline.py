"""The front door: a bundle, a backend and a vocabulary become a pipeline that takes frames.

with Pipeline.open("bundle", vocabulary=["cat", "skateboard"]) as pipeline:
    for result in pipeline.stream(frames):
        ...
    video = pipeline.finish()

A window of frames is submitted and collected; most systems work frame by frame, and their windows
have one frame. Where the backend keeps two windows in flight, the device works on the next one
while the host associates this one; each has a slot of buffers of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.errors import InputError
from openvis_rt.geometry import LARGEST_FRAME_SIDE, LARGEST_PICTURE
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import BackendOptions, open_backend
from openvis_rt.runtime.classifier import Classifier, classifier_for, image_embeddings_for
from openvis_rt.runtime.graphs import Graphs
from openvis_rt.runtime.matrices import Matrix
from openvis_rt.runtime.options import Selection, TrackingOptions
from openvis_rt.runtime.preprocessing import Letterbox, letterbox_for
from openvis_rt.runtime.text import TextEmbedder
from openvis_rt.runtime.tracking.rules import (
    Matcher,
    check_score,
    matcher_from_bundle,
    scores_from_rule,
)
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import FrameResult, VideoResult
from openvis_rt.runtime.video_state import VideoState
from openvis_rt.vocabulary import Vocabulary

__all__ = ["Mode", "Pipeline"]

Mode = Literal["video", "stream"]
Image8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
Warn = Callable[[str], None]

_LOG = logging.getLogger("openvis_rt")


class Pipeline:
    """Drives one bundle over videos. Make it with :meth:`open`; one thread uses it.

    Attributes:
        bundle: what it runs.
        backend: where it runs: name, device and precision, for people.
        mode: ``video`` or ``stream``.
        selection: what a frame's result shows.
        window_length: frames that the model looks at together; results come when the last of them
            is there.
        warnings: what was told so far that did not stop the work.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        graphs: Graphs,
        matcher: Matcher,
        *,
        precision: str,
        mode: Mode,
        selection: Selection,
        tracking: TrackingOptions,
        image_embeddings: npt.NDArray[np.float32] | None,
        embedder: TextEmbedder | None,
        warnings: list[str],
        warn: Warn,
        shares: bool = False,
    ) -> None:
        manifest = bundle.manifest
        self.bundle, self.mode, self.selection, self.warnings = bundle, mode, selection, warnings
        self.backend = f"{backend.name} ({backend.device}, {precision})"
        self.window_length = tracking.window_length or manifest.window_length
        self._detections = tracking.detections or manifest.detections
        self._backend, self._graphs, self._matcher = backend, graphs, matcher
        self._precision, self._given_embeddings = precision, image_embeddings
        self._tracking, self._embedder, self._warn = tracking, embedder, warn
        self._shares = shares  # graphs of another pipeline, which that one closes
        self._classifier = Classifier((), [], None)  # until the first vocabulary
        self._video: VideoState | None = None  # from a video's first frame to its end

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        vocabulary: Iterable[str] | Vocabulary,
        classifier: Matrix | Classifier | None = None,
        image_embeddings: Matrix | None = None,
        backend: str | Backend = "auto",
        backend_options: BackendOptions | None = None,
        precision: str = "fp32",
        mode: Mode = "video",
        selection: Selection | None = None,
        tracking: TrackingOptions | None = None,
        progress: Progress = lambda *_: None,
        warn: Warn = _LOG.warning,
    ) -> Pipeline:
        """Open every graph of a bundle on a backend and embed the vocabulary.

        Args:
            bundle: its directory; every file of it is checked.
            vocabulary: class names; ``"monkey, ape"`` is one class with two synonyms. Of a model
                with a closed vocabulary all of its names, in its own order. Names that take part
                and are not reported come by :meth:`.Vocabulary.among`.
            classifier: rows for these names in place of CLIP's text encoder, float [C, D], or a
                ``.npy`` file of them; or a :class:`~openvis_rt.runtime.classifier.Classifier`,
                whose names and rows are used as they stand.
            image_embeddings: CLIP's of every frame, float [frames, D], or a ``.npy`` file of them,
                in place of computing them; for OVFormer.
            backend: ``tensorrt``, ``tensorrt-rtx``, ``onnxruntime``, or ``auto``: the first of
                these that works here for this bundle; :attr:`backend` says which. Or a backend
                object (:class:`~openvis_rt.runtime.backends.base.Backend`), which the pipeline
                closes when it is closed, and also where it cannot be opened.
            backend_options: device and CUDA binding of a backend that is given by its name.
            precision: ``fp32``, or another one that the bundle holds.
            mode: ``video`` keeps run-length masks so that :meth:`finish` reports the video;
                ``stream`` keeps memory flat over any length.
            selection: what a frame's result shows.
            tracking: window length, tracker and number of reported instances.
            progress: told of phrases that are embedded, done and in all.
            warn: told what does not stop the work but should be known, when it arises; by default
                the logger ``openvis_rt``.

        Raises:
            BundleError, VocabularyError, InputError, UnavailableError: see their classes.
        """
        told: list[str] = []

        def tell(message: str) -> None:
            told.append(message)
            warn(message)

        with ExitStack() as stack:
            if not isinstance(backend, str):
                stack.callback(backend.close)
            if not isinstance(bundle, Bundle):
                bundle = Bundle.open(bundle)
            check_contract(bundle.manifest)
            if mode not in get_args(Mode):
                raise InputError(f"the mode is {' or '.join(get_args(Mode))}; got {mode!r}")
            words, tracking = Vocabulary.of(vocabulary), tracking or TrackingOptions()
            _check_window_length(bundle, tracking.window_length)
            given = image_embeddings_for(bundle, image_embeddings)
            matcher = matcher_from_bundle(bundle, frames=tracking.frames, top_k=tracking.top_k)
            check_score(bundle)
            if isinstance(backend, str):
                backend = open_backend(backend, bundle, precision, backend_options, tell)
                stack.callback(backend.close)
            else:
                backend.check(bundle, precision)
            graphs = Graphs(bundle, backend, precision, embeds=given is None)
            stack.callback(graphs.close)
            pipeline = cls(
                bundle,
                backend,
                graphs,
                matcher,
                precision=precision,
                mode=mode,
                selection=selection or Selection(),
                tracking=tracking,
                image_embeddings=given,
                embedder=_embedder_for(bundle, backend, precision, tell),
                warnings=told,
                warn=tell,
            )
            pipeline.set_vocabulary(words, progress, classifier=classifier)
            stack.pop_all()
        return pipeline

    def another(
        self,
        *,
        vocabulary: Iterable[str] | Vocabulary | None = None,
        selection: Selection | None = None,
    ) -> Pipeline:
        """A pipeline for one more video at the same time, over the same graphs and their memory.

        Both may be given frames in any order, by the same thread; each has its own tracks, classes
        and size of frames, and gives what it would give alone. One of them works at a time: a
        window of one is collected before another one is submitted. What is written into the graphs
        for a video, the classes' embeddings and the size of masks, is written again where another
        one worked in between.

        Args:
            vocabulary: as for :meth:`open`; None for this pipeline's classes.
            selection: what a frame's result shows; None for this pipeline's.

        Returns:
            a pipeline in the same mode and on the same backend. Closing it drops its video alone;
            closing this one closes the graphs of both.

        Raises:
            InputError: image embeddings were given, which are one video's.
            VocabularyError, InputError: as for :meth:`set_vocabulary`.
        """
        if self._given_embeddings is not None:
            raise InputError("image embeddings were given, of one video: open another pipeline")
        tracking = self._tracking
        other = Pipeline(
            self.bundle,
            self._backend,
            self._graphs,
            matcher_from_bundle(self.bundle, frames=tracking.frames, top_k=tracking.top_k),
            precision=self._precision,
            mode=self.mode,
            selection=selection or self.selection,
            tracking=tracking,
            image_embeddings=None,
            embedder=self._embedder,
            warnings=self.warnings,
            warn=self._warn,
            shares=True,
        )
        other._classifier = self._classifier
        if vocabulary is not None:
            other.set_vocabulary(vocabulary)
        return other

    def set_vocabulary(
        self,
        vocabulary: Iterable[str] | Vocabulary,
        progress: Progress = lambda *_: None,
        *,
        classifier: Matrix | Classifier | None = None,
    ) -> None:
        """Look for other classes from the next window on; nothing is rebuilt.

        Tracks go on, class averages start anew, and windows in flight are classified again.
        Embeddings of phrases that were seen before come from the bundle's cache.

        Args:
            vocabulary, progress, classifier: as for :meth:`open`.

        Raises:
            InputError: in the middle of a video in video mode, whose averages cannot mix
                vocabularies; or rows that do not fit, or more than the backend takes. All stays as
                it was.
            VocabularyError: names that do not fit.
        """
        video = self._video
        if self.mode == "video" and video is not None and video.begun:
            raise InputError(
                "the vocabulary cannot change in the middle of a video in video mode; "
                "call reset() first, or open the pipeline for streaming"
            )
        words = Vocabulary.of(vocabulary)
        found = classifier_for(
            self.bundle, self._precision, words, classifier, self._embedder, progress
        )
        self._use_graphs()
        if found.embeddings is not None:
            self._graphs.set_text_embeddings(found.embeddings)  # refused as a whole, if at all
        self._classifier = found
        if video is not None:
            video.set_classifier(found)

    @property
    def given_embeddings(self) -> int | None:
        """Frames for which image embeddings were given; None if they are computed or not needed."""
        return None if self._given_embeddings is None else len(self._given_embeddings)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What is looked for; category ids are places in it, from 1."""
        return self._classifier.names

    @property
    def best(self) -> tuple[float, str]:
        """The best score of a visible object of this video so far, shown or not, and its class."""
        return (0.0, "") if self._video is None else self._video.best

    def delay(self, in_flight: int | None = None) -> int:
        """How many further frames a frame's result may wait for; see :meth:`stream`."""
        return self.window_length * self._most_in_flight(in_flight) - 1

    def counters(self) -> dict[str, float]:
        """Seconds and bytes since it was opened.

        ``place_seconds``, ``submit_seconds``, ``wait_seconds``, ``associate_seconds``,
        ``scores_seconds`` and ``masks_seconds`` are the host's and follow each other, as
        :class:`~openvis_rt.runtime.graphs.Graphs` says; ``recurrence_seconds`` is the part of
        ``associate_seconds`` in which the tracker's recurrence predicts. What the backend counts
        comes beside them: ``device_seconds``, bytes over the bus and launches of CUDA graphs.
        """
        host = {f"{stage}_seconds": seconds for stage, seconds in self._graphs.seconds.items()}
        host["recurrence_seconds"] = self._matcher.recurrence_seconds
        return {**host, **self._backend.counters()}

    def letterbox(self, height: int, width: int) -> Letterbox:
        """Where a source frame of this size (pixels) lies in the network's frame."""
        return letterbox_for(height, width, self.bundle.manifest.preprocess)

    def prepared(self, frame: Frame) -> Frame:
        """The frame, resized ahead, so that :meth:`stream` only has to copy it.

        Where the graph does not resize by itself, the host does, in 5 ms of a frame of 1280x720.
        This may run in another thread, such as the one that decodes: see ``prepare`` of
        :func:`~openvis_rt.runtime.video.reading.open_video`.
        """
        return self._graphs.prepared(frame, self.letterbox(*frame.image.shape[:2]))

    def stream(
        self, frames: Iterable[Frame | Image8], *, in_flight: int | None = None
    ) -> Iterator[FrameResult]:
        """Results frame by frame, causal: each says what is known with the frames up to it.

        A model that works on windows gives a window's results as soon as its last frame is there: a
        frame waits for up to ``window_length - 1`` others. The last window of ``frames`` may be
        shorter; it counts like a whole one, so give a video in one call.

        Where the backend allows, the device works on the next window while the host works on this
        one. Then a result comes when the next window is there: with a live source and ``in_flight``
        1 it comes at once. If the caller stops early, what was taken ahead becomes no part of the
        video; but a window whose first result was given is part of it as a whole.

        Args:
            frames: frames of a video, or uint8 [H, W, 3] arrays in RGB; taken one at a time.
            in_flight: windows that the device may have at once; None for all that it can.

        Raises:
            InputError: a frame is not uint8 [H, W, 3], or of another size than the first; or
                another stream has frames in flight.
            BackendError: a graph failed, or gave NaN, infinity or numbers beyond 1e15.
        """
        most, source = self._most_in_flight(in_flight), iter(frames)
        self._refuse_open_stream()
        failure: Exception | None = None
        ended, video = False, self._video
        try:
            while not ended:
                if self._video is not video:  # reset() came in between, and perhaps another stream
                    self._refuse_open_stream()
                video = None
                try:
                    ended = self._fill(source)
                except Exception as exc:  # first the results of the frames before it
                    failure, ended = exc, True
                if (video := self._video) is None:  # not even the first frame was good
                    break
                try:
                    video.submit()
                except Exception as exc:
                    failure, ended = failure or exc, True
                while video.in_flight == most or (ended and video.in_flight):
                    yield from video.collect()
        finally:
            if self._video is not None and video in (None, self._video):  # no other stream's
                self._video.discard()
        if failure is not None:
            raise failure

    def step(self, frame: Frame | Image8) -> FrameResult:
        """The next frame of the video, and its result; see :meth:`stream`.

        Raises:
            InputError: the frame is not uint8 [H, W, 3], or of another size than the first; or a
                stream has frames in flight; or the model works on windows of several frames.
            BackendError: a graph failed, or gave NaN, infinity or numbers beyond 1e15.
        """
        if self.window_length > 1:
            raise InputError(
                f"{self.bundle.manifest.variant} looks at {self.window_length} frames together; "
                "use stream(), or open it with window_length=1"
            )
        return self.push(frame)[0]

    def push(self, frame: Frame | Image8) -> list[FrameResult]:
        """The next frame of the video; where it ends a window, the window's results.

        It is :meth:`stream` turned round, for a caller who is handed one frame at a time.

        Args:
            frame: kept, not copied, until its window is full.

        Returns:
            results of the frames that waited, in their order, and of this one; nothing while the
            window is not full. :meth:`flush` gives those of a video's last, shorter window.

        Raises:
            InputError: the frame is not uint8 [H, W, 3], or of another size than the first; or a
                stream has frames in flight.
            BackendError: a graph failed, or gave NaN, infinity or numbers beyond 1e15.
        """
        self._refuse_open_stream()
        video = self._take(frame)
        return self.flush() if len(video.waiting) == self.window_length else []

    def flush(self) -> list[FrameResult]:
        """Results of the frames that wait for their window to fill; it counts like a whole one.

        Raises:
            InputError, BackendError: as for :meth:`push`.
        """
        self._refuse_open_stream()
        video = self._video
        if video is None or not video.waiting:
            return []
        self._use_graphs()
        try:
            video.submit()
        except BaseException:
            video.discard()
            raise
        return video.collect()

    def finish(self) -> VideoResult:
        """The whole video by the official scoring; then a new video begins.

        Raises:
            InputError: no frame was given, or one failed half-way; or a stream has frames in
                flight; or the mode is ``stream``.
        """
        if self.mode == "stream":
            raise InputError("a pipeline opened for streaming keeps no video to report")
        video = self._video
        if video is not None:
            video.refuse_torn()
        if video is None or not video.begun:
            raise InputError("no frame was given, so there is no video to report")
        self._refuse_open_stream()
        result = video.result(self._detections)
        self.reset()
        return result

    def reset(self) -> None:
        """Forget the video: tracks, sums and masks; the next frame starts a new one."""
        video, self._video = self._video, None
        if video is not None:
            video.close()

    def close(self) -> None:
        """Give all memory back; of :meth:`another` pipeline, its video's."""
        self.reset()
        if self._graphs.user is self:
            self._graphs.user = None
        if not self._shares:
            self._graphs.close()
            self._backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _most_in_flight(self, wanted: int | None) -> int:
        if wanted is not None and wanted < 1:
            raise InputError(f"at least one window is in flight; got in_flight={wanted}")
        return min(wanted or self._graphs.slots, self._graphs.slots)

    def _refuse_open_stream(self) -> None:
        if self._video is not None and self._video.in_flight:
            # whose results would come in place of the new frame's
            raise InputError("another stream is open: take it to its end, or close it, first")

    def _use_graphs(self) -> None:
        """Write this video's classes and size into the graphs, where another one's are in them.

        Raises:
            InputError: a window of the other pipeline is in flight.
        """
        user = self._graphs.user
        if user is self:
            return
        if isinstance(user, Pipeline):
            user._refuse_open_stream()
        self._graphs.user = None  # whose it is where what follows fails
        if self._classifier.embeddings is not None:
            self._graphs.set_text_embeddings(self._classifier.embeddings)
        if self._video is not None:
            self._graphs.set_sizes(self._video.letterbox)
        self._graphs.user = self

    def _fill(self, source: Iterator[Frame | Image8]) -> bool:
        """Take the frames of a window; whether the source has ended."""
        for _ in range(self.window_length):
            try:
                frame = next(source)
            except StopIteration:
                return True
            self._take(frame)
        return False

    def _take(self, frame: Frame | Image8) -> VideoState:
        """Check a frame and add it to its video, which begins with its first frame.

        Raises:
            InputError: it is not RGB of 8 bits, or as :meth:`VideoState.take`.
        """
        image = frame.image if isinstance(frame, Frame) else frame
        _check_image(image)
        self._use_graphs()
        if self._video is None:
            self._video = self._begin(image)
        self._video.take(frame)
        return self._video

    def _begin(self, image: Image8) -> VideoState:
        """The state of a new video, whose first frame this is."""
        keep, rule = self.mode == "video", self.bundle.manifest.score
        return VideoState(
            self._graphs,
            self.letterbox(*image.shape[:2]),
            self._matcher,
            self._classifier,
            lambda classes: scores_from_rule(
                rule,
                self._graphs.queries,
                classes.rows,
                keep=keep,
                reported=len(classes.names),
            ),
            self.selection,
            self._given_embeddings,
            keep=keep,
        )


def _embedder_for(
    bundle: Bundle, backend: Backend, precision: str, warn: Warn
) -> TextEmbedder | None:
    """What embeds class names; None where the bundle was exported without CLIP."""
    if "text" not in bundle.graphs:
        return None
    return TextEmbedder(bundle, precision, lambda: backend.open(bundle, "text", precision), warn)


def _check_image(image: Image8) -> None:
    if not isinstance(image, np.ndarray):
        raise InputError(f"a frame is a numpy array; got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(
            f"a frame is uint8 [H, W, 3] in RGB; got {image.dtype} {list(image.shape)}"
        )
    height, width = image.shape[:2]
    if max(height, width) > LARGEST_FRAME_SIDE or height * width > LARGEST_PICTURE:
        raise InputError(
            f"a frame has at most {LARGEST_FRAME_SIDE} pixels a side and {LARGEST_PICTURE} in all; "
            f"this one is {width}x{height}. Make it smaller first"
        )


def _check_window_length(bundle: Bundle, wanted: int | None) -> None:
    most = bundle.manifest.window_length
    if wanted is None or 1 <= wanted <= most:
        return
    frames = bundle.graph("propose", next(iter(bundle.manifest.graphs))).spec.inputs[0]
    if frames.shape[0] == 1:
        raise InputError(
            f"{bundle.manifest.variant} works frame by frame, not on windows of {wanted}"
        )
    raise InputError(
        f"{bundle.path} takes windows of 1 to {most} frames, got {wanted}; export it again with "
        "a larger --window-length for longer ones"
    )
