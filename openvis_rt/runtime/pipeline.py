"""The front door: a bundle, a backend and a vocabulary become a pipeline that takes frames.

with Pipeline.open("bundle", vocabulary=["cat", "skateboard"]) as pipeline:
    for result in pipeline.stream(frames):
        ...
    video = pipeline.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import InputError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import BackendOptions, Device, open_backend
from openvis_rt.runtime.backends.tensorrt.cuda import CudaChoice
from openvis_rt.runtime.classifier import Classifier, classifier_from_rows, closed_classifier
from openvis_rt.runtime.families import family_of
from openvis_rt.runtime.matrices import Matrix, matrix_from
from openvis_rt.runtime.preprocessing import Letterbox
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.text import TextEmbedder
from openvis_rt.runtime.video.reading import Frame
from openvis_rt.runtime.video.results import FrameResult, VideoResult
from openvis_rt.runtime.window_pipeline import WindowPipeline
from openvis_rt.vocabulary import Vocabulary

__all__ = ["Mode", "Pipeline"]

Mode = Literal["video", "stream"]


class Pipeline:
    """Drives one bundle over videos. Make it with :meth:`open`; one thread uses it.

    Attributes:
        bundle: what it runs.
        backend: where it runs: name, device and precision, for people.
    """

    def __init__(
        self, bundle: Bundle, factory: Backend, inner: WindowPipeline, precision: str
    ) -> None:
        self.bundle = bundle
        self._factory = factory
        self._warned: list[str] = []
        self._precision = precision
        self.backend = f"{factory.name} ({factory.device}, {precision})"
        self._inner = inner
        self._embedder: TextEmbedder | None = None
        if "text" in bundle.graphs:
            self._embedder = TextEmbedder(
                bundle,
                precision,
                lambda: factory.open(bundle, "text", precision),
            )
        self._frames = 0

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        vocabulary: Iterable[str] | Vocabulary,
        classifier: Matrix | None = None,
        image_embeddings: Matrix | None = None,
        backend: str = "auto",
        device: Device = "auto",
        precision: str = "fp32",
        mode: Mode = "video",
        selection: Selection | None = None,
        tracker_frames: int | None = None,
        tracker_top_k: int | None = None,
        window_length: int | None = None,
        detections: int | None = None,
        cuda: CudaChoice = "auto",
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Pipeline:
        """Open every graph of a bundle on a backend and embed the vocabulary.

        Args:
            bundle: its directory; every file of it is checked.
            vocabulary: class names; ``"monkey, ape"`` is one class with two synonyms. Of a model
                with a closed vocabulary all of its names, in its own order.
            classifier: rows for these names in place of CLIP's text encoder, float [C, D], or a
                ``.npy`` file of them; see :mod:`openvis_rt.runtime.classifier`.
            image_embeddings: CLIP's of every frame, float [frames, D], or a ``.npy`` file of them,
                in place of computing them; for OVFormer.
            backend: ``tensorrt``, ``tensorrt-rtx``, ``onnxruntime``, or ``auto``: the first of
                these that works here for this bundle; :attr:`backend` says which.
            device: ``cpu``, ``cuda`` or ``auto``.
            precision: ``fp32``, or another one that the bundle holds.
            mode: ``video`` keeps run-length masks so that :meth:`finish` reports the video;
                ``stream`` keeps memory flat over any length.
            selection: what a frame's result shows.
            tracker_frames, tracker_top_k: T and K of the association; None for the bundle's.
            window_length: frames of a window, at most the bundle's; None for the bundle's.
            detections: most instances that a video's result reports; None for the bundle's.
            cuda: the CUDA binding of the TensorRT backends: ``cuda-python`` (it has CUDA graphs),
                ``pycuda``, or ``auto``, the first of them that is installed.
            progress: told of phrases that are embedded, done and in all.

        Raises:
            BundleError, VocabularyError, InputError, UnavailableError: see their classes.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if mode not in get_args(Mode):
            raise InputError(f"the mode is {' or '.join(get_args(Mode))}; got {mode!r}")
        if detections is not None and detections < 1:
            raise InputError(f"a video reports at least one instance; got detections={detections}")
        words = Vocabulary.of(vocabulary)
        family = family_of(bundle, tracker_frames, tracker_top_k)
        given = _given_embeddings(bundle, image_embeddings)
        warned: list[str] = []
        with ExitStack() as stack:
            factory = open_backend(
                backend, bundle, precision, BackendOptions(device, cuda), warned.append
            )
            stack.callback(factory.close)
            frames = WindowPipeline(
                bundle,
                family,
                factory,
                precision,
                selection or Selection(),
                window_length=_window_length(bundle, window_length),
                detections=detections,
                image_embeddings=given,
                keep_video=mode == "video",
            )
            stack.callback(frames.close)
            pipeline = cls(bundle, factory, frames, precision)
            pipeline._warned = warned
            pipeline.set_vocabulary(words, progress, classifier=classifier)
            stack.pop_all()
        return pipeline

    def set_vocabulary(
        self,
        vocabulary: Iterable[str] | Vocabulary,
        progress: Callable[[int, int], None] = lambda *_: None,
        *,
        classifier: Matrix | None = None,
    ) -> None:
        """Look for other classes from the next window or frame on; nothing is rebuilt.

        Embeddings of phrases that were seen before come from the bundle's cache.

        Args:
            vocabulary, progress, classifier: as for :meth:`open`.

        Raises:
            InputError: in the middle of a video in video mode; or rows that do not fit.
            VocabularyError: names that do not fit.
        """
        self._inner.check_classifier_may_change()
        self._inner.set_classifier(self._classifier(vocabulary, progress, classifier))

    def _classifier(
        self,
        vocabulary: Iterable[str] | Vocabulary,
        progress: Callable[[int, int], None],
        given: Matrix | None,
    ) -> Classifier:
        words, name = Vocabulary.of(vocabulary), self.bundle.manifest.variant
        spec = self.bundle.graph("classify", self._precision).spec
        width = next((t.shape[-1] for t in spec.inputs if t.name == "text_embeddings"), None)
        if width is None:
            if given is not None:
                raise InputError(f"{name} has a closed vocabulary, and takes no classifier")
            scores = next(t for t in spec.outputs if t.name == "class_scores")
            return closed_classifier(words, int(scores.shape[-1]) - 1, name)
        if given is not None:
            return classifier_from_rows(words, matrix_from(given, int(width), "classifiers"))
        if self._embedder is None:
            raise InputError(
                f"{self.bundle.path} was exported without CLIP, so it cannot read class names: "
                "give --classifier FILE.npy, one row a name, or export it again with --clip"
            )
        return Classifier(words.names, words.rows_of_class, self._embedder(words, progress))

    @property
    def warnings(self) -> list[str]:
        """What did not stop the work but should be known."""
        return [*self._warned, *(self._embedder.warnings if self._embedder else ())]

    @property
    def window_length(self) -> int:
        """Frames that the model looks at together; results come when the last of them is there."""
        return self._inner.window_length

    def delay(self, in_flight: int | None = None) -> int:
        """How many further frames a frame's result may wait for; see :meth:`stream`."""
        return self.window_length * self._most_in_flight(in_flight) - 1

    def _most_in_flight(self, wanted: int | None) -> int:
        if wanted is not None and wanted < 1:
            raise InputError(f"at least one clip is in flight; got in_flight={wanted}")
        return min(wanted or self._inner.most_in_flight, self._inner.most_in_flight)

    @property
    def given_embeddings(self) -> int | None:
        """Frames for which image embeddings were given; None if they are computed or not needed."""
        return self._inner.given_embeddings

    def counters(self) -> dict[str, float]:
        """Seconds and bytes since it was opened.

        ``place_seconds``, ``submit_seconds``, ``wait_seconds``, ``associate_seconds`` and
        ``masks_seconds`` are the host's, as :class:`WindowPipeline` says. What the backend counts
        comes beside them: ``device_seconds`` and bytes over the bus.
        """
        host = {f"{stage}_seconds": seconds for stage, seconds in self._inner.seconds.items()}
        return {**host, **self._factory.counters()}

    @property
    def mode(self) -> Mode:
        """``video`` or ``stream``."""
        return "video" if self._inner.keep_video else "stream"

    @property
    def selection(self) -> Selection:
        """What a frame's result shows."""
        return self._inner.selection

    def placement(self, height: int, width: int) -> Letterbox:
        """Where a source frame of this size (pixels) lies in the network's frame."""
        return self._inner.placement(height, width)

    def stream(
        self, frames: Iterable[Frame | npt.NDArray[np.uint8]], *, in_flight: int | None = None
    ) -> Iterator[FrameResult]:
        """Results frame by frame, causal: each says what is known with the frames up to it.

        A model that works on windows gives a window's results as soon as its last frame is there: a
        frame waits for up to ``window_length - 1`` others. The last window of ``frames`` may be
        shorter; it counts like a whole one, so give a video in one call.

        Where the backend allows, the device works on the next window while the host works on this
        one. Then a result comes when the next clip is there: with a live source and ``in_flight`` 1
        it comes at once. If the caller stops early, what was taken ahead becomes no part of the
        video; but a window whose first result was given is part of it as a whole.

        Args:
            frames: frames of a video, or uint8 [H, W, 3] arrays in RGB; taken one at a time.
            in_flight: windows that the device may have at once; None for all that it can.

        Raises:
            InputError: a frame is not uint8 [H, W, 3], or of another size than the first; or
                another stream has frames in flight.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        inner, source = self._inner, iter(frames)
        most = self._most_in_flight(in_flight)
        self._refuse_open_stream()
        failure: Exception | None = None
        ended = False
        window: list[Frame] = []
        try:
            while not ended:
                try:
                    while len(window) < inner.window_length and not ended:
                        ended = not self._take(source, window)
                except Exception as exc:  # first the results of the frames before it
                    failure, ended = exc, True
                try:
                    if window:
                        inner.submit(window)
                        window = []
                except Exception as exc:
                    failure, ended = failure or exc, True
                while inner.in_flight == most or (ended and inner.in_flight):
                    yield from inner.collect()
        finally:
            self._frames -= inner.discard() + len(window)
        if failure is not None:
            raise failure

    def _take(self, source: Iterator[Frame | npt.NDArray[np.uint8]], window: list[Frame]) -> bool:
        """Add the next frame to a window; false if there is none."""
        try:
            frame = next(source)
        except StopIteration:
            return False
        window.append(self._checked(frame))
        return True

    def _refuse_open_stream(self) -> None:
        if self._inner.in_flight:  # whose results would come in place of the new frame's
            raise InputError("another stream is open: take it to its end, or close it, first")

    def step(self, frame: Frame | npt.NDArray[np.uint8]) -> FrameResult:
        """The next frame of the video, and its result; see :meth:`stream`.

        Raises:
            InputError: the frame is not uint8 [H, W, 3], or of another size than the first; or a
                stream has frames in flight; or the model works on windows of several frames.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        if self.window_length > 1:
            raise InputError(
                f"{self.bundle.manifest.variant} looks at {self.window_length} frames together; use "
                "stream(), or open it with window_length=1"
            )
        self._refuse_open_stream()
        checked = self._checked(frame)
        try:
            self._inner.submit([checked])
        except BaseException:
            self._frames -= 1
            raise
        return self._inner.collect()[0]

    def _checked(self, frame: Frame | npt.NDArray[np.uint8]) -> Frame:
        """The frame with its number; one that is refused takes none."""
        if not isinstance(frame, Frame):
            frame = Frame(self._frames, None, frame)
        self._inner.check_frame(frame.image)
        self._frames += 1
        return frame

    def finish(self) -> VideoResult:
        """The whole video by the official scoring; then a new video begins.

        Raises:
            InputError: no frame was given, or the mode is ``stream``.
        """
        result = self._inner.finish()
        self._frames = 0
        return result

    def reset(self) -> None:
        """Forget the video; the next frame starts a new one."""
        self._frames = 0
        self._inner.reset()

    def close(self) -> None:
        """Give all memory back."""
        self._inner.close()
        self._factory.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _given_embeddings(bundle: Bundle, given: Matrix | None) -> npt.NDArray[np.float32] | None:
    """Image embeddings that take the place of the graph's, checked."""
    name, inputs = bundle.manifest.variant, bundle.graph("classify", _any(bundle)).spec.inputs
    wanted = next((t for t in inputs if t.name == "image_embeddings"), None)
    if wanted is not None and given is not None:
        return matrix_from(given, int(wanted.shape[-1]), "image embeddings")
    if given is not None:
        raise InputError(f"{name} looks at no image embeddings; leave them out")
    if wanted is not None and "embed" not in bundle.graphs:
        raise InputError(
            f"{bundle.path} was exported without CLIP, so it cannot look at whole frames: give "
            "--image-embeddings FILE.npy, one row a frame, or export it again with --clip"
        )
    return None


def _any(bundle: Bundle) -> str:
    return next(iter(bundle.manifest.graphs))


def _window_length(bundle: Bundle, wanted: int | None) -> int | None:
    most = bundle.manifest.window_length
    if wanted is not None and not 1 <= wanted <= most:
        frames = bundle.graph("propose", _any(bundle)).spec.inputs[0]
        if frames.shape[0] == 1:
            raise InputError(
                f"{bundle.manifest.variant} works frame by frame, not on windows of {wanted}"
            )
        raise InputError(
            f"{bundle.path} takes windows of 1 to {most} frames, got {wanted}; export it again with "
            "a larger --window-length for longer ones"
        )
    return wanted
