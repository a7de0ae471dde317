"""``openvis run``: a bundle over a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import CONSOLE, print_json, progress_bar, warn
from openvis_rt.errors import InputError
from openvis_rt.files import refuse_existing
from openvis_rt.runtime.selection import Selection
from openvis_rt.vocabulary import Vocabulary


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle of `openvis export`.")],
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a directory of images, a camera index such as 0, "
            "or a stream address."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for the results, made by this command."),
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            "-c",
            help="A class to look for; repeat it. Commas separate synonyms: 'monkey, ape'.",
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="Class names from a file: one a line, or JSON (YTVIS/LV-VIS categories)."
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Rows for the class names from a .npy file, float [classes, width], in place of "
            "CLIP's text encoder; such as the public fg_bg_5_10_lvvis_ens.npy."
        ),
    ] = None,
    image_embeddings: Annotated[
        Path | None,
        typer.Option(
            help="For OVFormer: CLIP's embedding of each frame from a .npy file, float [frames, "
            "512], in place of computing them."
        ),
    ] = None,
    mode: Annotated[
        Literal["auto", "video", "stream"],
        typer.Option(
            help="video: official whole-video scoring. stream: causal, flat memory. "
            "auto: video for files, stream for cameras and addresses."
        ),
    ] = "auto",
    backend: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"],
        typer.Option(
            help="What runs the graphs. auto: TensorRT where `openvis build` made engines for this "
            "GPU, else ONNX Runtime."
        ),
    ] = "auto",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where; auto is CUDA where it works.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="A precision that the bundle holds.")] = "fp32",
    cuda: Annotated[
        Literal["auto", "cuda-python", "pycuda"],
        typer.Option(help="The CUDA binding for TensorRT; only cuda-python has CUDA graphs."),
    ] = "auto",
    threshold: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Least score that is drawn and logged; results.json keeps all."
        ),
    ] = Selection.threshold,
    max_instances: Annotated[
        int, typer.Option(min=1, help="Most instances shown in a frame.")
    ] = Selection.limit,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many frames.")
    ] = None,
    tracker_frames: Annotated[
        int | None,
        typer.Option(help="CLIP-VIS: T, frames that the tracker remembers (9)."),
    ] = None,
    tracker_top_k: Annotated[
        int | None,
        typer.Option(help="CLIP-VIS: K, frames that match together (5; paper: 3)."),
    ] = None,
    window_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames that a model of windows looks at together, up to the exported ones. A "
            "result waits for the window's last frame.",
        ),
    ] = None,
    detections: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most instances in results.json, of video mode; default: as released."
        ),
    ] = None,
    video_id: Annotated[int, typer.Option(help="video_id in results.json.")] = 1,
    overlay: Annotated[bool, typer.Option(help="Write overlay.mp4.")] = True,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take what can be read of a damaged video.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output directory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Segment, classify and track the named classes in a video; no torch is needed.

    Writes overlay.mp4, frames.jsonl (one line a frame) and, in video mode, results.json in the
    YTVIS / LV-VIS format.

    Example: `openvis run bundle street.mp4 -c person -c "bicycle, bike" -o out`
    """
    from openvis_rt.runtime.pipeline import Pipeline
    from openvis_rt.runtime.run import RunOptions, resolve_mode, run_video

    refuse_existing(output, overwrite=overwrite)  # before the bundle is opened
    words = _words(classes, vocabulary)
    selection = Selection(threshold, max_instances)
    options = RunOptions(
        video_id=video_id,
        overlay=overlay,
        allow_truncated=allow_truncated,
        max_frames=max_frames,
        overwrite=overwrite,
    )
    resolved = resolve_mode(mode, source)
    with progress_bar() as bar:
        bar("opening the bundle", 0, None)
        with Pipeline.open(
            Bundle.open(bundle),
            vocabulary=words,
            classifier=classifier,
            image_embeddings=image_embeddings,
            backend=backend,
            device=device,
            precision=precision,
            mode=resolved,
            selection=selection,
            tracker_frames=tracker_frames,
            tracker_top_k=tracker_top_k,
            window_length=window_length,
            detections=detections,
            cuda=cuda,
            progress=lambda done, total: bar("embedding class names", done, total),
        ) as pipeline:
            report = run_video(pipeline, source, output, options, bar)
    for message in report.warnings:
        warn(message)
    if as_json:
        print_json(report.to_json())
        return
    CONSOLE.print(
        f"{report.frames} frames, {report.tracks} tracks, {report.frames_per_second:.2f} frames/s "
        f"on {report.backend}, {report.mode} mode"
    )
    if report.delay_frames:
        CONSOLE.print(
            f"a frame's result waited for up to {report.delay_frames} more frames, "
            f"{report.delay_seconds:.2f} s of the video"
        )
    for kind, path in report.outputs.items():
        CONSOLE.print(f"  {kind}: {path}", markup=False)


def _words(classes: list[str] | None, file: Path | None) -> Vocabulary:
    if classes and file is not None:
        raise InputError("give class names with --class or with --vocabulary, not both")
    if file is not None:
        return Vocabulary.from_file(file)
    if not classes:
        raise InputError("no class to look for; give --class NAME (repeat it) or --vocabulary FILE")
    return Vocabulary(tuple(classes))
