"""``openvis bench``: how fast a bundle is here, and beside others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openvis_rt.cli.ui import CONSOLE, parse_size, print_json, progress_bar, warn
from openvis_rt.errors import ParityError
from openvis_rt.files import output_file, refuse_existing
from openvis_rt.records import json_from_record

if TYPE_CHECKING:
    from openvis_rt.bench.report import Report

# groups of --help
_WHAT, _HOW, _WHERE, _OUTPUT = "What runs", "How often", "Against what", "What is written"

BundleArgument = Annotated[Path, typer.Argument(help="A bundle of `openvis export`.")]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="torch, torch-compile, openvino, a backend or another bundle, with or without "
        ":fp16. May be repeated.",
    ),
]
BackendOption = Annotated[
    str, typer.Option(metavar="NAME", rich_help_panel=_WHAT, help="As of `openvis run`.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(metavar="NAME", rich_help_panel=_WHAT, help="cpu, cuda or auto."),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHAT,
        help="One that the bundle holds: fp32, fp16, int8 or int8-fp32.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_WHAT,
        help="Of every contender on a CPU. Default: all cores.",
    ),
]
VideoOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", rich_help_panel=_WHAT, help="Default: a generated video."),
]
SourceSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        rich_help_panel=_WHAT,
        help="Of the generated video. Default: 720x1280.",
    ),
]
ModeOption = Annotated[
    Literal["video", "stream"],
    typer.Option(
        metavar="MODE",
        rich_help_panel=_WHAT,
        help="stream, or video with masks of every query.",
    ),
]
ClassesOption = Annotated[
    int,
    typer.Option(metavar="N", rich_help_panel=_WHAT, help="Random class embeddings."),
]
InstancesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_WHAT,
        help="Instances shown of a frame, whatever their score.",
    ),
]
OverlayOption = Annotated[
    bool, typer.Option(rich_help_panel=_WHAT, help="Draw and encode, as `openvis run` does.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_WHERE,
        help="For torch: the bundle's, unless it was seeded.",
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_WHERE,
        help="For torch: CLIP's weights, as for the export.",
    ),
]
FramesOption = Annotated[
    int, typer.Option(metavar="N", rich_help_panel=_HOW, help="Timed of each contender.")
]
RoundsOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=_HOW,
        help="Turns of each contender; at least 2.",
    ),
]
WarmUpOption = Annotated[
    int,
    typer.Option(metavar="N", rich_help_panel=_HOW, help="Windows that do not count; at least 1."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.json",
        rich_help_panel=_OUTPUT,
        help="Takes everything; a table (.md) and a chart (.svg) come beside it.",
    ),
]
CompareOption = Annotated[
    Path | None,
    typer.Option(
        metavar="OLD.json",
        rich_help_panel=_OUTPUT,
        help="Say what got slower since that report.",
    ),
]
AllowDifferentOption = Annotated[
    bool,
    typer.Option(
        "--allow-different",
        rich_help_panel=_OUTPUT,
        help="Also if model, sizes, settings or machine differ.",
    ),
]
MaxSlowdownOption = Annotated[
    float | None,
    typer.Option(
        metavar="RATIO",
        rich_help_panel=_OUTPUT,
        help="With --compare: exit code 4 if a contender is that much slower, such as 1.05.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace these files.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")]


def bench(
    bundle: BundleArgument,
    against: AgainstOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
    video: VideoOption = None,
    source_size: SourceSizeOption = None,
    mode: ModeOption = "stream",
    classes: ClassesOption = 40,
    max_instances: InstancesOption = 10,
    overlay: OverlayOption = True,
    checkpoint: CheckpointOption = None,
    clip: ClipOption = None,
    frames: FramesOption = 50,
    rounds: RoundsOption = 10,
    warm_up: WarmUpOption = 3,
    output: OutputOption = None,
    compare: CompareOption = None,
    allow_different: AllowDifferentOption = False,
    max_slowdown: MaxSlowdownOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle's speed, memory and power.

    Timed is a frame (or window) from the encoded video to the encoded overlay: decoding, placing,
    graphs, association, scores, run lengths, drawing, encoding. Opening and warm-up are not.
    Contenders take turns; ratios are paired by rounds. docs/bench.md says more.

    Example: `openvis bench bundle --against torch --against openvino -o bench.json`
    """
    from openvis_rt.bench.benchmark import BenchmarkSettings, benchmark
    from openvis_rt.bench.compare import (
        check_comparable,
        check_slowdown,
        compare_reports,
        markdown_from_changes,
    )
    from openvis_rt.bench.contenders import Weights
    from openvis_rt.bench.machine import this_machine
    from openvis_rt.bench.report import write_report
    from openvis_rt.bench.report_reading import read_report
    from openvis_rt.errors import InputError
    from openvis_rt.runtime.options import Selection

    settings = BenchmarkSettings(
        runs_on=backend,
        precision=precision,
        device=device,
        threads=threads,
        video=video,
        source_size=parse_size(source_size, "--source-size"),
        frames=frames,
        rounds=rounds,
        warm_up=warm_up,
        mode=mode,
        selection=Selection(threshold=0.0, limit=max_instances),
        classes=classes,
        overlay=overlay,
        weights=Weights(checkpoint, clip),
    )
    if output is not None and output.suffix != ".json":
        raise InputError(
            f"the report is JSON: give --output a name that ends in .json, not {output}"
        )
    if max_slowdown is not None and compare is None:
        raise InputError("--max-slowdown compares with an earlier report; give --compare OLD.json")
    if max_slowdown is not None:
        check_slowdown([], max_slowdown)  # a limit that is none, before minutes of work
    old = read_report(compare) if compare is not None else None  # before minutes of work
    if old is not None and not allow_different:
        check_comparable(settings.resolved(), this_machine(), old)
    for path in _outputs(output):
        refuse_existing(path, overwrite=overwrite)
    with progress_bar() as bar:
        report = benchmark(
            bundle, against=against or (), settings=settings, progress=bar, warn=warn
        )
    if output is not None:
        write_report(report, output)
        _write_companions(report, output)
    changes = [] if old is None else compare_reports(report, old, different=allow_different)
    if as_json:
        found = [{**json_from_record(c), "verdict": c.verdict} for c in changes]
        print_json({**json_from_record(report), "changes": found})
    else:
        _print(report)
        if changes:
            typer.echo(f"\nBeside {compare}:\n\n{markdown_from_changes(changes)}")
    for path in _outputs(output):
        CONSOLE.print(f"wrote {path}", markup=False)
    if max_slowdown is not None and old is not None:
        check_slowdown(changes, max_slowdown)
        _refuse_lost(report, old)


def _refuse_lost(report: Report, old: Report) -> None:
    """ParityError if a contender that was asked for again has no figures any more."""
    before = {result.name for result in old.results if result.measured is not None}
    lost = [r for r in report.results if r.measured is None and r.name in before]
    if lost:
        raise ParityError(
            f"{lost[0].name} had figures in the earlier report and has none now: {lost[0].not_run}"
        )


def _outputs(output: Path | None) -> list[Path]:
    return [] if output is None else [output, *(output.with_suffix(s) for s in (".md", ".svg"))]


def _write_companions(report: Report, output: Path) -> None:
    from openvis_rt.bench.chart import svg_from_report
    from openvis_rt.bench.markdown import markdown_from_report

    _, table, chart = _outputs(output)
    for path, text in (
        (table, markdown_from_report(report)),
        (chart, svg_from_report(report)),
    ):
        with output_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


def _print(report: Report) -> None:
    from openvis_rt.bench.markdown import markdown_from_report

    typer.echo(markdown_from_report(report), nl=False)
