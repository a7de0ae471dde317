"""A few kills and a few troubles of crash_points.py and places.py, which have all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="exporting needs the extra [export]")

from crash_points import court, points
from places import ROWS, wrongs
from verbs import VERBS, Goods


@pytest.fixture(scope="module")
def goods(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Goods]:
    """Good files, and the process that forks one for each case."""
    if request.config.getoption("--kills") <= 2:
        pytest.skip("takes a minute or more; --kills 3 or more runs it")
    with court() as bench:
        yield Goods(tmp_path_factory.mktemp("goods"), bench)


@pytest.mark.parametrize("older", [False, True])
def test_a_killed_command_leaves_the_old_or_the_new(goods: Goods, older: bool) -> None:
    counts = points(goods, VERBS["convert to coco"], older=older, every=2)
    assert counts.killed
    assert not counts.fell


def test_a_killed_run_leaves_the_old_or_the_new(goods: Goods) -> None:
    counts = points(goods, VERBS["run"], older=True, every=16, begin=9)
    assert counts.killed
    assert not counts.fell


@pytest.mark.parametrize("row", ROWS)
def test_what_goes_wrong_around_a_command(goods: Goods, row: str) -> None:
    cases = [case for case in ROWS[row]() if case.verb in {"convert to coco", "run", None}]
    for case in cases[:: len(cases) // 4]:
        outcome, found = wrongs(goods, case)
        assert not found, f"{case}: {outcome.stderr}"
