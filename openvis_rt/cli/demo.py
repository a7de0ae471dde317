"""``openvis demo``: the trained miniatures over a generated video, from weights to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from openvis_rt.cli.export import require_export
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar, warn
from openvis_rt.files import refuse_existing

if TYPE_CHECKING:
    from openvis_rt.demo.demo import DemoReport

OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FOLDER", help="Takes everything that is made."),
]
ClassesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        metavar="PHRASE",
        help="Look for this, such as 'striped star'; may be repeated. A video is chosen that shows "
        "as many of the phrases as possible. Default: what a video shows, and some other phrases.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Another seed is another video, and other phrases.")
]
ListOption = Annotated[
    bool,
    typer.Option("--list", help="Print the attributes and shapes of the world, and do no more."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the folder of an earlier demo.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="What was found, as JSON on stdout.")]


def demo(
    output: OutputOption = Path("openvis-demo"),
    classes: ClassesOption = None,
    seed: SeedOption = 0,
    list_words: ListOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export three trained miniatures and run them side by side.

    They segment, name and track the objects of a generated video, of a split that they were never
    trained on. The folder then holds overlay.mp4, contact-sheet.png, a bundle of each system and
    its results.

    Example: `openvis demo -c "striped star" -c "red ring" -c "fish with eyes"`
    """
    if list_words:
        _list_words(as_json=as_json)
        return
    refuse_existing(output, overwrite=overwrite)  # before torch is loaded
    require_export()
    from openvis_rt.demo.demo import run_demo

    with progress_bar() as bar:
        report = run_demo(
            output, classes or (), seed=seed, overwrite=overwrite, progress=bar, warn=warn
        )
    if as_json:
        print_json(report.to_json())
    _tell(report)


def _tell(report: DemoReport) -> None:
    """The table, what was not done, and where things are; on stderr."""
    table = Table("system", "AP", "found", "named right", "other tracks", "frames/s")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for found in report.systems:
        ap = "-" if found.ap is None else f"{100 * found.ap:.1f}"
        table.add_row(
            *(found.model, ap, f"{found.found} of {found.objects}", str(found.named)),
            *(str(found.others), f"{found.frames_per_second:.1f}"),
        )
    CONSOLE.print(table)
    files = report.to_json()["files"]
    for text in (
        f"{report.video} shows {', '.join(report.objects)}; looked for: "
        f"{', '.join(report.phrases)}",
        report.engines,
        f"  side by side: {files['overlay']}",
        f"  some frames: {files['contact_sheet']}",
        f"  bundles: {report.output / 'bundles'}",
        f"  results: {report.output / 'results'}",
    ):
        CONSOLE.print(text, markup=False)


def _list_words(*, as_json: bool) -> None:
    """What a phrase of the world is made of, on stdout."""
    from openvis_rt.training.world_categories import ATTRIBUTES, CATEGORIES, SHAPES

    phrases = {attribute.name: attribute.phrase for attribute in ATTRIBUTES}
    if as_json:
        known = [category.phrase for category in CATEGORIES]
        print_json({"attributes": phrases, "shapes": SHAPES, "phrases": known})
        return
    typer.echo("attributes: " + ", ".join(p.format("...") for p in phrases.values()))
    typer.echo("shapes:     " + ", ".join(SHAPES))
    typer.echo(f"{len(CATEGORIES)} phrases such as 'red ring', 'striped star', 'fish with eyes'")
