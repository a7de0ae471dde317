"""Recipes as commands: an error of ours becomes one line and its exit code, as with ``openvis``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console

from openvis_rt.errors import OpenVISError

__all__ = ["run_command"]


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
