"""Every backend that works here against PyTorch, model by model: `openvis bench` on a GPU.

    python benchmarks/gpu.py [--variants clip-vis-r50 ...] [--work FOLDER] [--frames 200]
        [--backends tensorrt tensorrt-rtx onnxruntime] [--precisions fp32 fp16]

Bundles are exported with seeded weights at 480x864 from 720x1280 video, with the resize in the
graph, and engines are built, into the work folder, once. PyTorch eager in FP32 is the base of every
ratio and of every comparison of outputs; PyTorch's own best, float16 with torch.compile, takes part
as well. What is not installed or does not work has a reason in place of figures. docs/bench.md says
what is timed. The work folder takes a report, a table and a chart for each model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from variants import size

from openvis_rt.bench.benchmark import BenchmarkSettings, benchmark
from openvis_rt.bench.chart import svg_from_report
from openvis_rt.bench.markdown import markdown_from_report
from openvis_rt.bench.report import write_report
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.checkpoints.load import load_model
from openvis_rt.engines.build.engines import build_engines
from openvis_rt.errors import OpenVISError
from openvis_rt.export.bundle import export_bundle
from openvis_rt.runtime.backends.registry import BACKENDS
from openvis_rt.systems import VARIANTS


def main() -> None:
    """Measure each model and print its tables."""
    options = parse()
    settings = BenchmarkSettings(
        runs_on="torch",
        frames=options.frames,
        rounds=options.rounds,
        warm_up=options.warm_up,
        source_size=options.source,
    )
    against = [f"{b}:{p}" for b in options.backends for p in options.precisions]
    if "fp16" in options.precisions:
        against = ["torch-compile:fp16", *against]
    for variant in options.variants:
        bundle = exported(variant, options)
        for backend in options.backends:
            build(bundle, backend, options)
        report = benchmark(bundle.path, against=against, settings=settings, warn=say)
        place = options.work / f"{variant}.json"
        write_report(report, place)
        text = markdown_from_report(report)
        place.with_suffix(".md").write_text(text, "utf-8")
        place.with_suffix(".svg").write_text(svg_from_report(report), "utf-8")
        print(text, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--work", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--size", type=size, default=(480, 864), metavar="HxW")
    parser.add_argument("--source", type=size, default=(720, 1280), metavar="HxW")
    parser.add_argument("--targets", nargs="+", default=["sm80", "sm86", "sm89", "sm120"])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=10)
    return parser.parse_args()


def exported(variant: str, options: argparse.Namespace) -> Bundle:
    """The model's bundle, from an earlier run if there is one."""
    sizes = (f"{height}x{width}" for height, width in (options.size, options.source))
    path = options.work / "-".join((variant, *sizes))
    if not path.exists():
        say(f"exporting {path}")
        export_bundle(
            load_model(variant, 0).model,
            path,
            network_size=options.size,
            source_size=options.source,
            checkpoint={"random_weights": 0},
            verify=False,  # outputs are compared when they are measured
        )
    return Bundle.open(path)


def build(bundle: Bundle, backend: str, options: argparse.Namespace) -> None:
    """Engines, for the backends that have any; what was built before stays."""
    if not backend.startswith("tensorrt"):
        return
    targets = options.targets if backend == "tensorrt-rtx" else None
    try:
        build_engines(bundle, backend=backend, targets=targets, precisions=options.precisions)
    except OpenVISError as exc:  # the report says so again, in place of figures
        say(f"{backend}: {exc}")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
