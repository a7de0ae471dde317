"""ONNX Runtime against PyTorch for windows of 1 to 5 frames from one export, FP32 and FP16.

Backbones of full width, Swin-B with two blocks a stage, and a decoder of two layers, so that it
takes a minute (at full depth: docs/parity.md). Weights are seeded, and frames are none that was
traced or checked at export. An attention-mask bit that flips on rounding moves queries by 1e-3 and
more, so `propose` is gated by its signal-to-noise ratio, on the better of two windows in FP32; FP16
graphs run as their FP16 emulation (see openvis_rt/export/fp16/emulation.py).
"""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from openvis_rt.compare.differences import sqnr
from openvis_rt.export.bundle import export_bundle
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.models.network import build_network
from openvis_rt.models.swin import Swin
from openvis_rt.runtime.preprocessing import clip_picture
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems import VARIANTS

LENGTHS = (1, 2, 3, 4, 5)
SIZE = (96, 150)  # padded to 96x160; Swin's maps are padded to its windows as well
FLIPS = {"fp32": 60.0, "fp16": 15.0}  # dB; of random weights, see openvis_rt/compare/
ROUNDING = {"fp32": 90.0, "fp16": 40.0}


@pytest.fixture(scope="module", params=["ovformer-video-r50", "ovformer-video-swin-b"])
def exported(request, tmp_path_factory):
    """A model with seeded weights, and its bundle without `text`."""
    torch.manual_seed(5)
    model = build_network(VARIANTS[request.param], decoder_layers=2)
    if request.param.endswith("swin-b"):
        model.network.backbone = Swin(depths=(2, 2, 2, 2)).eval()  # one shifted block a stage
    folder = tmp_path_factory.mktemp("clips") / "bundle"
    # CLIP is the same for both, and its text tower is tested with other models
    without = {"text"} if request.param.endswith("r50") else {"text", "embed"}
    graphs = {name: graph for name, graph in model.graphs.items() if name not in without}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "graphs", graphs)
        bundle = export_bundle(model, folder, network_size=SIZE, checkpoint={}, verify=False).bundle
        yield model, bundle
    shutil.rmtree(folder)  # half a gigabyte


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_export_runs_windows_of_every_length(exported, precision):
    model, bundle = exported
    names = [name for name in ("propose", "embed", "classify") if name in bundle.graphs]
    sessions = {name: session(bundle, name, precision) for name in names}
    specs = {name: bundle.graph(name, precision).spec for name in names}
    modules = {name: GraphModule(model, spec) for name, spec in specs.items()}
    rng = np.random.default_rng(1)
    text = rng.standard_normal((9, 512)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    images = [f for f, _ in sample_frames(width=SIZE[1], height=SIZE[0], fps=10, seconds=1.0)]
    worst: dict[str, float] = {}
    for length in LENGTHS:
        found: dict[str, list[float]] = {}
        for begin in (0, 5):
            clip = np.stack(images[begin : begin + length])
            pictures = np.stack([clip_picture(image, 224) for image in clip])
            inputs = {"frames": clip, "pictures": pictures, "text_embeddings": text}
            inputs["image_embeddings"] = rng.standard_normal((length, 512)).astype(np.float32)
            for name in names:  # each on what it really gets
                spec = specs[name]
                given = {t.name: inputs[t.name] for t in spec.inputs}
                with torch.inference_mode():
                    wanted = modules[name](**{n: torch.from_numpy(v) for n, v in given.items()})
                outputs = sessions[name].run([t.name for t in spec.outputs], given)
                for tensor, ours, theirs in zip(spec.outputs, outputs, wanted, strict=True):
                    assert ours.shape == tuple(theirs.shape)
                    found.setdefault(tensor.name, []).append(sqnr(ours, theirs.numpy()))
                    inputs[tensor.name] = ours
        print(f"\n{model.variant.name} {precision}, {length} frames: best and worst SQNR in dB")
        for name, values in found.items():
            print(f"  {name:18s} {max(values):.0f} {min(values):.0f}")
            worst[name] = min(worst.get(name, np.inf), max(values))
    rounded = ("image_embeddings", "instance_tokens", "class_scores")
    for name, ratio in worst.items():
        gate = (ROUNDING if name in rounded else FLIPS)[precision]
        assert ratio >= gate, f"{name}: {ratio:.0f} dB"


def session(bundle, graph: str, precision: str) -> onnxruntime.InferenceSession:
    """The graph, or in FP16 its FP16 emulation."""
    model = onnx.load(bundle.graph_path(graph, precision))
    model = fp16_emulation(model) if precision == "fp16" else model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
