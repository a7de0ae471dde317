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

from openvis_rt.checkpoints.load import model_from_seed
from openvis_rt.export.bundle import export_bundle
from openvis_rt.export.families import network_modules
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems.variants import GRAPHS_OF_FAMILY

WHOLE, PADDED = (192, 320), (256, 410)  # the second is padded, to 256x416
VIDEOS = (1, 3, 12)
FLIPS, ROUNDING = 30.0, 90.0  # dB; see openvis_rt/compare/torch_reference.py

CASES = [("clip-vis-r50", PADDED), ("instformer-r50", WHOLE), ("clip-vis-convnext-b", PADDED)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1][0]}x{c[1][1]}")
def exported(request, tmp_path_factory):
    """A full-size model with seeded weights, and its bundle; `text` is not of this test."""
    name, size = request.param
    model = model_from_seed(name, 3)
    folder = tmp_path_factory.mktemp(name) / "bundle"
    options = {"network_size": size, "precisions": ("fp32",), "checkpoint": {}, "verify": False}
    family = model.variant.family
    graphs = {name: g for name, g in GRAPHS_OF_FAMILY[family].items() if name != "text"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRAPHS_OF_FAMILY, family, graphs)
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
    modules = network_modules(model, None, size)
    worst: dict[str, tuple[float, float]] = {}
    frames = sample_frames(width=640, height=400, fps=5, seconds=max(VIDEOS) / 5, seed=11)
    for index, (image, _) in enumerate(frames):
        frame = np.array(Image.fromarray(image).resize(size[::-1]))[None]
        propose.write("frames", frame)
        propose.run()
        classify.run()
        with torch.inference_mode():
            wanted = modules["propose"](torch.from_numpy(frame))
            # classify is held against PyTorch on the inputs that it had
            given = [frame if n == "frames" else propose.fetch(n) for n in bound]
            scored = modules["classify"](*map(torch.from_numpy, (*given, text)))
        for session, tensors in ((propose, wanted), (classify, scored)):
            for tensor, value in zip(session.spec.outputs, tensors, strict=True):
                largest, sqnr = difference(session.fetch(tensor.name), value.numpy())
                known = worst.get(tensor.name, (0.0, math.inf))
                worst[tensor.name] = (max(known[0], largest), min(known[1], sqnr))
        if index + 1 in VIDEOS:
            print(f"\n{model.variant.name} {size} {index + 1} frames")
            for name, (largest, sqnr) in worst.items():
                print(f"  {name:16s} largest {largest:.1e}  SQNR {sqnr:.0f} dB")
    for name, (_, sqnr) in worst.items():
        gate = ROUNDING if name in ("features", "instance_tokens", "class_scores") else FLIPS
        assert sqnr >= gate, f"{name}: {sqnr:.0f} dB"


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


def difference(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and signal-to-noise ratio in dB."""
    error = found.astype(np.float64) - wanted.astype(np.float64)
    noise, signal = float((error**2).sum()), float((wanted.astype(np.float64) ** 2).sum())
    if noise == 0:
        return 0.0, math.inf
    return float(np.abs(error).max()), 10 * math.log10(max(signal, 1e-30) / noise)
