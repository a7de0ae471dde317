"""The page that shows a run: one encoding of the newest picture for all who look on.

| path | gives |
|---|---|
| ``/`` | the page |
| ``/live`` | for the page: two lengths (uint32, big-endian), the state as JSON, a JPEG; and again |
| ``/stream.mjpg`` | the pictures alone, for players and other pages of one's own programs |
| ``/state.json`` | the state once |
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from openvis_rt.runtime.views.board import Board
from openvis_rt.runtime.views.jpeg import JpegEncoder
from openvis_rt.runtime.views.newest import NewestStage
from openvis_rt.runtime.views.server import PageServer
from openvis_rt.runtime.views.views import Picture, Run

__all__ = ["Page"]

_VIEWERS = 8  # at once
_INTERVAL = 1 / 25  # seconds between two pictures, at least
_WIDEST = 1280  # pixels; larger pictures are made smaller
_BEAT = 0.5  # seconds after which a state is sent without a picture


class Page:
    """A view that a browser opens.

    Args:
        host, port: where it listens; port 0 takes a free one.
        board: the state that is shown.
        warn: told why it can show no more, if that comes.

    Attributes:
        address: to open it at, such as ``http://127.0.0.1:8000/``.

    Raises:
        InputError: nobody can listen there.
    """

    def __init__(self, host: str, port: int, board: Board, warn: Callable[[str], None]) -> None:
        self._board, self._warn = board, warn
        self._changed = threading.Condition()
        self._shot: tuple[int, bytes] = (0, b"")  # its number and JPEG
        self._viewers, self._ended = 0, False
        self._redraw: Callable[[], None] = lambda: None  # until the source is open
        self._jpeg = JpegEncoder(_WIDEST)
        self._encode = NewestStage("encode page", self._encoded, self._failed, _INTERVAL)
        self._server = PageServer(host, port, self)
        self._stack = ExitStack()
        self.address = self._server.address

    def __enter__(self) -> Page:
        with ExitStack() as stack:
            stack.enter_context(self._server)
            stack.callback(self._end)  # before the server: viewers are told the end
            stack.enter_context(self._encode)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def watched(self) -> bool:
        """Whether a viewer is connected."""
        return self._viewers > 0

    def begin(self, run: Run) -> None:
        """The source is open, and pictures follow."""
        self._redraw = run.redraw

    def show(self, picture: Picture) -> None:
        """Encode the picture for all viewers, unless a newer one comes first."""
        self._encode.put(picture)

    def state(self) -> bytes:
        """The state as JSON, ASCII."""
        return json.dumps(self._board.to_json()).encode("ascii")

    @contextmanager
    def viewer(self) -> Iterator[bool]:
        """A viewer's time; False where there are too many."""
        with self._changed:
            taken = self._viewers < _VIEWERS
            self._viewers += taken
            if taken and self._viewers == 1 and not self._ended:
                self._shot = (self._shot[0], b"")  # what stands there is old
                self._redraw()
        try:
            yield taken
        finally:
            with self._changed:
                self._viewers -= taken

    def shots(self) -> Iterator[bytes]:
        """JPEGs for one viewer: the newest one each time, and an empty one where none is new.

        It ends after the last picture of the run.
        """
        seen = 0
        while True:
            with self._changed:
                if self._shot[0] == seen and not self._ended:
                    self._changed.wait(_BEAT)
                (number, jpeg), ended = self._shot, self._ended
            yield jpeg if number != seen else b""
            seen = number
            if ended:
                return

    def _encoded(self, picture: Picture) -> None:
        jpeg = self._jpeg.encode(picture.frame)
        with self._changed:
            self._shot = (self._shot[0] + 1, jpeg)
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        self._warn(f"the page shows no more pictures: {error}")
