"""Writing the page: markup, style and script of ``assets/``, facts, masks and video in one file.

Nothing of it is loaded from elsewhere, and the page's own policy forbids it: only its one script
and its one style run, by their hashes. Names of classes and files are data: JSON in which every
``<`` is escaped, set as text by the script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from openvis_rt.convert.film import write_film
from openvis_rt.convert.page.masks import PART_FRAMES, MaskParts
from openvis_rt.files import output_file
from openvis_rt.runtime.video.drawing import color_of

if TYPE_CHECKING:
    from openvis_rt.convert.finished import FinishedRun, Summary, Track

__all__ = ["FILM_SIDE", "PAGE_QUALITY", "write_page"]

FILM_SIDE = 1280
"""The longest side of the video in a page, in pixels; a larger one is reduced."""
PAGE_QUALITY = 26
"""x264's CRF of the video in a page."""
_SCRIPTS = ("masks.js", "clock.js", "rows.js", "filters.js", "player.js")
_PIECE = 3 << 20  # bytes of video in one element; base64 makes 4 letters of 3 bytes
_BINS = 300  # of a track's scores over the whole video

Progress = Callable[[str, int, int | None], None]


def write_page(
    run: FinishedRun,
    path: Path,
    source: str | None,
    *,
    quality: int = PAGE_QUALITY,
    progress: Progress = lambda *_: None,
) -> None:
    """Write a page of a finished run.

    Args:
        run: its folder.
        path: of the page; it takes its name when it is whole.
        source: the video file or folder of images that was run; None for masks alone.
        quality: x264's CRF of the video, 0 to 51, lower is better and larger.
        progress: told of each frame.

    Raises:
        InputError: the results are damaged, or are not this video's.
        VideoError: the video cannot be read, or has fewer frames than the results.
        OutputError: the page cannot be written.
    """
    summary = run.summary()
    masks = MaskParts(summary.height, summary.width)
    places = {track.track_id: place for place, track in enumerate(summary.tracks)}
    with output_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        title = Path(source).name if source is not None else run.folder.resolve().name
        _begin(file, title)
        for number, part in enumerate(masks.parts(run.frames(), places)):
            _element(file, f'type="text/plain" id="masks-{number}"', _base64(part))
            done = min((number + 1) * PART_FRAMES, len(summary.times))
            progress("packing masks", done, len(summary.times))
        facts = _facts(summary, masks, title, has_video=source is not None)
        _element(file, 'type="application/json" id="facts"', _json(facts))
        if source is not None:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
                film = Path(folder) / "film.mp4"
                size = (summary.height, summary.width)
                write_film(
                    *(film, source, size, summary.times, summary.numbers),
                    codec="h264",
                    longest=FILM_SIDE,
                    quality=quality,
                    progress=progress,
                )
                for piece in _pieces(film):
                    _element(file, 'type="text/plain" class="film"', _base64(piece))
        _end(file)


def _facts(summary: Summary, masks: MaskParts, title: str, *, has_video: bool) -> dict[str, Any]:
    """What the script needs at once."""
    times = [round(time * 1e6) for time in summary.times]
    return {
        "title": title,
        "hasVideo": has_video,
        "height": summary.height,
        "width": summary.width,
        "maskHeight": (summary.height + masks.step - 1 - masks.step // 2) // masks.step,
        "maskWidth": (summary.width + masks.step - 1 - masks.step // 2) // masks.step,
        "step": masks.step,
        "partFrames": PART_FRAMES,
        "steps": [times[0], *(after - before for before, after in pairwise(times))],
        "names": masks.names,
        "tracks": [_track_facts(track, len(times)) for track in summary.tracks],
    }


def _track_facts(track: Track, frames: int) -> dict[str, Any]:
    return {
        "id": track.track_id,
        "name": track.name,
        "score": round(1000 * track.score),
        "color": "#{:02x}{:02x}{:02x}".format(*color_of(track.track_id)),
        "count": len(track.frames),
        "spans": list(_spans(track.frames)),
        "bins": _bins(track, frames),
    }


def _spans(frames: list[int]) -> Iterator[tuple[int, int]]:
    """First frames and numbers of frames of the runs that a track is seen in."""
    start = 0
    for index in range(1, len(frames) + 1):
        if index == len(frames) or frames[index] != frames[index - 1] + 1:
            yield frames[start], index - start
            start = index


def _bins(track: Track, frames: int) -> list[int]:
    """The highest score, in percent, in each of equal parts of the video; 0 where it is unseen."""
    count = min(_BINS, frames)
    found = [0] * count
    for frame, score in zip(track.frames, track.scores, strict=True):
        place = frame * count // frames
        found[place] = max(found[place], round(100 * score))
    return found


def _asset(name: str) -> str:
    return (files("openvis_rt.convert.page") / "assets" / name).read_text("utf-8")


def _script() -> str:
    return "\n" + "\n".join(_asset(name) for name in _SCRIPTS)


def _begin(file: TextIO, title: str) -> None:
    style = "\n" + _asset("page.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(_script())}'; style-src '{_hash(style)}'; "
        "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    file.write(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_text(title))}</title>\n<style>{style}</style>\n</head>\n<body>\n"
    )
    file.write(_asset("body.html"))


def _end(file: TextIO) -> None:
    file.write(f'<script type="module">{_script()}</script>\n</body>\n</html>\n')


def _element(file: TextIO, attributes: str, pieces: Iterable[str]) -> None:
    file.write(f"<script {attributes}>")
    file.writelines(pieces)
    file.write("</script>\n")


def _json(facts: dict[str, Any]) -> Iterator[str]:
    """Pure ASCII, and without the ``<`` of an end tag or a comment."""
    yield json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")


def _base64(data: bytes) -> Iterator[str]:
    yield base64.b64encode(data).decode("ascii")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _text(title: str) -> str:
    """A file's name as text, also where its bytes are none."""
    return title.encode("utf-8", "replace").decode("utf-8")
