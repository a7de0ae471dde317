"""SIGINT while Python still loads the command, after so many modules; `--kills N` times."""

from __future__ import annotations

import signal
import subprocess
import sys

MODULES = 300  # that are loaded for it, about
SAID = ("interrupted; nothing was begun\n", "interrupted; nothing half-written was left\n")


def test_an_interrupt_while_it_loads(kills: int) -> None:
    for number in range(1, MODULES, MODULES // kills):
        code, said = interrupted(number)
        assert (code == 130 and said in SAID) or (code, said) == (0, ""), (number, code, said)


def interrupted(number: int) -> tuple[int, str]:
    """Send a SIGINT when so many modules are loaded; the exit code, and what was said."""
    said, loaded = [], 0
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "openvis_rt", "models"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("import time:"):
                said.append(line)
                continue
            loaded += loaded > 0 or "openvis_rt.cli" in line
            if loaded == number:  # never before the command itself begins: that is Python's
                process.send_signal(signal.SIGINT)
    return process.returncode, "".join(said)
