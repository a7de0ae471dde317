"""One pass of CLIP for all instances of a frame (InstFormer) against a crop of each (MinVIS-CLIP).

    python benchmarks/one_pass.py [--instances 1 10 50 100] [--size 360x640] [--repeats 5]
        [--frames 5] [--backend onnxruntime] [--device cpu] [--precision fp32] [--json FILE]

All graphs have the same CLIP ViT-B/32 with the same seeded weights, the same frame and the same N,
and run in one process, in turn, ``--repeats`` times after one run each to warm up. A figure is the
median; a ratio is the median of the ratios of neighbouring runs. Inside the timed region: writing
frame, masks and texts into the session, the run, and fetching tokens and class scores. On the CPU
nothing is copied by that but a few megabytes.

    one pass    InstFormer's `classify`: frame, guidance [N, P], texts -> tokens, class logits
    full mask   the same by the paper's equation: one attention over 1 + N + P tokens
    N crops     MinVIS-CLIP's `classify`: frame, mask logits, texts -> tokens, class logits
    CLIP alone  its N passes of CLIP with the crops given: what is left if cropping costs nothing

Multiply-adds are counted in the ONNX graphs: every Conv, Gemm and MatMul. By hand, with d = 768,
L = 12 blocks, P patches of 32 x 32 and 49 of a crop, without the last projection and the classes:

    a block over T tokens       12 T d^2 + 2 T^2 d          of which keys and values 2 T d^2
    patches to tokens           3 * 32^2 P d = 4 P d^2
    N crops                     N (L (12 * 50 d^2 + 2 * 50^2 d) + 4 * 49 d^2)
      and cropping              N (3 * 224 H W + 3 * 224^2 H)
    one pass                    4 P d^2 + (L - 1) (12 (1 + P) d^2 + 2 (1 + P)^2 d) + 2 P d^2
                                + L N (12 d^2 + 2 P d)
    full mask                   4 P d^2 + L (12 (1 + N + P) d^2 + 2 (1 + N + P)^2 d)

In the one pass the last block needs keys and values of the patches alone, since nobody reads their
output. What a graph takes beyond these lines is listed as "over the formula": keys and values that
are computed twice, say.

Then whole frames: both systems with N the largest of ``--instances`` through the same pipeline
(video mode, so run lengths of every mask that has a pixel), in turn, after one frame to warm up.
Host: placing, association with the scores, run lengths. InstFormer's tracking tokens are 768 wide,
through a tanh RNN of seeded weights. Random weights give ragged masks, whose run lengths cost more
than those of objects.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from variants import size

from openvis_rt.bundle.bundle import (
    Bundle,
    GraphFile,
    Manifest,
    Preprocess,
    write_manifest,
)
from openvis_rt.engines.build.engines import build_engines
from openvis_rt.export.bundle import export_bundle, tool_versions
from openvis_rt.export.fp16.convert import fp16_from_fp32
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.export.multiply_adds import multiply_adds
from openvis_rt.export.onnx_export import onnx_from_module
from openvis_rt.models.instformer import InstFormer, build
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.runtime.backends.base import Backend, Session
from openvis_rt.runtime.backends.registry import BACKENDS, BackendOptions, open_backend
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.graphs import STAGES
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems import SYSTEMS, VARIANTS
from openvis_rt.systems.graphs import GraphSpec, TensorSpec
from openvis_rt.systems.instformer import InstFormerConfig
from openvis_rt.systems.system import Score, Tracker

FORMS = ("one pass", "full mask", "N crops", "CLIP alone")
HOST = ("place", "associate", "scores", "masks")  # of the pipeline's stages
CROP = 224
WIDTH = 768  # of CLIP's tokens, and of a tracking token
BLOCKS = 12


class FullMask(nn.Module):
    """InstFormer's `classify` by the paper's equation as it stands."""

    def __init__(self, model: InstFormer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, frames: Tensor, guidance_mask: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`InstFormer.classify`."""
        model = self.model
        images = model.normalise_for_clip(frames)
        tokens = model.instance_clip.forward_full(images, guidance_mask)
        return tokens, model.instance_clip.logits(tokens, text_embeddings)


class ClipAlone(nn.Module):
    """Plain CLIP over crops that are given."""

    def __init__(self, model: InstFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor, text_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Crops float32 [N, 3, 224, 224] to tokens and class logits."""
        tokens = self.model.clip_model.visual(crops)
        return tokens, self.model.instance_clip.logits(tokens, text_embeddings)


def main() -> None:
    """Run everything and print the tables."""
    options = parse()
    model = seeded(max(options.instances))
    rows = []
    for count in options.instances:
        rows.append(measure(model, count, options))
        print(table(rows), flush=True)
    frames = whole_frames(model, options) if options.frames else {}
    if frames:
        print(frame_table(frames))
    result = {"machine": machine(options), "rows": rows, "frames": frames}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", nargs="+", type=int, default=[1, 10, 50, 100])
    parser.add_argument("--size", type=size, default=(360, 640), metavar="HxW")
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=5, help="of each system; 0: no whole frames")
    parser.add_argument("--backend", default="onnxruntime", choices=list(BACKENDS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16"])
    parser.add_argument("--json", type=Path, help="write the figures into this file as well")
    return parser.parse_args()


def seeded(queries: int) -> InstFormer:
    """InstFormer with random weights, the same for the same N."""
    import torch

    torch.manual_seed(0)
    return build(VARIANTS["instformer-r50"], InstFormerConfig(queries=queries))


def measure(model: InstFormer, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One N: seconds of each system and run, and multiply-adds."""
    inputs = inputs_of(count, options)
    row: dict[str, Any] = {"instances": count, "multiply_adds": {}, "formula": {}}
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Session] = {}
        factories: list[Backend] = []
        for name in FORMS:
            say(f"{count} instances: {name}")
            spec, module = graph_of(name, model, count, options)
            traced = onnx_from_module(module, spec)
            row["multiply_adds"][name] = counted(traced, options.classes)
            row["formula"][name] = by_hand(name, count, options.size)
            bundle = bundle_of(Path(folder) / name.replace(" ", "-"), traced, spec, options)
            factory = open_backend(
                options.backend, bundle, options.precision, BackendOptions(options.device)
            )
            factories.append(factory)
            sessions[name] = factory.open(
                bundle, "classify", options.precision, fetched=[t.name for t in spec.outputs]
            )
        row["seconds"] = run_in_turn(sessions, inputs, options.repeats)
        for opened in (*sessions.values(), *factories):
            opened.close()
    return row


def inputs_of(count: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Seeded inputs by name; what they hold changes no time."""
    rng = np.random.default_rng(0)
    height, width = options.size
    rows, columns = -(-height // 32), -(-width // 32)
    texts = rng.standard_normal((options.classes, 512), np.float32)
    return {
        "frames": rng.integers(0, 256, (1, height, width, 3)).astype(np.uint8),
        "guidance_mask": rng.standard_normal((count, rows * columns), np.float32),
        "mask_logits": rng.standard_normal((count, 1, 8 * rows, 8 * columns), np.float32),
        "crops": rng.standard_normal((count, 3, CROP, CROP), np.float32),
        "text_embeddings": texts / np.linalg.norm(texts, axis=1, keepdims=True),
    }


def graph_of(
    name: str, model: InstFormer, count: int, options: argparse.Namespace
) -> tuple[GraphSpec, nn.Module]:
    """A system's `classify` for N instances: its tensors and its module."""
    height, width = options.size
    rows, columns = -(-height // 32), -(-width // 32)
    grid = {"h": 8 * rows, "w": 8 * columns, "P": rows * columns}
    sizes = {"N": count, "T": 1, "H": height, "W": width, "D": 512, "Dt": 512, **grid}
    one = SYSTEMS["instformer"].graphs["classify"].with_sizes(sizes)
    if name == "one pass":
        return one, GraphModule(model, one)
    if name == "full mask":
        return one, FullMask(model)
    if name == "N crops":
        crops = MinVisClip.from_instformer(model)
        spec = SYSTEMS["minvis-clip"].graphs["classify"].with_sizes(sizes)
        return spec, GraphModule(crops, spec)
    crop = TensorSpec("crops", "float32", (count, 3, CROP, CROP))
    return replace(one, inputs=(crop, one.inputs[-1])), ClipAlone(model)


def bundle_of(
    path: Path, traced: onnx.ModelProto, spec: GraphSpec, options: argparse.Namespace
) -> Bundle:
    """A bundle that holds this graph alone, with an engine where the backend needs one."""
    precision = options.precision
    if precision == "fp16":
        half = fp16_from_fp32(traced, spec)
        traced, spec = half.model, half.spec
    path.mkdir()
    onnx.save_model(traced, path / "classify.onnx")
    manifest = Manifest(
        system="instformer",
        variant="instformer-r50",
        graphs={precision: {"classify": GraphFile("classify.onnx", precision, spec)}},
        preprocess=Preprocess(options.size, None, 360, 1333, 32, (0.0, 0.0, 0.0)),
        tracker=Tracker("rollout"),
        score=Score("mean-logits"),
        window_length=1,
        detections=10,
        prompts=("{}",),
        text_sha256="",
        checkpoint={"random_weights": 0},
        tools=tool_versions(),
    )
    write_manifest(path, manifest)
    bundle = Bundle.open(path, verify=False)
    if options.backend.startswith("tensorrt"):
        build_engines(bundle, backend=options.backend, precisions=[precision])
    return bundle


def run_in_turn(
    sessions: dict[str, Session], inputs: dict[str, np.ndarray], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every run by system, after one run each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(-1, repeats):
        for name, session in sessions.items():
            begin = time.perf_counter()
            for tensor in session.spec.inputs:
                session.write(tensor.name, inputs[tensor.name])
            session.run()
            for tensor in session.spec.outputs:
                assert np.isfinite(session.fetch(tensor.name)).all()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def counted(model: onnx.ModelProto, classes: int) -> int:
    """Multiply-adds of a graph, with K filled in."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return multiply_adds(copy, {"K": classes})


def by_hand(name: str, count: int, frame: tuple[int, int]) -> int:
    """The formulas of this module's docstring."""
    height, width = frame
    patches = -(-height // 32) * -(-width // 32)
    square = WIDTH**2

    def block(tokens: int) -> int:
        return 12 * tokens * square + 2 * tokens**2 * WIDTH

    crops = count * (BLOCKS * block(50) + 4 * 49 * square)
    if name == "CLIP alone":
        return crops
    if name == "N crops":
        return crops + count * 3 * CROP * height * (width + CROP)
    if name == "full mask":
        return 4 * patches * square + BLOCKS * block(1 + count + patches)
    plain = 4 * patches * square + (BLOCKS - 1) * block(1 + patches) + 2 * patches * square
    return plain + BLOCKS * count * (12 * square + 2 * patches * WIDTH)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: times with their spread, ratios to the one pass, multiply-adds."""
    lines = [
        "| N | system | median ms | fastest..slowest | time, one pass = 1 | G multiply-adds | "
        "multiply-adds, one pass = 1 | over the formula |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ones = row["seconds"]["one pass"]
        for name in FORMS:
            times, work = row["seconds"][name], row["multiply_adds"][name]
            ratio = median(a / b for a, b in zip(times, ones, strict=True))
            cells = (
                *(str(row["instances"]), name, f"{median(times) * 1e3:.1f}"),
                f"{min(times) * 1e3:.1f}..{max(times) * 1e3:.1f}",
                f"{ratio:.2f}",
                f"{work / 1e9:.2f}",
                f"{work / row['multiply_adds']['one pass']:.2f}",
                f"{work / row['formula'][name] - 1:+.1%}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def whole_frames(model: InstFormer, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds a frame of both systems, by the pipeline's stages."""
    height, width = options.size
    seconds = (options.frames + 1) / 25
    video = [f for f, _ in sample_frames(width=width, height=height, fps=25, seconds=seconds)]
    with tempfile.TemporaryDirectory() as folder:
        pipelines = dict(opened(model, Path(folder), options))
        spent = {}
        for index, frame in enumerate(video[: options.frames + 1]):
            for name, pipeline in pipelines.items():
                if index == 1:
                    spent[name] = pipeline.counters()
                pipeline.step(frame)
        out = {}
        for name, pipeline in pipelines.items():
            seconds = pipeline.counters()
            out[name] = {
                s: (seconds[f"{s}_seconds"] - spent[name][f"{s}_seconds"]) / options.frames
                for s in STAGES
            }
            pipeline.close()
    return out


def opened(
    model: InstFormer, folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Pipeline]]:
    """Both systems' pipelines over the same proposals and CLIP."""
    texts = inputs_of(1, options)["text_embeddings"]
    names = tuple(f"class {i}" for i in range(options.classes))
    model.recurrence = rollout()
    for system, network in (("InstFormer", model), ("MinVIS-CLIP", None)):
        say(f"whole frames: exporting {system}")
        result = export_bundle(
            network or MinVisClip.from_instformer(model),
            folder / system,
            network_size=options.size,
            precisions=[options.precision],
            checkpoint={"random_weights": 0},
            verify=False,
        )
        if options.backend.startswith("tensorrt"):
            build_engines(result.bundle, backend=options.backend, precisions=[options.precision])
        pipeline = Pipeline.open(
            result.bundle,
            vocabulary=names,
            classifier=Classifier(names, [1] * options.classes, texts),
            backend=options.backend,
            backend_options=BackendOptions(options.device),
            precision=options.precision,
            selection=Selection(threshold=0.0, limit=10),
        )
        yield system, pipeline


def rollout() -> dict[str, Tensor]:
    """A tanh RNN over tracking tokens, with weights as torch starts them."""
    rng = np.random.default_rng(0)
    bound = WIDTH**-0.5
    shapes = {"weight_ih_l0": 2, "weight_hh_l0": 2, "bias_ih_l0": 1, "bias_hh_l0": 1}
    return {
        name: torch.from_numpy(rng.uniform(-bound, bound, [WIDTH] * axes).astype(np.float32))
        for name, axes in shapes.items()
    }


def frame_table(frames: dict[str, dict[str, float]]) -> str:
    """Markdown: milliseconds a frame."""
    lines = [
        f"| system | {' | '.join(f'{s} ms' for s in STAGES)} | frame ms | host |",
        "|---" * (len(STAGES) + 3) + "|",
    ]
    for name, stages in frames.items():
        total = sum(stages.values())
        host = sum(stages[stage] for stage in HOST)
        cells = [f"{stages[s] * 1e3:.1f}" for s in STAGES]
        cells += [f"{total * 1e3:.1f}", f"{host / total:.1%}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What ran this, and how."""
    import onnxruntime

    asked = {k: str(v) for k, v in vars(options).items() if k != "json"}
    libraries = {**tool_versions(), "onnxruntime": onnxruntime.__version__}
    return {"platform": platform.machine(), "options": asked, **libraries}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
