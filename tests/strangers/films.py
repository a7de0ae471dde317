"""Films whose frames can be told apart: frame k is of one grey, and each grey is 12 of 255 lighter.

What a reader makes of such a film says whether it left out, doubled or exchanged frames, and
whether it took their numbers for another range, plane or curve than they are of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from court import Outcome

__all__ = ["GREYS", "audio_of", "film", "grey_of", "greys_read", "patched", "seen", "trial"]

GREYS = 8
Check = Callable[[Path, Outcome], str | None]


def grey_of(index: int) -> int:
    """The grey of a frame, 0..255."""
    return 60 + 12 * (index % 12)


def film(
    path: Path,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    count: int = GREYS,
    rate: Fraction | int = 8,
    times: Sequence[int] | None = None,
    unit: Fraction | None = None,
    kind: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    change: Callable[[Any], None] = lambda _: None,
    more: Callable[[Any], Callable[[], None]] | None = None,
) -> Path:
    """Write a film.

    Args:
        path: where; its suffix or ``kind`` says the container.
        codec: FFmpeg's name of the encoder.
        size: width and height.
        pixels: FFmpeg's name of the format of pictures.
        count: how many frames.
        rate: of the frames.
        times: of each frame, in ``unit``; None for one each.
        options, container_options: of the encoder and of the container.
        change: is given the stream before the first frame.
        more: adds other tracks; what it returns is called after the frames.
    """
    unit = unit or 1 / Fraction(rate)
    with av.open(str(path), "w", format=kind, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt, stream.time_base = pixels, unit
        change(stream)
        after = more(container) if more is not None else None
        for index in range(count):
            image = np.full((size[1], size[0], 3), grey_of(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame = frame.reformat(format=pixels, dst_color_range=stream.codec_context.color_range)
            frame.pts = index if times is None else times[index]
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if after is not None:
            after()
    return path


def audio_of(
    container: Any,
    codec: str = "aac",
    *,
    rate: int = 48_000,
    layout: str = "stereo",
    seconds: float = 1.0,
    begin: float = 0.0,
    jumps: dict[float, float] | None = None,
) -> Callable[[], None]:
    """Add a track of sound, a tone; it is written by what this returns.

    Args:
        jumps: after so many seconds of sound its clock moves by so many.
    """
    stream = container.add_stream(codec, rate=rate, layout=layout)

    def write() -> None:
        step = stream.codec_context.frame_size or 1024
        channels = stream.layout.nb_channels
        place = 0
        while place < seconds * rate:
            wave = np.sin((np.arange(step) + place) * 2 * np.pi * 440 / rate) * 0.3
            shape = np.tile(wave.astype(np.float32), (channels, 1))
            frame = av.AudioFrame.from_ndarray(shape, "fltp", layout)
            shift = sum(by for at, by in (jumps or {}).items() if place >= at * rate)
            frame.pts, frame.sample_rate = round(place + (begin + shift) * rate), rate
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
            place += step
        container.mux(stream.encode(None))

    return write


def patched(path: Path, tag: bytes, offset: int, data: bytes, which: int = 0) -> Path:
    """Overwrite bytes at an offset after the ``which``-th place of a tag."""
    content, place = bytearray(path.read_bytes()), -1
    for _ in range(which + 1):
        place = content.index(tag, place + 1)
    begin = place + len(tag) + offset
    content[begin : begin + len(data)] = data
    path.write_bytes(content)
    return path


def greys_read(path: Path, **how: Any) -> list[float]:
    """The mean of the middle of each frame, as openvis-rt reads it."""
    from openvis_rt.runtime.video.reading import open_video

    with open_video(str(path), **how) as video:
        return [float(_middle(frame.image).mean()) for frame in video]


def _middle(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    height, width = image.shape[:2]
    return image[height // 4 : height // 4 + max(1, height // 2), : max(1, width // 2)]


def seen(
    name: str,
    count: int = GREYS,
    size: tuple[int, int] | None = (64, 48),
    tolerance: float = 4.0,
    greys: Sequence[int] | None = None,
    warned: str | None = None,
) -> Check:
    """A check that a run saw these frames: how many, of which size, in order and of these greys."""

    def check(folder: Path, outcome: Outcome) -> str | None:
        if outcome.code:
            return f"exit {outcome.code}: {outcome.stderr.strip()[-200:]}"
        lines = [
            json.loads(line) for line in (folder / "out/frames.jsonl").read_text().splitlines()
        ]
        if len(lines) != count:
            return f"{len(lines)} frames, not {count}"
        if size is not None and any(line["size"] != [size[1], size[0]] for line in lines):
            return f"size {lines[0]['size']}"
        found = greys_read(folder / name, allow_truncated=True)
        wanted = [grey_of(k) for k in range(count)] if greys is None else list(greys)
        worst = max((abs(a - b) for a, b in zip(found, wanted, strict=False)), default=0.0)
        if worst > tolerance or len(found) != len(wanted):
            return f"greys {[round(g) for g in found]}, not {wanted}"
        if warned is not None and warned not in outcome.stderr:
            return f"no word of {warned!r}: {outcome.stderr[-300:]}"
        return None

    return check


def trial(bundle: Path, name: str, *more: str) -> list[str | Path]:
    """The arguments of a run over a file in the folder."""
    return ["run", bundle, name, "-c", "disc", "--only", "-o", "out", *more]
