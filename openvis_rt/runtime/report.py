"""What a run is asked for, and what it says that it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvis_rt.errors import InputError
from openvis_rt.runtime.options import LiveOptions
from openvis_rt.runtime.pipeline import Mode
from openvis_rt.runtime.video.encoders import EncoderOptions

__all__ = ["RunOptions", "RunReport"]

_MOST = 2**63 - 1


@dataclass(frozen=True)
class RunOptions:
    """What to read and what to write.

    Attributes:
        video_id: of the entries in ``results.json``.
        overlay: write ``overlay.mp4``.
        allow_truncated: take what can be read of a damaged video.
        max_frames: stop after so many; None for all.
        overwrite: replace the output directory of an earlier run; no other one is replaced.
        encoder: how the overlay is encoded.
        stride: segment every so many frames, from the first one on; the others are not seen, and
            ``results.json`` has one mask for each frame that is.
        live: how a camera or a stream is read.
    """

    video_id: int = 1
    overlay: bool = True
    allow_truncated: bool = False
    max_frames: int | None = None
    overwrite: bool = False
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    stride: int = 1
    live: LiveOptions = field(default_factory=LiveOptions)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.stride < 1:
            raise InputError(f"a stride is 1 frame or more; got {self.stride}")
        if self.max_frames is not None and not 1 <= self.max_frames <= _MOST:
            raise InputError(f"max_frames is 1 to 2^63 - 1; got {self.max_frames}")
        if not -_MOST <= self.video_id <= _MOST:
            raise InputError(f"video_id is a whole number of 64 bits; got {self.video_id}")


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        mode: ``video`` or ``stream``.
        backend: where the graphs ran, for people.
        frames: how many were segmented.
        tracks: how many objects some frame shows.
        seconds: wall time of the pass that segments: reading and the pipeline, and in stream mode
            drawing and writing, but for the last few frames', which come after.
        delay_frames: how many further frames a frame's result may have to wait for in stream mode:
            the rest of its window, and the windows that the device has ahead.
        delay_seconds: that in the video's time.
        outputs: the files that were written, by kind.
        warnings: what was told of this run, of its pipeline and of its views.
        encoder: FFmpeg's name of the overlay's encoder; None without an overlay.
        stopped: Ctrl-C or SIGTERM ended it before its source: the files are whole, and of the
            frames so far.
        dropped: frames of a live source that came while the pipeline worked, and that a newer one
            took the place of; None of a file.
        age_ms: of a live source, how old results were when they were known: from the moment at
            which a frame was decoded, in milliseconds, ``p50`` and ``p99``; None of a file.
        reconnections: how often a live source broke off and came back.
    """

    mode: Mode
    backend: str
    frames: int
    tracks: int
    seconds: float
    delay_frames: int
    delay_seconds: float
    outputs: dict[str, Path]
    warnings: list[str]
    encoder: str | None = None
    stopped: bool = False
    dropped: int | None = None
    age_ms: dict[str, float] | None = None
    reconnections: int = 0

    @property
    def frames_per_second(self) -> float:
        """Frames over ``seconds``."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types; paths are strings."""
        return {
            "mode": self.mode,
            "backend": self.backend,
            "frames": self.frames,
            "tracks": self.tracks,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
            "delay_frames": self.delay_frames,
            "delay_seconds": round(self.delay_seconds, 3),
            "outputs": {kind: str(path) for kind, path in self.outputs.items()},
            "warnings": self.warnings,
            "encoder": self.encoder,
            "stopped": self.stopped,
            "dropped": self.dropped,
            "age_ms": self.age_ms,
            "reconnections": self.reconnections,
        }
