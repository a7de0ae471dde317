"""What is supported of which model, from the code that supports it: one table for all to read."""

from __future__ import annotations

from openvis_rt.systems.graphs import GRAPHS_OF_FAMILY, PRECISIONS
from openvis_rt.systems.variants import VARIANTS, Variant

__all__ = ["COLUMNS", "markdown_table", "support_table"]

COLUMNS = (
    *("system", "model", "image encoders", "short side", "tracks by"),
    *("export", "FP16", "INT8", "streaming", "official checkpoint"),
)
_SYSTEMS = {
    "clip-vis": "CLIP-VIS",
    "instformer": "InstFormer (OpenVIS)",
    "minvis-clip": "MinVIS-CLIP (N times CLIP)",
    "ovformer-video": "OVFormer (VideoOVFormer)",
    "ovformer-frame": "OVFormer (OVFormerVideo)",
    "ov2seg": "OV2Seg",
    "minvis": "MinVIS",
}
_TRACKERS = {
    "temporal-top-k": "temporal top-K, T = {v.tracker_frames}, K = {v.tracker_top_k}",
    "rollout": "rollout of tracking tokens",
    "previous-frame": "the previous frame",
    "previous-window": "the previous window",
    "momentum": "momentum memory, {v.tracker_alpha}",
}


def support_table() -> list[tuple[str, ...]]:
    """A row of :data:`COLUMNS` for each model."""
    return [_row(variant) for variant in VARIANTS.values()]


def markdown_table() -> str:
    """The same in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *support_table()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(variant: Variant) -> tuple[str, ...]:
    return (
        _SYSTEMS[variant.family],
        variant.name,
        variant.backbone,
        str(variant.short_side),
        _TRACKERS[variant.tracker].format(v=variant),
        ", ".join(GRAPHS_OF_FAMILY[variant.family]),
        *("yes" if precision in PRECISIONS else "not yet" for precision in ("fp16", "int8")),
        "a frame"
        if variant.window_length == 1
        else f"a window of up to {variant.window_length} frames",
        variant.weights,
    )
