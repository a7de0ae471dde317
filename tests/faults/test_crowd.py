"""Two processes on one bundle in CI; fifty with ``pytest tests/faults/test_crowd.py --kills 3``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_points import court
from verbs import VERBS, Goods

from openvis_rt.bundle.bundle import MANIFEST, Bundle

pytest.importorskip("torch", reason="exporting needs the extra [export]")

NAMES = (("ring", "star"), ("disc",), ("box", "ring", "moon"), ("star", "cross"), ("heart",))


@pytest.fixture(scope="module")
def goods(tmp_path_factory) -> Goods:
    """A bundle and a video."""
    with court() as bench:
        return Goods(tmp_path_factory.mktemp("goods"), bench)


def begun(arguments: list[object], cache: Path) -> subprocess.Popen[str]:
    """The command as a process that runs beside others, with a cache of its user's."""
    return subprocess.Popen(
        [sys.executable, "-m", "openvis_rt", *map(str, arguments)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and talk of each."""
    return [(p.returncode, said) for p in processes for said in [p.communicate()[1]]]


@pytest.mark.timeout(600)
def test_runs_that_share_a_bundle_and_a_cache(goods, tmp_path, kills):
    bundle = tmp_path / "bundle"
    shutil.copytree(goods.bundle, bundle)
    manifest = (bundle / MANIFEST).read_bytes()

    def arguments(number: int, name: str) -> list[object]:
        words = [word for given in NAMES[number % len(NAMES)] for word in ("-c", given)]
        return ["run", bundle, goods.video, *words, "--only", "--no-overlay", "-o", tmp_path / name]

    count = 50 if kills > 2 else 2
    done = ended([begun(arguments(n, f"out{n}"), tmp_path / "cache") for n in range(count)])
    assert [code for code, _ in done] == [0] * count, [said for code, said in done if code]
    for number in range(min(count, len(NAMES))):  # alone, with a cache that holds nothing yet
        [(code, said)] = ended([begun(arguments(number, f"alone{number}"), tmp_path / "other")])
        assert code == 0, said
        for other in range(number, count, len(NAMES)):
            for name in ("results.json", "frames.jsonl"):
                alone = (tmp_path / f"alone{number}" / name).read_text()
                assert (tmp_path / f"out{other}" / name).read_text() == alone
    assert (bundle / MANIFEST).read_bytes() == manifest
    assert not [path for path in tmp_path.rglob(".*") if "partial" in path.name]


@pytest.mark.timeout(600)
def test_writers_of_one_output_and_of_one_bundle(goods, tmp_path, kills):
    bundle = tmp_path / "bundle"
    shutil.copytree(goods.bundle, bundle)
    count = 8 if kills > 2 else 2
    verbs = [("run", tmp_path / "out", "--overwrite"), ("calibrate --into", bundle, "--overwrite")]
    for verb, place, *more in verbs:
        given = [*VERBS[verb].arguments(goods, place), *more]
        done = ended([begun(given, tmp_path / "cache") for _ in range(count)])
        assert {code for code, _ in done} <= {0, 2}, done
        assert any(code == 0 for code, _ in done), done
        for said in (said for code, said in done if code):
            assert "another process" in said
        VERBS[verb].whole(place)
    assert "int8-fp32" in Bundle.open(bundle).manifest.graphs
    assert not [path for path in tmp_path.rglob(".*") if "partial" in path.name]
