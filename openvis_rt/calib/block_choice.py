"""Which blocks a user wants in INT8: all, or as many as a bound allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.accuracy import DataSet
from openvis_rt.calib.sensitivity_record import Bound
from openvis_rt.errors import InputError

__all__ = ["BlockChoice", "data_set_for"]

Warn = Callable[[str], None]


@dataclass(frozen=True)
class BlockChoice:
    """Which blocks are quantised, and what is measured of them. Without a bound it is all of them.

    Attributes:
        min_sqnr: SQNR of mask logits that must be left, in dB, median over the windows held out.
        max_ap_drop: points of AP that may be lost against FP32, on ``evaluate``.
        evaluate: an annotation file of YTVIS, OVIS, LV-VIS, BURST or UVO, its frames beside it; at
            best of videos that were not calibrated on.
        ap_of_blocks: measure AP of every block alone too.

    Raises:
        InputError: two bounds, a bound that none can be, or a drop of AP without a data set, or the
            other way round.
    """

    min_sqnr: float | None = None
    max_ap_drop: float | None = None
    evaluate: Path | None = None
    ap_of_blocks: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.min_sqnr is not None and self.max_ap_drop is not None:
            raise InputError(
                "--min-sqnr and --max-ap-drop are two ways to pick the blocks that become INT8; "
                "give one of both"
            )
        for name, unit, value in (
            ("--min-sqnr", "dB", self.min_sqnr),
            ("--max-ap-drop", "points of AP", self.max_ap_drop),
        ):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is a number of {unit}, 0 or more; got {value:g}")
        needs = self.max_ap_drop is not None or self.ap_of_blocks
        if needs and self.evaluate is None:
            raise InputError(
                "AP is measured on annotated videos: give --evaluate FILE, annotations with their "
                "frames beside them, at best of videos that are not calibrated on"
            )
        if self.evaluate is not None and not needs:
            raise InputError(
                "--evaluate is for --max-ap-drop, or for the AP of each block by --sensitivity: "
                "give one of these, or leave it out"
            )

    @property
    def bound(self) -> Bound | None:
        """What a mix must hold."""
        if self.min_sqnr is not None:
            return Bound("min_sqnr", self.min_sqnr)
        if self.max_ap_drop is not None:
            return Bound("max_ap_drop", self.max_ap_drop)
        return None


def data_set_for(
    bundle: Bundle,
    blocks: BlockChoice,
    graphs: Sequence[str],
    sources: Sequence[str],
    warn: Warn,
) -> DataSet | None:
    """The data set that mixes are evaluated on, if there is one.

    Args:
        bundle: that is calibrated.
        blocks: what is asked for.
        graphs: that are quantised.
        sources: of the calibration.
        warn: told that the data set is among them.

    Raises:
        InputError: it cannot be evaluated on, or the graphs give nothing that a bound is of.
    """
    outputs = {t.name for name in graphs for t in bundle.graph(name, "fp32").spec.outputs}
    if blocks.min_sqnr is not None and "mask_logits" not in outputs:
        raise InputError(
            f"--min-sqnr is about mask logits, which {', '.join(graphs)} of {bundle.path} does not "
            "give. Quantise propose (--graph propose), or leave --min-sqnr out."
        )
    if blocks.evaluate is None:
        return None
    data = DataSet(blocks.evaluate)
    if data.is_among(sources):
        warn(
            f"AP is measured on {blocks.evaluate}, which is calibrated on as well, so it may be "
            "better there than elsewhere. Give other videos to --evaluate."
        )
    return data
