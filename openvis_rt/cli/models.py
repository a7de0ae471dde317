"""``openvis models``: what can be exported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from openvis_rt.cli.ui import print_json
from openvis_rt.variants import VARIANTS

_TRACKERS = {
    "clip-vis": "temporal top-K, T = {t}, K = {k}",
    "instformer": "rollout of tracking tokens",
    "minvis-clip": "the previous frame",
}


def models(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the models that this version exports and runs."""
    if as_json:
        print_json([asdict(variant) for variant in VARIANTS.values()])
        return
    table = Table(Column("model", no_wrap=True), "image encoders", "short side", "tracks by")
    for v in VARIANTS.values():
        tracker = _TRACKERS[v.family].format(t=v.tracker_frames, k=v.tracker_top_k)
        table.add_row(v.name, v.backbone, str(v.short_side), tracker)
    Console().print(table)
