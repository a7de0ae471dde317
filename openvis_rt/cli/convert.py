"""``openvis convert``: finished results in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar
from openvis_rt.files import refuse_existing

ResultsArgument = Annotated[Path, typer.Argument(help="The folder that `openvis run` wrote.")]
FormOption = Annotated[
    str,
    typer.Option("--to", metavar="FORM", help="html, rerun, coco, mots, mot or csv."),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="PATH", help="The file, or for mots the folder.")
]
VideoOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="html, rerun: the video file or folder of images that was run."
    ),
]
QualityOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=51,
        metavar="CRF",
        help="html: of the video, as x264's CRF: lower is better and larger. Default: 26.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]


def convert(
    results: ResultsArgument,
    to: FormOption,
    output: OutputOption,
    video: VideoOption = None,
    quality: QualityOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write finished results as a page to look at, for Rerun, or for other programs.

    html is one page with the video and its masks, for any browser; rerun a recording for Rerun's
    viewer; coco annotations with track ids; mots the PNG files and the text of the MOTS challenge;
    mot and csv boxes.

    Example: `openvis convert out --to html --video street.mp4 -o street.html`
    """
    from openvis_rt.convert.convert import ConvertOptions, convert_results

    refuse_existing(output, overwrite=overwrite)
    with progress_bar() as bar:
        options = ConvertOptions(video, quality, overwrite, bar)
        told = convert_results(results, to, output, options)
    if as_json:
        print_json({"to": to, "output": str(output), **told})
    else:
        CONSOLE.print(f"{to}: {output}", markup=False)
