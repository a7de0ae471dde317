"""``python -m openvis_rt`` is the command ``openvis``; Ctrl-C while it loads is an interrupt."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Load the command, which takes a moment, and run it.

    An interrupt while it loads ends it at once: some libraries answer an exception in the middle of
    their own loading with another one, or swallow it.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from openvis_rt.cli.main import main as run

        signal.signal(signal.SIGINT, usual)
        run()
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted; nothing was begun\n")
    os._exit(130)


if __name__ == "__main__":
    main()
