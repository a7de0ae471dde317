"""What frames can be taken from: videos, folders, data sets and streams, each by its name.

street.mp4                  a video file
frames/                     a folder of images, in natural order
videos/                     a folder of video files, or of folders of images: a source each
valid/instances.json        annotations of YTVIS, OVIS, LV-VIS, BURST or UVO, whose frames lie
beside them, most often in JPEGImages: a source for each video
0, rtsp://...               a camera or a stream, which can be read only once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from openvis_rt.errors import InputError, VideoError
from openvis_rt.evaluation.annotation_files import read_annotations
from openvis_rt.evaluation.annotations import Video
from openvis_rt.evaluation.sources import annotated_frames
from openvis_rt.runtime.video.reading import IMAGE_SUFFIXES, Frame, is_live, open_video

__all__ = ["FrameSource", "frames_folder", "sources_from"]

_VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
_IMAGES = "JPEGImages"  # where YTVIS and its followers keep the frames


@dataclass(frozen=True)
class FrameSource:
    """One video.

    Attributes:
        name: for messages.
        once: it can be read only once, and has perhaps no end.
        open: gives its frames in order, from the first; VideoError where they cannot be had, also
            while iterating.
    """

    name: str
    once: bool
    open: Callable[[], AbstractContextManager[Iterator[Frame]]]


def sources_from(text: str) -> list[FrameSource]:
    """The videos that a source stands for, in their order; see the module's docstring.

    Raises:
        InputError: an annotation file that cannot be read, or whose frames are not found.
        VideoError: there is nothing of that name, or a folder without images and videos.
    """
    path = Path(text)
    if is_live(text):
        return [FrameSource(text, True, partial(open_video, text))]
    if path.suffix.lower() == ".json" and path.is_file():
        return _annotated(path)
    if path.is_dir() and not _has_images(path):
        folder = path / _IMAGES if (path / _IMAGES).is_dir() else path
        return _inside(folder)
    return [_file(path)]


def _file(path: Path) -> FrameSource:
    return FrameSource(str(path), False, partial(open_video, str(path)))


def _inside(folder: Path) -> list[FrameSource]:
    """The videos of a folder, and its folders of images."""
    found = [
        _file(path)
        for path in sorted(folder.iterdir())
        if (path.is_dir() and _has_images(path)) or path.suffix.lower() in _VIDEO_SUFFIXES
    ]
    if not found:
        raise VideoError(
            f"{folder} holds neither images nor videos, nor folders of images. Give a folder that "
            f"does, a video file, or an annotation file (.json) beside its {_IMAGES}."
        )
    return found


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _annotated(path: Path) -> list[FrameSource]:
    """The videos of an annotation file."""
    videos = read_annotations(path).videos
    folder = frames_folder(path, videos[0])
    return [
        FrameSource(f"{path}: {video.name}", False, partial(annotated_frames, video, folder))
        for video in videos
    ]


def frames_folder(path: Path, video: Video) -> Path:
    """The folder that the frames' names begin at, found by the first video.

    Raises:
        InputError: none of the places where data sets have it.
    """
    here = path.parent
    places = (
        *(here / _IMAGES, here, here / path.stem / _IMAGES, here / path.stem),
        *(here.parent / _IMAGES, here.parent / path.stem / _IMAGES, here.parent / path.stem),
    )
    for place in places:
        if (place / video.frames[0]).is_file() or any(place.glob(f"{video.name}.*")):
            return place
    raise InputError(
        f"the frames that {path} annotates are not found: there is no {video.frames[0]} in "
        f"{', '.join(map(str, places[:4]))}. Put the file beside the data set's {_IMAGES}, or give "
        "the folder of the frames itself."
    )
