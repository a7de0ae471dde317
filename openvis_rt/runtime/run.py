"""A video through a pipeline into files: overlay, JSON lines, results.

video mode   pass 1: every frame through the pipeline; then the official scoring writes results.json
             pass 2: each frame is logged with the video's own tracks and scores and, if an overlay
             is wanted, read again and drawn
stream mode  one pass, causal: what is drawn is what was known at that frame; memory stays flat

    decode, resize  ->  device, association, run lengths, log  ->  draw  ->  encode

Each of these four has a thread, and a few frames wait between them. Of a live source only the
newest frame waits, and the folder grows while the run goes on (:mod:`.recording`).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.errors import InputError, OutputError, VideoError
from openvis_rt.files import check_replaceable, output_directory, output_errors
from openvis_rt.geometry import is_very_large
from openvis_rt.runtime.advice import Warn, explain_letterbox, nothing_found
from openvis_rt.runtime.ages import Ages
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.recording import (
    STOPPED,
    UNFINISHED,
    FrameLines,
    LogFile,
    growing_directory,
    is_run,
)
from openvis_rt.runtime.report import RunOptions, RunReport
from openvis_rt.runtime.stopping import stoppable
from openvis_rt.runtime.video.drawn import DrawnVideo
from openvis_rt.runtime.video.encoders import Encoder, choose_encoder
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import Frame, VideoSource, is_live, open_video
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    VideoResult,
    write_categories,
    write_results,
)
from openvis_rt.runtime.video.sources import shown_name
from openvis_rt.runtime.views.opening import setting_of
from openvis_rt.runtime.views.views import Views

__all__ = ["RunOptions", "RunReport", "resolve_mode", "run_video"]

_NO_IMAGE = np.empty((0, 0, 3), np.uint8)

Progress = Callable[[str, int, int | None], None]
"""Called with the phase, frames done, and frames in all if that is known."""


def resolve_mode(mode: str, source: str) -> Literal["video", "stream"]:
    """The mode that a source is run in.

    Raises:
        InputError: video mode for a source that can be read only once.
    """
    if mode == "video" and is_live(source):
        raise InputError(
            f"{shown_name(source)} can be read only once, and video mode reads twice; use "
            "--mode stream"
        )
    if mode in ("video", "stream"):
        return "video" if mode == "video" else "stream"
    return "stream" if is_live(source) else "video"


def run_video(
    pipeline: Pipeline,
    source: str,
    output: Path | None,
    options: RunOptions | None = None,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
    views: Views | None = None,
    lines: BinaryIO | None = None,
) -> RunReport:
    """Run a whole source in the pipeline's own mode; :func:`resolve_mode` tells which one fits it.

    The first SIGINT or SIGTERM ends it with whole files of the frames so far, and of a source that
    has an end with ``stopped.json``, which says so; the second one aborts.

    Args:
        pipeline: open, with its vocabulary. It begins a new video, and forgets it at the end, also
            where the end is an error.
        source: a file, a directory of images, a camera index or a stream address.
        output: directory that takes ``overlay.mp4``, ``frames.jsonl``, ``categories.json`` and, in
            video mode, ``results.json``. That of a file gets its name only when everything in it is
            whole. That of a live source has it from the first frame on, is marked by
            ``unfinished.json`` until the end, and is kept whatever the end is. None for no
            directory.
        options: see :class:`RunOptions`.
        progress: told after each frame.
        warn: told what does not stop the run, when it arises.
        views: open; each frame is shown there as soon as its result is known.
        lines: takes the lines of ``frames.jsonl``, too, each when it is known: in video mode that
            is after the last frame. If its reader goes away the run ends as by ``stop``, and well.

    Raises:
        VideoError: the source cannot be read to its end.
        OutputError: ``output`` exists, holds the source, or cannot be written.
        InputError, UnavailableError: the encoder, see :func:`.encoders.choose_encoder`.
        KeyboardInterrupt: it was stopped before the first frame came.
    """
    options = options or RunOptions()
    mode = resolve_mode(pipeline.mode, source)
    if output is not None:
        _refuse_source_within(source, output)
        with output_errors(output):
            check_replaceable(output.absolute(), overwrite=options.overwrite, ours=is_run)
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        warn(message)

    with ExitStack() as stack:
        stopped = stack.enter_context(stoppable())
        run = _Run(pipeline, source, options, progress, tell, stopped, views, lines)
        pipeline.reset()
        stack.callback(pipeline.reset)
        with run.opened() as video:
            encoder = None  # chosen before anything is computed
            if options.overlay and output is not None:
                encoder = choose_encoder(options.encoder, video.width, video.height, video.fps)
            explain_letterbox(pipeline, video, tell)
            if views is not None:
                views.begin(setting_of(pipeline, video), stopped)
            with _folder(output, video, options) as folder:
                work = run.stream if mode == "stream" else run.whole
                found = work(video, folder, encoder)
                ended_early = stopped.is_set() and not run.left
                outputs = _finish(folder, output, video, found, stopped=stopped.is_set())
            delay = pipeline.delay(_in_flight(video)) if mode == "stream" else 0
        if not found.tracks:
            tell(nothing_found(pipeline, found.best))
    return RunReport(
        mode=mode,
        backend=pipeline.backend,
        frames=found.frames,
        tracks=len(found.tracks),
        seconds=found.seconds,
        delay_frames=delay,
        delay_seconds=float(delay / video.fps),
        outputs=outputs,
        warnings=[*told, *(views.warnings if views else ()), *pipeline.warnings],
        encoder=None if encoder is None else encoder.name,
        stopped=ended_early,
        dropped=video.dropped if video.live else None,
        age_ms=found.ages.to_json() if video.live else None,
        reconnections=video.reconnections,
    )


def _refuse_source_within(source: str, output: Path) -> None:
    # not Path.resolve, which raises on links in a circle
    place = os.path.realpath(output)
    if not is_live(source) and Path(os.path.realpath(source)).is_relative_to(place):
        raise OutputError(f"{source} lies in {output}; give another place for the output")


@contextmanager
def _folder(output: Path | None, video: VideoSource, options: RunOptions) -> Iterator[Path | None]:
    """Where a run writes, if it does."""
    if output is None:
        yield None
    elif video.live:
        with growing_directory(output, overwrite=options.overwrite) as folder:
            yield folder
    else:
        with output_directory(output, overwrite=options.overwrite, ours=is_run) as folder:
            yield folder


def _finish(
    folder: Path | None, output: Path | None, video: VideoSource, found: _Found, *, stopped: bool
) -> dict[str, Path]:
    """Say in the folder if a source that has an end was stopped before it; the files by kind."""
    if folder is None or output is None:
        return {}
    if stopped and not video.live:
        facts = {"frames": found.frames, "of": video.frame_count}
        (folder / STOPPED).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    names = sorted(file.name for file in folder.iterdir() if file.name != UNFINISHED)
    return {Path(name).stem: output / name for name in names}


class _Writer(Protocol):
    def write(self, image: npt.NDArray[np.uint8], result: FrameResult, /) -> None:
        """Take a frame, uint8 [H, W, 3], or without rows where no writer needs it."""


class _Log(Protocol):
    def write(self, result: FrameResult) -> None:
        """Take a frame's objects."""


@dataclass(frozen=True)
class _Logged:
    """A log as a writer."""

    log: _Log

    def write(self, _image: npt.NDArray[np.uint8], result: FrameResult) -> None:
        self.log.write(result)


@dataclass
class _Found:
    """Of the frames so far.

    Attributes:
        frames: that were segmented.
        seconds: in what time, when all are.
        tracks: ids that some frame shows.
        best: the best score, and of which class.
        ages: of the results of a live source.
    """

    frames: int = 0
    seconds: float = 0.0
    tracks: set[int] = field(default_factory=set)
    best: tuple[float, str] = (0.0, "")
    ages: Ages = field(default_factory=Ages)


@dataclass
class _Run:
    """One source on its way to one folder, or to none.

    Attributes:
        left: whoever read the lines has gone, which ended the run.
    """

    pipeline: Pipeline
    source: str
    options: RunOptions
    progress: Progress
    tell: Warn
    stopped: threading.Event
    views: Views | None
    lines: BinaryIO | None
    left: bool = False

    @contextmanager
    def opened(self) -> Iterator[VideoSource]:
        """The source, from its first frame on; its warnings are told when it is closed."""
        video = open_video(
            self.source,
            allow_truncated=self.options.allow_truncated,
            prepare=self.pipeline.prepared,
            stride=self.options.stride,
            live=self.options.live,
            stop=self.stopped,
            tell=self.tell,
        )
        with video:
            yield video
            for message in video.warnings:
                self.tell(message)

    def stream(self, video: VideoSource, folder: Path | None, encoder: Encoder | None) -> _Found:
        """Draw and log each frame as soon as its result is known."""
        found = _Found()
        with self.writers(video, folder, encoder) as writers:
            for image, result in self.segmented(video, found, images=encoder is not None):
                for writer in writers:
                    writer.write(image, result)
                found.tracks.update(instance.track_id for instance in result.instances)
        found.best = self.pipeline.best
        return found

    def whole(self, video: VideoSource, folder: Path | None, encoder: Encoder | None) -> _Found:
        """Segment the video, score it as a whole, then draw and log it."""
        found = _Found()
        seen = [(f.index, f.time) for _, f in self.segmented(video, found, images=False)]
        result = self.pipeline.finish()
        if folder is not None:
            write_results(folder / "results.json", result.to_results(self.options.video_id))
        self.draw(result, seen, video, folder, encoder, found)
        found.best = max(((i.score, i.name) for i in result.instances), default=(0.0, ""))
        return found

    def draw(
        self,
        result: VideoResult,
        seen: list[tuple[int, float | None]],
        video: VideoSource,
        folder: Path | None,
        encoder: Encoder | None,
        found: _Found,
    ) -> None:
        """The second pass: every frame with the whole video's tracks and scores.

        Where it is stopped, the overlay ends there, and the log goes on.
        """
        selection, before = self.pipeline.selection, self.stopped.is_set()
        with ExitStack() as stack:
            again: Iterator[Frame] | None = None
            if encoder is not None:
                again = stack.enter_context(
                    open_video(
                        self.source,
                        allow_truncated=self.options.allow_truncated,
                        ahead=not is_very_large(video.height, video.width),
                        stride=self.options.stride,
                    )
                )
            writers = stack.enter_context(self.writers(video, folder, encoder))
            for place, (index, moment) in enumerate(seen):
                shown = result.frame(
                    place, moment, threshold=selection.threshold, limit=selection.limit
                )
                shown = replace(shown, index=index)
                found.tracks.update(instance.track_id for instance in shown.instances)
                draws = again is not None and self.stopped.is_set() == before
                image = self._read_again(again, place).image if again and draws else _NO_IMAGE
                for writer in writers:
                    if draws or not isinstance(writer, DrawnVideo):
                        writer.write(image, shown)
                del image  # before the next one is decoded
                self.progress("drawing", place + 1, result.frame_count)

    def _read_again(self, frames: Iterator[Frame], index: int) -> Frame:
        if (frame := next(frames, None)) is None:
            raise VideoError(
                f"{self.source} ended after {index} frames when it was read again to be drawn: it "
                "was changed meanwhile. Run once more, or with --no-overlay"
            )
        return frame

    def segmented(
        self, video: VideoSource, found: _Found, *, images: bool
    ) -> Iterator[tuple[npt.NDArray[np.uint8], FrameResult]]:
        """Every frame's image and its result, as soon as it is known.

        Args:
            video: the source, at its first frame.
            found: counts the frames, and at the end their time.
            images: give them; else every image is empty, and none is kept.
        """
        images = images or self.views is not None
        most = self.options.max_frames
        kept: deque[tuple[npt.NDArray[np.uint8], float | None]] = deque()  # of frames in flight
        begin = time.perf_counter()

        def frames() -> Iterator[Frame]:
            for frame in islice(video, most):
                kept.append((frame.image if images else _NO_IMAGE, video.arrived))
                yield frame
                if self.stopped.is_set():
                    break

        for result in self.pipeline.stream(frames(), in_flight=_in_flight(video)):
            found.frames += 1
            image, arrived = kept.popleft()
            self._count(video, found, arrived)
            if self.views is not None:
                self.views.write(image, result)
            yield image, result
            self.progress(_phase(video), found.frames, most or video.frame_count)
        found.seconds = time.perf_counter() - begin
        if self.views is not None:
            self.views.finishing()
        if not found.frames:
            raise VideoError(f"{video.name} gave no frame")
        self._check_embeddings(found.frames)

    def _count(self, video: VideoSource, found: _Found, arrived: float | None) -> None:
        """Note how old a live result is."""
        if not video.live or arrived is None:
            return
        age = time.monotonic() - arrived
        found.ages.add(age)
        if self.views is not None:
            self.views.board.count(video.dropped, age)

    def _check_embeddings(self, frames: int) -> None:
        given = self.pipeline.given_embeddings
        cut = self.options.max_frames is not None or self.stopped.is_set()
        if given is not None and given != frames and not cut:
            self.tell(
                f"image embeddings were given for {given} frames, and the video has "
                f"{frames}: they may be another video's"
            )

    @contextmanager
    def writers(
        self, video: VideoSource, folder: Path | None, encoder: Encoder | None
    ) -> Iterator[list[_Writer]]:
        """What takes the frames; the overlay, which alone needs their images, comes last."""
        writers: list[_Writer] = []
        with ExitStack() as stack:
            if self.lines is not None:
                writers.append(_Logged(FrameLines(self.lines, self._leave, self.stopped)))
            if folder is not None:
                write_categories(folder / "categories.json", self.pipeline.class_names)
                path = folder / "frames.jsonl"
                log: _Log
                if video.live:
                    log = stack.enter_context(LogFile(path))
                else:
                    log = stack.enter_context(FrameLog(path))
                writers.append(_Logged(log))
            overlay = None
            if folder is not None and encoder is not None:
                overlay = stack.enter_context(self._overlay(folder, video, encoder))
                also = None  # in video mode the first pass is shown
                if self.views is not None and self.pipeline.mode == "stream":
                    also = self.views.show_drawn
                writers.append(stack.enter_context(DrawnVideo(overlay, also)))
            yield writers
        for message in overlay.warnings if overlay else ():
            self.tell(message)

    def _overlay(self, folder: Path, video: VideoSource, encoder: Encoder) -> OverlayWriter:
        return OverlayWriter(
            folder / "overlay.mp4",
            video.width,
            video.height,
            video.fps,
            self.source if Path(self.source).is_file() else None,
            encoder,
            audio_begin=video.start,
            growing=video.live,
        )

    def _leave(self) -> None:
        self.left = True
        self.stopped.set()


def _phase(video: VideoSource) -> str:
    return f"segmenting, {video.dropped} dropped" if video.dropped else "segmenting"


def _in_flight(video: VideoSource) -> int | None:
    """A live frame's result is wanted now, not when the next window has come."""
    return 1 if video.live else None
