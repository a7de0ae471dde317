"""What a caller may choose of a pipeline; light, so that the command can name its defaults."""

from __future__ import annotations

from dataclasses import dataclass

from openvis_rt.errors import InputError

__all__ = ["LiveOptions", "Selection", "TrackingOptions"]


@dataclass(frozen=True)
class LiveOptions:
    """How a camera or a stream is read.

    Attributes:
        every_frame: hand out every frame, however late. Else the newest frame wins: what comes
            while the consumer works is dropped but for the last.
        timeout: seconds without data after which an address counts as broken.
        reconnect: seconds for which a source that broke off is tried again; 0 for not at all.
    """

    every_frame: bool = False
    timeout: float = 15.0
    reconnect: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not self.timeout > 0:
            raise InputError(f"a timeout is more than 0 seconds; got {self.timeout:g}")
        if not self.reconnect >= 0:
            raise InputError(f"reconnecting takes 0 seconds or more; got {self.reconnect:g}")


@dataclass(frozen=True)
class Selection:
    """What a frame's result shows.

    Attributes:
        threshold: the lowest score that is shown, 0..1.
        limit: the most instances of one frame.
    """

    threshold: float = 0.3
    limit: int = 20


@dataclass(frozen=True)
class TrackingOptions:
    """How a video is tracked and reported; None is what the bundle says.

    Attributes:
        window_length: frames that the network sees together, at most the bundle's. The last window
            of a video may be shorter.
        frames, top_k: T and K of the temporal top-K association.
        detections: the most instances that a video's result reports.
    """

    window_length: int | None = None
    frames: int | None = None
    top_k: int | None = None
    detections: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no bundle takes."""
        if self.detections is not None and self.detections < 1:
            raise InputError(
                f"a video reports at least one instance; got detections={self.detections}"
            )
