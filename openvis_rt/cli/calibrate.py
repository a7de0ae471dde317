"""``openvis calibrate``: frames of videos to INT8 graphs in a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.cli.calibration_tables import tell_calibration
from openvis_rt.cli.ui import progress_bar, warn
from openvis_rt.errors import DependencyError, InputError

# groups of --help
_WHERE, _FRAMES, _HOW = "Where the result goes", "Which frames", "How it is quantised"
_BLOCKS = "Which blocks are quantised"

BundleArgument = Annotated[
    Path, typer.Argument(help="A bundle with FP32 and, for TensorRT, FP16 graphs.")
]
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Videos like those that the model will see: files, folders of images or of videos, "
        "annotation files beside their frames, cameras, streams. None with --rebuild.",
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
        help="Replace INT8 graphs or a bundle that are there.",
    ),
]
FramesOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=_FRAMES,
        help="To measure ranges on; an eighth more is held out.",
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
        help="How a range is chosen: percentile (99.99 %), mse, max or entropy. All are "
        "recorded. Default: percentile.",
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
PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_HOW,
        help="int8 for TensorRT, or int8-fp32 for CPUs: make only this one, and hold bounds in it "
        "alone. Default: both.",
    ),
]
RebuildOption = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        rich_help_panel=_HOW,
        help="Make the graphs again from recorded ranges.",
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_HOW,
        help="Refuse INT8 graphs that are too far from FP32 on frames that were held out.",
    ),
]
SensitivityOption = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        rich_help_panel=_BLOCKS,
        help="Measure what each block alone costs, and what it saves; the bundle gets "
        "calibration/sensitivity.json and a picture. With --evaluate also AP of each block.",
    ),
]
MinSqnrOption = Annotated[
    float | None,
    typer.Option(
        "--min-sqnr",
        metavar="DB",
        rich_help_panel=_BLOCKS,
        help="Quantise the cheapest blocks only, as many as leave mask logits this "
        "signal-to-noise ratio on frames that were held out; the rest stays FP16.",
    ),
]
MaxApDropOption = Annotated[
    float | None,
    typer.Option(
        "--max-ap-drop",
        metavar="POINTS",
        rich_help_panel=_BLOCKS,
        help="Quantise the cheapest blocks only, as many as lose at most so many points of AP "
        "on --evaluate.",
    ),
]
EvaluateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_BLOCKS,
        help="Annotations of YTVIS, OVIS, LV-VIS, BURST or UVO beside their frames; best of "
        "videos not calibrated on.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, metavar="N", help="That compute one graph. Default: the library's choice."
    ),
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
    precision: PrecisionOption = None,
    rebuild: RebuildOption = False,
    check: CheckOption = True,
    sensitivity: SensitivityOption = False,
    min_sqnr: MinSqnrOption = None,
    max_ap_drop: MaxApDropOption = None,
    evaluate: EvaluateOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add INT8 graphs to a bundle, calibrated on your videos.

    Backbone and pixel decoder become INT8, the rest stays: `--precision int8` is for TensorRT,
    `--precision int8-fp32` for ONNX Runtime on a CPU. What is interrupted goes on where it was.
    Exit code 4, and nothing is added, if INT8 is too far from FP32, or no block holds a bound.

    Example: `openvis calibrate bundle street.mp4 valid/instances.json --into`, then
    `openvis build bundle --precision int8`
    """
    if into == (output is not None):
        raise InputError("give --into to add to the bundle itself, or -o FOLDER for a new one")
    about_blocks = {
        "--sensitivity": sensitivity or None,
        "--min-sqnr": min_sqnr,
        "--max-ap-drop": max_ap_drop,
        "--evaluate": evaluate,
    }
    given = [name for name, value in about_blocks.items() if value is not None]
    _refuse_clashes(sources or (), graph or (), precision or (), given, rebuild=rebuild)
    try:
        from openvis_rt.calib.block_choice import BlockChoice
        from openvis_rt.calib.calibrate import DEFAULT_METHOD, rebuild_int8
        from openvis_rt.calib.calibrate import calibrate as calibrated
        from openvis_rt.calib.histograms import method_named
        from openvis_rt.calib.windows import CalibrationFrames
    except ModuleNotFoundError as exc:
        raise DependencyError(exc.name or "onnx", "calib") from exc
    blocks = None
    if given:
        each = sensitivity and evaluate is not None
        blocks = BlockChoice(min_sqnr, max_ap_drop, evaluate, each)
    with progress_bar() as bar:
        bar("checking the bundle", 0, None)
        opened = Bundle.open(bundle)
        check_contract(opened.manifest)
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
                precisions=precision or (),
                blocks=blocks,
                overwrite=overwrite,
                check=check,
                threads=threads,
                progress=bar,
                warn=warn,
            )
    tell_calibration(result, as_json=as_json)


def _refuse_clashes(
    sources: Sequence[str],
    graphs: Sequence[str],
    precisions: Sequence[str],
    about_blocks: Sequence[str],
    *,
    rebuild: bool,
) -> None:
    """Refuse options that do not go with ``--rebuild``, or videos that do not.

    Raises:
        InputError: the message says which to leave out.
    """
    if rebuild == bool(sources):
        raise InputError(
            "give videos to calibrate on, or --rebuild to take the ranges that the bundle has; "
            "one of both"
        )
    if not rebuild:
        return
    if graphs:
        raise InputError("--rebuild makes the graphs that were calibrated; leave --graph out")
    if precisions:
        raise InputError(
            "--rebuild makes the precisions that the bundle has; leave --precision out"
        )
    if about_blocks:
        raise InputError(
            f"--rebuild has no frames to measure blocks on; leave {about_blocks[0]} out. It makes "
            "the blocks INT8 again that were picked before"
        )
