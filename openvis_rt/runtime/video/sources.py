"""Which reader a source needs: a video, an image, images, a camera, an address, or a pipe."""

from __future__ import annotations

import os
import platform
import re
import select
import stat
import sys
from pathlib import Path

from openvis_rt.errors import VideoError
from openvis_rt.printable import without_password
from openvis_rt.runtime.video.container import ContainerReader
from openvis_rt.runtime.video.pictures import ImageReader, is_one_picture
from openvis_rt.runtime.video.watched import WatchedReader, opened_aside

__all__ = ["IMAGE_SUFFIXES", "STDIN", "is_live", "open_reader", "shown_name"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
STDIN = "-"
"""The source that is this process's standard input."""

_CAMERA = re.compile(r"/dev/video([0-9]+)|([0-9]+)")


def is_live(source: str) -> bool:
    """Whether ``source`` names a camera, a stream or a pipe, which can be read only once."""
    return (
        source == STDIN
        or "://" in source
        or _CAMERA.fullmatch(source) is not None
        or _is_pipe(source)
    )


def shown_name(source: str) -> str:
    """The name of a source for messages and files: an address is without its password."""
    return "stdin" if source == STDIN else without_password(source)


def open_reader(
    source: str, timeout: float, patience: float | None = None
) -> ContainerReader | WatchedReader | ImageReader:
    """What reads a source.

    Args:
        source: see :func:`.reading.open_video`.
        timeout: seconds without data after which a camera, an address or a pipe counts as broken.
        patience: seconds in which it must open; None for ``timeout``.

    Raises:
        VideoError: there is nothing at ``source`` that can be decoded.
        OSError: it cannot be read.
    """
    patience = timeout if patience is None else min(patience, timeout)
    if camera := _CAMERA.fullmatch(source):
        return _camera(int(camera[1] or camera[2]), timeout, patience)
    if "://" in source:
        return ContainerReader(shown_name(source), source, timeout=timeout, patience=patience)
    if source == STDIN or _is_pipe(source):
        return _pipe(source, timeout, patience)
    path = Path(source)
    if path.is_dir():
        return ImageReader(str(path), _images_in(path))
    if not path.exists():
        raise VideoError(
            f"{source} does not exist. Give a video file, a folder of images, the number of a "
            "camera, the address of a stream, or - for stdin."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{source} is empty (0 bytes). Give a video that was written to its end.")
    if path.suffix.lower() in IMAGE_SUFFIXES and is_one_picture(path):
        return ImageReader(source, [path])
    return ContainerReader(source, source)


def _camera(number: int, timeout: float, patience: float) -> WatchedReader:
    """A camera, whose driver may wait for ever in both opening and reading."""
    name, device, driver = f"camera {number}", f"/dev/video{number}", "v4l2"
    if platform.system() == "Darwin":
        device, driver = str(number), "avfoundation"
    elif not Path(device).exists():
        found = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise VideoError(
            f"there is no camera {number} ({device}); found {found}. Check that it is plugged in, "
            "and give the number of one that is there."
        )
    return open_device(name, device, driver, timeout, patience)


def open_device(
    name: str, device: str, driver: str, timeout: float, patience: float
) -> WatchedReader:
    """A device of FFmpeg's, which hears of no interrupt while it waits.

    Raises:
        VideoError: it cannot be opened, or gave no picture in time.
    """
    try:
        reader = opened_aside(
            name,
            lambda: ContainerReader(name, device, driver, live=True),
            lambda late: late.close(),
            seconds=patience,
        )
    except TimeoutError as exc:
        raise VideoError(
            f"{name} gave no picture within {patience:g} s. Check that it is plugged in and that "
            "nothing else uses it; --timeout gives it longer."
        ) from exc
    return WatchedReader(reader, timeout)


def _is_pipe(source: str) -> bool:
    try:
        return stat.S_ISFIFO(Path(source).stat().st_mode)
    except (OSError, ValueError):
        return False


def _pipe(source: str, timeout: float, patience: float) -> ContainerReader:
    """A named pipe or stdin, read without blocking, so that FFmpeg looks at its clock meanwhile."""
    name = shown_name(source)
    if source == STDIN and sys.stdin is not None and sys.stdin.isatty():
        raise VideoError(
            "stdin is a terminal. Send a video into it, such as with "
            "ffmpeg -i INPUT -f mpegts - | openvis run BUNDLE - ..."
        )
    descriptor = _descriptor(source)
    try:
        if not _has_data(descriptor, patience):
            raise VideoError(
                f"nothing came through {name} within {patience:g} s. Check that something writes "
                "a video into it."
            )
        return ContainerReader(
            name, f"pipe:{descriptor}", timeout=timeout, patience=patience, live=True
        )
    finally:
        os.close(descriptor)  # FFmpeg has one of its own


def _descriptor(source: str) -> int:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    if source != STDIN:
        return os.open(source, flags)
    try:  # opened anew, so that whoever shares the pipe's other descriptors does not notice
        return os.open("/dev/stdin", flags)
    except OSError:  # a socket, or no such file here
        return os.dup(0)


def _has_data(descriptor: int, seconds: float) -> bool:
    if not hasattr(select, "poll"):  # Windows has it for sockets only
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order."""
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.is_dir()
        and not path.name.startswith(".")  # resource forks that macOS leaves
    ]
    if not paths:
        raise VideoError(
            f"{folder} holds no images. Give a folder with files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sorts runs of digits by their value, and other text without regard to case."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name
