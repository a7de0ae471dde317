"""Runs whose overlay must keep each frame's time, and the sound in step.

Each frame of the overlay must come when the film's frame comes, and each packet of sound as long
after the first frame as in the film; where something was changed, a warning must say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
from court import Case, Outcome
from films import trial
from workshop import Workshop

__all__ = ["overlay_case"]

Make = Callable[[Path], object]


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


def overlay_case(
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
