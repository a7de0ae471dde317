"""Tests marked ``own_process`` run in a process of their own, a file at a time.

The first such test of a file starts pytest anew for all selected tests of the file, and reports
come back as if they had run here. What they load, such as a CUDA driver that is none, no other test
sees; a crash fails the test that it happened in. ``-k``, durations and skip reasons work as always;
``-s``, ``--pdb`` and coverage of this process do not reach them: set OPENVIS_OWN_PROCESS to a file
name and name the test file to run it directly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

VARIABLE = "OPENVIS_OWN_PROCESS"  # in the inner process: the file that takes its reports
SECONDS = 600  # for a file

_reports = pytest.StashKey[dict[str, list[Any]]]()


def is_inner() -> bool:
    """Whether this process is one that was started for such tests."""
    return VARIABLE in os.environ


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own_process: run the file's tests in a new process")
    config.stash[_reports] = {}
    if is_inner():
        config.pluginmanager.register(_Reporter(config, Path(os.environ[VARIABLE])))


class _Reporter:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if is_inner() or item.get_closest_marker("own_process") is None:
        return None
    reports = item.config.stash[_reports]
    if item.nodeid not in reports:
        same_file = [i for i in item.session.items if i.path == item.path]
        reports.update(_run([i for i in same_file if i.get_closest_marker("own_process")]))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports[item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(items: list[pytest.Item]) -> dict[str, list[Any]]:
    config = items[0].config
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reports"
        path.touch()
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(config.rootpath)]
        if config.inipath is not None:
            options += ["-c", str(config.inipath)]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *(i.nodeid for i in items)],
            cwd=config.rootpath,
            env={**os.environ, VARIABLE: str(path)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    reports: dict[str, list[Any]] = {item.nodeid: [] for item in items}
    for entry in entries:
        report = config.hook.pytest_report_from_serializable(config=config, data=entry)
        if isinstance(report.longrepr, list):  # of a skip: JSON has no tuples
            report.longrepr = tuple(report.longrepr)
        reports[report.nodeid].append(report)
    for item in items:
        found = reports[item.nodeid]
        if not found or found[-1].when != "teardown":
            said = f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
            text = f"its process ended with status {ended.returncode} before it did\n{said}"
            found.append(pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call"))
    return reports
