"""The frames that an annotation file annotates, from folders of images or from video files.

    DIR/<file name>                 each frame an image, as YTVIS, OVIS, LV-VIS and BURST have them
    DIR/<video's name>.mp4, ...     a video file, as UVO has them

Of a video file that has as many frames as are annotated, all are taken. Of a longer one those whose
numbers, from 0, the file names end with: ``abc/00005.jpg`` is the sixth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openvis_rt.errors import VideoError
from openvis_rt.evaluation.annotations import Video
from openvis_rt.runtime.video.reading import Frame, VideoSource, open_images, open_video

__all__ = ["annotated_frames"]

_VIDEO_SUFFIXES = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov")


@contextmanager
def annotated_frames(video: Video, folder: Path) -> Iterator[Iterator[Frame]]:
    """The annotated frames of a video, in order, one at a time.

    Args:
        video: as it is annotated.
        folder: holds all videos.

    Raises:
        VideoError: frames are missing, cannot be decoded, or are of another size than the video is
            annotated with; also while iterating.
    """
    file = _video_file(video, folder)
    if file is None:
        source = open_images(video.name, [folder / name for name in video.frames])
        wanted = None
    else:
        source = open_video(str(file))
        wanted = None if source.frame_count == len(video.frames) else _numbers(video, file)
    with source:
        if (source.height, source.width) != (video.height, video.width):
            raise VideoError(
                f"the frames of {video.name} have {source.height}x{source.width} (height x width), "
                f"and it is annotated at {video.height}x{video.width}. Give the frames as the data "
                "set has them."
            )
        yield _chosen(source, video, wanted)


def _video_file(video: Video, folder: Path) -> Path | None:
    """The file that holds the video, if there is one; None where frames are images."""
    if (folder / video.frames[0]).is_file():
        return None
    places = (folder / f"{video.name}{suffix}" for suffix in _VIDEO_SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _numbers(video: Video, file: Path) -> list[int]:
    """The numbers that the names of the annotated frames end with."""
    found = [re.search(r"(\d+)$", Path(name).stem) for name in video.frames]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) != len(found) or sorted(set(numbers)) != numbers:
        raise VideoError(
            f"{file} has another number of frames than the {len(video.frames)} that are annotated, "
            "and their names do not end with rising numbers. Give the frames as images, under the "
            "names that the annotation file has."
        )
    return numbers


def _chosen(source: VideoSource, video: Video, wanted: list[int] | None) -> Iterator[Frame]:
    numbers, taken = set(wanted or ()), 0
    for frame in source:
        if wanted is not None and frame.index not in numbers:
            continue
        yield frame
        taken += 1
        if taken == len(video.frames):
            return
    raise VideoError(
        f"{source.name} gave {taken} of the {len(video.frames)} frames that are annotated. Give a "
        "whole copy of the video."
    )
