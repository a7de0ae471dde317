"""The command's entry: verbs, and one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from openvis_rt import __version__
from openvis_rt.cli.assemble import assemble
from openvis_rt.cli.batch import batch
from openvis_rt.cli.bench import bench
from openvis_rt.cli.build import build
from openvis_rt.cli.calibrate import calibrate
from openvis_rt.cli.convert import convert
from openvis_rt.cli.demo import demo
from openvis_rt.cli.doctor import doctor
from openvis_rt.cli.eval import evaluate
from openvis_rt.cli.export import export
from openvis_rt.cli.inspect import inspect
from openvis_rt.cli.models import models
from openvis_rt.cli.run import run
from openvis_rt.cli.streams import readable_files, safe_data, safe_talk
from openvis_rt.cli.triton import triton
from openvis_rt.cli.ui import CONSOLE, INTERRUPTED, Verb
from openvis_rt.cli.verify import verify
from openvis_rt.errors import OpenVISError

__all__ = ["app", "main"]


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VERBS = (
    *(models, assemble, export, calibrate, build, run, batch, convert, verify, evaluate, bench),
    *(inspect, doctor, triton, demo),
)
for verb in VERBS:
    app.command(verb.__name__.replace("evaluate", "eval"), cls=Verb)(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def openvis(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Open-vocabulary video instance segmentation, from a checkpoint to a tracked video.

    `openvis demo` tries everything; `openvis doctor` says what works on this machine.

    Exit codes: 0 done, 1 a defect of ours, 2 bad usage or input, 3 the environment lacks something,
    4 a parity or speed gate failed, 130 interrupted.
    """


def main() -> None:
    """Run the command; every error of ours becomes one message and its exit code."""
    with safe_talk():
        try:
            with readable_files(), safe_data():
                app(prog_name="openvis")
        except OpenVISError as exc:
            CONSOLE.print(f"[bold red]error:[/] {escape(str(exc))}")
            sys.exit(exc.exit_code)
        except SystemExit as exc:  # typer has turned Ctrl-C into its exit code
            if exc.code == INTERRUPTED:
                CONSOLE.print("interrupted; nothing half-written was left")
            raise
