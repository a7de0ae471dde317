"""Every graph of the full-size clip-vis-r50 through TensorRT-RTX's parser and compiler."""

from __future__ import annotations

import pytest

from openvis_rt.export.bundle_export import export_bundle
from openvis_rt.models.checkpoint import model_from_seed

pytest.importorskip("tensorrt_rtx", reason="compiling needs the extra [rtx]")


@pytest.mark.parametrize("variant", ["clip-vis-r50"])
def test_full_size_graphs_compile_for_three_targets(variant, tmp_path):
    from openvis_rt.engines.build import build_engines
    from openvis_rt.plans import check_plan

    bundle = export_bundle(
        model_from_seed(variant, 0), tmp_path / "bundle", checkpoint={}, verify=False
    ).bundle
    assert bundle.manifest.preprocess.network_size == (480, 853)
    results = build_engines(bundle, targets=["sm86", "sm89", "sm120"], precision="fp32")
    assert [r.sidecar.graph for r in results] == ["propose", "classify", "text", "masks"]
    for result in results:
        sidecar = check_plan(result.plan, bundle.graph_sha256(result.sidecar.graph))
        print(
            f"{sidecar.graph:9s} {sidecar.build_seconds:6.1f} s {sidecar.plan_bytes / 1e6:7.1f} MB"
        )
        floats = {d for counts in sidecar.layers.values() for d in counts}
        assert "float32" in floats
        assert "float16" not in floats
