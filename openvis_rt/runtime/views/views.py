"""The frames of a run, drawn for those who look on while it runs; the run never waits for them.

    run -> write -> [draw the newest] -> page: [encode the newest] -> each viewer: its newest
                                      -> window: [the newest]
                                      -> stream: [encode, send the newest]

Each bracket is a thread that drops what it is too slow for. Where nobody looks, nothing is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.overlay import Canvas
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.views.board import Board, Setting
from openvis_rt.runtime.views.newest import NewestStage

__all__ = ["Picture", "Run", "View", "Views"]


@dataclass(frozen=True)
class Run:
    """What a view knows of its run, and may do to it.

    Attributes:
        setting: of the run.
        stop: ends it as Ctrl-C does.
        redraw: shows the newest frame again, where nobody looked when it came.
    """

    setting: Setting
    stop: Callable[[], None]
    redraw: Callable[[], None]


@dataclass(frozen=True)
class Picture:
    """A frame with its objects drawn.

    Attributes:
        frame: planes of green, blue and red, of even size; shared, and never written.
        result: what was drawn.
    """

    frame: VideoFrame
    result: FrameResult


class View(Protocol):
    """Something that shows pictures; opened and closed by :class:`Views`."""

    def __enter__(self) -> View:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, within a few seconds."""

    @property
    def watched(self) -> bool:
        """Whether somebody looks now, so that pictures are worth drawing."""

    def begin(self, run: Run) -> None:
        """The source is open, and pictures follow."""

    def show(self, picture: Picture) -> None:
        """Take the newest picture; this must not wait."""


class Views:
    """Hands the frames of a run to views; use it in a ``with`` block around the run.

    Args:
        board: is kept up to date.
        views: each is open while the block runs.
        warn: told what a view cannot do. It does not end the run.
        warnings: takes what was told so far, if somebody keeps that; for the run's report.
    """

    def __init__(
        self,
        board: Board,
        views: Sequence[View],
        warn: Callable[[str], None],
        warnings: list[str] | None = None,
    ) -> None:
        self.warnings = [] if warnings is None else warnings
        self.board, self._views, self._warn = board, views, warn
        self._drawer, self._stack = Drawer(), ExitStack()
        self._shares = False  # somebody else draws
        self._stopped = threading.Event()  # the run's, once it has begun
        self._newest: tuple[npt.NDArray[np.uint8], FrameResult] | None = None
        self._draw = NewestStage("draw for views", self._drawn, self._failed)

    def __enter__(self) -> Views:
        with ExitStack() as stack:
            for view in self._views:
                stack.enter_context(view)
            stack.enter_context(self._draw)  # ends first, so that its last picture is shown
            self._stack = stack.pop_all()
        return self

    def begin(self, setting: Setting, stopped: threading.Event) -> None:
        """The source is open, and frames follow.

        Args:
            setting: of the run.
            stopped: ends the run as Ctrl-C does; a view may set it.
        """
        self._stopped = stopped
        self.board.begin(setting)
        for view in self._views:
            view.begin(Run(setting, stopped.set, self._redraw))

    def write(self, image: npt.NDArray[np.uint8], result: FrameResult) -> None:
        """Show a frame, unless a newer one comes before it is drawn; this never waits.

        Args:
            image: uint8 [H, W, 3] RGB; it is read later, so its caller changes it no more.
            result: its objects.
        """
        self.board.write(result)
        self._newest = (image, result)
        if not self._shares:
            self._redraw()

    def show_drawn(self, frame: VideoFrame, result: FrameResult) -> None:
        """Show a frame that the overlay's file draws anyway; frames that are written are not drawn.

        Args:
            frame: green, blue and red, of even size; never written any more.
            result: what was drawn.
        """
        self._shares = True
        self._show(Picture(frame, result))

    def finishing(self) -> None:
        """The last frame has come, and the run writes its results."""
        self.board.turn("finishing")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stopped.is_set() or isinstance(error, KeyboardInterrupt):
            self.board.turn("stopped")
        elif error is None:
            self.board.turn("ended")
        else:
            self.board.turn("failed", str(error))
        self._stack.__exit__(kind, error, trace)

    def _redraw(self) -> None:
        newest = self._newest
        if newest is not None and any(view.watched for view in self._views):
            self._draw.put(newest)

    def _drawn(self, pair: tuple[npt.NDArray[np.uint8], FrameResult]) -> None:
        image, result = pair
        canvas = Canvas(image)
        self._drawer.paint(canvas.planes, result)
        self._show(Picture(canvas.frame(), result))

    def _show(self, picture: Picture) -> None:
        for view in self._views:
            if view.watched:
                view.show(picture)

    def _failed(self, error: Exception) -> None:
        self._warn(f"the run can no longer be watched: frames cannot be drawn ({error})")
