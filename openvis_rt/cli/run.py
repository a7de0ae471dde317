"""``openvis run``: a bundle over a video."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

from openvis_rt.cli.convert import check_pictures, write_pictures
from openvis_rt.cli.names import (
    ClassesOption,
    OnlyOption,
    OtherOption,
    OthersOption,
    VocabularyOption,
    default_list,
    given_names,
    names_beside,
    words_beside,
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
    EveryFrameOption,
    HtmlOption,
    ImageEmbeddingsOption,
    JsonLinesOption,
    JsonOption,
    MaxFramesOption,
    MaxInstancesOption,
    ModeOption,
    OutputOption,
    OverlayOption,
    OverlayToOption,
    OverwriteOption,
    PrecisionOption,
    ReconnectOption,
    RerunOption,
    ServeOption,
    ShowOption,
    SourceArgument,
    StrideOption,
    ThresholdOption,
    TimeoutOption,
    TrackerFramesOption,
    TrackerTopKOption,
    VideoIdOption,
    WindowLengthOption,
)
from openvis_rt.cli.ui import CONSOLE, INTERRUPTED, print_json, progress_bar, warn
from openvis_rt.errors import InputError
from openvis_rt.printable import without_password
from openvis_rt.runtime.options import LiveOptions, Selection, TrackingOptions

if TYPE_CHECKING:
    from openvis_rt.runtime.report import RunReport


def run(
    bundle: BundleArgument,
    source: SourceArgument,
    output: OutputOption = None,
    classes: ClassesOption = None,
    vocabulary: VocabularyOption = None,
    other: OtherOption = None,
    others: OthersOption = None,
    only: OnlyOption = False,
    classifier: ClassifierOption = None,
    image_embeddings: ImageEmbeddingsOption = None,
    mode: ModeOption = "auto",
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
    video_id: VideoIdOption = 1,
    overlay: OverlayOption = True,
    serve: ServeOption = None,
    show: ShowOption = False,
    overlay_to: OverlayToOption = None,
    html: HtmlOption = None,
    rerun: RerunOption = None,
    jsonl: JsonLinesOption = None,
    stride: StrideOption = 1,
    every_frame: EveryFrameOption = False,
    timeout: TimeoutOption = LiveOptions.timeout,
    reconnect: ReconnectOption = LiveOptions.reconnect,
    encoder: EncoderOption = "auto",
    encoder_preset: EncoderPresetOption = None,
    encoder_quality: EncoderQualityOption = None,
    allow_truncated: AllowTruncatedOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Segment, classify and track the named classes in a video.

    Writes overlay.mp4, frames.jsonl (one line a frame) and, in video mode, results.json in the
    YTVIS / LV-VIS format. Ctrl-C ends it with whole files of the frames so far. Of a camera or
    a stream the newest frame is segmented, and the folder grows while it runs.

    Example: `openvis run bundle street.mp4 -c person -c "bicycle, bike" -o out`
    """
    from openvis_rt.bundle.bundle import Bundle
    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.runtime.pipeline import Pipeline
    from openvis_rt.runtime.recording import refuse_existing
    from openvis_rt.runtime.report import RunOptions
    from openvis_rt.runtime.run import resolve_mode, run_video
    from openvis_rt.runtime.video.encoders import EncoderOptions, check_encoder
    from openvis_rt.runtime.views.opening import ViewOptions, open_views

    watching = ViewOptions(serve, show, tuple(overlay_to or ()))
    lines = _lines(jsonl, output, as_json=as_json, watched=watching != ViewOptions())
    if output is not None:
        _refuse_address(output)
        refuse_existing(output, overwrite=overwrite)  # before the bundle is opened
    pictures = {form: path for form, path in (("html", html), ("rerun", rerun)) if path is not None}
    check_pictures(pictures, source, output, overwrite=overwrite)
    words = given_names(classes, vocabulary)
    encoding = EncoderOptions(encoder, encoder_preset, encoder_quality)
    check_encoder(encoding)
    live = LiveOptions(every_frame, timeout, reconnect)
    options = RunOptions(
        video_id, overlay, allow_truncated, max_frames, overwrite, encoding, stride, live
    )
    resolved = resolve_mode(mode, source)
    with (
        progress_bar(beside_data=lines is not None) as bar,
        open_views(watching, _tell_aside, warn) as views,
    ):
        bar("opening the bundle", 0, None)
        opened = Bundle.open(bundle)
        default = default_list(
            opened.manifest.variant,
            words,
            from_file=vocabulary is not None or classifier is not None,
        )
        words = words.among(names_beside(other, others, default, only=only))
        if said := words_beside(
            opened.manifest.variant,
            words,
            default,
            asked=only or others is not None,
            from_file=vocabulary is not None and classifier is None,
        ):
            CONSOLE.print(said, markup=False)
        with (
            _kept(output),
            Pipeline.open(
                opened,
                vocabulary=words,
                classifier=classifier,
                image_embeddings=image_embeddings,
                backend=backend,
                backend_options=BackendOptions(device, cuda, verify=verify),
                precision=precision,
                mode=resolved,
                selection=Selection(threshold, max_instances),
                tracking=TrackingOptions(window_length, tracker_frames, tracker_top_k, detections),
                progress=lambda done, total: bar("embedding class names", done, total),
                warn=warn,
            ) as pipeline,
        ):
            bar(f"waiting for {without_password(source)}", 0, None)
            report = run_video(pipeline, source, output, options, bar, warn, views, lines)
        if not report.stopped and output is not None:
            report.outputs.update(write_pictures(pictures, source, output, bar))
    late = [message for message in views.warnings if message not in report.warnings]
    report.warnings.extend(late)  # what was found when the views were closed
    _tell(report, as_json=as_json)
    if report.stopped:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _kept(output: Path | None) -> Iterator[None]:
    """Where an interrupt leaves a live source's folder, say so."""
    from openvis_rt.runtime.recording import UNFINISHED

    try:
        yield
    except KeyboardInterrupt:
        mark = None if output is None else output / UNFINISHED
        if mark is not None and _is_mine(mark):
            CONSOLE.print(
                f"{output} keeps the frames so far, in whole lines; {UNFINISHED} in it says that "
                "the run did not end",
                markup=False,
            )
        raise


def _is_mine(mark: Path) -> bool:
    """Whether this process wrote the mark of a live run; an earlier one's may lie there, too."""
    try:
        return bool(json.loads(mark.read_text(encoding="utf-8"))["pid"] == os.getpid())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_address(output: Path) -> None:
    from openvis_rt.runtime.views.sink import is_sink

    if is_sink(output.as_posix()):
        raise InputError(
            f"-o takes a folder, got {output}; --overlay-to sends the overlay to an address or a "
            "device, with a folder or without"
        )


def _lines(
    jsonl: str | None, output: Path | None, *, as_json: bool, watched: bool
) -> BinaryIO | None:
    """Where the lines of frames go beside the folder."""
    if jsonl is None:
        if output is None and not watched:
            raise InputError(
                "nothing would be kept or seen: give a folder with -o, --jsonl -, or a view such "
                "as --serve 8000"
            )
        return None
    if jsonl != "-":
        raise InputError(f"--jsonl takes - for stdout, got {jsonl}; a file is in the folder of -o")
    if as_json:
        raise InputError("--jsonl - and --json both write to stdout; give one of them")
    if sys.stdout is None:
        raise InputError("--jsonl - writes to stdout, and stdout is closed; lead it somewhere")
    buffered = sys.stdout.buffer
    # without the buffer: one that its reader left full fails again when Python ends
    return getattr(buffered, "raw", buffered)


def _tell(report: RunReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
        return
    CONSOLE.print(
        f"{report.frames} frames, {report.tracks} tracks, {report.frames_per_second:.2f} frames/s "
        f"on {report.backend}, {report.mode} mode"
    )
    if report.age_ms is not None:
        ages, back = report.age_ms, report.reconnections
        CONSOLE.print(
            f"{report.dropped} frames dropped; a result was {ages['p50']:.0f} ms old in the median "
            f"and {ages['p99']:.0f} ms in the worst hundredth"
            + (f"; the source came back {back} times" if back else "")
        )
    if report.delay_frames:
        CONSOLE.print(
            f"a frame's result waited for up to {report.delay_frames} more frames, "
            f"{report.delay_seconds:.2f} s of the video"
        )
    for kind, path in report.outputs.items():
        CONSOLE.print(f"  {kind}: {path}", markup=False)
    if report.stopped:
        kept = (
            "; every file is whole, and of these. `openvis convert` makes a page or a recording of "
            "them"
        )
        CONSOLE.print(f"stopped after {report.frames} frames{kept if report.outputs else ''}")


def _tell_aside(words: str) -> None:
    CONSOLE.print(words, markup=False)
