"""``openvis convert``: finished results in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openvis_rt.cli.ui import CONSOLE, Bar, print_json, progress_bar
from openvis_rt.errors import InputError
from openvis_rt.files import refuse_existing, refuse_inputs

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
    """Write finished results as a page, a recording or tables.

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


def check_pictures(
    pictures: dict[str, Path], source: str, output: Path | None, *, overwrite: bool
) -> None:
    """Refuse what `run` could not write when its work is done.

    Args:
        pictures: of each form the file that is wanted.
        source: of the run.
        output: the folder that takes the run.
        overwrite: files may be there already.

    Raises:
        InputError: there is no folder, the source can be read only once, or a file has another
            form's name.
        DependencyError: a library is missing.
        OutputError: a file is there, or its place is the folder's or the source's.
    """
    if not pictures:
        return
    from openvis_rt.convert.convert import check_form
    from openvis_rt.runtime.video.reading import is_live

    if output is None:
        raise InputError(f"--{min(pictures)} shows what is in the output folder; give -o too")
    for form, path in pictures.items():
        check_form(form, path)
        refuse_inputs(path, output, source)
        refuse_existing(path, overwrite=overwrite)
        if is_live(source):
            raise InputError(
                f"--{form} reads the video a second time, and {source} can be read only once. "
                f"Leave it out, and give `openvis convert --to {form}` the overlay as --video."
            )


def write_pictures(
    pictures: dict[str, Path], source: str, results: Path, bar: Bar
) -> dict[str, Path]:
    """Write what :func:`check_pictures` has checked, of the results in a folder."""
    if not pictures:
        return {}
    from openvis_rt.convert.convert import ConvertOptions, convert_results

    for form, path in pictures.items():
        convert_results(results, form, path, ConvertOptions(source, progress=bar))
    return pictures
