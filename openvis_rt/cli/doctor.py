"""``openvis doctor``: what is installed, what works here, and the command that adds the rest."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from openvis_rt.cli.ui import Console, print_json

_SET_IN = " " * 5
_WIDTH = 80


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Say what works on this machine and how to add what does not."""
    from openvis_rt.runtime.environment import find_abilities

    findings = find_abilities()
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    console = Console(highlight=False)
    typer.echo(f"Python {platform.python_version()} on {platform.platform()}")
    for finding in findings:
        mark = "[green]yes[/]" if finding.works else "[red]no [/]"
        console.print(f"\n{mark}  [bold]{finding.ability}[/]")
        typer.echo(
            textwrap.fill(finding.found, _WIDTH, initial_indent=_SET_IN, subsequent_indent=_SET_IN)
        )
        if finding.add:  # in one line, to be copied
            typer.echo(f"{_SET_IN}to add it: {finding.add}")
