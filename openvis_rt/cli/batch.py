"""``openvis batch``: a bundle over many videos."""

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
    AllowTruncatedOption,
    BackendOption,
    BundleArgument,
    ClassifierOption,
    CudaOption,
    DetectionsOption,
    DeviceOption,
    EncoderOption,
    EncoderPresetOption,
    EncoderQualityOption,
    EngineVerifyOption,
    JsonOption,
    MaxFramesOption,
    MaxInstancesOption,
    OverlayOption,
    PrecisionOption,
    ThresholdOption,
    TrackerFramesOption,
    TrackerTopKOption,
    WindowLengthOption,
)
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar, warn
from openvis_rt.runtime.options import Selection, TrackingOptions

if TYPE_CHECKING:
    from openvis_rt.serving.batch import BatchReport

_WORKERS = "Who does it"
_SHOWN = 10  # videos that failed

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Videos: files, folders of them, patterns, addresses such as s3://bucket/*.mp4, or a "
        ".txt file with one of these a line."
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Takes a folder for each video and the merged results. What an earlier run finished "
        "there stays.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        rich_help_panel=_WORKERS,
        help="Processes with a pipeline each, by Ray; 0 is this process, without Ray. Default: as "
        "many as fit cores, memory and GPUs.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        rich_help_panel=_WORKERS,
        help="Of a Ray cluster: auto, HOST:6379 or ray://HOST:10001. Its machines see the bundle "
        "and the output under the same paths.",
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="N",
        rich_help_panel=_WORKERS,
        help="GPUs of a worker; 0.5 lets two share one. Default: 1 where there are GPUs.",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=2.0**20,
        metavar="GIB",
        rich_help_panel=_WORKERS,
        help="Memory of a worker; else it is estimated from the graphs.",
    ),
]
RetriesOption = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        rich_help_panel=_WORKERS,
        help="Further attempts at a video whose worker died, or whose address or device failed.",
    ),
]
BatchModeOption = Annotated[
    Literal["video", "stream"],
    typer.Option(
        metavar="MODE",
        rich_help_panel="Tracking",
        help="video scores each video officially; stream is causal, with flat memory.",
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Make videos anew that were made with other options."),
]


def batch(
    bundle: BundleArgument,
    sources: SourcesArgument,
    output: OutputOption,
    classes: ClassesOption = None,
    vocabulary: VocabularyOption = None,
    other: OtherOption = None,
    others: OthersOption = None,
    only: OnlyOption = False,
    classifier: ClassifierOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    memory_per_worker: MemoryOption = None,
    retries: RetriesOption = 1,
    mode: BatchModeOption = "video",
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cuda: CudaOption = "auto",
    verify: EngineVerifyOption = True,
    threshold: ThresholdOption = Selection.threshold,
    max_instances: MaxInstancesOption = Selection.limit,
    max_frames: MaxFramesOption = None,
    tracker_frames: TrackerFramesOption = None,
    tracker_top_k: TrackerTopKOption = None,
    window_length: WindowLengthOption = None,
    detections: DetectionsOption = None,
    overlay: OverlayOption = True,
    encoder: EncoderOption = "auto",
    encoder_preset: EncoderPresetOption = None,
    encoder_quality: EncoderQualityOption = None,
    allow_truncated: AllowTruncatedOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run many videos on the cores and GPUs of one or many machines.

    Each video's folder holds what `openvis run` writes; results.json and the tables hold them all.
    The same command again does only what is missing. A video that fails is listed, and the exit
    code is then that of its error.

    Example: `openvis batch bundle clips/ -c person -o out --no-overlay`
    """
    from openvis_rt.bundle.bundle import Bundle
    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.runtime.run import RunOptions
    from openvis_rt.runtime.video.encoders import EncoderOptions, check_encoder
    from openvis_rt.serving.batch import PoolOptions, run_batch
    from openvis_rt.serving.worker import BatchWork

    words = given_names(classes, vocabulary)
    encoding = EncoderOptions(encoder, encoder_preset, encoder_quality)
    check_encoder(encoding)
    opened = Bundle.open(bundle, verify=False)
    from_file = vocabulary is not None or classifier is not None
    default = default_list(opened.manifest.variant, words, from_file=from_file)
    memory = None if memory_per_worker is None else int(memory_per_worker * (1 << 30))
    work = BatchWork(
        bundle.absolute(),
        words.among(names_beside(other, others, default, only=only)),
        opened.sha256,
        classifier=None if classifier is None else classifier.absolute(),
        backend=backend,
        backend_options=BackendOptions(device, cuda, verify=verify),
        precision=precision,
        mode=mode,
        selection=Selection(threshold, max_instances),
        tracking=TrackingOptions(window_length, tracker_frames, tracker_top_k, detections),
        run=RunOptions(
            overlay=overlay,
            allow_truncated=allow_truncated,
            max_frames=max_frames,
            encoder=encoding,
        ),
        retries=retries,
    )
    with progress_bar() as bar:
        report = run_batch(
            work,
            sources,
            output,
            PoolOptions(workers, address, gpus_per_worker, memory),
            overwrite=overwrite,
            progress=bar,
            warn=warn,
        )
    _tell(report, as_json=as_json)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _tell(report: BatchReport, *, as_json: bool) -> None:
    if report.stopped:
        CONSOLE.print("[bold red]error:[/] ", end="")
        CONSOLE.print(f"the batch was stopped: {report.stopped}", markup=False)
    if as_json:
        print_json(report.to_json())
        return
    CONSOLE.print(
        f"{report.finished} of {report.videos} videos done in {report.seconds:.1f} s "
        f"({report.frames} frames), {report.skipped} were finished before, "
        f"{len(report.failed)} failed"
    )
    for record in report.failed[:_SHOWN]:
        CONSOLE.print(f"  {record.video.source}: {record.error}", markup=False)
    if len(report.failed) > _SHOWN:
        CONSOLE.print(f"  and {len(report.failed) - _SHOWN} more; the table of videos has them all")
    if report.left:
        CONSOLE.print(f"{report.left} videos are left; the same command again does them")
    for path in report.files:
        CONSOLE.print(f"  {path}", markup=False)
