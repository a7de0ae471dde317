"""``openvis eval``: a bundle, or a results file, against the annotations of a data set."""

from __future__ import annotations

import json
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from openvis_rt.cli.names import VocabularyOption
from openvis_rt.cli.run_options import (
    BackendOption,
    ClassifierOption,
    CudaOption,
    DetectionsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    TrackerFramesOption,
    TrackerTopKOption,
    WindowLengthOption,
)
from openvis_rt.cli.ui import CONSOLE, Console, print_json, progress_bar, warn
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import output_errors, output_file, refuse_inputs, sha256_of
from openvis_rt.runtime.options import TrackingOptions
from openvis_rt.vocabulary import Vocabulary

if TYPE_CHECKING:
    from openvis_rt.cli.ui import Bar
    from openvis_rt.evaluation.annotations import Annotations
    from openvis_rt.evaluation.predicting import Predictions
    from openvis_rt.evaluation.report import Report

_DATA, _METRICS = "What is evaluated", "How it is measured"

BundleArgument = Annotated[
    Path | None, typer.Argument(help="A bundle of `openvis export`; none with --results.")
]
AnnotationsOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_DATA,
        help="Annotations of YTVIS, OVIS, LV-VIS, BURST or UVO.",
    ),
]
VideosOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=_DATA,
        help="Holds the videos that the annotations name.",
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_DATA,
        help="Evaluate this results file in place of running a bundle.",
    ),
]
FormatOption = Annotated[
    Literal["auto", "ytvis", "burst", "uvo"],
    typer.Option(
        "--format",
        metavar="NAME",
        rich_help_panel=_DATA,
        help="ytvis (also OVIS and LV-VIS), burst, uvo, or auto: by what is in the file.",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", rich_help_panel=_DATA, help="Only the first N videos of the file."
    ),
]
SplitOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_METRICS,
        help='Groups to report: JSON such as {"base": [1, 2], "novel": ["ferret"]}.',
    ),
]
ClassAgnosticOption = Annotated[
    bool | None,
    typer.Option(
        "--class-agnostic/--by-class",
        rich_help_panel=_METRICS,
        help="Take all classes for one; default: for UVO only.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Takes results, metrics and pictures."),
]
PicturesOption = Annotated[
    bool | None,
    typer.Option(
        "--pictures/--no-pictures",
        help="Draw curves and bars; default: if it can.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with what an earlier run left in the output.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run first.")]


def evaluate(
    annotations: AnnotationsOption,
    bundle: BundleArgument = None,
    videos: VideosOption = None,
    results: ResultsOption = None,
    output: OutputOption = None,
    file_format: FormatOption = "auto",
    limit: LimitOption = None,
    split: SplitOption = None,
    class_agnostic: ClassAgnosticOption = None,
    vocabulary: VocabularyOption = None,
    classifier: ClassifierOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cuda: CudaOption = "auto",
    tracker_frames: TrackerFramesOption = None,
    tracker_top_k: TrackerTopKOption = None,
    window_length: WindowLengthOption = None,
    detections: DetectionsOption = None,
    pictures: PicturesOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure AP and AR on a data set, as its own evaluation does.

    Writes results.json in the data set's official form, metrics.json, metrics.md and pictures. A
    video that fails is listed and counts as having no predictions; the exit code is then not 0.

    Example: `openvis eval bundle --annotations val.json --videos JPEGImages -o out`
    """
    from openvis_rt.evaluation.annotation_files import read_annotations
    from openvis_rt.evaluation.metrics import evaluate as held_against
    from openvis_rt.evaluation.predicting import prepared_output
    from openvis_rt.evaluation.splits import read_split

    _check_usage(bundle, videos, results, output)
    if resume and overwrite:
        raise InputError(
            "--resume goes on with an earlier run and --overwrite removes it: give one of both"
        )
    if classifier is not None and not classifier.is_file():
        raise InputError(f"{classifier} is no file of text embeddings; give a .npy file")
    _check_pictures(pictures)
    if output is not None:
        refuse_inputs(output, annotations, split, vocabulary, classifier)
        refuse_inputs(output / "metrics.json", results)
    with progress_bar() as bar, ExitStack() as stack:
        bar("reading the annotations", 0, None)
        data = read_annotations(annotations, None if file_format == "auto" else file_format)
        data = data.first(limit) if limit else data
        groups = read_split(split, data) if split else None
        without_classes = data.class_agnostic if class_agnostic is None else class_agnostic
        if output is not None:
            stack.enter_context(prepared_output(output, taken=resume or overwrite))
        predictions = None
        if bundle is not None and videos is not None and output is not None:
            options = {
                "precision": precision,
                "tracking": {
                    "window_length": window_length,
                    "frames": tracker_frames,
                    "top_k": tracker_top_k,
                    "detections": detections,
                },
                "classifier": None if classifier is None else sha256_of(classifier),
            }
            predictions = _predict(
                bundle,
                data,
                videos,
                output,
                options,
                class_agnostic=without_classes,
                vocabulary=vocabulary,
                classifier=classifier,
                backend=(backend, device, cuda),
                anew=overwrite,
                bar=bar,
            )
            results = predictions.results
        report = None
        if data.tracks or predictions is None:
            assert results is not None  # _check_usage
            report = held_against(
                data,
                results,
                class_agnostic=without_classes,
                splits=groups,
                failed=predictions.failed if predictions else None,
                progress=bar,
            )
    paths = _written(report, output, pictures) if report and output else {}
    if predictions is not None:
        paths = {"results": predictions.results, **paths}
    _tell(report, predictions, paths, as_json=as_json)
    if predictions is not None and predictions.exit_code:
        raise typer.Exit(predictions.exit_code)


def _check_usage(
    bundle: Path | None, videos: Path | None, results: Path | None, output: Path | None
) -> None:
    if (bundle is None) == (results is None):
        raise InputError("give a bundle to run, or --results FILE to evaluate; one of both")
    if bundle is None:
        if results is not None and not results.is_file():
            raise InputError(f"there is no results file {results}")
        return
    if videos is None or not videos.is_dir():
        found = f"; {videos} is none" if videos is not None else ""
        raise InputError(f"--videos needs the folder that holds the videos{found}")
    if output is None:
        raise InputError("--output needs a folder for the results of the videos")


def _check_pictures(wanted: bool | None) -> None:
    """Refuse what cannot be drawn before hours of work, not after them."""
    if wanted and find_spec("matplotlib") is None:
        raise DependencyError("matplotlib", "eval")


def _predict(
    bundle: Path,
    data: Annotations,
    videos: Path,
    output: Path,
    options: dict[str, Any],
    *,
    class_agnostic: bool,
    vocabulary: Path | None,
    classifier: Path | None,
    backend: tuple[str, Any, Any],
    anew: bool,
    bar: Bar,
) -> Predictions:
    """Run the bundle over the videos."""
    from openvis_rt.evaluation.predicting import predict_videos
    from openvis_rt.evaluation.vocabularies import vocabulary_for
    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.runtime.pipeline import Pipeline

    words = Vocabulary.from_file(vocabulary) if vocabulary else None
    names, classes = vocabulary_for(data, words, class_agnostic=class_agnostic)
    bar("opening the bundle", 0, None)
    with Pipeline.open(
        bundle,
        vocabulary=names,
        classifier=classifier,
        backend=backend[0],
        backend_options=BackendOptions(*backend[1:]),
        precision=options["precision"],
        tracking=TrackingOptions(**options["tracking"]),
        progress=lambda done, total: bar("embedding class names", done, total),
        warn=warn,
    ) as pipeline:
        return predict_videos(
            pipeline,
            data,
            videos,
            output,
            classes=classes,
            options=options,
            anew=anew,
            progress=bar,
            warn=warn,
        )


def _written(report: Report, output: Path, pictures: bool | None) -> dict[str, Path]:
    """Write the metrics and the pictures; the files by kind."""
    paths = {"metrics": output / "metrics.json", "table": output / "metrics.md"}
    texts = (json.dumps(report.to_json(), indent=1) + "\n", report.to_markdown())
    for path, text in zip(paths.values(), texts, strict=True):
        with output_file(path) as partial, output_errors(path):
            partial.write_text(text, encoding="utf-8")
    if pictures is False:
        return paths
    from openvis_rt.evaluation.pictures import write_pictures

    try:
        drawn = write_pictures(report, output)
    except DependencyError as exc:  # not asked for; --pictures was refused before
        warn(f"no pictures were drawn. {exc}")
        return paths
    return {**paths, **{path.stem: path for path in drawn}}


def _tell(
    report: Report | None,
    predictions: Predictions | None,
    paths: dict[str, Path],
    *,
    as_json: bool,
) -> None:
    if as_json:
        run = None if predictions is None else predictions.to_json()
        metrics = None if report is None else report.to_json()
        print_json({"metrics": metrics, "run": run, "outputs": paths})
        return
    if report is not None:
        Console(highlight=False, markup=False).print(_table(report))
    if predictions is not None:
        earlier = f", {predictions.taken} of them in an earlier run" if predictions.taken else ""
        CONSOLE.print(
            f"{predictions.done} videos{earlier}; {predictions.frames_per_second:.2f} frames/s"
        )
        if predictions.failed:
            names = ", ".join(predictions.failed)
            CONSOLE.print(
                f"[bold red]{len(predictions.failed)} videos failed[/] and count as having no "
                f"predictions: {escape(names)}. --resume runs them again."
            )
    if report is None:
        CONSOLE.print(
            "the annotation file has no annotated tracks, as the files of test sets: nothing was "
            "measured; the results file is for the data set's evaluation server"
        )
    for kind, path in paths.items():
        CONSOLE.print(f"  {kind}: {path}", markup=False)


def _table(report: Report) -> Table:
    """The figures in percent, a column for the whole and for each group."""
    from openvis_rt.evaluation.report import FIGURES, percent

    columns = {"all": report.overall, **report.groups}
    table = Table("%", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in FIGURES:
        table.add_row(name, *(percent(figures[name]) for figures in columns.values()))
    return table
