"""What is supported of which model, as one table for all to read."""

from __future__ import annotations

from openvis_rt.systems import SYSTEMS
from openvis_rt.systems.graphs import PRECISIONS, QUANTISED
from openvis_rt.systems.system import System, Variant

__all__ = ["COLUMNS", "markdown_table", "support_table"]

COLUMNS = (
    *("system", "model", "image encoders", "short side", "tracks by"),
    *("export", "FP16", "INT8", "streaming", "official checkpoint"),
)


def support_table() -> list[tuple[str, ...]]:
    """A row of :data:`COLUMNS` for each model."""
    return [_row(system, variant) for system in SYSTEMS.values() for variant in system.variants]


def markdown_table() -> str:
    """The same in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *support_table()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _row(system: System, variant: Variant) -> tuple[str, ...]:
    length = variant.window_length
    return (
        system.title,
        variant.name,
        variant.backbone,
        str(variant.short_side),
        system.tracks_by.format(**system.tracker.parameters),
        ", ".join(system.graphs),
        *("yes" if p in (*PRECISIONS, *QUANTISED) else "not yet" for p in ("fp16", "int8")),
        "a frame" if length == 1 else f"a window of up to {length} frames",
        variant.weights,
    )
