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
from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.association import TemporalTopK
from openvis_rt.runtime.clip_vis import ClipVisPipeline
from openvis_rt.runtime.preprocess import Placement
from openvis_rt.runtime.results import FrameResult, VideoResult
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.session import SessionFactory, session_factory
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
        self, bundle: Bundle, factory: SessionFactory, family: ClipVisPipeline, precision: str
    ) -> None:
        self.bundle = bundle
        self._factory = factory
        self.backend = f"{factory.name} ({factory.device}, {precision})"
        self._family = family
        self._embedder = TextEmbedder(
            bundle, precision, lambda: factory.open(bundle, "text", precision)
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
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Pipeline:
        """Open every graph of a bundle on a backend and embed the vocabulary.

        Args:
            bundle: its directory; every file of it is checked.
            vocabulary: class names; ``"monkey, ape"`` is one class with two synonyms.
            backend: ``onnxruntime`` or ``auto``.
            device: ``cpu``, ``cuda`` or ``auto``.
            precision: ``fp32``, or another one that the bundle holds.
            mode: ``video`` keeps run-length masks so that :meth:`finish` reports the video;
                ``stream`` keeps memory flat over any length.
            selection: what a frame's result shows.
            tracker_frames, tracker_top_k: T and K of the association; None for the bundle's.
            progress: told of phrases that are embedded, done and in all.

        Raises:
            BundleError, VocabularyError, UnavailableError: see their classes.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        manifest = bundle.manifest
        if manifest.family != "clip-vis":
            raise BundleError(
                f"{bundle.path} holds a model of the family {manifest.family!r}, "
                "this version of openvis-rt runs clip-vis"
            )
        if manifest.tracker.name != "temporal-top-k":
            raise BundleError(
                f"{bundle.path} wants the tracker {manifest.tracker.name!r}, this version of "
                "openvis-rt has temporal-top-k"
            )
        if mode not in get_args(Mode):
            raise InputError(f"the mode is {' or '.join(get_args(Mode))}; got {mode!r}")
        words = Vocabulary.of(vocabulary)
        tracker = TemporalTopK(
            manifest.tracker.frames if tracker_frames is None else tracker_frames,
            manifest.tracker.top_k if tracker_top_k is None else tracker_top_k,
        )
        factory = session_factory(backend, device)
        family = ClipVisPipeline(
            bundle,
            factory,
            precision,
            tracker,
            selection or Selection(),
            keep_video=mode == "video",
        )
        with ExitStack() as stack:
            stack.callback(family.close)
            pipeline = cls(bundle, factory, family, precision)
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
        self._family.check_vocabulary_may_change()
        words = Vocabulary.of(vocabulary)
        self._family.set_vocabulary(words, self._embedder(words, progress))

    @property
    def warnings(self) -> list[str]:
        """What did not stop the work but should be known."""
        return [*self._factory.warnings, *self._embedder.warnings]

    @property
    def mode(self) -> Mode:
        """``video`` or ``stream``."""
        return "video" if self._family.keep_video else "stream"

    @property
    def selection(self) -> Selection:
        """What a frame's result shows."""
        return self._family.selection

    def placement(self, height: int, width: int) -> Placement:
        """Where a source frame of this size (pixels) lies in the network's frame."""
        return self._family.placement(height, width)

    def stream(self, frames: Iterable[Frame | npt.NDArray[np.uint8]]) -> Iterator[FrameResult]:
        """Results frame by frame, causal: each says what is known with the frames up to it.

        Args:
            frames: frames of a video, or uint8 [H, W, 3] arrays in RGB; taken one at a time.
        """
        for frame in frames:
            yield self.step(frame)

    def step(self, frame: Frame | npt.NDArray[np.uint8]) -> FrameResult:
        """The next frame of the video; see :meth:`ClipVisPipeline.step`."""
        if not isinstance(frame, Frame):
            frame = Frame(self._frames, None, frame)
        result = self._family.step(frame.image, frame.index, frame.time)
        self._frames += 1  # a frame that was refused takes no number
        return result

    def finish(self) -> VideoResult:
        """The whole video by the official scoring; then a new video begins.

        Raises:
            InputError: no frame was given, or the mode is ``stream``.
        """
        result = self._family.finish()
        self._frames = 0
        return result

    def reset(self) -> None:
        """Forget the video; the next frame starts a new one."""
        self._frames = 0
        self._family.reset()

    def close(self) -> None:
        """Give all memory back."""
        self._family.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
