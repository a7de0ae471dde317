"""INT8 on a CPU: what a bundle's `int8-fp32` takes beside its `fp32`, in turn, in one process.

    python benchmarks/int8.py speed BUNDLE [--windows 20] [--threads 1] [--json FILE]

Both precisions compute the same windows of a generated video in ONNX Runtime on the CPU, one window
each in turn, after one to warm up. Every other window the order is reversed. `propose` and `frame`
(`propose` and `classify`, with what binds them; 64 classes) are timed around the graphs' runs: by
the clock, and in processor time of the process, which other work on the machine disturbs less. The
ratio is a geometric mean of INT8 to FP32 with its 95 % interval
(:mod:`openvis_rt.bench.statistics`). Integer kernels are counted in the graph that ONNX Runtime has
made of the file. Frames are placed by the host outside the timed region.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import onnx
import onnxruntime

from openvis_rt.bench.machine import this_machine
from openvis_rt.bench.markdown import table
from openvis_rt.bench.statistics import ratio_of_pairs
from openvis_rt.bench.timed_backend import TimedBackend
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.tap import run_windows
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.video.generated import sample_frames
from openvis_rt.systems.graphs import INT8_FP32

PRECISIONS = ("fp32", INT8_FP32)
PARTS = ("propose", "frame")
CLOCKS: dict[str, Callable[[], float]] = {"clock": perf_counter, "processor": process_time}
INTEGER = ("QLinearConv", "QGemm", "QLinearAdd", "QLinearAveragePool", "ConvInteger")
SOURCE = (360, 640)  # of the generated video

Times = dict[str, dict[str, list[float]]]
"""Seconds of each window, by part and clock."""


def main() -> None:
    """Print a table, and write JSON where it is asked for."""
    options = parse()
    bundle = Bundle.open(options.bundle)
    times = measured(bundle, windows_of(bundle, options.windows + 1), options.threads)
    rows = [row(part, clock, times) for part in PARTS for clock in CLOCKS]
    kernels = {precision: operators(bundle, precision) for precision in PRECISIONS}
    header = ["part", "measured by", *(f"{p} ms" for p in PRECISIONS), "INT8 to FP32"]
    size = "x".join(map(str, bundle.manifest.preprocess.network_size))
    print(
        f"{bundle.manifest.variant} at {size}, {options.windows} windows each, "
        f"{options.threads} threads, ONNX Runtime {onnxruntime.__version__}:\n"
    )
    print("\n".join(table(header, [found["cells"] for found in rows])))
    told = ", ".join(f"{kernels[INT8_FP32][op]} {op}" for op in INTEGER if kernels[INT8_FP32][op])
    print(f"\n`propose` has {told or 'no integer kernel'}.")
    if options.json is not None:
        facts = {"machine": asdict(this_machine()), "kernels": kernels, "times": times}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    speed = parser.add_subparsers(required=True).add_parser("speed", help="time both precisions")
    speed.add_argument("bundle", type=Path)
    speed.add_argument("--windows", type=int, default=20)
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--json", type=Path)
    return parser.parse_args()


def windows_of(bundle: Bundle, count: int) -> list[list[np.ndarray]]:
    """Windows of a generated video, as long as the bundle's."""
    length, (height, width) = bundle.manifest.window_length, SOURCE
    seconds = count * length / 25
    video = [f for f, _ in sample_frames(width=width, height=height, fps=25, seconds=seconds)]
    return [video[i * length : (i + 1) * length] for i in range(count)]


def measured(bundle: Bundle, windows: Sequence[list[np.ndarray]], threads: int) -> dict[str, Times]:
    """Times by precision; the first window warms up."""
    found: dict[str, Times] = {p: {q: {c: [] for c in CLOCKS} for q in PARTS} for p in PRECISIONS}
    timed = {p: clocked(OnnxRuntime("cpu", threads=threads)) for p in PRECISIONS}
    runs: dict[str, Iterator[int]] = {
        p: run_windows(bundle, of_clock["clock"], windows, p) for p, of_clock in timed.items()
    }
    for number in range(len(windows)):
        for precision in PRECISIONS if number % 2 == 0 else PRECISIONS[::-1]:
            before = {c: timer.graph_seconds() for c, timer in timed[precision].items()}
            next(runs[precision])
            if number == 0:
                continue
            for clock, timer in timed[precision].items():
                of_graph = {g: t - before[clock][g] for g, t in timer.graph_seconds().items()}
                found[precision]["propose"][clock].append(of_graph["propose"])
                found[precision]["frame"][clock].append(sum(of_graph.values()))
        print(f"window {number + 1} of {len(windows)}", file=sys.stderr, flush=True)
    return found


def clocked(backend: OnnxRuntime) -> dict[str, TimedBackend]:
    """The backend behind a watch of each clock; the whole is the first of :data:`CLOCKS`."""
    processor = TimedBackend(backend, CLOCKS["processor"])
    return {"clock": TimedBackend(processor, CLOCKS["clock"]), "processor": processor}


def row(part: str, clock: str, times: dict[str, Times]) -> dict[str, Any]:
    """Medians and the ratio of one part."""
    base, int8 = (times[precision][part][clock] for precision in PRECISIONS)
    ratio = ratio_of_pairs(int8, base)
    medians = [f"{np.median(values) * 1e3:.1f}" for values in (base, int8)]
    cells = [part, "processor time" if clock == "processor" else clock, *medians, str(ratio)]
    return {"part": part, "clock": clock, "ratio": asdict(ratio), "cells": cells}


def operators(bundle: Bundle, precision: str) -> Counter[str]:
    """Of `propose` as ONNX Runtime computes it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        path = str(bundle.graph_path("propose", precision))
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


if __name__ == "__main__":
    main()
