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

from openvis_rt.bundle import Bundle
from openvis_rt.errors import InputError
from openvis_rt.runtime.cuda import CudaChoice
from openvis_rt.runtime.families import family_of
from openvis_rt.runtime.frame_pipeline import FramePipeline
from openvis_rt.runtime.preprocess import Placement
from openvis_rt.runtime.results import FrameResult, VideoResult
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.session import Session, SessionFactory, session_factory
from openvis_rt.runtime.text import TextEmbedder
from openvis_rt.runtime.video import Frame
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
        self, bundle: Bundle, factory: SessionFactory, inner: FramePipeline, precision: str
    ) -> None:
        self.bundle = bundle
        self._factory = factory
        self._precision = precision
        self.backend = f"{factory.name} ({factory.device}, {precision})"
        self._inner = inner
        self._embedder = TextEmbedder(
            bundle,
            precision,
            lambda: factory.open(bundle, "text", precision, fetched=("embeddings",)),
        )
        self._frames = 0

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        vocabulary: Iterable[str] | Vocabulary,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "fp32",
        mode: Mode = "video",
        selection: Selection | None = None,
        tracker_frames: int | None = None,
        tracker_top_k: int | None = None,
        cuda: CudaChoice = "auto",
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Pipeline:
        """Open every graph of a bundle on a backend and embed the vocabulary.

        Args:
            bundle: its directory; every file of it is checked.
            vocabulary: class names; ``"monkey, ape"`` is one class with two synonyms.
            backend: ``tensorrt``, ``tensorrt-rtx``, ``onnxruntime``, or ``auto``: the first of
                these that works here for this bundle; :attr:`backend` says which.
            device: ``cpu``, ``cuda`` or ``auto``.
            precision: ``fp32``, or another one that the bundle holds.
            mode: ``video`` keeps run-length masks so that :meth:`finish` reports the video;
                ``stream`` keeps memory flat over any length.
            selection: what a frame's result shows.
            tracker_frames, tracker_top_k: T and K of the association; None for the bundle's.
            cuda: the CUDA binding of the TensorRT backends: ``cuda-python`` (it has CUDA graphs),
                ``pycuda``, or ``auto``, the first of them that is installed.
            progress: told of phrases that are embedded, done and in all.

        Raises:
            BundleError, VocabularyError, UnavailableError: see their classes.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        if mode not in get_args(Mode):
            raise InputError(f"the mode is {' or '.join(get_args(Mode))}; got {mode!r}")
        words = Vocabulary.of(vocabulary)
        family = family_of(bundle, tracker_frames, tracker_top_k)
        with ExitStack() as stack:
            factory = session_factory(backend, device, bundle, precision, cuda)
            stack.callback(factory.close)
            frames = FramePipeline(
                bundle,
                family,
                factory,
                precision,
                selection or Selection(),
                keep_video=mode == "video",
            )
            stack.callback(frames.close)
            pipeline = cls(bundle, factory, frames, precision)
            pipeline.set_vocabulary(words, progress)
            stack.pop_all()
        return pipeline

    def set_vocabulary(
        self,
        vocabulary: Iterable[str] | Vocabulary,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """Look for other classes from the next frame on; nothing is rebuilt.

        Embeddings of phrases that were seen before come from the bundle's cache.

        Raises:
            InputError: in the middle of a video in video mode.
        """
        self._inner.check_vocabulary_may_change()
        words = Vocabulary.of(vocabulary)
        self._inner.set_vocabulary(words, self._embedder(words, progress))

    @property
    def warnings(self) -> list[str]:
        """What did not stop the work but should be known."""
        return [*self._factory.warnings, *self._embedder.warnings]

    def counters(self) -> dict[str, float]:
        """Seconds and bytes since it was opened.

        ``place_seconds``, ``submit_seconds``, ``wait_seconds``, ``associate_seconds`` and
        ``masks_seconds`` are the host's, as :class:`FramePipeline` says. What the backend counts
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

    def placement(self, height: int, width: int) -> Placement:
        """Where a source frame of this size (pixels) lies in the network's frame."""
        return self._inner.placement(height, width)

    def stream(
        self, frames: Iterable[Frame | npt.NDArray[np.uint8]], *, in_flight: int | None = None
    ) -> Iterator[FrameResult]:
        """Results frame by frame, causal: each says what is known with the frames up to it.

        Where the backend allows, the device works on the next frame while the host works on this
        one. Then a frame's result comes when the next frame is there: with a live source and
        ``in_flight`` 1 it comes at once. If the caller stops early, a frame that was taken ahead
        becomes no part of the video.

        Args:
            frames: frames of a video, or uint8 [H, W, 3] arrays in RGB; taken one at a time.
            in_flight: frames that the device may have at once; None for all that it can.
        """
        inner, source = self._inner, iter(frames)
        most = min(in_flight or inner.most_in_flight, inner.most_in_flight)
        failure: Exception | None = None
        try:
            while failure is None:
                try:
                    frame = next(source, None)
                    if frame is None:
                        break
                    self._submit(frame)
                except Exception as exc:  # first the results of the frames before it
                    failure = exc
                while inner.in_flight == most or (failure and inner.in_flight):
                    yield inner.collect()
            while inner.in_flight:
                yield inner.collect()
        finally:
            self._frames -= inner.in_flight
            inner.discard()
        if failure is not None:
            raise failure

    def step(self, frame: Frame | npt.NDArray[np.uint8]) -> FrameResult:
        """The next frame of the video, and its result; see :meth:`stream`.

        Raises:
            InputError: the frame is not uint8 [H, W, 3], or of another size than the first.
            BackendError: a graph failed, or gave NaN or infinity.
        """
        self._submit(frame)
        return self._inner.collect()

    def _open_text(self) -> Session:
        return self._factory.open(self.bundle, "text", self._precision, fetched=("embeddings",))

    def _submit(self, frame: Frame | npt.NDArray[np.uint8]) -> None:
        if not isinstance(frame, Frame):
            frame = Frame(self._frames, None, frame)
        self._inner.submit(frame.image, frame.index, frame.time)
        self._frames += 1  # a frame that was refused takes no number

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
