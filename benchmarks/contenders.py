"""Every model on ONNX Runtime, PyTorch eager, torch.compile and OpenVINO, on the same frames.

    python benchmarks/contenders.py [MODEL ...] [--size HxW] [--frames 20] [--rounds 5]
        [--against torch torch-compile openvino] [--threads N] [--output FOLDER] [--keep]

Each model is exported with seeded weights in FP32, and `openvis bench` measures it in stream mode
with 40 classes and ten instances a frame; its docstring and docs/bench.md say what is timed. FOLDER
takes a report, a table and a chart for each model. A model whose report is there with the same
settings is not measured again, so an interrupted run goes on where it was, and one command measures
all of them over night. The last lines are the table of all models that were asked for.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from variants import size

from openvis_rt.bench.benchmark import BenchmarkSettings, benchmark
from openvis_rt.bench.chart import svg_from_report
from openvis_rt.bench.markdown import markdown_from_report, table
from openvis_rt.bench.parts import HOST
from openvis_rt.bench.report import Report, Result, write_report
from openvis_rt.bench.report_reading import read_report
from openvis_rt.systems import VARIANTS

AGAINST = ("torch", "torch-compile", "openvino")
BASE = "onnxruntime"


def main() -> None:
    """Measure what is not known yet, and print the tables."""
    options = parse()
    reports = [known(name, options) or measured(name, options) for name in options.models]
    print("\n".join(summary(reports, options.against)))
    print()
    print("\n".join(host_table(reports)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[[], *VARIANTS], metavar="MODEL")
    parser.add_argument("--size", type=size, metavar="HxW", help="default: the model's own")
    parser.add_argument("--source", type=size, metavar="HxW", default=(720, 1280))
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--against", nargs="*", choices=AGAINST, default=list(AGAINST))
    parser.add_argument("--output", type=Path, default=Path("contenders-benchmark"))
    parser.add_argument("--keep", action="store_true", help="leave the bundles in FOLDER/bundles")
    options = parser.parse_args()
    options.models = options.models or list(VARIANTS)
    return options


def settings_of(options: argparse.Namespace) -> BenchmarkSettings:
    """What is measured of each model."""
    return BenchmarkSettings(
        runs_on=BASE,
        device="cpu",
        threads=options.threads,
        source_size=options.source,
        frames=options.frames,
        rounds=options.rounds,
        warm_up=options.warm_up,
    )


def known(name: str, options: argparse.Namespace) -> Report | None:
    """The report of an earlier run with the same settings and contenders."""
    path = options.output / f"{name}.json"
    if not path.exists():
        return None
    report, asked = read_report(path), settings_of(options)
    same = all(
        report.settings[field] == getattr(asked, field) for field in ("frames", "rounds", "warm_up")
    )
    same &= tuple(report.settings["source_size"]) == asked.source_size
    same &= options.size in (None, report.base.network_size)
    same &= [r.name.split()[0] for r in report.results] == [BASE, *options.against]
    if same:
        say(f"{name}: known from {path}")
    return report if same else None


def measured(name: str, options: argparse.Namespace) -> Report:
    """Export a model, measure it, and write its report."""
    bundle = options.output / "bundles" / name
    if not bundle.exists():
        export(name, bundle, options)
    last = ""

    def progress(phase: str, done: int, total: int | None) -> None:
        nonlocal last
        if (line := f"{name}: {phase}{f' {done} of {total}' if total else ''}") != last:
            say(last := line)

    report = benchmark(
        bundle,
        against=options.against,
        settings=settings_of(options),
        progress=progress,
        warn=lambda text: say(f"{name}: {text}"),
    )
    write_report(report, options.output / f"{name}.json")
    (options.output / f"{name}.md").write_text(markdown_from_report(report), "utf-8")
    (options.output / f"{name}.svg").write_text(svg_from_report(report), "utf-8")
    if not options.keep:
        shutil.rmtree(bundle)
    return report


def export(name: str, bundle: Path, options: argparse.Namespace) -> None:
    """In a process of its own, which gives its memory back."""
    say(f"{name}: exporting")
    command = [sys.executable, "-m", "openvis_rt", "export", name, "--random-weights", "0"]
    command += ["--precision", "fp32", "--no-verify", "-o", str(bundle)]
    if options.size:
        command += ["--size", "x".join(map(str, options.size))]
    subprocess.run(command, check=True)


def summary(reports: list[Report], against: list[str]) -> list[str]:
    """A row for each model: seconds, ratios, rate."""
    header = ["model", "size", "s a frame", *(f"{name}, {BASE} = 1" for name in against)]
    header += ["host", "GFLOP/s", "of the matrix product", "others' share of the cores"]
    rows = []
    for report in reports:
        found = {result.name.split()[0]: result for result in report.results}
        base = report.base.measured
        assert base is not None
        rate, share = base.flops_a_second, base.share_of_peak
        rows.append(
            [
                report.base.model,
                "x".join(map(str, report.base.network_size)),
                f"{base.seconds_a_frame:.3f}",
                *(ratio(found[name]) for name in against),
                f"{base.host_share:.1%}",
                "" if rate is None else f"{rate / 1e9:.1f}",
                "" if share is None else f"{share:.0%}",
                "" if report.others is None else f"{report.others:.0%}",
            ]
        )
    return table(header, rows)


def host_table(reports: list[Report]) -> list[str]:
    """Milliseconds a frame of the host's parts on the base."""
    rows = []
    for report in reports:
        assert report.base.measured is not None
        parts = report.base.measured.parts
        rows.append([report.base.model, *(f"{parts.get(part, 0.0) * 1e3:.2f}" for part in HOST)])
    return table(["model", *(part.replace("_", " ") for part in HOST)], rows)


def ratio(result: Result) -> str:
    """Of the time, or why there is none."""
    if result.measured is None:
        return f"not run: {result.not_run[:80]}"
    return str(result.measured.ratio)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
