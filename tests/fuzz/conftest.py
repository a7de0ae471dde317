"""How many cases: some hundreds in CI, always the same; as many as fit into --fuzz-minutes N."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="the fuzzed borders need hypothesis, of the extra [dev]")

from hypothesis import HealthCheck, settings

_QUIET = [
    HealthCheck.function_scoped_fixture,  # each case writes its file anew
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
]
_CASES_A_MINUTE = 400  # of one test, at the most; a case takes 5 to 300 ms


def pytest_configure(config: pytest.Config) -> None:
    """Always the same cases, or new ones for as long as was asked."""
    minutes = float(config.getoption("--fuzz-minutes"))
    settings.register_profile(
        "fuzz",
        max_examples=int(_CASES_A_MINUTE * minutes) or 60,
        derandomize=not minutes,
        deadline=None,  # borders.py has the limit
        database=None,
        suppress_health_check=_QUIET,
    )
    settings.load_profile("fuzz")
