"""What every fuzzed case must keep to: our errors and exit codes alone, in time and memory."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from openvis_rt.errors import OpenVISError
from openvis_rt.printable import printable

SECONDS = 20
MEGABYTES = 2_000
CODES = {2, 3, 4}


class TooSlow(BaseException):
    """The case took longer than it may."""


def survives(action: Callable[[], object]) -> str:
    """Do something with a file from a stranger: what came of it, ``done`` or an error's name.

    Any other exception is a traceback that a user would see, and goes on up.
    """
    before = _peak()
    try:
        with _limit():
            action()
    except OpenVISError as exc:
        found = exc
    else:
        return "done"
    finally:
        grown = _peak() - before
        assert grown < MEGABYTES, f"{grown:.0f} MB were taken"
    assert found.exit_code in CODES, f"exit code {found.exit_code}: {found}"
    _check_message(str(found))
    return type(found).__name__


def _check_message(text: str) -> None:
    assert text.strip(), "an error without words"
    assert len(text) < 20_000, f"a message of {len(text)} letters"
    assert printable(text) == text, f"{text!r} would reach a terminal"


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
