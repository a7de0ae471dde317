"""A pipeline over the videos of a data set, one file of results for each, which a later run takes.

    OUTPUT/videos/00000017.json    what one video gave, and with what; complete, or not there
    OUTPUT/results.json            all of them in the data set's official form

A run that was broken off goes on where it was: videos whose file was made with the same bundle,
precision, backend, class names and options are not run again. A video that cannot be read does not
stop the others; it is listed with its error, and counts as having no predictions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError, OpenVISError, OutputError, UnavailableError
from openvis_rt.evaluation.annotations import Annotations, Video
from openvis_rt.evaluation.results_files import write_official_results
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.evaluation.vocabularies import ClassIds
from openvis_rt.files import lock_directory, output_errors, output_file
from openvis_rt.given_files import given_json
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.runtime.pipeline import Pipeline

__all__ = ["RESULTS", "Predictions", "predict_videos", "prepare_output", "prepared_output"]

RESULTS = "results.json"
_VIDEOS = "videos"
_LARGEST = 1 << 30  # bytes of one video's results
_OURS = frozenset(
    {RESULTS, _VIDEOS, "metrics.json", "metrics.md", "precision_recall.svg", "classes.svg"}
)

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class _Part:
    """One video's file.

    Attributes:
        video: its name.
        made_with: all that the results depend on; another run takes them if it has the same.
        frames: how many there were.
        seconds: reading and the pipeline, wall time.
        results: entries of YTVIS's form.
    """

    video: str
    made_with: dict[str, Any]
    frames: int
    seconds: float
    results: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Predictions:
    """What a pipeline gave for the videos of a data set.

    Attributes:
        results: the official results file.
        done: videos that have results, those of earlier runs as well.
        taken: of them those that an earlier run had made.
        frames: of the videos that were run now.
        seconds: that they took, wall time of reading and the pipeline.
        failed: name -> error of videos that have none.
        exit_code: 0, or what the command should end with because of those that failed: 3 if
            something was missing here, else 2.
    """

    results: Path
    done: int
    taken: int
    frames: int
    seconds: float
    failed: dict[str, str]
    exit_code: int

    @property
    def frames_per_second(self) -> float:
        """Of the videos that were run now; 0 if none was."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types; the path is a string."""
        return {
            "results": str(self.results),
            "done": self.done,
            "taken": self.taken,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
            "failed": self.failed,
        }


def prepare_output(output: Path, *, taken: bool = False) -> None:
    """Make the folder of an evaluation, or see that it may be used.

    Args:
        output: the folder.
        taken: what an earlier run left there is taken, or will be removed by this one.

    Raises:
        OutputError: there is something that may not be used, or the place cannot be written.
    """
    with output_errors(output):
        if os.path.lexists(output) and not output.is_dir():
            raise OutputError(f"{output} is not a directory. Give another place.")
        output.mkdir(parents=True, exist_ok=True)
        found = {p.name for p in output.iterdir() if not p.name.startswith(".partial-")}
        if found and not taken:
            raise OutputError(
                f"{output} exists already. Give another place, --resume to go on with it, or "
                "--overwrite to begin anew."
            )
        if not found <= _OURS:
            raise OutputError(
                f"{output} was not made by `openvis eval`, or holds other files as well, such as "
                f"{sorted(found - _OURS)[0]}. Give another place."
            )


@contextmanager
def prepared_output(output: Path, *, taken: bool = False) -> Iterator[None]:
    """As :func:`prepare_output`; where the block fails before it wrote, the new folder goes again.

    Raises:
        OutputError: as :func:`prepare_output`.
    """
    is_new = not os.path.lexists(output)
    prepare_output(output, taken=taken)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it holds results of this run by now
                output.rmdir()
        raise


def predict_videos(
    pipeline: Pipeline,
    annotations: Annotations,
    videos: Path,
    output: Path,
    *,
    classes: ClassIds,
    options: dict[str, Any] | None = None,
    anew: bool = False,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
) -> Predictions:
    """Run a pipeline over the annotated frames of every video.

    Args:
        pipeline: open in video mode, with the class names of ``classes``.
        annotations: names the videos and their frames.
        videos: the folder that holds them; see :mod:`~openvis_rt.evaluation.sources`.
        output: takes the files of this module's docstring; see :func:`prepare_output`.
        classes: the category id of each of the pipeline's classes.
        options: what else the results depend on, as JSON types.
        anew: remove the videos of an earlier run, once nobody else writes there.
        progress: told of each video and of the frames of the one that runs.
        warn: told of a video that fails, when it does.

    Raises:
        InputError: the pipeline is not in video mode.
        OutputError: the output cannot be written, or another process writes it.
    """
    if pipeline.mode != "video":
        raise InputError("an evaluation scores whole videos: open the pipeline in video mode")
    made_with = {
        "bundle": pipeline.bundle.sha256,
        "backend": pipeline.backend,
        "videos": str(videos.resolve()),
        "classes": list(pipeline.class_names),
        "ids": list(classes.ids),
        "one_class_per_track": classes.one_per_track,
        "options": options or {},
    }
    with ExitStack() as stack:
        with output_errors(output):
            (output / _VIDEOS).mkdir(parents=True, exist_ok=True)
        try:
            stack.callback(os.close, lock_directory(output / _VIDEOS))
        except OSError as exc:
            raise OutputError(f"another process writes into {output}; wait for it") from exc
        _clear(output, videos=anew)
        run = _Run(pipeline, annotations, videos, output / _VIDEOS, classes, made_with)
        return run.all(output / RESULTS, progress, warn)


def _clear(output: Path, *, videos: bool) -> None:
    """Remove what killed processes left half-written, and what will be made anew at the end."""
    with output_errors(output):
        for part in (output / _VIDEOS).glob("*.json") if videos else ():
            part.unlink()
        for folder in (output, output / _VIDEOS):
            for litter in folder.glob(".partial-*"):
                litter.unlink()
        for name in _OURS - {_VIDEOS}:
            (output / name).unlink(missing_ok=True)


@dataclass
class _Run:
    """One run over a data set, and what came of it so far."""

    pipeline: Pipeline
    annotations: Annotations
    videos: Path
    folder: Path
    classes: ClassIds
    made_with: dict[str, Any]
    failed: dict[str, str] = field(default_factory=dict)
    done: list[Video] = field(default_factory=list)
    exit_code: int = 0

    def all(self, results: Path, progress: Progress, warn: Warn) -> Predictions:
        """Every video, then the official file of those that have results."""
        total = len(self.annotations.videos)
        taken, frames, seconds = 0, 0, 0.0
        for number, video in enumerate(self.annotations.videos):
            progress(f"video {video.name}", number, total)
            made_with = {**self.made_with, "frames": list(video.frames)}
            if self.part(video, made_with) is not None:
                taken += 1
                self.done.append(video)
                continue
            try:
                part = self.predicted(video, made_with)
            except OutputError:
                raise
            except (InputError, UnavailableError) as exc:
                self.fail(video, exc, warn)
                continue
            self.done.append(video)
            frames, seconds = frames + part.frames, seconds + part.seconds
        progress("writing the results", total, total)
        write_official_results(results, self.annotations, self.entries())
        return Predictions(
            results, len(self.done), taken, frames, seconds, self.failed, self.exit_code
        )

    def fail(self, video: Video, error: OpenVISError, warn: Warn) -> None:
        """Note that a video has no results, and why."""
        name = video.name if video.name not in self.failed else f"{video.name} (id {video.id})"
        self.failed[name] = str(error)
        self.exit_code = max(self.exit_code, error.exit_code)
        warn(f"video {video.name} failed: {error}")

    def predicted(self, video: Video, made_with: dict[str, Any]) -> _Part:
        """Run one video and write its file."""
        begin = time.perf_counter()
        self.pipeline.reset()
        try:
            with annotated_frames(video, self.videos) as frames:
                for _ in self.pipeline.stream(frames):
                    pass
                result = self.pipeline.finish()
        finally:
            self.pipeline.reset()
        entries = self.classes.entries(result, video.id)
        seconds = round(time.perf_counter() - begin, 3)
        part = _Part(video.name, made_with, result.frame_count, seconds, entries)
        path = self.path(video)
        with output_file(path) as partial, output_errors(path):
            partial.write_text(json.dumps(json_from_record(part)) + "\n", encoding="utf-8")
        return part

    def path(self, video: Video) -> Path:
        """Of a video's file."""
        return self.folder / f"{video.id:08}.json"

    def part(self, video: Video, made_with: dict[str, Any] | None = None) -> _Part | None:
        """A video's file, if it is there, whole, and made with the same."""
        try:
            found = record_from_json(_Part, given_json(self.path(video), _LARGEST))
        except InputError:
            return None
        return found if made_with is None or found.made_with == made_with else None

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries of every video that has results."""
        for video in self.done:
            part = self.part(video)
            if part is None:
                raise OutputError(
                    f"{self.path(video)} was removed or changed while this ran. Run it again with "
                    "--resume."
                )
            yield from part.results
