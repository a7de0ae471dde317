"""FP16 graphs against PyTorch FP32, and what each entry of the list of FP32 computations is worth.

    python benchmarks/fp16.py --variant clip-vis-r50 --size 192x320 --weights solved
    python benchmarks/fp16.py --variant clip-vis-r50 --size 192x320 --weights solved --keeps
    python benchmarks/fp16.py --list

The graphs run in ONNX Runtime on the CPU, as their FP16 emulations
(openvis_rt.export.fp16.emulation), over frames of the generated video, beside PyTorch eager FP32 on
the same frames. Tables go to stdout as Markdown, progress to stderr. Nothing is timed.

    SQNR          10 log10(sum y^2 / sum (y - y')^2) of one frame, dB: median over frames, and worst
    largest       largest absolute difference over all frames; for `pool_mask` the share of its bits
    mask IoU      of mask_logits > 0, for each query and frame where not both are empty
    links         a link says which query of the last frame holds the track that this query holds;
                  the share of links that agree
    tracks        the share of (frame, track) whose query agrees; one swap stays one for all later
                  frames

`solved` weights are random but for solved last layers: a query an object, and queries without one
are alike, so their tracks are arbitrary; links and tracks of the objects stand apart. Objects of
`random` weights are all queries. `classify` is measured twice: on PyTorch's own features and masks,
and on those of the FP16 `propose`. Solved weights know the frames of every fourth index.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from solved_weights import solved_model

from openvis_rt.checkpoints.load import load_model
from openvis_rt.compare.differences import largest_error, mask_ious, sqnr
from openvis_rt.errors import InputError
from openvis_rt.export.bundle import sized_graphs
from openvis_rt.export.fp16.convert import Fp16Graph, fp16_from_fp32
from openvis_rt.export.fp16.emulation import fp16_emulation
from openvis_rt.export.fp16.keeps import KEEPS
from openvis_rt.export.graph_module import GraphModule
from openvis_rt.export.onnx_export import onnx_from_module
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.runtime.tracking.association import TemporalTopK
from openvis_rt.runtime.video.generated import SAMPLE_CLASSES, sample_frames, sample_names

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

OBJECTS = 4
SOURCE = (360, 640)  # of the generated video


def generated_video(frames: int) -> tuple[list[Array], list[Array]]:
    """Pictures uint8 [H, W, 3] and masks uint8 [objects, H, W]."""
    height, width = SOURCE
    made = list(
        sample_frames(width=width, height=height, fps=10, seconds=frames / 10, objects=OBJECTS)
    )
    return [image for image, _ in made], [masks for _, masks in made]


def seeded_or_solved(variant: str, weights: str, size: tuple[int, int], frames: int) -> ClipVis:
    """The model; solved weights know every fourth frame."""
    if weights == "random":
        return load_model(variant, 0).model
    pictures, masks = generated_video(frames)
    classes = [SAMPLE_CLASSES.index(name) for name in sample_names(OBJECTS)]
    return solved_model(
        variant, pictures[::4], masks[::4], SAMPLE_CLASSES, classes, network_size=size
    )


def resized(picture: Array, size: tuple[int, int]) -> Array:
    """As the runtime gives it to the network: uint8 [1, H, W, 3]."""
    return np.array(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))[None]


class Twin:
    """An FP16 graph in ONNX Runtime, as its FP16 emulation."""

    def __init__(self, graph: Fp16Graph, threads: int) -> None:
        self.spec = graph.spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(
            fp16_emulation(graph.model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def __call__(self, inputs: Outputs) -> Outputs:
        """Outputs by name; inputs are rounded to the graph's types."""
        given = {t.name: inputs[t.name].astype(t.dtype) for t in self.spec.inputs}
        names = [t.name for t in self.spec.outputs]
        return dict(zip(names, self._session.run(names, given), strict=True))


class Case:
    """A model at one size: PyTorch, and its traced graphs."""

    def __init__(self, model: ClipVis, size: tuple[int, int], threads: int) -> None:
        self.model, self.size, self._threads = model, size, threads
        self.specs, _ = sized_graphs(model, size, None)
        self.modules = {
            name: GraphModule(model, self.specs[name]) for name in ("propose", "classify", "text")
        }
        rows = np.random.default_rng(5).standard_normal((9, model.variant.embed_dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.text = rows.astype(np.float32)
        self._traced: dict[str, Any] = {}

    def twin(self, graph: str, left_out: Sequence[str] = ()) -> Twin | None:
        """One graph in FP16; None if it has no node of what is left out of the list."""
        if graph not in self._traced:
            say(f"tracing {graph}")
            self._traced[graph] = onnx_from_module(self.modules[graph], self.specs[graph])
        keeps = [keep for keep in KEEPS if keep.name not in left_out]
        traced = self._traced[graph]
        if left_out and fp16_from_fp32(traced, self.specs[graph]).kept.keys().isdisjoint(left_out):
            return None
        return Twin(fp16_from_fp32(traced, self.specs[graph], keeps), self._threads)

    def torch(self, graph: str, inputs: Outputs) -> Outputs:
        """PyTorch's outputs by name."""
        spec = self.specs[graph]
        given = {t.name: torch.from_numpy(inputs[t.name]) for t in spec.inputs}
        with torch.inference_mode():
            outputs = self.modules[graph](**given)
        return {t.name: v.numpy() for t, v in zip(spec.outputs, outputs, strict=True)}


@dataclass
class Errors:
    """Of one output, frame by frame."""

    largest: float
    sqnr: list[float]

    def row(self, name: str) -> str:
        """One line of the table."""
        if not self.sqnr:
            return f"| `{name}` | {self.largest:.1e} | | |"
        median, worst = np.median(self.sqnr), min(self.sqnr)
        return f"| `{name}` | {self.largest:.1e} | {median:.0f} | {worst:.0f} |"


class Comparison:
    """FP16 beside FP32, over a video."""

    def __init__(self) -> None:
        self.errors: dict[str, Errors] = defaultdict(lambda: Errors(0.0, []))
        self.ious: list[float] = []
        self.queries: list[tuple[Array, Array]] = []

    def add(self, found: Outputs, wanted: Outputs, suffix: str = "") -> None:
        """One frame's outputs of one graph."""
        for name, value in found.items():
            entry = self.errors[name + suffix]
            if value.dtype == np.bool_:
                entry.largest = max(entry.largest, float((value != wanted[name]).mean()))
                continue
            entry.largest = max(entry.largest, largest_error(value, wanted[name]))
            entry.sqnr.append(min(sqnr(value, wanted[name]), 200.0))
        if "mask_logits" in found:
            self.ious += mask_ious(found["mask_logits"] > 0, wanted["mask_logits"] > 0)
            self.queries.append((found["queries"], wanted["queries"]))


def track_agreement(pairs: list[tuple[Array, Array]], objects: int) -> list[tuple[str, float]]:
    """How the two precisions' queries are put into tracks, for the objects and for all."""
    half, full = (TemporalTopK(), TemporalTopK())
    orders = [(half.step(a), full.step(b)) for a, b in pairs]
    links = np.array([link(a0, a1) == link(b0, b1) for (a0, b0), (a1, b1) in pairwise(orders)])
    tracks = np.array([a == b for a, b in orders])
    rows = [("links, all queries", links.mean()), ("tracks, all queries", tracks.mean())]
    if objects < links.shape[1]:
        rows.append((f"links, the {objects} objects' queries", links[:, :objects].mean()))
        rows.append((f"tracks, the {objects} objects'", tracks[:, :objects].mean()))
    return [(name, float(value)) for name, value in rows]


def link(before: Array, now: Array) -> Array:
    """For each query of a frame the query of the frame before that is in the same track."""
    out = np.empty_like(now)
    out[now] = before
    return out


def measure(case: Case, frames: Iterable[Array]) -> Comparison:
    """Every graph over the frames."""
    propose, classify, text = (case.twin(name) for name in ("propose", "classify", "text"))
    assert propose is not None
    assert classify is not None
    assert text is not None
    out = Comparison()
    for index, frame in enumerate(frames):
        say(f"frame {index}")
        wanted = case.torch("propose", {"frames": frame})
        found = propose({"frames": frame})
        out.add(found, wanted)
        rows = {"text_embeddings": case.text}
        scores = case.torch("classify", wanted | rows)
        out.add(classify(wanted | rows), scores)
        out.add(classify(found | rows), scores, " end to end")
    tokens = {"tokens": phrases()}
    out.add(text(tokens), case.torch("text", tokens))
    return out


def phrases() -> Array:
    """Token sequences of 8 lengths: int64 [8, 77]."""
    rng = np.random.default_rng(0)
    out = np.zeros((8, 77), np.int64)
    for row, words in enumerate(rng.integers(3, 20, 8)):
        out[row, : words + 2] = [49406, *rng.integers(1, 49405, words), 49407]
    return out


def table_of_outputs(case: Case, frames: list[Array], objects: int) -> None:
    """Table (a)."""
    found = measure(case, frames)
    print("| output | largest | SQNR median | SQNR worst frame |\n|---|---|---|---|")
    for name, errors in found.errors.items():
        print(errors.row(name))
    ious = np.array(found.ious)
    print("\n| over the video | |\n|---|---|")
    print(f"| mask IoU, mean of {len(ious)} | {ious.mean():.4f} |")
    print(f"| mask IoU, median | {np.median(ious):.4f} |")
    print(f"| mask IoU, worst | {ious.min():.4f} |")
    for name, value in track_agreement(found.queries, objects):
        print(f"| {name} | {value:.4f} |")


KEEP_COLUMNS = ("mask_logits", "queries", "object_logits", "mask_iou", "mask_area", "class_scores")


def table_of_keeps(case: Case, frames: list[Array]) -> None:
    """Table (b): median SQNR with each entry left out of the list."""
    wanted = []
    for index, frame in enumerate(frames):
        say(f"PyTorch, frame {index}")
        outputs = case.torch("propose", {"frames": frame}) | {"text_embeddings": case.text}
        wanted.append(outputs | case.torch("classify", outputs))
    print("| left out | " + " | ".join(f"`{c}`" for c in KEEP_COLUMNS) + " | mask IoU mean | |")
    print("|---|" + "---|" * (len(KEEP_COLUMNS) + 2))
    names = [keep.name for keep in KEEPS]
    cases = {"nothing": [], **{name: [name] for name in names}, "the whole list": names}
    for title, left_out in cases.items():
        say(f"without {title}")
        found, refused = Comparison(), []
        for graph in ("propose", "classify"):
            try:
                twin = case.twin(graph, left_out)
            except InputError as exc:  # a constant that FP16 takes for 0
                refused.append(f"`{graph}` is refused: {str(exc).split(',')[0]}")
                continue
            for frame, outputs in zip(frames, wanted, strict=True):
                if twin is not None:
                    found.add(twin(outputs | {"frames": frame}), outputs)
        cells = [
            f"{np.median(found.errors[c].sqnr):.0f}" if c in found.errors else ""
            for c in KEEP_COLUMNS
        ]
        iou = f"{np.mean(found.ious):.4f}" if found.ious else ""
        note = "; ".join(refused)
        print(f"| {title} | {' | '.join(cells)} | {iou} | {note} |", flush=True)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description="FP16 graphs against PyTorch FP32")
    parser.add_argument("--variant", default="clip-vis-r50")
    parser.add_argument("--size", default="192x320", help="height x width of the network")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--weights", choices=("random", "solved"), default="random")
    parser.add_argument("--keeps", action="store_true", help="leave out each entry in turn")
    parser.add_argument("--list", action="store_true", help="print the list alone")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.list:
        print("| what stays FP32 | nodes | why |\n|---|---|---|")
        for keep in KEEPS:
            print(f"| **{keep.name}** | {keep.what} | {keep.reason} |")
        return
    height, width = (int(side) for side in args.size.split("x"))
    torch.set_num_threads(args.threads)
    frames = [resized(p, (height, width)) for p in generated_video(args.frames)[0]]
    say("weights")
    model = seeded_or_solved(args.variant, args.weights, (height, width), args.frames)
    case = Case(model, (height, width), args.threads)
    queries = model.sem_seg_head.predictor.query_feat.num_embeddings
    what = "without each entry" if args.keeps else "against PyTorch FP32"
    print(
        f"\n### {args.variant}, {args.size}, {args.weights} weights, {args.frames} frames: {what}\n"
    )
    if args.keeps:
        table_of_keeps(case, frames)
    else:
        table_of_outputs(case, frames, OBJECTS if args.weights == "solved" else queries)


if __name__ == "__main__":
    main()
