"""The count of fuzzed cases: what it says must be what happened."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = str(Path(__file__).parents[1] / "fuzz")


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(FUZZ)
    import ledger as module

    yield module
    sys.modules.pop("ledger", None)


def test_uses_of_one_input_are_one_case(ledger):
    written, case = ledger.Ledger(), object()
    written.write("a", case, "done", 0.5, 1.0)
    written.write("a", case, "InputError", 0.1, 9.0)
    written.write("a", object(), "done", 0.2, 0.0)
    written.write("b", None, ledger.FELL + "KeyError", 3.0, 0.0)
    lines = ledger.table_of(written.entries())
    assert lines == [
        "     2  a: 2 done, 1 InputError; at most 0.5 s, 9 MB",
        "     1  b: 1 FELL: KeyError; at most 3.0 s, 0 MB",
        "     3  cases over 2 borders; 1 borders fell",
    ]
