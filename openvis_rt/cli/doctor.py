"""``openvis doctor``: what is installed, what works here, and the command that adds the rest."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from openvis_rt.cli.ui import Console, print_json

if TYPE_CHECKING:
    from openvis_rt.runtime.environment import Finding

_SET_IN = " " * 5
_WIDTH = 80


def doctor(
    needs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ABILITY",
            help="End with exit code 3 if this does not work, such as 'run: engines on a GPU'; may "
            "be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Say what works on this machine and how to add what does not."""
    from openvis_rt.runtime.environment import find_abilities, require_abilities

    findings = find_abilities()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    require_abilities(findings, needs or [])


def _print(findings: list[Finding]) -> None:
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
