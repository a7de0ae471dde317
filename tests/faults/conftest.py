"""How often a command is killed."""

from __future__ import annotations

import pytest


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Of each command."""
    return int(request.config.getoption("--kills"))
