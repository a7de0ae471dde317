"""Every graph of full-size models through TensorRT-RTX's parser and compiler, FP32 and FP16."""

from __future__ import annotations

import pytest

from openvis_rt.checkpoints.load import load_model
from openvis_rt.export.bundle import export_bundle
from openvis_rt.models.network import Network, build_network
from openvis_rt.models.swin import Swin
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.instformer import InstFormerConfig

pytest.importorskip("tensorrt_rtx", reason="compiling needs the extra [rtx]")

TARGETS = ("sm86", "sm89", "sm120")


def test_full_size_graphs_compile_for_three_targets(tmp_path):
    from openvis_rt.engines.build.engines import build_engines
    from openvis_rt.engines.library import tensorrt_library
    from openvis_rt.engines.plan import find_plan

    bundle = export_bundle(
        load_model("clip-vis-r50", 0).model, tmp_path / "bundle", checkpoint={}, verify=False
    ).bundle
    assert bundle.manifest.preprocess.network_size == (480, 853)
    assert set(bundle.manifest.graphs) == {"fp32", "fp16"}
    results = build_engines(
        bundle, backend="tensorrt-rtx", targets=TARGETS, precisions=["fp32", "fp16"]
    )
    built = {}
    for result in results:
        sidecar = result.sidecar
        built.setdefault(sidecar.precision_built, {})[sidecar.graph] = sidecar
        print(
            f"{sidecar.graph:9s} {sidecar.precision_built} {sidecar.build_seconds:6.1f} s "
            f"{sidecar.plan_bytes / 1e6:7.1f} MB"
        )
    # `masks` computes in FP32 whatever the bundle's precision, and is built once
    assert list(built["fp32"]) == ["propose", "classify", "text", "masks"]
    assert list(built["fp16"]) == ["propose", "classify", "text"]
    for graph in built["fp16"]:
        wide, narrow = built["fp32"][graph], built["fp16"][graph]
        assert not any("float16" in counts for counts in wide.layers.values())
        # mostly weights; kernels for three targets are the rest
        assert narrow.plan_bytes < 0.65 * wide.plan_bytes
        assert narrow.replaced_grid_samples == wide.replaced_grid_samples
    # the sampled rows are FP16, as the convolutions before them
    sampled = built["fp16"]["propose"]
    assert sampled.layers["GATHER"]["float16"] >= sampled.replaced_grid_samples > 0
    assert "GRID_SAMPLE" not in built["fp16"]["propose"].layers
    masks = built["fp32"]["masks"]
    assert list(masks.shape_values) == ["picture_size", "frame_size"]

    version = tensorrt_library("tensorrt-rtx").version
    for precision in ("fp32", "fp16"):
        for graph in bundle.graphs:
            plan, _ = find_plan(
                bundle,
                graph,
                precision,
                backend="tensorrt-rtx",
                version=version,
                capability="sm120",
            )
            assert plan.parent.name == "tensorrt-rtx-sm86-sm89-sm120"


def instformer() -> Network:
    return build_network(VARIANTS["instformer-r50"], InstFormerConfig(decoder_layers=2))


def minvis_clip() -> Network:
    return build_network(VARIANTS["minvis-clip-r50"], InstFormerConfig(decoder_layers=2))


def ovformer_video_r50() -> Network:
    return build_network(VARIANTS["ovformer-video-r50"], decoder_layers=2)


def ovformer_video_swin() -> Network:
    variant = VARIANTS["ovformer-video-swin-b"]
    model = build_network(variant, decoder_layers=2, with_clip=False)
    model.network.backbone = Swin(depths=(2, 2, 2, 2))  # one shifted block a stage
    return model.eval()


def ov2seg_r50() -> Network:
    return build_network(VARIANTS["ov2seg-r50"], decoder_layers=2, with_clip=False)


def minvis_r50() -> Network:
    return build_network(VARIANTS["minvis-r50"], decoder_layers=2)


@pytest.mark.parametrize(
    ("build", "graphs"),
    [
        (instformer, ["propose", "classify"]),
        (minvis_clip, ["classify"]),
        (ovformer_video_r50, ["propose", "embed", "classify", "masks"]),
        (ovformer_video_swin, ["propose"]),
        (ov2seg_r50, ["classify"]),  # `propose` has InstFormer's operators and CLIP-VIS's sums
        (minvis_r50, ["classify"]),
    ],
)
def test_graphs_of_the_other_systems_compile(tmp_path, build, graphs):
    """Full width, two decoder layers and small frames: what differs is the operators.

    At full size they are compiled by benchmarks/variants.py.
    """
    from openvis_rt.engines.build.engines import build_engines
    from openvis_rt.engines.plan import Profile

    model = build()
    wanted = {name: graph for name, graph in model.graphs.items() if name in graphs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "graphs", wanted)
        bundle = export_bundle(
            model, tmp_path / "bundle", network_size=(96, 160), checkpoint={}, verify=False
        ).bundle
    results = build_engines(
        bundle, backend="tensorrt-rtx", targets=TARGETS[:1], precisions=["fp32", "fp16"]
    )
    built = {(r.sidecar.graph, r.sidecar.precision_built): r.sidecar for r in results}
    assert {graph for graph, _ in built} == set(graphs)
    for (graph, precision), sidecar in built.items():
        print(f"{model.variant.name} {graph:9s} {precision} {sidecar.build_seconds:6.1f} s")
        if model.variant.window_length > 1:  # one plan for windows of every length
            assert sidecar.profiles["T"] == Profile(1, 5, 5)
    if "propose" in graphs:
        assert built["propose", "fp16"].replaced_grid_samples == 18
        assert built["propose", "fp32"].replacement_error < 1e-5
    if build is instformer:
        inputs = [t.name for t in built["classify", "fp16"].inputs]
        assert inputs == ["frames", "guidance_mask", "text_embeddings"]
