"""What every fuzzed case must keep to: our errors and exit codes alone, in time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from hypothesis import settings
from hypothesis.control import current_build_context, currently_in_test_context
from ledger import FELL, Ledger

from openvis_rt.errors import OpenVISError
from openvis_rt.printable import printable

SECONDS = 20
MEGABYTES = 2_000
CODES = {2, 3, 4}


class TooSlow(BaseException):
    """The case took longer than it may."""


LEDGER = Ledger()


def few(cases: int) -> settings:
    """For a border whose cases take long: so many in CI; with ``--fuzz-minutes`` as many as all."""
    default = settings.default
    assert default is not None
    return settings(max_examples=cases if default.derandomize else default.max_examples)


def survives(action: Callable[[], object]) -> str:
    """Do something with a file from a stranger: what came of it, ``done`` or an error's name.

    Any other exception is a traceback that a user would see, and goes on up.
    """
    return watched(lambda: _ended(action))


def watched(use: Callable[[], str]) -> str:
    """Use an input and count how that ended; what ``use`` raises is a fall, and goes on up."""
    peak, begun, end = _peak(), time.monotonic(), ""
    try:
        with _limit():
            end = use()
        assert _peak() - peak < MEGABYTES, f"{_peak() - peak:.0f} MB were taken"
    except KeyboardInterrupt:
        end = "interrupted"
        raise
    except BaseException as exc:
        end = FELL + _fall(exc)
        raise
    finally:
        border = os.environ["PYTEST_CURRENT_TEST"].split("/")[-1].split(" ")[0]
        case = current_build_context() if currently_in_test_context() else None
        LEDGER.write(border, case, end, time.monotonic() - begun, _peak() - peak)
    return end


def _fall(exc: BaseException) -> str:
    """An exception and the line that raised it: where many cases fall, it tells them apart."""
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__}, {str(exc)[:80]!r}, {Path(last.filename).name}:{last.lineno}"


def _ended(action: Callable[[], object]) -> str:
    try:
        action()
    except OpenVISError as exc:
        found = exc
    else:
        return "done"
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
