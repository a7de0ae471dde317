"""A video through a pipeline into files: overlay, JSON lines, results.

video mode   pass 1: every frame through the pipeline; then the official scoring writes results.json
             pass 2: the source is read again and drawn with the video's own tracks and scores
stream mode  one pass, causal: what is drawn is what was known at that frame; memory stays flat
"""

from __future__ import annotations

import signal
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
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.selection import Selection
from openvis_rt.runtime.video.overlay import OverlayWriter, draw
from openvis_rt.runtime.video.reading import Frame, VideoSource, is_live, open_video
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    Instance,
    VideoResult,
    box_of,
    write_results,
)

__all__ = ["RunOptions", "RunReport", "frame_results", "run_video"]

_OUTPUTS = frozenset({"overlay.mp4", "frames.jsonl", "results.json"})

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
    """

    video_id: int = 1
    overlay: bool = True
    allow_truncated: bool = False
    max_frames: int | None = None
    overwrite: bool = False


@dataclass
class RunReport:
    """What a run did: files by kind, frames, warnings for people.

    ``seconds`` is the wall time of the pass that segments: reading and the pipeline, and in stream
    mode drawing and writing. ``delay_frames`` is how many further frames a frame's result may have
    to wait for in stream mode: the rest of its window, and the windows that the device has ahead.
    ``delay_seconds`` is that in the video's time.
    """

    mode: str
    backend: str
    outputs: dict[str, Path] = field(default_factory=dict)
    frames: int = 0
    tracks: int = 0
    seconds: float = 0.0
    delay_frames: int = 0
    delay_seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

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
    options: RunOptions,
    progress: Progress = lambda *_: None,
) -> RunReport:
    """Run a whole source in the pipeline's own mode; :func:`resolve_mode` tells which one fits it.

    Args:
        pipeline: open, with its vocabulary. It begins a new video, and forgets it at the end, also
            where the end is an error.
        source: a file, a directory of images, a camera index or a stream address.
        output: directory that takes ``overlay.mp4``, ``frames.jsonl`` and ``results.json``; it gets
            its name only when everything in it is whole.
        options: see :class:`RunOptions`.
        progress: told after each frame.

    Raises:
        VideoError: the source cannot be read to its end.
        OutputError: ``output`` exists, holds the source, or cannot be written.
    """
    mode = resolve_mode(pipeline.mode, source)
    if not is_live(source) and Path(source).resolve().is_relative_to(output.resolve()):
        raise OutputError(f"{source} lies in {output}; give another place for the output")
    with ExitStack() as stack:
        folder = stack.enter_context(
            output_directory(output, overwrite=options.overwrite, ours=_is_run)
        )
        video = stack.enter_context(open_video(source, allow_truncated=options.allow_truncated))
        pipeline.reset()
        stack.callback(pipeline.reset)
        report = RunReport(mode, pipeline.backend)
        _explain_letterbox(pipeline, video, report)
        if mode == "stream":
            report.delay_frames = pipeline.delay(_in_flight(video))
            report.delay_seconds = float(report.delay_frames / video.fps)
            _stream(pipeline, video, source, folder, options, report, progress)
        else:
            _whole(pipeline, video, source, folder, options, report, progress)
        report.warnings += [*video.warnings, *pipeline.warnings]
        report.outputs = {file.stem: output / file.name for file in sorted(folder.iterdir())}
    return report


def _in_flight(video: VideoSource) -> int | None:
    """A live frame's result is wanted now, not when the next window has come."""
    return 1 if video.live else None


def _is_run(folder: Path) -> bool:
    return {file.name for file in folder.iterdir()} <= _OUTPUTS


def frame_results(
    video: VideoResult, selection: Selection, index: int, time: float | None
) -> FrameResult:
    """One frame of a finished video: each shown track once, under its best class."""
    instances: dict[int, Instance] = {}
    for found in video.instances:
        rle = found.segmentations[index]
        known = instances.get(found.track_id)
        if found.score < selection.threshold or (known and known.score >= found.score):
            continue
        box = box_of(rle)
        if box[2] > 0:
            instances[found.track_id] = Instance(
                found.track_id, found.category_id, found.name, found.score, box, rle
            )
    best = sorted(instances.values(), key=lambda i: -i.score)[: selection.limit]
    return FrameResult(index, time, video.height, video.width, tuple(best))


def _stream(
    pipeline: Pipeline,
    video: VideoSource,
    source: str,
    folder: Path,
    options: RunOptions,
    report: RunReport,
    progress: Progress,
) -> None:
    tracks: set[int] = set()
    with _writers(video, source, folder, options, report) as (log, overlay):
        for image, result in _pass(pipeline, video, options, report, progress):
            log.write(result)
            tracks.update(instance.track_id for instance in result.instances)
            if overlay is not None:
                overlay.write(draw(image, result))
    report.tracks = len(tracks)


def _whole(
    pipeline: Pipeline,
    video: VideoSource,
    source: str,
    folder: Path,
    options: RunOptions,
    report: RunReport,
    progress: Progress,
) -> None:
    for _ in _pass(pipeline, video, options, report, progress):
        pass
    result = pipeline.finish()
    write_results(folder / "results.json", result.to_results(options.video_id))
    again = open_video(source, allow_truncated=options.allow_truncated)
    with again, _writers(again, source, folder, options, report) as (log, overlay):
        for index, frame in enumerate(again):
            if index == result.frame_count:
                break
            shown = frame_results(result, pipeline.selection, index, frame.time)
            log.write(shown)
            if overlay is not None:
                overlay.write(draw(frame.image, shown))
            progress("drawing", index + 1, result.frame_count)
    threshold = pipeline.selection.threshold
    report.tracks = len({i.track_id for i in result.instances if i.score >= threshold})


def _pass(
    pipeline: Pipeline,
    video: VideoSource,
    options: RunOptions,
    report: RunReport,
    progress: Progress,
) -> Iterator[tuple[npt.NDArray[np.uint8], FrameResult]]:
    total = options.max_frames or video.frame_count
    images: deque[npt.NDArray[np.uint8]] = deque()  # of the frames in flight
    begin = time.perf_counter()
    with _stop_on_interrupt(enabled=video.live) as stopped:

        def frames() -> Iterator[Frame]:
            for frame in islice(video, options.max_frames):
                images.append(frame.image)
                yield frame
                if stopped.is_set():
                    break

        for result in pipeline.stream(frames(), in_flight=_in_flight(video)):
            report.frames += 1
            yield images.popleft(), result
            progress("segmenting", report.frames, total)
    report.seconds = time.perf_counter() - begin
    if not report.frames:
        raise VideoError(f"{video.name} gave no frame")
    given = pipeline.given_embeddings
    if given is not None and given != report.frames and options.max_frames is None:
        report.warnings.append(
            f"image embeddings were given for {given} frames, and the video has {report.frames}: "
            "they may be another video's"
        )


@contextmanager
def _writers(
    video: VideoSource, source: str, folder: Path, options: RunOptions, report: RunReport
) -> Iterator[tuple[FrameLog, OverlayWriter | None]]:
    with ExitStack() as stack:
        log = stack.enter_context(FrameLog(folder / "frames.jsonl"))
        overlay = None
        if options.overlay:
            audio = source if Path(source).is_file() else None
            overlay = stack.enter_context(
                OverlayWriter(folder / "overlay.mp4", video.width, video.height, video.fps, audio)
            )
        yield log, overlay
        if overlay is not None:
            report.warnings += overlay.warnings


@contextmanager
def _stop_on_interrupt(*, enabled: bool) -> Iterator[threading.Event]:
    """Ctrl-C is the ordinary end of a live source: the first ends the run, the next aborts it."""
    stopped = threading.Event()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _explain_letterbox(pipeline: Pipeline, video: VideoSource, report: RunReport) -> None:
    placement = pipeline.placement(video.height, video.width)
    rule = pipeline.bundle.manifest.preprocess
    network = rule.source_size or rule.network_size
    resized = rule.source_size is not None and rule.source_size != placement.source
    if resized and "embed" in pipeline.bundle.graphs and pipeline.given_embeddings is None:
        report.warnings.append(
            "CLIP sees this video's frames as they are fitted into the bundle's "
            f"{network[0]}x{network[1]}, not as they are; for the official image embeddings, "
            f"export with --source-size {video.height}x{video.width}, or without it"
        )
    if not placement.fills:
        option, exact = "--size", placement.official
        if rule.source_size is not None:  # the graph resizes, by the rule
            option, exact = "--source-size", placement.source
        report.warnings.append(
            f"the video's frames fill only {placement.picture[0]}x{placement.picture[1]} (height x "
            f"width) of the bundle's {network[0]}x{network[1]}; for the official numbers on this "
            f"video, export with {option} {exact[0]}x{exact[1]}"
        )
