"""A player in a process of its own, so that memory is its own and no thread pool meets another.

Between its turns the process waits at a pipe: its threads sleep. What goes over the pipe is made by
this module on both sides.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openvis_rt.bench.contenders import Contender
from openvis_rt.bench.player import Player, Run, Spent
from openvis_rt.errors import BackendError, OpenVISError
from openvis_rt.runtime.backends.base import Array
from openvis_rt.runtime.video.results import FrameResult

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["RemotePlayer"]

_PATIENCE = 10.0  # seconds for a process to end by itself


class RemotePlayer:
    """A :class:`Player` behind a pipe; its errors are raised here.

    Args:
        contender, run, warn: as a :class:`Player` takes them.

    Attributes:
        pid: of the process.
    """

    def __init__(
        self, contender: Contender, run: Run, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._name, self._warn, self._is_busy = contender.name, warn, True
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_process_main, args=(theirs, contender, run), daemon=True
        )
        self._process.start()
        theirs.close()  # or the end of the process would not end the pipe
        self.pid = int(self._process.pid or 0)
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def facts(self) -> dict[str, Any]:
        """See :class:`Player`."""
        found: dict[str, Any] = self._call("facts")
        return found

    def outputs(self, windows: int) -> tuple[list[dict[str, Array]], list[FrameResult]]:
        """See :class:`Player`."""
        found: tuple[list[dict[str, Array]], list[FrameResult]] = self._call("outputs", windows)
        return found

    def turn(self, windows: int) -> Spent:
        """See :class:`Player`."""
        found: Spent = self._call("turn", windows)
        return found

    def flow(self, windows: int) -> float:
        """See :class:`Player`."""
        return float(self._call("flow", windows))

    def peak_bytes(self) -> int:
        """See :class:`Player`."""
        return int(self._call("peak_bytes"))

    def close(self) -> None:
        """End the process, by force if it is busy or does not end by itself."""
        if not self._is_busy:
            with contextlib.suppress(OSError):
                self._pipe.send(("close",))
            self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _call(self, method: str, *arguments: int) -> Any:
        try:
            self._pipe.send((method, *arguments))
        except OSError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> Any:
        self._is_busy = True  # until it answers; an interrupt may come first
        while True:
            try:
                kind, value = self._pipe.recv()
            except EOFError:
                raise self._ended() from None
            if kind == "warning":
                self._warn(value)
                continue
            self._is_busy = False
            if kind == "error":
                raise value
            return value

    def _ended(self) -> OpenVISError:
        self._process.join(_PATIENCE)
        return BackendError(
            f"the process of {self._name} ended with code {self._process.exitcode} and no result. "
            "Code -9 is most often the system's: out of memory. Measure with a smaller --size, or "
            "with fewer contenders at once"
        )


def _process_main(pipe: Connection, contender: Contender, run: Run) -> None:
    """The process's body: answers calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and closes the pipe
    player: Player | None = None
    try:
        player = Player(contender, run, lambda message: pipe.send(("warning", message)))
        pipe.send(("done", None))
        while (message := pipe.recv())[0] != "close":
            method, *arguments = message
            pipe.send(("done", getattr(player, method)(*arguments)))
    except EOFError:  # the parent has ended
        pass
    except OpenVISError as exc:
        pipe.send(("error", exc))
    except Exception as exc:  # a library's own, or a defect: its place is told
        traceback.print_exc()
        text = " ".join(str(exc).split())[:300]
        pipe.send(("error", BackendError(f"{contender.name} failed: {type(exc).__name__}: {text}")))
    finally:
        if player is not None:
            player.close()
