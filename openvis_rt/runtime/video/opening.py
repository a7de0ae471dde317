"""Opening a file for FFmpeg: that file, whatever its name is, and no other that it names.

Some formats hold no pictures but the names of files that do: playlists, lists of parts, numbered
pictures. FFmpeg follows them, also to absolute places, so a file of a stranger would show files of
whoever opens it. A name such as ``concat:a|b`` or ``subfile,,start,0,end,9,,:a`` does the same.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import av

from openvis_rt.errors import VideoError
from openvis_rt.given_files import file_kind

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["open_media"]

# what names other files or hosts, what a device gives, and what makes pictures of any text
_REFUSED = frozenset(
    {
        *("hls", "dash", "hds", "concat", "imf", "webm_dash_manifest", "smoothstreaming"),
        *("image2", "mlv", "vobsub", "avisynth", "vapoursynth", "segment"),
        *("sdp", "rtsp", "rtp", "sap", "rtp_mpegts", "whip", "mpjpeg"),
        *("lavfi", "alsa", "oss", "pulse", "jack", "fbdev", "kmsgrab", "x11grab"),
        *("video4linux2,v4l2", "avfoundation", "dshow", "gdigrab", "bktr", "decklink"),
        *("tty", "bin", "xbin", "adf", "idf", "ffmetadata"),
    }
)
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0", b";FFMETADATA", b"[Desktop")


def open_media(path: str | Path) -> InputContainer:
    """Open a regular file for reading by FFmpeg.

    Args:
        path: of the file; names of any bytes are possible.

    Raises:
        VideoError: it is no regular file, or a playlist.
        OSError, ValueError: FFmpeg, or the system, cannot open it; FFmpeg's errors are among them.
    """
    _refuse_irregular(path)
    url = f"file:{os.fspath(path)}"  # else FFmpeg obeys names that begin like an address
    try:
        return av.open(
            url, container_options={"format_whitelist": _formats()}, metadata_errors="replace"
        )
    except av.ArgumentError as exc:  # also of a format that is not among those
        if _names_others(Path(path)):
            raise VideoError(
                f"{path} holds no pictures but names of other files, which are not followed. Give "
                "one of those, or join them: ffmpeg -i LIST -c copy OUTPUT.mkv"
            ) from exc
        if "%" in Path(path).name:
            raise VideoError(
                f"{path} cannot be opened: FFmpeg takes the % in its name for numbered pictures. "
                "Give it another name."
            ) from exc
        raise


@cache
def _formats() -> str:
    return ",".join(sorted(av.formats_available - _REFUSED))


def _refuse_irregular(path: str | Path) -> None:
    """A pipe blocks until somebody writes, and a device may never end."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        raise VideoError(
            f"{path} is no regular file but {file_kind(mode)}, which cannot be read twice. Write "
            "it to a file first, or give the address of a stream."
        )


def _names_others(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(_PLAYLISTS)
