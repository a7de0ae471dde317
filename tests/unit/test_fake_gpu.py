"""Starts the tier that needs a process of its own; see ``tests/fake_gpu/conftest.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.timeout(900)  # for a whole tier, of which each test has its own limit
def test_what_runs_on_a_driver_that_is_none(tiny_bundle, tmp_path, tmp_path_factory):
    from recorded_bundles import record_bundles
    from tiny_ovformer import shared_bundle

    windows = shared_bundle("ovformer-video-r50", tmp_path_factory).path
    for name, exported in (("tiny", tiny_bundle), ("windows", windows)):
        (tmp_path / name).symlink_to(exported, target_is_directory=True)
    record_bundles(tiny_bundle, windows, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, str(TESTS / "fake_gpu")],
        cwd=TESTS.parent,
        env={**os.environ, "OPENVIS_EXPORTED": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    print(ended.stdout)  # with the reasons of what was skipped
    assert ended.returncode == 0, f"{ended.stdout[-20000:]}\n{ended.stderr[-3000:]}"
    if " passed" not in ended.stdout:
        pytest.skip(ended.stdout[-1000:])
