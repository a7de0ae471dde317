"""Full-size networks against the public implementations' numbers; gates: benchmarks/parity.py.

Every reference of a known system that lies in the folder is run, so more can be added without a
change here.
"""

from __future__ import annotations

import pytest
from parity import SYSTEMS
from reference import load_reference, references
from reference_numbers import reference_folder


def cases() -> list[tuple[str, str]]:
    """System and name of the references that lie in the folder now; none where there is none."""
    return [(s, name) for s in SYSTEMS for name in references(reference_folder(), s)]


@pytest.mark.parametrize(("system", "name"), cases() or [("none", "none")])
def test_every_stage_and_the_results_are_the_public_ones(system, name, reference, tmp_path):
    if system == "none":
        pytest.skip(f"no known reference in {reference}")
    missed = []
    for row in SYSTEMS[system](load_reference(reference, name, tmp_path), tmp_path):
        print(f"{row.stage:40s} {row.error:9.1e}  gate {row.gate:.0e}")
        if not row.passed:
            missed.append(f"{row.stage}: {row.error:.1e} > {row.gate:.0e}")
    assert not missed, "; ".join(missed)
