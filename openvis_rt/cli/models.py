"""``openvis models``: what can be exported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from openvis_rt.cli.ui import print_json
from openvis_rt.variants import VARIANTS


def models(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """List the models that this version exports and runs."""
    if as_json:
        print_json([asdict(variant) for variant in VARIANTS.values()])
        return
    table = Table(
        Column("model", no_wrap=True),
        "family",
        "backbone",
        Column("pooling", no_wrap=True),
        "short side",
        "tracker T, K",
    )
    for v in VARIANTS.values():
        # T and K are of CLIP-VIS's association alone
        tracker = f"{v.tracker_frames}, {v.tracker_top_k}" if v.family == "clip-vis" else ""
        table.add_row(v.name, v.family, v.backbone, v.pooling, str(v.short_side), tracker)
    Console().print(table)
