"""``python -m openvis_rt`` is the command ``openvis``; a signal while it loads ends it."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Load the command, which takes a moment, and run it.

    Ctrl-C and SIGTERM while it loads end it at once: some libraries answer an exception in the
    middle of their own loading with another one, or swallow it.
    """
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in usual.items():
        if handler in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _leave)
    try:
        from openvis_rt.cli.main import main as run

        for number, handler in usual.items():
            signal.signal(number, handler)
        run()
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted; nothing was begun\n")
    os._exit(130)


if __name__ == "__main__":
    main()
