"""After the run: what the fuzzed cases came to, in words and, if asked for, as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from borders import LEDGER
from ledger import table_of

_FOUND: list[dict[str, Any]] = []  # of the processes of pytest-xdist


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a process of pytest-xdist hand over what it counted."""
    output = getattr(session.config, "workeroutput", None)
    if output is None:
        _FOUND.extend(LEDGER.entries())
    else:
        output["fuzz"] = json.dumps(LEDGER.entries())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it there."""
    _FOUND.extend(json.loads(getattr(node, "workeroutput", {}).get("fuzz", "[]")))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, and write the file of ``--fuzz-report``."""
    if not _FOUND:
        return
    terminalreporter.section("fuzzed cases")
    for line in table_of(_FOUND):
        terminalreporter.write_line(line)
    if path := config.getoption("--fuzz-report"):
        Path(path).write_text("".join(json.dumps(entry) + "\n" for entry in _FOUND))
