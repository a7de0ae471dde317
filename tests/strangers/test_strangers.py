"""A few cases of each row of table.py; all of them are for `python tests/strangers/table.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="exporting needs the extra [export]")

from court import court
from table import rows, tried
from workshop import Workshop

ROWS = rows()
FEW, FEWER = 8, 3  # the latter of a row that is one of several on one matter, as its comma says


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Good files, and the process that forks one for each case."""
    with court() as bench:
        yield Workshop(tmp_path_factory.mktemp("workshop"), bench)


@pytest.mark.parametrize("name", ROWS)
def test_a_row(workshop: Workshop, name: str) -> None:
    count = sum(1 for _ in ROWS[name](workshop))
    assert count
    every = max(1, count // (FEWER if "," in name else FEW))
    found = list(tried(ROWS[name], workshop, workshop.bench, every, begin=every // 2))
    assert not [case for case in found if case["wrong"]]
