"""Every model on its way from weights to a CPU: export, TensorRT-RTX plans, a whole video.

    python benchmarks/variants.py [MODEL ...] [--size HxW] [--frames 40] [--output FOLDER]
        [--precision fp32,fp16] [--keep]

A row is printed as soon as its model is done, and its figures are added to FOLDER/variants.jsonl; a
model that stands there with the same options is not measured again, so an interrupted run goes on
where it was. Weights are random and the same in every run. Each step is a process of its own, so
that memory is given back and a peak is the step's own. What is timed, on an otherwise idle machine:

    export     `export_bundle`: tracing each graph, writing it, narrowing it to FP16, holding every
               file against PyTorch in ONNX Runtime, digests. Not the making of the PyTorch model.
    build      for each graph the rewriting of GridSample and its check, parsing, compiling for
               sm86, sm89 and sm120 together, writing; the sum of the graphs. No GPU takes part.
               `masks` is FP32 in either precision, built once, and counted in both sums.
    CPU        `run_video` in video mode on ONNX Runtime, in the first of the precisions, with 40
               class names: decoding, every graph, association, run lengths, the video's scores,
               reading again, drawing, encoding; over the frames. Not the opening of the pipeline,
               which loads the graphs and embeds the names ("open").
    in graphs  what of that `propose`, `embed` and `classify` take, with writing their inputs.

Random weights give ragged masks for every query, whose run lengths cost more than those of objects:
"in graphs" is nearer to what the model costs.

What is counted, in the ONNX graphs of the first precision:

    parameters      numbers in initializers, so with constants that depend on the size (position
                    tables, the masks of Swin's windows); of PyTorch's model they are in the JSON.
    multiply-adds   of every product (openvis_rt/export/multiply_adds.py), of one call with T = the
                    frames of a window and 40 class rows; "a frame" is that of `propose`, `embed`
                    and `classify` over T. Sampling in deformable attention is not among them, nor
                    is `text`, whose work follows from the length of the prompts.
    SQNR            of `mask_logits` of `propose` in FP16 against PyTorch FP32 on a random picture,
                    with every number rounded to FP16; of all outputs in the JSON.
    peak            `ru_maxrss` of the step's process, of the build that of its largest graph.

Ctrl-C ends the step that runs; what it had made is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from openvis_rt.errors import OpenVISError
from openvis_rt.files import output_file
from openvis_rt.systems import VARIANTS

# heavy libraries are imported in the steps: a process begins with the peak of the one it is made by

Figures = dict[str, Any]

TARGETS = ("sm86", "sm89", "sm120")
CLASSES = 40  # as many as the closed vocabulary has
SOURCE = (720, 1280)  # of the generated video
FPS = 25
STEPS = ("export", "build", "run")
HEADER = (
    *("model", "size", "frames a window", "graphs", "M parameters", "G multiply-adds of a call"),
    *("a frame", "export s", "SQNR dB", "build s", "engines MB", "CPU s a frame", "in graphs"),
    *(
        "open s",
        "peak MB: export / build / run",
    ),
)
PATIENCE = 60  # seconds that an interrupted step has to clean up


def main() -> None:
    """Measure what is not known yet, and print the table."""
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    file = options.output / "variants.jsonl"
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|", flush=True)
        for name in options.models:
            print(row(known(file, name, options) or measured(file, name, options)), flush=True)
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on with the models that {file} lacks")
        sys.exit(130)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(VARIANTS))
    parser.add_argument("--size", type=size, metavar="HxW", help="default: the model's own")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("variants-benchmark"))
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32", "fp16"])
    parser.add_argument("--keep", action="store_true", help="leave the bundles in FOLDER/bundles")
    options = parser.parse_args()
    options.models = options.models or list(VARIANTS)
    if unknown := set(options.models).difference(VARIANTS):
        parser.error(
            f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}"
        )
    if unknown := set(options.precision).difference(("fp32", "fp16")):
        parser.error(f"no such precision: {', '.join(sorted(unknown))}; there are fp32, fp16")
    return options


def size(text: str) -> tuple[int, int]:
    """Height and width of a text such as 480x853."""
    height, width = text.split("x")
    return int(height), int(width)


def asked(options: argparse.Namespace) -> Figures:
    """What the figures depend on."""
    return {
        "size": options.size and list(options.size),
        "frames": options.frames,
        "precisions": options.precision,
        "targets": list(TARGETS),
    }


def entries(file: Path) -> list[Figures]:
    """What earlier runs found; the file is always whole."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def known(file: Path, name: str, options: argparse.Namespace) -> Figures | None:
    """The figures of an earlier run with the same options in which nothing failed."""
    for entry in entries(file):
        failed = any("failed" in entry[step] for step in STEPS)
        if (entry["model"], entry["asked"]) == (name, asked(options)) and not failed:
            say(f"{name}: known from {file}")
            return entry
    return None


def measured(file: Path, name: str, options: argparse.Namespace) -> Figures:
    """Measure a model and add it to the file."""
    entry = {"model": name, "asked": asked(options), "machine": machine()}
    path = options.output / "bundles" / name
    done = False
    try:
        entry["export"] = in_process(export, name, path, options)
        exported = "failed" not in entry["export"]
        for step, function in (("build", build), ("run", run)):
            without = {"failed": "there is no bundle"}
            entry[step] = in_process(function, path, options) if exported else without
        done = True
    finally:
        if not (options.keep and done) and (path / "bundle.json").is_file():
            shutil.rmtree(path)
    replaced = (name, entry["asked"])
    others = [e for e in entries(file) if (e["model"], e["asked"]) != replaced]
    with output_file(file) as partial:
        partial.write_text("".join(json.dumps(e) + "\n" for e in [*others, entry]), "utf-8")
    return entry


def in_process(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """What a function returns in a process of its own, or ``failed``: why it does not."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, function, arguments))
    load, begin = os.getloadavg()[0], time.perf_counter()
    process.start()
    sender.close()  # or the end of the process would not end the pipe
    try:
        figures = receiver.recv()
    except EOFError:
        process.join()
        figures = {
            "failed": f"the process ended with code {process.exitcode}; -9 is most often "
            "the system's: out of memory"
        }
    except KeyboardInterrupt:
        os.kill(process.pid, signal.SIGINT)
        raise
    finally:
        process.join(PATIENCE)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the compiler that it started
            process.join()
        receiver.close()
    return {**figures, "load_before": load, "wall_seconds": time.perf_counter() - begin}


def work(sender: Connection, function: Callable[..., Figures], arguments: tuple[Any, ...]) -> None:
    """In the new process: sends one result, unless it is interrupted."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a job ignores it
    try:
        result = function(*arguments)
    except KeyboardInterrupt:
        return
    except OpenVISError as exc:
        result = {"failed": " ".join(str(exc).split())}
    except Exception as exc:
        traceback.print_exc()
        result = {"failed": f"{type(exc).__name__}: {' '.join(str(exc).split())}"}
    sender.send(result)


def export(name: str, path: Path, options: argparse.Namespace) -> Figures:
    """The bundle with random weights, and what is in its graphs."""
    from openvis_rt.checkpoints.load import load_model
    from openvis_rt.export.bundle import export_bundle, tool_versions

    say(f"{name}: making the model")
    model = load_model(name, 0).model
    steps: list[tuple[str, float]] = []

    def progress(phase: str, done: int, total: int) -> None:
        steps.append((phase, time.perf_counter()))
        say(f"{name}: {phase} ({done + 1} of {total})")

    begin = time.perf_counter()
    result = export_bundle(
        model,
        path,
        network_size=options.size,
        precisions=options.precision,
        checkpoint={"random_weights": 0},
        overwrite=True,
        progress=progress,
    )
    end = time.perf_counter()
    ends = [*(start for _, start in steps[1:]), end]
    peak = peak_of(resource.RUSAGE_SELF)  # before the graphs are counted
    bundle, manifest = result.bundle, result.bundle.manifest
    return {
        "seconds": end - begin,
        "steps": {phase: e - s for (phase, s), e in zip(steps, ends, strict=True)},
        "peak_mb": peak,
        "size": list(manifest.preprocess.network_size),
        "window_length": manifest.window_length,
        "model_parameters": sum(p.numel() for p in model.parameters()),
        "differences": [d.to_json() for d in result.differences],
        "onnx_bytes": {file: entry.bytes for file, entry in manifest.files.items()},
        "graphs": counts(bundle, options.precision[0]),
        "tools": tool_versions(),
    }


def counts(bundle: Any, precision: str) -> dict[str, Figures]:
    """Numbers in initializers, and multiply-adds of a call, of each graph."""
    import math

    import onnx

    from openvis_rt.export.multiply_adds import multiply_adds
    from openvis_rt.systems.graphs import masks_per_run

    length = bundle.manifest.window_length
    sizes = {"T": length, "K": CLASSES, "n": masks_per_run(length)}
    found = {}
    for name in bundle.graphs:
        say(f"{bundle.manifest.variant}: counting {name}")
        model = onnx.load(bundle.graph_path(name, precision))
        found[name] = {
            "parameters": sum(math.prod(t.dims) for t in model.graph.initializer),
            # those of `text` follow from the length of the prompts, which is data
            "multiply_adds": multiply_adds(model, sizes) if name != "text" else None,
        }
    return found


def build(path: Path, options: argparse.Namespace) -> Figures:
    """Plans of TensorRT-RTX in every precision."""
    from openvis_rt.bundle.bundle import Bundle
    from openvis_rt.engines.build.engines import build_engines

    bundle, seen = Bundle.open(path), set()

    def report(graph: str, *_: Any) -> None:
        if (precision, graph) not in seen:
            seen.add((precision, graph))
            say(f"{bundle.manifest.variant}: compiling {graph} in {precision}")

    figures: Figures = {}
    for precision in options.precision:
        results = build_engines(
            bundle,
            backend="tensorrt-rtx",
            targets=TARGETS,
            precisions=[precision],
            report=report,
        )
        figures[precision] = {
            r.sidecar.graph: {
                "seconds": r.sidecar.build_seconds,
                "plan_bytes": r.sidecar.plan_bytes,
                "precision_built": r.sidecar.precision_built,
                "replaced_grid_samples": r.sidecar.replaced_grid_samples,
                "replacement_error": r.sidecar.replacement_error,
                "layers": r.sidecar.layers,
                "warnings": r.warnings,
            }
            for r in results
        }
        library = results[0].sidecar.library_version
    return {
        "precisions": figures,
        "library_version": library,
        "peak_mb": peak_of(resource.RUSAGE_CHILDREN),
    }


def run(path: Path, options: argparse.Namespace) -> Figures:
    """A generated video through ``run_video``."""
    import onnxruntime

    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.runtime.pipeline import Pipeline
    from openvis_rt.runtime.run import RunOptions, run_video
    from openvis_rt.runtime.video.generated import write_sample_video

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        height, width = SOURCE
        seconds = options.frames / FPS
        write_sample_video(video, width=width, height=height, fps=FPS, seconds=seconds)
        say(f"{path.name}: opening")
        begin = time.perf_counter()
        pipeline = Pipeline.open(
            path,
            vocabulary=[f"class {index}" for index in range(CLASSES)],
            backend="onnxruntime",
            backend_options=BackendOptions(device="cpu"),
            precision=options.precision[0],
            mode="video",
        )
        opened = time.perf_counter()

        def progress(phase: str, done: int, total: int | None) -> None:
            if done % 10 == 0 or done == total:
                say(f"{path.name}: {phase} {done} of {total}")

        with pipeline:
            report = run_video(pipeline, str(video), Path(folder) / "out", RunOptions(), progress)
            end = time.perf_counter()
            counters = pipeline.counters()
    return {
        "open_seconds": opened - begin,
        "seconds": end - opened,
        "frames": report.frames,
        "counters": counters,
        "report": report.to_json(),
        "onnxruntime": onnxruntime.__version__,
        "peak_mb": peak_of(resource.RUSAGE_SELF),
    }


def peak_of(whom: int) -> float:
    """Most resident memory so far of this process, or of its largest finished child, in MB."""
    return resource.getrusage(whom).ru_maxrss * 1024 / 1e6


def machine() -> Figures:
    """What runs this; versions of libraries stand with the steps."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "platform": platform.platform(),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "nice": os.nice(0),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def row(entry: Figures) -> str:
    """One line of the table; what failed says so in its first cell."""
    cells = [
        *export_cells(entry["export"]),
        *build_cells(entry["build"], entry["asked"]["precisions"]),
        *run_cells(entry["run"]),
        " / ".join(f"{entry[step].get('peak_mb', 0):.0f}" for step in STEPS),
    ]
    return "| " + " | ".join([entry["model"], *cells]) + " |"


def export_cells(found: Figures) -> list[str]:
    """Size, window, graphs, parameters, multiply-adds, a frame's, seconds, SQNR."""
    if "failed" in found:
        return [f"not exported: {found['failed'][:300]}", *[""] * 7]
    graphs, length = found["graphs"], found["window_length"]
    work = {name: count for name, g in graphs.items() if (count := g["multiply_adds"]) is not None}
    a_frame = sum(work.get(name, 0) for name in ("propose", "embed", "classify")) / length
    ratios = {(d["graph"], d["precision"], d["output"]): d for d in found["differences"]}
    masks = ratios.get(("propose", "fp16", "mask_logits"))
    return [
        "x".join(map(str, found["size"])),
        str(length),
        str(len(graphs)),
        by_graph({name: graph["parameters"] / 1e6 for name, graph in graphs.items()}, total=True),
        by_graph({name: count / 1e9 for name, count in work.items()}),
        f"{a_frame / 1e9:.2f}",
        f"{found['seconds']:.0f}",
        decibels(masks["sqnr_db"]) if masks else "",
    ]


def by_graph(values: dict[str, float], *, total: bool = False) -> str:
    """A number for each graph that has any to speak of, and their sum."""
    parts = [f"`{name}` {value:.2f}" for name, value in values.items() if value >= 0.005]
    return ", ".join(parts) + (f"; {sum(values.values()):.2f}" if total else "")


def decibels(value: float | None) -> str:
    """JSON has no infinity, which is an exact output."""
    return "exact" if value is None else f"{value:.0f}"


def build_cells(found: Figures, precisions: Iterable[str]) -> list[str]:
    """Seconds and plan sizes, of each precision."""
    if "failed" in found:
        return [f"not built: {found['failed'][:300]}", ""]
    graphs = [found["precisions"][precision].values() for precision in precisions]
    seconds = [sum(graph["seconds"] for graph in built) for built in graphs]
    sizes = [sum(graph["plan_bytes"] for graph in built) / 1e6 for built in graphs]
    return [" / ".join(f"{value:.1f}" for value in values) for values in (seconds, sizes)]


def run_cells(found: Figures) -> list[str]:
    """Seconds a frame, those in graphs, and to open."""
    if "failed" in found:
        return [f"not run: {found['failed'][:300]}", "", ""]
    frames = found["frames"]
    in_graphs = found["counters"]["submit_seconds"] / frames
    return [f"{found['seconds'] / frames:.3f}", f"{in_graphs:.3f}", f"{found['open_seconds']:.1f}"]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
