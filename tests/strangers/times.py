"""Films whose frames come at odd times: what the overlay makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from court import Case
from films import film, patched
from overlays import overlay_case
from workshop import Workshop

__all__ = ["COUNT", "MS", "PATTERNS", "ROWS", "STEP", "clocked"]

MS, KHZ90 = Fraction(1, 1000), Fraction(1, 90_000)
STEP = 0.04  # seconds between frames, where nothing else is said
COUNT = 12
Times = Sequence[int]


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
        change=partial(clocked, unit),
        **pixels,
        **options,
    )
    return overlay_case(workshop, f"{title}, in {kind}", f"a.{kind}", make)


def clocked(unit: Fraction, stream: Any) -> None:
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


def _line(*parts: tuple[int, float]) -> list[float]:
    """Times 40 ms apart, in parts of so many frames that begin at a time."""
    return [begin + STEP * k for count, begin in parts for k in range(count)]


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
        yield overlay_case(
            workshop, f"ts: {title}", "a.ts", partial(_joined, begins), times=times, said=said
        )
    edits: dict[str, tuple[Callable[[int], int], list[float] | None, str | None]] = {
        "each time twice": (lambda k: 40 * (k // 2), None, "no times of their own"),
        "all at 0": (lambda _: 0, None, "no times of their own"),
        "one time back by 60 ms": (
            lambda k: 40 * k - (60 if k == 6 else 0),
            [STEP * (5 if k == 6 else k) for k in range(COUNT)],
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
        yield overlay_case(
            workshop, f"flv: {title}", "a.flv", partial(_flv, edit), times=times, said=said
        )
    for title, offset, value in (
        ("leaves out the first three frames", 12, 3 * 512),
        ("ends after half of the film", 8, 240),
        ("plays at half the speed", 16, 1 << 15),
        ("plays at twice the speed", 16, 2 << 16),
    ):
        yield overlay_case(
            workshop, f"mp4: an edit list that {title}", "a.mp4", partial(_edited, offset, value)
        )


FEW = {"times of frames": 1, "clocks": 1}  # in CI
ROWS = {"times of frames": rates, "clocks": jumps}
