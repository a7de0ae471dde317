"""Talk on stderr: messages and progress bars. stdout is left to data."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperCommand

from openvis_rt.printable import printable, without_password

__all__ = [
    "CONSOLE",
    "INTERRUPTED",
    "Bar",
    "Console",
    "Verb",
    "parse_size",
    "parse_source_size",
    "print_json",
    "progress_bar",
    "say",
    "warn",
]


class Console(rich.console.Console):
    """Rich's, whose texts hold no letter from a stranger's file that a terminal would obey."""

    def render_str(self, text: str, **how: Any) -> Text:
        """As Rich's, which has the names of the arguments."""
        return super().render_str(without_password(printable(text)), **how)


CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)


INTERRUPTED = 130
"""The exit code that shells give a process that Ctrl-C ended."""
_NAMES = 24  # columns for the names of options; a longer one stands on a line of its own


class Verb(TyperCommand):
    """A verb whose ``--help`` shows its options in groups: those of each ``rich_help_panel``.

    The names stand in a column that is never cut or wrapped, whatever the terminal's width. Whole
    numbers have 64 bits, as the libraries below take them, and others are finite.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, and refuse numbers that nothing below could take."""
        rest: list[str] = super().parse_args(ctx, args)
        parameter: Any
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if isinstance(value, int | float) and not -(2**63) < value < 2**63:
                raise typer.BadParameter(
                    f"{value!r:.30} is no number that can be meant here.", ctx, parameter
                )
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the groups in the order of their first options."""
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None)
                groups[panel or usual].append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=_NAMES)


_EVERY = 10.0  # seconds between lines where there is no terminal to draw a bar on


class Bar:
    """One progress bar whose phase may change; plain lines where stderr is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None)
        self._last = time.monotonic()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        """Show the phase, steps done, and steps in all (None if that is not known)."""
        self._progress.update(self._task, description=printable(phase), completed=done, total=total)
        if self._progress.disable and time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            CONSOLE.print(f"{phase}: {done}" + (f" of {total}" if total else ""), markup=False)


@contextmanager
def progress_bar(*, beside_data: bool = False) -> Iterator[Bar]:
    """A bar on stderr that goes away when the work is done.

    Args:
        beside_data: stdout takes data meanwhile; on a terminal that both share, no bar is drawn
            among its lines.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    quiet = not CONSOLE.is_terminal or (beside_data and sys.stdout.isatty())
    with Progress(
        *columns, console=CONSOLE, transient=True, redirect_stdout=False, disable=quiet
    ) as progress:
        yield Bar(progress)


def warn(message: str) -> None:
    """A warning on stderr."""
    CONSOLE.print(f"[yellow]warning:[/] {escape(message)}")


def say(text: str) -> None:
    """A line for people, on stdout."""
    typer.echo(without_password(printable(text)))


def print_json(value: Any) -> None:
    """A result for machines, on stdout."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - stdout is data


_NAMED_SIZES = {"720p": (720, 1280), "1080p": (1080, 1920), "1440p": (1440, 2560)}
_NAMED_SIZES |= {"4k": (2160, 3840), "2160p": (2160, 3840)}


def parse_source_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``--source-size``: ``HxW``, a name such as ``1080p``, or a video's own.

    Raises:
        InputError: it is none of these.
        VideoError: the video cannot be opened.
    """
    if text is None or text.lower() in _NAMED_SIZES:
        return None if text is None else _NAMED_SIZES[text.lower()]
    if Path(text).exists():
        from openvis_rt.runtime.video.reading import open_video

        with open_video(text) as video:
            return video.height, video.width
    return parse_size(text, "--source-size (or a video file, or 720p, 1080p, 1440p, 4k)")


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """(height, width) of ``HxW``.

    Raises:
        InputError: it is not two positive numbers with an x between them.
    """
    from openvis_rt.errors import InputError

    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise InputError(f"{option} is height x width in pixels, such as 480x864; got {text!r}")
    return int(parts[0]), int(parts[1])
