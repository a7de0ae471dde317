"""Films with sound of every kind: what the overlay makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from court import Case
from films import film
from overlays import overlay_case
from times import COUNT, MS, PATTERNS, STEP, clocked
from workshop import Workshop

__all__ = ["ROWS"]


def noise_of(
    container: Any,
    codec: str = "aac",
    *,
    rate: int = 48_000,
    layout: str = "stereo",
    kind: str = "fltp",
    seconds: float = 1.0,
    begin: float = 0.0,
    jumps: dict[float, float] | None = None,
) -> Callable[[], None]:
    """Add a track of noise, of which no two packets are the same; see :func:`films.audio_of`."""
    stream = container.add_stream(codec, rate=rate, layout=layout)

    def write() -> None:
        context = stream.codec_context
        step, place = context.frame_size or 1024, 0
        channels = stream.layout.nb_channels
        noise = np.random.default_rng(round(10 * begin))
        packets = []
        while place < seconds * rate:
            wave = noise.uniform(-0.3, 0.3, (channels, step)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, "fltp", layout)
            frame.pts, frame.sample_rate = place, rate
            frame.time_base = Fraction(1, rate)
            for part in av.AudioResampler(context.format, layout, rate).resample(frame):
                part.pts, part.time_base = place, Fraction(1, rate)
                packets += stream.encode(part)
            place += step
        packets += stream.encode(None)
        for packet in packets:
            if packet.pts is None or packet.time_base is None:
                continue
            time = float(packet.pts * packet.time_base)
            shift = begin + sum(by for at, by in (jumps or {}).items() if time >= at)
            packet.pts += round(shift / packet.time_base)
            packet.dts = packet.pts
            container.mux(packet)

    return write


SOUNDS: list[tuple[str, str, str, dict[str, Any], str | None, str]] = [
    # title, file, codec, how, what must be said, which sound must be there
    ("mono of 44.1 kHz", "a.mp4", "aac", {"rate": 44_100, "layout": "mono"}, None, "whole"),
    ("5.1 of 48 kHz", "a.mp4", "aac", {"layout": "5.1"}, None, "whole"),
    ("8 kHz", "a.mp4", "aac", {"rate": 8000, "layout": "mono"}, None, "whole"),
    ("96 kHz", "a.mp4", "aac", {"rate": 96_000}, None, "whole"),
    ("MP3", "a.mp4", "libmp3lame", {"rate": 44_100}, None, "whole"),
    ("MP3 in mkv", "a.mkv", "libmp3lame", {}, None, "whole"),
    ("Opus in mkv", "a.mkv", "libopus", {}, None, "whole"),
    ("Opus of 5.1", "a.webm", "libopus", {"layout": "5.1"}, None, "whole"),
    ("FLAC in mkv", "a.mkv", "flac", {}, None, "whole"),
    ("ALAC in mov", "a.mov", "alac", {}, None, "whole"),
    ("AC-3 in ts", "a.ts", "ac3", {}, None, "whole"),
    ("E-AC-3 in mkv", "a.mkv", "eac3", {}, None, "whole"),
    ("MPEG layer 2 in ts", "a.ts", "mp2", {}, None, "whole"),
    ("AAC in ts", "a.ts", "aac", {}, None, "whole"),
    ("AAC in flv", "a.flv", "aac", {"rate": 44_100}, None, "whole"),
    ("plain samples in mov", "a.mov", "pcm_s16le", {}, None, ""),
    ("plain samples in mkv", "a.mkv", "pcm_s24le", {}, None, ""),
    ("plain samples in avi", "a.avi", "pcm_s16le", {}, None, ""),
    ("A-law in avi", "a.avi", "pcm_alaw", {"rate": 8000, "layout": "mono"}, "no sound", "none"),
    (
        "Nellymoser in flv",
        "a.flv",
        "nellymoser",
        {"rate": 44_100, "layout": "mono"},
        "no sound",
        "none",
    ),
    ("ADPCM in flv", "a.flv", "adpcm_swf", {"rate": 44_100}, "no sound", "none"),
    ("ADPCM in avi", "a.avi", "adpcm_ima_wav", {"rate": 44_100}, "no sound", "none"),
    ("it begins 0.3 s later", "a.mp4", "aac", {"begin": 0.3}, None, "whole"),
    ("it begins 0.3 s later, in mkv", "a.mkv", "aac", {"begin": 0.3}, None, "whole"),
    ("it begins 0.3 s later, in ts", "a.ts", "aac", {"begin": 0.3}, None, "whole"),
    ("it begins after the pictures", "a.mkv", "aac", {"begin": 9.0}, None, "none"),
    ("it begins 0.4 s earlier, in mkv", "a.mkv", "aac", {"begin": -0.4}, None, "whole"),
    ("it begins 0.4 s earlier, in ts", "a.ts", "aac", {"begin": -0.4}, None, "whole"),
    ("it begins 0.4 s earlier, in mp4", "a.mp4", "aac", {"begin": -0.4}, None, "whole"),
    ("it is longer than the pictures", "a.mp4", "aac", {"seconds": 5.0}, None, "whole"),
    ("it is shorter than the pictures", "a.mp4", "aac", {"seconds": 0.3}, None, "whole"),
    ("one packet of it", "a.mp4", "aac", {"seconds": 0.01}, None, ""),
    ("its clock jumps on by 0.4 s", "a.mkv", "aac", {"jumps": {0.5: 0.4}}, None, "whole"),
    (
        "its clock jumps on by 2 hours",
        "a.mkv",
        "aac",
        {"jumps": {0.5: 7200.0}},
        "clock of the sound",
        "begins",
    ),
    (
        "its clock jumps on by 2 hours, in mp4",
        "a.mp4",
        "aac",
        {"jumps": {0.5: 7200.0}},
        "clock of the sound",
        "begins",
    ),
]


def sounds(workshop: Workshop) -> Iterator[Case]:
    """Sound of each codec, rate, layout and length, and sound of clocks of its own."""
    for title, name, codec, how, said, sound in SOUNDS:
        picture = {"a.avi": "mpeg4", "a.flv": "flv", "a.asf": "wmv2", "a.webm": "libvpx-vp9"}
        begin = 1.0 if how.get("begin", 0.0) < 0 else 0.0
        own = {**how, "begin": how.get("begin", 0.0) + begin}
        make = partial(
            film,
            codec=picture.get(name, "libx264"),
            rate=25,
            count=25,
            times=[round(1000 * begin) + 40 * k for k in range(25)] if begin else None,
            unit=MS if begin else None,
            more=partial(_muxed, codec, own),
        )
        yield overlay_case(
            workshop, f"{title} ({codec}, {name})", name, make, said=said, sound=sound
        )
    yield from _several(workshop)


def _muxed(codec: str, how: dict[str, Any], container: Any) -> Callable[[], None]:
    return noise_of(container, codec, **how)


def _several(workshop: Workshop) -> Iterator[Case]:
    """Several tracks, sound whose clock begins anew, and sound beside pictures that jump."""

    def two(container: Any) -> Callable[[], None]:
        first, second = noise_of(container, "aac"), noise_of(container, "ac3", begin=0.2)
        return lambda: (first(), second())[0]

    yield overlay_case(
        workshop, "two tracks", "a.mkv", partial(film, rate=25, count=25, more=two), sound="whole"
    )
    for title, begins, said in (
        ("the clocks of both begin anew", (3.0, 1.0), "goes back"),
        ("the clocks of both jump on by 3 s", (1.0, 5.0), None),
        (
            "the clocks of both jump on by 2 hours",
            (1.0, 7201.0),
            "(?=.*leaves out a pause).*clock of the sound jumps",
        ),
    ):
        yield overlay_case(
            workshop,
            title,
            "a.ts",
            partial(_both, begins),
            said=said,
            sound="begins",
            times=None if said is None else [STEP * k for k in range(50)],
        )
    for title, times in (
        ("a hole of 3 s", PATTERNS["a gap of a second"]),
        ("jitter", PATTERNS["steps of a jittering clock"]),
    ):
        make = partial(
            film,
            rate=25,
            count=COUNT,
            times=times,
            unit=MS,
            change=partial(clocked, MS),
            more=partial(_muxed, "aac", {"seconds": 1.5}),
        )
        yield overlay_case(
            workshop, f"sound beside pictures with {title}", "a.mp4", make, sound="whole"
        )


def _both(begins: Sequence[float], path: Path) -> None:
    data = b""
    for number, begin in enumerate(begins):
        part = path.with_name(f"part{number}.ts")
        times = [round(1000 * begin) + 40 * k for k in range(25)]
        film(
            part,
            count=25,
            rate=25,
            times=times,
            unit=MS,
            options={"bf": "0"},
            more=partial(_muxed, "aac", {"begin": begin}),
        )
        data += part.read_bytes()
        part.unlink()
    path.write_bytes(data)


FEW = {"sounds": 2}  # in CI
ROWS = {"sounds": sounds}
