"""A recording for Rerun's viewer: video, masks, boxes and scores over time.

    video            the film itself, AV1, and of every moment the frame that it shows
    video/masks      a segmentation image a frame; class 0 is transparent
    video/boxes      boxes with name, track id and score
    scores/3         the score of track 3

A segmentation class is a track: its name and its colour stand in the annotation context of
``video``. There are two timelines, ``frame`` and ``time``.

The viewer holds segmentation images as they are, a byte or two a pixel. Where all of them would
need more than ``MASK_BYTES``, video, masks and boxes are reduced together by a whole number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openvis_rt.convert.film import write_film
from openvis_rt.convert.finished import FinishedRun, Summary, Track
from openvis_rt.errors import DependencyError
from openvis_rt.files import output_file
from openvis_rt.runtime.video.drawing import color_of
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.video.run_lengths import decode_mask, subsampled

if TYPE_CHECKING:
    import rerun as rr

__all__ = ["MASK_BYTES", "require_rerun", "write_rerun"]

MASK_BYTES = 2 << 30
"""The most that the segmentation images of a recording take in the viewer's memory."""
_QUALITY = 28  # CRF

Progress = Callable[[str, int, int | None], None]


def write_rerun(
    run: FinishedRun,
    path: Path,
    source: str | None,
    progress: Progress = lambda *_: None,
) -> int:
    """Write a recording of a finished run.

    Args:
        run: the finished run.
        path: of the recording; it takes its name when it is whole.
        source: the video file or folder of images that was run; None for the results alone.
        progress: told of each frame.

    Returns:
        by how much video, masks and boxes are reduced; 1 where they are as they were.

    Raises:
        DependencyError: rerun-sdk is not installed.
        InputError: the results are damaged, or are not this video's.
        VideoError: the video cannot be read, or has fewer frames than the results.
        OutputError: the recording cannot be written.
    """
    rr = require_rerun()
    summary = run.summary()
    recording = _Recording(rr, summary, _step_of(summary))
    with output_file(path) as partial:
        recording.stream.save(partial, default_blueprint=_layout())
        try:
            recording.write_names()
            if source is not None:
                recording.write_video(source, path.parent, progress)
            recording.write_scores()
            recording.write_frames(run.frames(), progress)
        finally:
            recording.stream.disconnect()
    return recording.step


def require_rerun() -> Any:
    """The library.

    Raises:
        DependencyError: rerun-sdk is not installed.
    """
    try:
        import rerun
    except ImportError as exc:
        raise DependencyError("rerun", "rerun") from exc
    return rerun


def _step_of(summary: Summary) -> int:
    """The smallest one that keeps the masks within their memory."""
    count, wide = len(summary.times), 1 if len(summary.tracks) < 256 else 2
    step = 1
    while count * (summary.height // step) * (summary.width // step) * wide > MASK_BYTES:
        step += 1
    return step


def _layout() -> Any:
    from rerun import blueprint

    video = blueprint.Spatial2DView(origin="video", name="video")
    scores = blueprint.TimeSeriesView(origin="scores", name="scores")
    return blueprint.Blueprint(
        blueprint.Vertical(video, scores, row_shares=[3, 1]),
        blueprint.TimePanel(timeline="frame"),
        collapse_panels=True,
    )


@dataclass
class _Recording:
    """What is written, and where."""

    rr: Any
    summary: Summary
    step: int

    def __post_init__(self) -> None:
        self.stream: rr.RecordingStream = self.rr.RecordingStream("openvis")
        self._classes = {t.track_id: place for place, t in enumerate(self.summary.tracks, 1)}
        wide = np.uint8 if len(self._classes) < 256 else np.uint16
        self._kind: type[np.uint8] | type[np.uint16] = wide

    def write_names(self) -> None:
        """Names and colours of the tracks; what is no track is transparent."""
        info = self.rr.AnnotationInfo
        tracks = [
            info(id=place, label=_label(track), color=(*color_of(track.track_id), 255))
            for place, track in enumerate(self.summary.tracks, 1)
        ]
        context = self.rr.AnnotationContext([info(id=0, color=(0, 0, 0, 0)), *tracks])
        self.stream.log("video", context, static=True)

    def write_video(self, source: str, beside: Path, progress: Progress) -> None:
        """The film, and which of its frames is shown when."""
        size = (self.summary.height, self.summary.width)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".partial-") as folder:
            film = Path(folder) / "film.mp4"
            write_film(
                *(film, source, size, self.summary.times, self.summary.numbers),
                codec="av1",
                longest=max(size) // self.step,
                quality=_QUALITY,
                progress=progress,
            )
            asset = self.rr.AssetVideo(path=film)
            self.stream.log("video", asset, static=True)
            times = asset.read_frame_timestamps_nanos()
        shown = self.rr.VideoFrameReference.columns_nanos(times)
        self.stream.send_columns("video", self._moments(range(len(times))), shown)

    def write_scores(self) -> None:
        """A line for each track, broken where it is not seen."""
        for track in self.summary.tracks:
            name = f"scores/{track.track_id}"
            color = color_of(track.track_id)
            line = self.rr.SeriesLines(colors=[color], names=[_label(track)], widths=[2])
            self.stream.log(name, line, static=True)
            places, scores = _with_gaps(track, len(self.summary.times))
            columns = self.rr.Scalars.columns(scalars=scores)
            self.stream.send_columns(name, self._moments(places), columns)

    def write_frames(self, frames: Iterable[FrameResult], progress: Progress) -> None:
        """Masks and boxes."""
        for place, frame in enumerate(frames):
            self.stream.set_time("frame", sequence=place)
            self.stream.set_time("time", duration=self.summary.times[place])
            masks = self.rr.SegmentationImage(self._painted(frame), opacity=0.5)
            self.stream.log("video/masks", masks)
            boxes = frame.boxes.reshape(-1, 4) / self.step
            drawn = self.rr.Boxes2D(
                array=boxes,
                array_format=self.rr.Box2DFormat.XYWH,
                class_ids=[self._classes[i.track_id] for i in frame.instances],
                labels=[f"{i.name} #{i.track_id} {i.score:.2f}" for i in frame.instances],
            )
            self.stream.log("video/boxes", drawn)
            progress("writing the recording", place + 1, len(self.summary.times))

    def _moments(self, places: Iterable[int]) -> list[Any]:
        """The two timelines at some frames."""
        column, numbers = self.rr.TimeColumn, list(places)
        seconds = [self.summary.times[number] for number in numbers]
        return [column("frame", sequence=numbers), column("time", duration=seconds)]

    def _painted(self, frame: FrameResult) -> npt.NDArray[np.uint8 | np.uint16]:
        """The class of each pixel, [H / step, W / step]: the best object's; 0 is none."""
        half = self.step - 1 - self.step // 2
        size = [(side + half) // self.step for side in (frame.height, frame.width)]
        picture = np.zeros(size, self._kind)
        for found in sorted(frame.instances, key=lambda instance: instance.score):
            mask = decode_mask(subsampled(found.segmentation, self.step))
            picture[mask != 0] = self._classes[found.track_id]
        return picture


def _label(track: Track) -> str:
    return f"{track.name} #{track.track_id}"


def _with_gaps(track: Track, count: int) -> tuple[list[int], list[float]]:
    """Frames and scores of a track, with NaN in the first frame after each run of frames."""
    seen = set(track.frames)
    ends = [frame + 1 for frame in track.frames if frame + 1 not in seen and frame + 1 < count]
    scores = [*zip(track.frames, track.scores, strict=True), *((end, float("nan")) for end in ends)]
    scores.sort()
    return [frame for frame, _ in scores], [score for _, score in scores]
