"""``openvis models``: what can be exported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from openvis_rt.cli.ui import Console, print_json
from openvis_rt.errors import InputError
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.table import COLUMNS, markdown_table, support_table

_SHOWN = ("model", "tracks by", "streaming")  # what 80 columns have room for


def models(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The whole table of what is supported, in Markdown.")
    ] = False,
) -> None:
    """List the models that this version exports and runs."""
    if as_json and markdown:
        raise InputError("give either --json or --markdown")
    if as_json:
        print_json([asdict(variant) for variant in VARIANTS.values()])
        return
    if markdown:
        typer.echo(markdown_table(), nl=False)
        return
    table = Table(*_SHOWN, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in support_table():
        cells = dict(zip(COLUMNS, row, strict=True))
        table.add_row(*(cells[name] for name in _SHOWN))
    Console().print(table)
