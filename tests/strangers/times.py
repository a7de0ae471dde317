"""Films whose frames come at odd times, and their sound: what the overlay makes of both.

Each frame of the overlay must come when the film's frame comes, and each packet of sound as long
after the first frame as in the film; where something was changed, a warning must say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from court import Case, Outcome
from films import film, patched, trial
from workshop import Workshop

__all__ = ["ROWS"]

MS, KHZ90 = Fraction(1, 1000), Fraction(1, 90_000)
Times = Sequence[int]
Make = Callable[[Path], object]
COUNT = 12


def _times(path: Path) -> tuple[list[float], float]:
    """When each frame of a film is shown, in seconds since the first one, and a tick."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        assert stream.time_base is not None
        return [time - found[0] for time in found], float(stream.time_base)


def _sound(path: Path) -> tuple[list[tuple[bytes, float]], float]:
    """The ends of the packets of the first sound track with their times, and the longest packet.

    Times are seconds since the first frame of the pictures.
    """
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return [], 0.0
        audio, found, longest = container.streams.audio[0], [], 0.0
        first: float | None = None
        pictures = 0
        for packet in container.demux():
            if packet.pts is None or packet.time_base is None:
                continue
            if packet.stream.type == "video":
                time = float(packet.pts * packet.time_base)
                first = time if first is None else min(first, time) if pictures < 6 else first
                pictures += 1
            elif packet.stream.index == audio.index:
                found.append((bytes(packet)[-24:], float(packet.pts * packet.time_base)))
                longest = max(longest, float((packet.duration or 0) * packet.time_base))
    assert first is not None
    return [(data, time - first) for data, time in found], longest


def _judged(
    name: str,
    said: str | None,
    times: Sequence[float] | None,
    sound: str,
    folder: Path,
    outcome: Outcome,
) -> str | None:
    if outcome.code:
        return f"exit {outcome.code}: {outcome.stderr.strip()[-300:]}"
    if said is not None and not re.search(said, " ".join(outcome.stderr.split())):
        return f"not said: {said!r}; but {outcome.stderr[-300:]!r}"
    source, overlay = folder / name, folder / "out/overlay.mp4"
    found, tick = _times(overlay)
    wanted, source_tick = _times(source)
    if times is not None:
        wanted = list(times)
    near = max(tick, 1e-4) + (source_tick if source_tick < 0.002 else 0)
    if len(found) != len(wanted):
        return f"{len(found)} frames, not {len(wanted)}"
    worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if worst > near:
        return f"frames are up to {worst:.3f} s off: {_short(found)}, not {_short(wanted)}"
    return _sound_judged(sound, source, overlay, found[-1], outcome)


def _short(times: Sequence[float]) -> list[float]:
    return [round(time, 3) for time in times]


def _sound_judged(
    sound: str, source: Path, overlay: Path, last: float, outcome: Outcome
) -> str | None:
    if sound == "":
        return None
    found, longest = _sound(overlay)
    wanted, _ = _sound(source)
    if sound == "none":
        return "there is sound" if found else None
    if not found:
        return f"no sound, and not a word: {outcome.stderr[-300:]!r}"
    places = dict(wanted)
    shared = [(data, time) for data, time in found if data in places]
    if len(shared) < len(found) - 2:
        return f"{len(found) - len(shared)} of {len(found)} packets are not the source's"
    if sound == "begins":
        shared = shared[:3]
    worst = max(abs(places[data] - time) for data, time in shared)
    if worst > max(longest, 0.03):
        return f"the sound is {worst:.3f} s off"
    missing = [d for d, t in wanted if 0 <= t < last - 0.06 and d not in dict(found)]
    if missing and sound == "whole":
        return f"{len(missing)} packets of the sound are missing"
    return None


def _case(
    workshop: Workshop,
    title: str,
    name: str,
    make: Make,
    *,
    said: str | None = None,
    times: Sequence[float] | None = None,
    sound: str = "",
) -> Case:
    def prepared(folder: Path) -> Sequence[str | Path]:
        make(folder / name)
        return trial(workshop.bundle, name)

    check = partial(_judged, name, said, times, sound)
    return Case(title, prepared, codes=frozenset({0}), check=check)


def _cumulated(steps: Sequence[int]) -> list[int]:
    return [sum(steps[:index]) for index in range(len(steps) + 1)][:COUNT]


PATTERNS: dict[str, Times] = {  # milliseconds
    "a gap of a second": _cumulated([40] * 5 + [1000] + [40] * 6),
    "a hole of 10 s": _cumulated([40] * 5 + [10_000] + [40] * 6),
    "a hole after the first frame": _cumulated([10_000] + [40] * 11),
    "a hole before the last frame": _cumulated([40] * 10 + [10_000]),
    "steps of a jittering clock": _cumulated([31, 37, 28, 41, 33, 33, 25, 45, 30, 36, 34]),
    "1 ms and 99 ms in turn": _cumulated([1, 99] * 6),
    "steps that become longer": _cumulated([20 * k + 7 for k in range(12)]),
    "steps that become shorter": _cumulated([400 - 33 * k for k in range(12)]),
    "a phone's 30 and 24 frames a second": _cumulated([33, 33, 34, 33, 42, 42, 41, 42, 33, 34, 33]),
    "a slide show of 5 s each": _cumulated([5000] * 12),
    "240 frames a second": _cumulated([4, 4, 5, 4, 4, 4, 4, 5, 4, 4, 4]),
    "a begin at 7 s": [7000 + 40 * k for k in range(COUNT)],
}
BASES = {
    "90 kHz, NTSC": ([3003 * k for k in range(COUNT)], KHZ90),
    "90 kHz, with a gap": ([3003 * k + (200_000 if k > 5 else 0) for k in range(COUNT)], KHZ90),
    "90 kHz, one tick apart": ([k if k < 3 else 3000 * k for k in range(COUNT)], KHZ90),
    "1/1000, NTSC": ([round(k * 1001 / 30) for k in range(COUNT)], MS),
    "1/600, QuickTime's": ([20 * k + (k % 3) for k in range(COUNT)], Fraction(1, 600)),
    "1/1000000": ([33_366 * k + 7 * (k % 4) for k in range(COUNT)], Fraction(1, 1_000_000)),
    "1/25, doubled steps": ([k + k // 4 for k in range(COUNT)], Fraction(1, 25)),
    "1 s": (list(range(COUNT)), Fraction(1, 1)),
}
FRAMES = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "mov": "mjpeg", "webm": "libvpx-vp9"}


def rates(workshop: Workshop) -> Iterator[Case]:
    """Films of variable rate, in each container."""
    for number, (title, times) in enumerate(PATTERNS.items()):
        for kind in list(FRAMES)[number % 2 :: 2]:
            yield _rated(workshop, title, kind, times, MS)
    for number, (title, (times, unit)) in enumerate(BASES.items()):
        kinds = ("mp4", "mov") if number % 2 else ("mp4", "mkv")
        for kind in kinds:
            yield _rated(workshop, title, kind, times, unit)


def _rated(workshop: Workshop, title: str, kind: str, times: Times, unit: Fraction) -> Case:
    pixels = {"pixels": "yuvj420p"} if FRAMES[kind] == "mjpeg" else {}
    options = {"options": {"bf": "2"}} if FRAMES[kind] == "libx264" else {}
    make = partial(
        film,
        codec=FRAMES[kind],
        rate=30,
        count=COUNT,
        times=times,
        unit=unit,
        change=partial(_clocked, unit),
        **pixels,
        **options,
    )
    return _case(workshop, f"{title}, in {kind}", f"a.{kind}", make)


def _clocked(unit: Fraction, stream: Any) -> None:
    stream.codec_context.time_base = unit


def _joined(begins: Sequence[int], path: Path) -> None:
    """Transport streams one behind the other, each of six frames of 40 ms from a time on."""
    data = b""
    for number, begin in enumerate(begins):
        part = path.with_name(f"part{number}.ts")
        times = [begin + 40 * k for k in range(6)]
        film(part, count=6, rate=25, times=times, unit=MS, options={"bf": "0"})
        data += part.read_bytes()
        part.unlink()
    path.write_bytes(data)


def _flv(edit: Callable[[int], int], path: Path) -> None:
    """A film as FLV, whose tags of pictures have their milliseconds changed by number."""
    film(path, "flv", count=COUNT, rate=25)
    data, at, number = bytearray(path.read_bytes()), 13, 0
    while at + 11 < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if data[at] == 9:
            time = edit(number)
            data[at + 4 : at + 7] = (time & 0xFFFFFF).to_bytes(3, "big")
            data[at + 7] = time >> 24
            number += 1
        at += 11 + size + 4
    path.write_bytes(data)


def _edited(offset: int, value: int, path: Path) -> None:
    film(path, rate=25, count=COUNT, options={"bf": "0"}, container_options=_QUICK)
    patched(path, b"elst", offset, value.to_bytes(4, "big"))


_QUICK = {"movflags": "faststart"}
_STEP = 0.04


def _line(*parts: tuple[int, float]) -> list[float]:
    """Times 40 ms apart, in parts of so many frames that begin at a time."""
    return [begin + _STEP * k for count, begin in parts for k in range(count)]


def jumps(workshop: Workshop) -> Iterator[Case]:
    """Clocks that jump, stand still, wrap around, or are edited."""
    back = "goes back"
    joined: dict[str, tuple[list[int], list[float] | None, str | None]] = {
        "the clock goes back by 2 s": ([3000, 1240], _line((6, 0), (6, 0.24)), back),
        "the clock begins anew": ([5000, 1400], _line((6, 0), (6, 0.24)), back),
        "the clock begins anew twice": (
            [9000, 5000, 1400],
            _line(*[(6, 0.24 * k) for k in range(3)]),
            back,
        ),
        "the clock jumps on by 10 s": ([1400, 11_640], _line((6, 0), (6, 10.24)), None),
        "the clock jumps on by 2 hours": (
            [1400, 7_201_640],
            _line((6, 0), (6, 0.24)),
            "leaves out a pause of 7200 s",
        ),
        "the clock wraps around at 2^33": ([95_443_500], None, None),
        "the clock stands where it was": ([1400, 1400 + 200], None, None),
    }
    for title, (begins, times, said) in joined.items():
        yield _case(
            workshop, f"ts: {title}", "a.ts", partial(_joined, begins), times=times, said=said
        )
    edits: dict[str, tuple[Callable[[int], int], list[float] | None, str | None]] = {
        "each time twice": (lambda k: 40 * (k // 2), None, "no times of their own"),
        "all at 0": (lambda _: 0, None, "no times of their own"),
        "one time back by 60 ms": (
            lambda k: 40 * k - (60 if k == 6 else 0),
            [_STEP * (5 if k == 6 else k) for k in range(COUNT)],
            "no times of their own",
        ),
        "back by 5 s from the seventh on": (
            lambda k: 6000 + 40 * k - (5000 if k >= 6 else 0),
            _line((12, 0)),
            back,
        ),
        "on by 30 s from the seventh on": (
            lambda k: 40 * k + (30_000 if k >= 6 else 0),
            _line((6, 0), (6, 30.24)),
            None,
        ),
        "a begin at 4 hours": (lambda k: 14_400_000 + 40 * k, _line((12, 0)), None),
        "times of 32 bits' end": (lambda k: 2**31 - 200 + 40 * k, None, ""),
    }
    for title, (edit, times, said) in edits.items():
        yield _case(workshop, f"flv: {title}", "a.flv", partial(_flv, edit), times=times, said=said)
    for title, offset, value in (
        ("leaves out the first three frames", 12, 3 * 512),
        ("ends after half of the film", 8, 240),
        ("plays at half the speed", 16, 1 << 15),
        ("plays at twice the speed", 16, 2 << 16),
    ):
        yield _case(
            workshop, f"mp4: an edit list that {title}", "a.mp4", partial(_edited, offset, value)
        )


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
        yield _case(workshop, f"{title} ({codec}, {name})", name, make, said=said, sound=sound)
    yield from _several(workshop)


def _muxed(codec: str, how: dict[str, Any], container: Any) -> Callable[[], None]:
    return noise_of(container, codec, **how)


def _several(workshop: Workshop) -> Iterator[Case]:
    """Several tracks, sound whose clock begins anew, and sound beside pictures that jump."""

    def two(container: Any) -> Callable[[], None]:
        first, second = noise_of(container, "aac"), noise_of(container, "ac3", begin=0.2)
        return lambda: (first(), second())[0]

    yield _case(
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
        yield _case(
            workshop,
            title,
            "a.ts",
            partial(_both, begins),
            said=said,
            sound="begins",
            times=None if said is None else [_STEP * k for k in range(50)],
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
            change=partial(_clocked, MS),
            more=partial(_muxed, "aac", {"seconds": 1.5}),
        )
        yield _case(workshop, f"sound beside pictures with {title}", "a.mp4", make, sound="whole")


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


FEW = {"times of frames": 1, "clocks": 1, "sounds": 2}  # in CI
ROWS = {"times of frames": rates, "clocks": jumps, "sounds": sounds}
