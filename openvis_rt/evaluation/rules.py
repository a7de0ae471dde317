"""What the official evaluations fix: thresholds, area ranges, limits, and how matches are made.

    rules   of                           from                                small, medium, large
    YTVIS   YTVIS, OVIS, LV-VIS, UVO     ytvoseval.py of youtubevos/cocoapi    128^2, 256^2
    COCO    one-frame videos             cocoeval.py of pycocotools            32^2, 96^2
    BURST   BURST, TAO                   track_map.py of TrackEval             32^2, 96^2

YTVIS and COCO take the best 100 detections of a video and class, and any number of them may match
one crowd. TrackEval takes all, lets a crowd match once, and takes an IoU that is 2^-52 too small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BURST", "COCO", "YTVIS", "Rules"]

_FAR = 1e5**2  # pixels: the end of the largest range in all three


def _ranges(small: int, medium: int) -> tuple[tuple[str, float, float], ...]:
    return (
        ("all", 0.0, _FAR),
        ("small", 0.0, float(small**2)),
        ("medium", float(small**2), float(medium**2)),
        ("large", float(medium**2), _FAR),
    )


@dataclass(frozen=True)
class Rules:
    """The constants of one official evaluation.

    Attributes:
        thresholds: of the IoU, rising.
        areas: name, lowest and highest mean area of a track in pixels, both included; the first is
            that of all.
        limit: detections of one video and class that count at all, best first; None for all.
        recall_limits: those of AR1, AR10, AR100.
        crowd_repeats: any number of detections may match one crowd, or only one.
        tolerance: of the IoU, below a threshold or an earlier match.
    """

    thresholds: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    areas: tuple[tuple[str, float, float], ...] = _ranges(128, 256)
    limit: int | None = 100
    recall_limits: tuple[int, ...] = (1, 10, 100)
    crowd_repeats: bool = True
    tolerance: float = 0.0

    def threshold_at(self, iou: float) -> int:
        """The place of a threshold; ``numpy.arange`` gives some of them with a rounding error."""
        return int(np.argmin(np.abs(np.array(self.thresholds) - iou)))

    def in_range(self, areas: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether mean areas (float64 [n]) lie in each range, bool [ranges, n]."""
        low = np.array([low for _, low, _ in self.areas])[:, None]
        high = np.array([high for _, _, high in self.areas])[:, None]
        return (areas >= low) & (areas <= high)


RECALLS: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is read, float64 [101]; the same in all three."""

YTVIS = Rules()
COCO = Rules(areas=_ranges(32, 96))
BURST = Rules(
    thresholds=tuple(np.arange(0.5, 0.96, 0.05).tolist()),
    areas=_ranges(32, 96),
    limit=None,
    crowd_repeats=False,
    tolerance=float(np.finfo(np.float64).eps),
)
