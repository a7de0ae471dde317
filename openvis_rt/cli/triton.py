"""``openvis triton``: a bundle as a model repository of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openvis_rt.cli.names import (
    ClassesOption,
    OnlyOption,
    OtherOption,
    OthersOption,
    VocabularyOption,
    default_list,
    given_names,
    names_beside,
)
from openvis_rt.cli.run_options import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    MaxInstancesOption,
    PrecisionOption,
    ThresholdOption,
    WindowLengthOption,
)
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar
from openvis_rt.files import refuse_existing
from openvis_rt.runtime.options import Selection, TrackingOptions

if TYPE_CHECKING:
    from openvis_rt.serving.triton.repository import RepositoryReport

_SERVER = "The server"

OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Becomes the repository; made by this command."
    ),
]
NameOption = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=_SERVER, help="Of the model, as clients call it."),
]
GraphsOption = Annotated[
    Literal["inside", "onnxruntime", "tensorrt"],
    typer.Option(
        metavar="WHERE",
        rich_help_panel=_SERVER,
        help="inside: the model runs the graphs itself. onnxruntime, tensorrt: each graph is a "
        "model of the server's own, which the tracking model calls.",
    ),
]
EnginesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=_SERVER,
        help="With tensorrt: which of the bundle's engines/, if it has several.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_SERVER,
        help="With inside: what runs the graphs, as for `openvis run`.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        rich_help_panel=_SERVER,
        help="With inside: threads of a graph on a CPU. Default: the library's choice.",
    ),
]
InstancesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_SERVER,
        help="Processes of the tracking model; sequences are spread over them.",
    ),
]
SequencesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_SERVER,
        help="Most sequences at a time in each instance; further ones wait.",
    ),
]
IdleOption = Annotated[
    float,
    typer.Option(
        "--idle",
        min=0.001,
        metavar="SECONDS",
        rich_help_panel=_SERVER,
        help="After which a sequence that sends nothing loses its place.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the repository.")]


def triton(
    bundle: BundleArgument,
    output: OutputOption,
    classes: ClassesOption = None,
    vocabulary: VocabularyOption = None,
    other: OtherOption = None,
    others: OthersOption = None,
    only: OnlyOption = False,
    name: NameOption = "openvis",
    graphs: GraphsOption = "inside",
    engines: EnginesOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = None,
    instances: InstancesOption = 1,
    sequences: SequencesOption = 64,
    idle: IdleOption = 60.0,
    window_length: WindowLengthOption = None,
    threshold: ThresholdOption = Selection.threshold,
    max_instances: MaxInstancesOption = Selection.limit,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository for NVIDIA Triton.

    Frames of many cameras go in, and instances come out. The named classes are
    those of sequences that name none themselves.

    Example: `openvis triton bundle -c person -c "bicycle, bike" -o repository`
    """
    from openvis_rt.bundle.bundle import Bundle
    from openvis_rt.serving.triton.repository import write_repository
    from openvis_rt.serving.triton.settings import ModelSettings

    refuse_existing(output, overwrite=overwrite)
    words = given_names(classes, vocabulary)
    with progress_bar() as bar:
        bar("opening the bundle", 0, None)
        opened = Bundle.open(bundle)
        default = default_list(opened.manifest.variant, words, from_file=vocabulary is not None)
        settings = ModelSettings(
            words.among(names_beside(other, others, default, only=only)),
            precision=precision,
            backend=backend,
            device=device,
            threads=threads,
            selection=Selection(threshold, max_instances),
            tracking=TrackingOptions(window_length),
            sequences=sequences,
            idle_seconds=idle,
        )
        report = write_repository(
            opened,
            output,
            settings,
            name=name,
            graphs=graphs,
            engines=engines,
            instances=instances,
            overwrite=overwrite,
            progress=bar,
        )
    _tell(report, as_json=as_json)


def _tell(report: RepositoryReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
        return
    CONSOLE.print(f"wrote {report.path}: {', '.join(report.models)}", markup=False)
    CONSOLE.print(
        f"tritonserver --model-repository={report.path}   # with openvis-rt where its Python looks",
        markup=False,
    )
