"""ONNX Runtime against PyTorch over videos of 1, 3 and 12 frames.

The frames are none that was traced or checked at export. Inside `propose` one attention-mask bit
that flips on float rounding moves queries by 1e-3 or more, so its outputs are gated by their
signal-to-noise ratio; the largest errors are printed.
"""

from __future__ import annotations

import gc
import math
import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from openvis_rt.checkpoints.load import load_model
from openvis_rt.compare.differences import largest_error, sqnr
from openvis_rt.export.bundle import export_bundle
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.video.generated import sample_frames

WHOLE, PADDED = (192, 320), (256, 410)  # the second is padded, to 256x416
VIDEOS = (1, 3, 12)
FLIPS, ROUNDING = 30.0, 90.0  # dB; see openvis_rt/compare/differences.py

CASES = [("clip-vis-r50", PADDED), ("instformer-r50", WHOLE), ("clip-vis-convnext-b", PADDED)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1][0]}x{c[1][1]}")
def exported(request, tmp_path_factory):
    """A full-size model with seeded weights, and its bundle; `text` is not of this test."""
    name, size = request.param
    model = load_model(name, 3).model
    folder = tmp_path_factory.mktemp(name) / "bundle"
    options = {"network_size": size, "precisions": ("fp32",), "checkpoint": {}, "verify": False}
    graphs = {name: graph for name, graph in model.graphs.items() if name != "text"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "graphs", graphs)
        bundle = export_bundle(model, folder, **options).bundle
    yield model, bundle
    shutil.rmtree(folder)  # half a gigabyte each
    gc.collect()


def test_onnx_runtime_gives_pytorchs_numbers_over_videos(exported):
    model, bundle = exported
    size = bundle.manifest.preprocess.network_size
    factory = OnnxRuntime("cpu")
    propose, classify = (factory.open(bundle, g, "fp32") for g in ("propose", "classify"))
    *bound, _ = (t.name for t in classify.spec.inputs)  # the last is the text
    for name in bound:
        classify.bind(name, propose, name)
    text = np.random.default_rng(5).standard_normal((9, model.variant.embed_dim), np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    classify.write("text_embeddings", text)
    modules = {s.spec.name: GraphModule(model, s.spec) for s in (propose, classify)}
    worst: dict[str, tuple[float, float]] = {}
    frames = sample_frames(width=640, height=400, fps=5, seconds=max(VIDEOS) / 5, seed=11)
    for index, (image, _) in enumerate(frames):
        frame = np.array(Image.fromarray(image).resize(size[::-1]))[None]
        propose.write("frames", frame)
        propose.run()
        classify.run()
        with torch.inference_mode():
            wanted = modules["propose"](frames=torch.from_numpy(frame))
            # classify is compared with PyTorch on the inputs that it had
            given = {n: frame if n == "frames" else propose.fetch(n) for n in bound}
            given["text_embeddings"] = text
            scored = modules["classify"](**{n: torch.from_numpy(v) for n, v in given.items()})
        for session, tensors in ((propose, wanted), (classify, scored)):
            for tensor, value in zip(session.spec.outputs, tensors, strict=True):
                found = session.fetch(tensor.name)
                largest, ratio = largest_error(found, value.numpy()), sqnr(found, value.numpy())
                known = worst.get(tensor.name, (0.0, math.inf))
                worst[tensor.name] = (max(known[0], largest), min(known[1], ratio))
        if index + 1 in VIDEOS:
            print(f"\n{model.variant.name} {size} {index + 1} frames")
            for name, (largest, ratio) in worst.items():
                print(f"  {name:16s} largest {largest:.1e}  SQNR {ratio:.0f} dB")
    for name, (_, ratio) in worst.items():
        gate = ROUNDING if name in ("features", "instance_tokens", "class_scores") else FLIPS
        assert ratio >= gate, f"{name}: {ratio:.0f} dB"


def test_graphs_hold_nothing_that_tensorrt_cannot_take(exported):
    """No infinity or NaN, no operator whose output shape depends on data, opset 18, metadata."""
    _, bundle = exported
    for graph in bundle.graphs:
        loaded = onnx.load(bundle.graph_path(graph))
        operators = {node.op_type for node in loaded.graph.node}
        assert not operators & {"NonZero", "Where", "Unique", "Compress", "Loop", "If", "Scan"}
        assert [(o.domain, o.version) for o in loaded.opset_import] == [("", 18)]
        for tensor in loaded.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            assert np.isfinite(values).all(), f"{graph}: {tensor.name}"
        assert {p.key for p in loaded.metadata_props} >= {"openvis_rt.graph", "openvis_rt.variant"}
        assert "/" not in "".join(n.doc_string for n in loaded.graph.node)
