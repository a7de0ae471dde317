"""The views that a run is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.reading import VideoSource
from openvis_rt.runtime.views.address import is_loopback, parse_place
from openvis_rt.runtime.views.board import Board, Setting
from openvis_rt.runtime.views.page import Page
from openvis_rt.runtime.views.sending import Sending
from openvis_rt.runtime.views.views import View, Views
from openvis_rt.runtime.views.window import Window

__all__ = ["ViewOptions", "open_views", "setting_of"]

_KEPT = 20  # warnings that a report has; a server that comes and goes would give any number


@dataclass(frozen=True)
class ViewOptions:
    """Where a run can be seen while it runs.

    Attributes:
        serve: ``PORT`` or ``HOST:PORT`` of a page; None for no page.
        show: a window on this machine's display.
        send_to: addresses or devices that the overlay is sent to.
    """

    serve: str | None = None
    show: bool = False
    send_to: tuple[str, ...] = ()


def open_views(
    options: ViewOptions, say: Callable[[str], None], warn: Callable[[str], None]
) -> Views:
    """The views, to be used in a ``with`` block around the run.

    Args:
        options: which.
        say: told the address of the page.
        warn: told what a view cannot do, when it arises.

    Raises:
        InputError: a place or an address that nobody can use.
    """
    board, views = Board(), list[View]()
    told: list[str] = []

    def note(message: str) -> None:
        if len(told) < _KEPT:
            told.append(message)
        warn(message)

    views.extend(Sending(address, say, note) for address in options.send_to)
    if options.serve is not None:
        host, port = parse_place(options.serve)
        page = Page(host, port, board, note)
        say(f"the run can be watched at {page.address}")
        if not is_loopback(host):
            note(
                f"everyone who reaches {host} can watch: the page asks for no password and is not "
                "encrypted. Give the port alone to serve this machine only"
            )
        views.append(page)
    if options.show:
        views.append(Window(note))
    return Views(board, views, note, told)


def setting_of(pipeline: Pipeline, video: VideoSource) -> Setting:
    """What the views say of a run."""
    return Setting(
        source=video.name,
        model=pipeline.bundle.manifest.variant,
        backend=pipeline.backend,
        mode=pipeline.mode,
        names=pipeline.class_names,
        frame_count=video.frame_count,
        size=(video.width, video.height),
        rate=video.fps,
    )
