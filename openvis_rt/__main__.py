"""``python -m openvis_rt`` is the command ``openvis``; Ctrl-C while it loads is an interrupt."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Load the command, which takes a moment, and run it."""
    try:
        from openvis_rt.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
