"""Full-size networks against the public implementation's numbers; gates: benchmarks/parity.py.

Every CLIP-VIS reference that lies in the folder is run, so more can be added without a change here.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.parity import (
    Row,
    load_reference,
    references,
    runtime_rows,
    scoring_rows,
    torch_rows,
)
from openvis_rt.export.bundle_export import export_bundle
from openvis_rt.models.checkpoint import model_from_checkpoint


def names() -> list[str]:
    """References that lie in the folder now; none where there is no folder."""
    from conftest import reference_folder

    return references(reference_folder()) or ["none"]


@pytest.fixture(scope="module", params=names())
def loaded(request, reference, tmp_path_factory):
    """A reference and the model that our loader makes of its checkpoint."""
    if request.param == "none":
        pytest.skip(f"no clip-vis-*.npz in {reference}")
    ref = load_reference(reference, request.param, tmp_path_factory.mktemp("weights"))
    return ref, model_from_checkpoint(ref.variant, ref.weights)


def check(rows: list[Row]) -> None:
    """Print the table, and fail with the rows that miss their gates."""
    for row in rows:
        print(f"{row.stage:40s} {row.error:9.1e}  gate {row.gate:.0e}")
    missed = [f"{r.stage}: {r.error:.1e} > {r.gate:.0e}" for r in rows if not r.passed]
    assert not missed, "; ".join(missed)


def test_every_stage_in_pytorch_gives_the_public_numbers(loaded):
    with torch.inference_mode():
        check(list(torch_rows(*loaded)))


def test_association_and_scores_are_the_public_ones(loaded):
    check(list(scoring_rows(loaded[0])))


def test_exported_graphs_through_the_pipeline_give_the_public_results(loaded, tmp_path):
    ref, model = loaded
    size = (int(ref.frames.shape[1]), int(ref.frames.shape[2]))
    result = export_bundle(
        model,
        tmp_path / "bundle",
        network_size=size,
        precisions=("fp32",),
        checkpoint={"file": ref.name},
    )
    check(list(runtime_rows(ref, result.bundle)))
