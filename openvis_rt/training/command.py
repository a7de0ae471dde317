"""Recipes as commands: the options that they share, and errors in one line, as of ``openvis``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from openvis_rt.errors import OpenVISError

__all__ = ["Batch", "Folder", "Iterations", "Rate", "Seed", "Threads", "run_command", "tell"]

Folder = Annotated[Path, typer.Argument(help="Takes the run; it goes on from what is there.")]
Iterations = Annotated[int, typer.Option(min=1, help="In all.")]
Batch = Annotated[int, typer.Option(min=1, help="Frames of an iteration.")]
Rate = Annotated[float, typer.Option(help="Learning rate.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights and videos.")]
Threads = Annotated[int, typer.Option(min=1, help="Of torch.")]


def tell(figures: Mapping[str, float], prefix: str = "") -> None:
    """Print figures in percent, a line each."""
    for name, value in figures.items():
        typer.echo(f"{prefix}{name}: {value:.1f} %")


def run_command(command: Callable[..., None] | typer.Typer) -> None:
    """Run a command line.

    Args:
        command: a function whose parameters typer reads, or an app of several.

    Raises:
        SystemExit: always; 0 done, 2 bad usage or input, 3 a library is missing, 130 interrupted.
    """
    if isinstance(command, typer.Typer):
        app = command
    else:
        app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command()(command)
    try:
        app()
    except OpenVISError as exc:
        Console(stderr=True).print(f"error: {exc}", markup=False, soft_wrap=True)
        sys.exit(exc.exit_code)
