"""A full-size model in FP16, as its FP16 emulation, against PyTorch FP32 on frames of a video.

End to end, so an attention-mask bit that FP16 flips moves queries; docs/fp16.md has the figures of
40 frames. The gates are a few dB below the worst of these frames.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.compare.differences import sqnr
from openvis_rt.export.bundle import export_bundle
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.export.fp16.keeps import KEEPS, GraphView, narrowed
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.runtime.video.generated import sample_frames

SIZE = (192, 320)
FRAMES = 3
GATES = {  # dB
    "mask_logits": 20.0,  # these four: with random weights attention-mask bits flip
    "queries": 20.0,
    "object_logits": 20.0,
    "guidance_mask": 20.0,
    "mask_iou": 60.0,
    "features": 55.0,
    "instance_tokens": 55.0,
    "class_scores": 50.0,
}


@pytest.fixture(scope="module", params=["clip-vis-r50", "instformer-r50"])
def exported(request, tmp_path_factory):
    """A model with seeded weights, and its FP16 bundle."""
    model = load_model(request.param, 3).model
    folder = tmp_path_factory.mktemp("fp16") / "bundle"
    options = {"network_size": SIZE, "checkpoint": {}, "precisions": ("fp16",), "verify": False}
    return model, export_bundle(model, folder, **options).bundle


def session_of(bundle: Bundle, graph: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    twin = fp16_emulation(onnx.load(bundle.graph_path(graph, "fp16")))
    return onnxruntime.InferenceSession(
        twin.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def test_the_fp16_graphs_give_pytorchs_numbers(exported):
    model, bundle = exported
    propose, classify = session_of(bundle, "propose"), session_of(bundle, "classify")
    specs = {name: bundle.graph(name, "fp16").spec for name in ("propose", "classify")}
    modules = {name: GraphModule(model, spec) for name, spec in specs.items()}
    *bound, _ = (t.name for t in bundle.graph("classify", "fp16").spec.inputs)  # the last is text
    text = np.random.default_rng(5).standard_normal((9, model.variant.embed_dim), np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    worst: dict[str, float] = {}
    for image, _ in sample_frames(width=640, height=400, fps=5, seconds=FRAMES / 5, seed=11):
        frame = np.array(Image.fromarray(image).resize(SIZE[::-1]))[None]
        with torch.inference_mode():
            wanted = [t.numpy() for t in modules["propose"](frames=torch.from_numpy(frame))]
        names = [t.name for t in bundle.graph("propose", "fp16").spec.outputs]
        truth = dict(zip(names, wanted, strict=True))
        found = dict(zip(names, propose.run(names, {"frames": frame}), strict=True))
        # classify is compared on PyTorch's own masks and features, which FP16 rounds
        given = {n: ({"frames": frame} | truth)[n] for n in bound} | {"text_embeddings": text}
        with torch.inference_mode():
            scored = modules["classify"](**{n: torch.from_numpy(v) for n, v in given.items()})
        names = ["instance_tokens", "class_scores"]
        truth |= dict(zip(names, (t.numpy() for t in scored), strict=True))
        for tensor in bundle.graph("classify", "fp16").spec.inputs:
            given[tensor.name] = given[tensor.name].astype(tensor.dtype)
        found |= dict(zip(names, classify.run(names, given), strict=True))
        for name in GATES.keys() & found.keys():
            worst[name] = min(worst.get(name, math.inf), sqnr(found[name], truth[name]))
        if "pool_mask" in found:
            assert (found["pool_mask"] != truth["pool_mask"]).mean() < 0.01
    print("\n" + "  ".join(f"{name} {value:.0f} dB" for name, value in worst.items()))
    assert all(value >= GATES[name] for name, value in worst.items()), worst


def test_the_list_holds_in_the_full_graphs(exported):
    _, bundle = exported
    for graph in ("propose", "classify", "text"):
        path = bundle.graph_path(graph, "fp16")
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
        assert narrowed(model) == {}
        view = GraphView(model.graph)
        kept = set().union(*(keep.find(view) for keep in KEEPS))
        for index, node in enumerate(model.graph.node):
            if node.op_type in ("Conv", "MatMul", "Gemm") and index not in kept:
                types = {view.types[name] for name in node.input if name}
                assert types == {onnx.TensorProto.FLOAT16}, node.name
