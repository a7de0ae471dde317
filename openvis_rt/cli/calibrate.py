"""``openvis calibrate``: frames of videos to INT8 graphs in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar, warn
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.records import json_from_record

if TYPE_CHECKING:
    from openvis_rt.calib.calibrate import CalibrationResult

# groups of --help
_WHERE, _FRAMES, _HOW = "Where the result goes", "Which frames", "How it is quantised"

BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle with FP32 and, for TensorRT, FP16 graphs.")
]
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Videos like those that the model will see: files, folders of images or of videos, "
        "annotation files of YTVIS, OVIS, LV-VIS, BURST or UVO beside their frames, cameras, "
        "streams. None with --rebuild.",
    ),
]
IntoOption = Annotated[
    bool, typer.Option("--into", rich_help_panel=_WHERE, help="Add to the bundle itself.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        rich_help_panel=_WHERE,
        help="Make a new bundle, and leave the given one as it is.",
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        rich_help_panel=_WHERE,
        help="Replace INT8 graphs, or the bundle at --output, if they are there.",
    ),
]
FramesOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=_FRAMES,
        help="To measure ranges on. An eighth more is held out to try the result on.",
    ),
]
StrideOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=_FRAMES,
        help="One frame in N of each video is a candidate; those that differ most are taken.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(metavar="N", rich_help_panel=_FRAMES, help="Of the choice.")
]
AllowFewOption = Annotated[
    bool,
    typer.Option(
        "--allow-few",
        rich_help_panel=_FRAMES,
        help="Take fewer than 32 frames, to try something out.",
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_HOW,
        help="How a range is chosen: mse (least squared error), max, percentile (99.99 %), "
        "entropy. All are recorded. Default: mse.",
    ),
]
GraphOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_HOW,
        help="Which graph is quantised; may be repeated. Default: propose.",
    ),
]
RebuildOption = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        rich_help_panel=_HOW,
        help="Make the INT8 graphs again from the ranges in the bundle, without frames.",
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_HOW,
        help="Refuse INT8 graphs that are too far from FP32 on frames that were held out.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="That compute one graph. Default: the library's choice."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The record as JSON on stdout.")]


def calibrate(
    bundle: BundleArgument,
    sources: SourcesArgument = None,
    *,
    into: IntoOption = False,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    frames: FramesOption = 128,
    stride: StrideOption = 5,
    seed: SeedOption = 0,
    allow_few: AllowFewOption = False,
    method: MethodOption = None,
    graph: GraphOption = None,
    rebuild: RebuildOption = False,
    check: CheckOption = True,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add INT8 graphs to a bundle, calibrated on your videos.

    Backbone and pixel decoder become INT8, the rest stays: `--precision int8` is for TensorRT,
    `--precision int8-fp32` for ONNX Runtime on a CPU. What is interrupted goes on where it was.
    Exit code 4, and nothing is added, if INT8 is too far from FP32.

    Example: `openvis calibrate bundle street.mp4 valid/instances.json --into`, then
    `openvis build bundle --precision int8`
    """
    if into == (output is not None):
        raise InputError("give --into to add to the bundle itself, or -o FOLDER for a new one")
    if rebuild == bool(sources):
        raise InputError(
            "give videos to calibrate on, or --rebuild to take the ranges that the bundle has; "
            "one of both"
        )
    if rebuild and graph:
        raise InputError("--rebuild makes the graphs that were calibrated; leave --graph out")
    try:
        from openvis_rt.calib.calibrate import (
            DEFAULT_METHOD,
            CalibrationFrames,
            rebuild_int8,
        )
        from openvis_rt.calib.calibrate import calibrate as calibrated
        from openvis_rt.calib.histograms import method_named
    except ModuleNotFoundError as exc:
        raise DependencyError(exc.name or "onnx", "calib") from exc
    with progress_bar() as bar:
        bar("checking the bundle", 0, None)
        opened = Bundle.open(bundle)
        chosen = None if method is None else method_named(method)
        if rebuild:
            result = rebuild_int8(
                opened, output=output, method=chosen, overwrite=overwrite, progress=bar, warn=warn
            )
        else:
            result = calibrated(
                opened,
                sources or (),
                output=output,
                frames=CalibrationFrames(frames, stride, seed, allow_few),
                method=chosen or DEFAULT_METHOD,
                graphs=graph or ("propose",),
                overwrite=overwrite,
                check=check,
                threads=threads,
                progress=bar,
                warn=warn,
            )
    _tell(result, as_json=as_json)


def _tell(result: CalibrationResult, *, as_json: bool) -> None:
    record = result.calibration
    files = {p: _files(result.bundle, p) for p in result.precisions}
    if as_json:
        record_json: dict[str, Any] = json_from_record(record)
        print_json({"bundle": result.bundle.path, "files": files, "calibration": record_json})
        return
    if record.measured:
        table = Table("output", "measured", *record.measured, title_justify="left")
        table.title = (
            f"INT8 beside FP32 on {record.held_out} "
            f"{'frames' if record.window_length == 1 else 'windows'} that were held out "
            "(median, worst)"
        )
        for same in zip(*record.measured.values(), strict=True):
            cells = [f"{_number(one.median)}  {_number(one.worst)}" for one in same]
            table.add_row(f"{same[0].graph} {same[0].output}", same[0].measure, *cells)
        Console(highlight=False).print(table)
    for precision, graphs in files.items():
        sizes = ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in graphs.items())
        CONSOLE.print(f"{precision}: {sizes}", markup=False)
    products = sum(len(graph.products) for graph in record.graphs.values())
    CONSOLE.print(
        f"{products} products in INT8, ranges by {record.method} from {record.frames} windows of "
        f"{len(record.sources)} sources; added to {result.bundle.path}",
        markup=False,
    )


def _files(bundle: Bundle, precision: str) -> dict[str, int]:
    """The files that this precision alone has, and their bytes."""
    graphs = bundle.manifest.graphs[precision].values()
    own = [graph.file for graph in graphs if graph.precision == precision]
    return {file: bundle.manifest.files[file].bytes for file in own}


def _number(value: float | None) -> str:
    return "same" if value is None else f"{value:.3g}"
