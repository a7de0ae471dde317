"""Every backend that works here, on one video: parity, latency, frames a second, bytes, host share.

    python benchmarks/gpu.py [--variants clip-vis-r50 ...] [--work DIRECTORY] [--frames 200]

Without ``--variants`` it takes every model of `openvis models`, one after the other.

Bundles are exported with seeded weights at 480x864 from 720x1280 video, with the resize in the
graph, and engines are built, into the work directory, once. What is not installed or does not work
is a line that says so. Each backend then runs the same generated frames through the same pipeline
(stream mode, 10 instances a frame at the most):

    latency   of a frame, or of a window for models that take windows: from uint8 frames in host
              memory to their instances with run-length masks; the host waits for each before the
              next. p50 and p99.
    FPS       frames a second of `stream`: the same work with as many frames or windows in flight as
              the backend allows.
    ratio     of FPS to PyTorch eager FP32 in this run.
    busy      share of the wall time in which the device ran graphs, by its own events.
    host      share of the wall time in placing, association, scores and run lengths.
    bytes     over the bus for each frame, both directions.
    parity    against PyTorch eager FP32, median over frames, or over windows of every length: SQNR
              of mask logits, queries and class scores in dB, and mean IoU of masks of logits > 0.

Decoding and drawing are in no figure. Frames before the first ``--warm-up`` are not counted.
``--steady N`` then runs N more frames on each TensorRT and notes host and device memory on the way.
The last line is JSON with everything, versions and clocks included.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from memory import resident, vocabulary_of
from torch_backend import TorchBackend
from variants import size

from openvis_rt import Pipeline
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.engines.build.engines import build_engines
from openvis_rt.errors import OpenVISError
from openvis_rt.export.bundle import export_bundle, tool_versions
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import BACKENDS, open_backend
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline as OpenPipeline
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.graphs import bindings

SHOW_ALL = Selection(threshold=0.0, limit=10)
COMPARED = (
    *("mask_logits", "queries", "object_logits", "mask_iou"),
    *("image_embeddings", "instance_tokens", "class_scores"),
)
HEADER = (
    *("model", "backend", "precision", "p50 ms", "p99 ms", "FPS", "ratio", "busy", "host"),
    *("MB in", "MB out", "SQNR masks", "SQNR queries", "SQNR classes", "IoU"),
)


@dataclass
class Row:
    """One backend in one precision; ``note`` says why it has no figures."""

    variant: str
    backend: str
    precision: str
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    memory: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    """Run everything and print the table."""
    options = parse()
    height, width = options.source
    video = sample_frames(width=width, height=height, seconds=options.distinct / 25)
    frames = [image for image, _ in video]
    rows: list[Row] = []
    for variant in options.variants:
        rows += rows_of(variant, options, frames)
        print(table(rows), flush=True)
    print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--backends", nargs="+", default=["torch", *reversed(BACKENDS)])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--work", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--size", type=size, default=(480, 864), metavar="HxW")
    parser.add_argument("--source", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--targets", nargs="+", default=["sm80", "sm86", "sm89", "sm120"])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--distinct", type=int, default=40, help="different frames, then repeated")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--parity-frames", type=int, default=10)
    parser.add_argument("--steady", type=int, default=0, metavar="FRAMES")
    return parser.parse_args()


def rows_of(variant: str, options: argparse.Namespace, frames: list[np.ndarray]) -> list[Row]:
    """All backends on one model; PyTorch eager FP32 first, as the others refer to it."""
    model = load_model(variant, 0).model
    bundle = exported(model, options)
    for mode in ("fp32", "fp16+compile"):
        BACKENDS[f"torch {mode}"] = lambda *_, mode=mode: TorchBackend(model, mode)
    windows = windows_of(frames[: options.parity_frames], bundle.manifest.window_length)
    wanted = outputs_of("torch fp32", "fp32", bundle, windows)
    rows = []
    for backend, precision in combinations(options):
        row = Row(variant, backend, precision)
        say(f"{variant} on {backend} in {precision}")
        try:
            build(bundle, row, options)
            found = outputs_of(backend, precision, bundle, windows)
            row.figures |= parity(wanted, found)
            row.figures |= speed(bundle, row, options, frames)
            if options.steady and backend.startswith("tensorrt"):
                row.memory = steady(bundle, row, options, frames)
        except (OpenVISError, RuntimeError) as exc:
            row.note = " ".join(str(exc).split())[:300]
        rows.append(row)
    return rows


def combinations(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Backend and precision of each row."""
    pairs = []
    for backend in options.backends:
        if backend == "torch":
            pairs += [("torch fp32", "fp32"), ("torch fp16+compile", "fp16")]
        else:
            pairs += [(backend, precision) for precision in options.precisions]
    return pairs


def exported(model, options: argparse.Namespace) -> Bundle:
    """The model's bundle, from an earlier run if there is one."""
    sizes = (f"{height}x{width}" for height, width in (options.size, options.source))
    path = options.work / "-".join((model.variant.name, *sizes))
    if not path.exists():
        say(f"exporting {path}")
        export_bundle(
            model,
            path,
            network_size=options.size,
            source_size=options.source,
            checkpoint={"random_weights": 0},
            verify=False,  # parity is measured here
        )
    return Bundle.open(path)


def build(bundle: Bundle, row: Row, options: argparse.Namespace) -> None:
    """Engines, for the backends that have any; what was built before stays."""
    if not row.backend.startswith("tensorrt"):
        return
    targets = options.targets if row.backend == "tensorrt-rtx" else None
    build_engines(bundle, backend=row.backend, targets=targets, precisions=[row.precision])


def windows_of(frames: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Windows uint8 [T, H, W, 3]: all frames in whole ones, then the first ones in shorter ones."""
    whole = [frames[start : start + length] for start in range(0, len(frames), length)]
    return [np.stack(window) for window in [*whole, *(frames[:t] for t in range(1, length))]]


def outputs_of(
    backend: str, precision: str, bundle: Bundle, windows: list[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """What `propose`, `embed` and `classify` give for each window."""
    factory = open_backend(backend, bundle, precision)
    try:
        return list(run_graphs(factory, bundle, precision, windows))
    finally:
        factory.close()


def run_graphs(factory: Backend, bundle: Bundle, precision: str, windows: list[np.ndarray]):
    """Outputs window by window, of sessions that are bound as the pipeline binds them."""
    graphs = {
        graph: [t.name for t in bundle.graph(graph, precision).spec.outputs if t.name in COMPARED]
        for graph in ("propose", "embed", "classify")
        if graph in bundle.graphs
    }
    sessions = {g: factory.open(bundle, g, precision, fetched=n) for g, n in graphs.items()}
    specs = {graph: bundle.graph(graph, precision).spec for graph in graphs}
    for graph, tensor, source in bindings(specs):
        sessions[graph].bind(tensor, sessions[source], tensor)
    if "embed" in sessions:
        sessions["embed"].bind("pictures", sessions["propose"], "frames")
    if width := width_of(bundle):
        embeddings = np.random.default_rng(0).standard_normal((20, width), np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        sessions["classify"].write("text_embeddings", embeddings)
    for window in windows:
        sessions["propose"].write("frames", window)
        for session in sessions.values():
            session.run()
        yield {name: sessions[g].fetch(name) for g, names in graphs.items() for name in names}
    for session in sessions.values():
        session.close()


def width_of(bundle: Bundle) -> int:
    """Width of a text embedding; 0 where the vocabulary is closed."""
    inputs = bundle.graph("classify").spec.inputs
    return next((int(t.shape[-1]) for t in inputs if t.name == "text_embeddings"), 0)


def parity(wanted: list[dict], found: list[dict]) -> dict[str, float]:
    """Medians over windows: SQNR in dB of each output, and the mean IoU of the masks."""
    figures = {}
    for name in wanted[0]:
        ratios = [sqnr(w[name], f[name]) for w, f in zip(wanted, found, strict=True)]
        figures[f"sqnr_{name}"] = float(np.median(ratios))
    ious = [
        iou(w["mask_logits"] > 0, f["mask_logits"] > 0) for w, f in zip(wanted, found, strict=True)
    ]
    return {**figures, "iou": float(np.median(ious))}


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """10 log10(sum y^2 / sum (y - y')^2), at most 200."""
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    noise = float(((wanted - found) ** 2).sum())
    return 200.0 if noise == 0 else min(200.0, 10 * np.log10(float((wanted**2).sum()) / noise))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over queries that have a pixel in either."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    union = (a | b).sum(1)
    return float(((a & b).sum(1)[union > 0] / union[union > 0]).mean())


def speed(bundle: Bundle, row: Row, options: argparse.Namespace, frames) -> dict[str, float]:
    """Latency of single frames or windows, then the stream."""
    length = bundle.manifest.window_length
    with opened(bundle, row) as pipeline:
        source = cycle(frames)
        latencies = []
        while len(latencies) * length < options.warm_up + options.frames:
            window = list(islice(source, length))
            begin = time.perf_counter()
            for _ in pipeline.stream(window, in_flight=1):
                pass
            latencies.append(time.perf_counter() - begin)
        latencies = latencies[-(-options.warm_up // length) :]
        pipeline.reset()
        for _ in pipeline.stream(islice(source, options.warm_up)):
            pass
        before, begin = pipeline.counters(), time.perf_counter()
        for _ in pipeline.stream(islice(source, options.frames)):
            pass
        wall = time.perf_counter() - begin
        spent = {k: v - before[k] for k, v in pipeline.counters().items()}
    host = sum(spent[f"{stage}_seconds"] for stage in ("place", "associate", "masks"))
    figures = {
        "p50_ms": float(np.percentile(latencies, 50)) * 1e3,
        "p99_ms": float(np.percentile(latencies, 99)) * 1e3,
        "fps": options.frames / wall,
        "host_share": host / wall,
        **{f"{name}_a_frame": value / options.frames for name, value in spent.items()},
    }
    if "device_seconds" in spent:
        figures["busy_share"] = spent["device_seconds"] / wall
    return figures


def steady(bundle: Bundle, row: Row, options: argparse.Namespace, frames) -> list[dict]:
    """Host and device memory on the way through many frames."""
    found = []
    with opened(bundle, row) as pipeline:
        for index, _ in enumerate(pipeline.stream(islice(cycle(frames), options.steady))):
            if index % max(options.steady // 10, 1) == 0:
                found.append({"frame": index, "host_mb": resident(), "device_mb": device_memory()})
    return found


def opened(bundle: Bundle, row: Row) -> OpenPipeline:
    """The pipeline of a row."""
    return Pipeline.open(
        bundle,
        vocabulary=vocabulary_of(bundle),
        backend=row.backend,
        precision=row.precision,
        mode="stream",
        selection=SHOW_ALL,
    )


def table(rows: list[Row]) -> str:
    """Markdown."""
    base = {r.variant: r.figures.get("fps") for r in rows if r.backend == "torch fp32"}
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for row in rows:
        head = [row.variant, row.backend, row.precision]
        if row.note:
            lines.append("| " + " | ".join([*head, f"not run: {row.note}"]) + " |")
            continue
        f = row.figures
        against = base.get(row.variant)
        cells = [
            f"{f['p50_ms']:.2f}",
            f"{f['p99_ms']:.2f}",
            f"{f['fps']:.2f}",
            f"{f['fps'] / against:.2f}" if against else "",
            f"{f['busy_share']:.0%}" if "busy_share" in f else "",
            f"{f['host_share']:.1%}",
            *(
                f"{f[key] / 1e6:.2f}" if key in f else ""
                for key in ("bytes_to_device_a_frame", "bytes_to_host_a_frame")
            ),
            f"{f['sqnr_mask_logits']:.0f}",
            f"{f['sqnr_queries']:.0f}",
            f"{f['sqnr_class_scores']:.0f}",
            f"{f['iou']:.4f}",
        ]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What ran this."""
    found = {"platform": platform.platform(), **tool_versions()}
    if gpu := nvidia_smi("name,driver_version,clocks.sm,clocks.mem,power.limit"):
        found["gpu"] = gpu
    return found


def device_memory() -> float:
    """MB in use on the first GPU; NaN without one."""
    used = nvidia_smi("memory.used")
    return float(used.split()[0]) if used else float("nan")


def nvidia_smi(query: str) -> str:
    """One line of nvidia-smi for the first GPU; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
