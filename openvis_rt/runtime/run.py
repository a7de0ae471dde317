"""A video through a pipeline into files: overlay, JSON lines, results.

video mode   pass 1: every frame through the pipeline; then the official scoring writes results.json
             pass 2: each frame is logged with the video's own tracks and scores and, if an overlay
             is wanted, read again and drawn
stream mode  one pass, causal: what is drawn is what was known at that frame; memory stays flat

    decode, resize  ->  device, association, run lengths, log  ->  draw  ->  encode

Each of these four has a thread, and a few frames wait between them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError, OutputError, VideoError
from openvis_rt.files import output_directory
from openvis_rt.runtime.advice import Warn, explain_letterbox, nothing_found
from openvis_rt.runtime.pipeline import Mode, Pipeline
from openvis_rt.runtime.stopping import stoppable
from openvis_rt.runtime.video.drawn import DrawnVideo
from openvis_rt.runtime.video.encoders import Encoder, EncoderOptions, choose_encoder
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import Frame, VideoSource, is_live, open_video
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    VideoResult,
    write_categories,
    write_results,
)
from openvis_rt.runtime.views.opening import setting_of
from openvis_rt.runtime.views.views import Views

__all__ = ["RunOptions", "RunReport", "resolve_mode", "run_video"]

_NO_IMAGE = np.empty((0, 0, 3), np.uint8)
_STOPPED = "stopped.json"  # only where a run ended before its source did
_PICTURES = ("page.html", "recording.rrd")  # where --html and --rerun were told to put them here
_OUTPUTS = frozenset(
    {"overlay.mp4", "frames.jsonl", "results.json", "categories.json", _STOPPED, *_PICTURES}
)

Progress = Callable[[str, int, int | None], None]
"""Called with the phase, frames done, and frames in all if that is known."""


@dataclass(frozen=True)
class RunOptions:
    """What to read and what to write.

    Attributes:
        video_id: of the entries in ``results.json``.
        overlay: write ``overlay.mp4``.
        allow_truncated: take what can be read of a damaged video.
        max_frames: stop after so many; None for all.
        overwrite: replace the output directory of an earlier run; no other one is replaced.
        encoder: how the overlay is encoded.
    """

    video_id: int = 1
    overlay: bool = True
    allow_truncated: bool = False
    max_frames: int | None = None
    overwrite: bool = False
    encoder: EncoderOptions = field(default_factory=EncoderOptions)


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        mode: ``video`` or ``stream``.
        backend: where the graphs ran, for people.
        frames: how many were segmented.
        tracks: how many objects some frame shows.
        seconds: wall time of the pass that segments: reading and the pipeline, and in stream mode
            drawing and writing, but for the last few frames', which come after.
        delay_frames: how many further frames a frame's result may have to wait for in stream mode:
            the rest of its window, and the windows that the device has ahead.
        delay_seconds: that in the video's time.
        outputs: the files that were written, by kind.
        warnings: what was told of this run and of its pipeline.
        encoder: FFmpeg's name of the overlay's encoder; None without an overlay.
        stopped: Ctrl-C or SIGTERM ended it before its source: the files are whole, and of the
            frames so far.
    """

    mode: Mode
    backend: str
    frames: int
    tracks: int
    seconds: float
    delay_frames: int
    delay_seconds: float
    outputs: dict[str, Path]
    warnings: list[str]
    encoder: str | None = None
    stopped: bool = False

    @property
    def frames_per_second(self) -> float:
        """Frames over ``seconds``."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types; paths are strings."""
        return {
            "mode": self.mode,
            "backend": self.backend,
            "frames": self.frames,
            "tracks": self.tracks,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
            "delay_frames": self.delay_frames,
            "delay_seconds": round(self.delay_seconds, 3),
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
            "warnings": self.warnings,
            "encoder": self.encoder,
            "stopped": self.stopped,
        }


def resolve_mode(mode: str, source: str) -> Literal["video", "stream"]:
    """The mode that a source is run in.

    Raises:
        InputError: video mode for a source that can be read only once.
    """
    if mode == "video" and is_live(source):
        raise InputError(
            f"{source} can be read only once, and video mode reads twice; use --mode stream"
        )
    if mode in ("video", "stream"):
        return "video" if mode == "video" else "stream"
    return "stream" if is_live(source) else "video"


def run_video(
    pipeline: Pipeline,
    source: str,
    output: Path,
    options: RunOptions | None = None,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
    views: Views | None = None,
) -> RunReport:
    """Run a whole source in the pipeline's own mode; :func:`resolve_mode` tells which one fits it.

    The first SIGINT or SIGTERM ends it with whole files of the frames so far, and of a source that
    has an end with ``stopped.json``, which says so; the second one aborts.

    Args:
        pipeline: open, with its vocabulary. It begins a new video, and forgets it at the end, also
            where the end is an error.
        source: a file, a directory of images, a camera index or a stream address.
        output: directory that takes ``overlay.mp4``, ``frames.jsonl``, ``categories.json`` and, in
            video mode, ``results.json``; it gets its name only when everything in it is whole.
        options: see :class:`RunOptions`.
        progress: told after each frame.
        warn: told what does not stop the run, when it arises.
        views: open; each frame is shown there as soon as its result is known.

    Raises:
        VideoError: the source cannot be read to its end.
        OutputError: ``output`` exists, holds the source, or cannot be written.
        InputError, UnavailableError: the encoder, see :func:`.encoders.choose_encoder`.
    """
    options = options or RunOptions()
    mode = resolve_mode(pipeline.mode, source)
    if not is_live(source) and Path(source).resolve().is_relative_to(output.resolve()):
        raise OutputError(f"{source} lies in {output}; give another place for the output")
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        warn(message)

    with ExitStack() as stack:
        folder = stack.enter_context(
            output_directory(output, overwrite=options.overwrite, ours=_is_run)
        )
        stopped = stack.enter_context(stoppable())
        run = _Run(pipeline, source, folder, options, progress, tell, stopped, views)
        pipeline.reset()
        stack.callback(pipeline.reset)
        with run.opened() as video:
            encoder = None  # chosen before anything is computed
            if options.overlay:
                encoder = choose_encoder(options.encoder, video.width, video.height, video.fps)
            explain_letterbox(pipeline, video, tell)
            if views is not None:
                views.begin(setting_of(pipeline, video), stopped)
            write_categories(folder / "categories.json", pipeline.class_names)
            found = run.stream(video, encoder) if mode == "stream" else run.whole(video, encoder)
            delay = pipeline.delay(_in_flight(video)) if mode == "stream" else 0
            delay_seconds = float(delay / video.fps)
        ended_early = stopped.is_set() and not video.live
        if ended_early:
            facts = {"frames": found.frames, "of": video.frame_count}
            (folder / _STOPPED).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        if not found.tracks:
            tell(nothing_found(pipeline, found.best))
        outputs = {file.stem: output / file.name for file in sorted(folder.iterdir())}
    return RunReport(
        mode=mode,
        backend=pipeline.backend,
        frames=found.frames,
        tracks=found.tracks,
        seconds=found.seconds,
        delay_frames=delay,
        delay_seconds=delay_seconds,
        outputs=outputs,
        warnings=[*told, *pipeline.warnings],
        encoder=None if encoder is None else encoder.name,
        stopped=ended_early,
    )


@dataclass(frozen=True)
class _Found:
    """Frames that were segmented and in what time, tracks that were shown, and the best score."""

    frames: int
    seconds: float
    tracks: int
    best: tuple[float, str]


@dataclass(frozen=True)
class _Run:
    """One source on its way to one folder."""

    pipeline: Pipeline
    source: str
    folder: Path
    options: RunOptions
    progress: Progress
    tell: Warn
    stopped: threading.Event
    views: Views | None

    @contextmanager
    def opened(self) -> Iterator[VideoSource]:
        """The source, from its first frame on; its warnings are told when it is closed."""
        video = open_video(
            self.source,
            allow_truncated=self.options.allow_truncated,
            prepare=self.pipeline.prepared,
        )
        with video:
            yield video
            for message in video.warnings:
                self.tell(message)

    def stream(self, video: VideoSource, encoder: Encoder | None) -> _Found:
        """Draw and log each frame as soon as its result is known."""
        tracks: set[int] = set()
        clock = _Clock()
        with self.writers(video, encoder) as (log, overlay):
            for image, result in self.segmented(video, clock, images=overlay is not None):
                log.write(result)
                tracks.update(instance.track_id for instance in result.instances)
                if overlay is not None:
                    overlay.write(image, result)
        return _Found(clock.frames, clock.seconds, len(tracks), self.pipeline.best)

    def whole(self, video: VideoSource, encoder: Encoder | None) -> _Found:
        """Segment the video, score it as a whole, then draw and log it."""
        clock = _Clock()
        times = [found.time for _, found in self.segmented(video, clock, images=False)]
        result = self.pipeline.finish()
        write_results(self.folder / "results.json", result.to_results(self.options.video_id))
        shown = self.draw(result, times, video, encoder)
        best = max(((i.score, i.name) for i in result.instances), default=(0.0, ""))
        return _Found(clock.frames, clock.seconds, len(shown), best)

    def draw(
        self,
        result: VideoResult,
        times: list[float | None],
        video: VideoSource,
        encoder: Encoder | None,
    ) -> set[int]:
        """The second pass: every frame with the whole video's tracks and scores.

        Where it is stopped, the overlay ends there, and the log goes on.

        Returns:
            the ids of the tracks that some frame shows.
        """
        selection, before = self.pipeline.selection, self.stopped.is_set()
        tracks: set[int] = set()
        with ExitStack() as stack:
            again: Iterator[Frame] = iter(())
            if encoder is not None:
                again = stack.enter_context(
                    open_video(self.source, allow_truncated=self.options.allow_truncated)
                )
            log, overlay = stack.enter_context(self.writers(video, encoder))
            for index, time in enumerate(times):
                shown = result.frame(
                    index, time, threshold=selection.threshold, limit=selection.limit
                )
                log.write(shown)
                tracks.update(instance.track_id for instance in shown.instances)
                if overlay is not None and self.stopped.is_set() == before:
                    overlay.write(self._read_again(again, index).image, shown)
                self.progress("drawing", index + 1, result.frame_count)
        return tracks

    def _read_again(self, frames: Iterator[Frame], index: int) -> Frame:
        if (frame := next(frames, None)) is None:
            raise VideoError(
                f"{self.source} ended after {index} frames when it was read again to be drawn: it "
                "was changed meanwhile. Run once more, or with --no-overlay"
            )
        return frame

    def segmented(
        self, video: VideoSource, clock: _Clock, *, images: bool
    ) -> Iterator[tuple[npt.NDArray[np.uint8], FrameResult]]:
        """Every frame's image and its result, as soon as it is known.

        Args:
            video: the source, at its first frame.
            clock: counts the frames, and at the end their time.
            images: give them; else every image is empty, and none is kept.
        """
        images = images or self.views is not None
        most = self.options.max_frames
        kept: deque[npt.NDArray[np.uint8]] = deque()  # of the frames in flight
        begin = time.perf_counter()

        def frames() -> Iterator[Frame]:
            for frame in islice(video, most):
                kept.append(frame.image if images else _NO_IMAGE)
                yield frame
                if self.stopped.is_set():
                    break

        for result in self.pipeline.stream(frames(), in_flight=_in_flight(video)):
            clock.frames += 1
            image = kept.popleft()
            if self.views is not None:
                self.views.write(image, result)
            yield image, result
            self.progress("segmenting", clock.frames, most or video.frame_count)
        clock.seconds = time.perf_counter() - begin
        if self.views is not None:
            self.views.finishing()
        if not clock.frames:
            raise VideoError(f"{video.name} gave no frame")
        given = self.pipeline.given_embeddings
        cut = most is not None or self.stopped.is_set()
        if given is not None and given != clock.frames and not cut:
            self.tell(
                f"image embeddings were given for {given} frames, and the video has "
                f"{clock.frames}: they may be another video's"
            )

    @contextmanager
    def writers(
        self, video: VideoSource, encoder: Encoder | None
    ) -> Iterator[tuple[FrameLog, DrawnVideo | None]]:
        """The log and, if it is wanted, the overlay; what the latter warns of is told."""
        with ExitStack() as stack:
            log = stack.enter_context(FrameLog(self.folder / "frames.jsonl"))
            if encoder is None:
                yield log, None
                return
            audio = self.source if Path(self.source).is_file() else None
            path = self.folder / "overlay.mp4"
            writer = stack.enter_context(
                OverlayWriter(
                    path,
                    video.width,
                    video.height,
                    video.fps,
                    audio,
                    encoder,
                    audio_begin=video.start,
                )
            )
            with DrawnVideo(writer) as overlay:
                yield log, overlay
            for message in writer.warnings:
                self.tell(message)


@dataclass
class _Clock:
    """Frames that were segmented so far, and in what time when all are."""

    frames: int = 0
    seconds: float = 0.0


def _in_flight(video: VideoSource) -> int | None:
    """A live frame's result is wanted now, not when the next window has come."""
    return 1 if video.live else None


def _is_run(folder: Path) -> bool:
    return {file.name for file in folder.iterdir()} <= _OUTPUTS
