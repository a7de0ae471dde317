"""Options of ``openvis run``, most of which other verbs that run videos take as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "AllowTruncatedOption",
    "BackendOption",
    "BundleArgument",
    "ClassifierOption",
    "CudaOption",
    "DetectionsOption",
    "DeviceOption",
    "EncoderOption",
    "EncoderPresetOption",
    "EncoderQualityOption",
    "EngineVerifyOption",
    "EveryFrameOption",
    "HtmlOption",
    "ImageEmbeddingsOption",
    "JsonLinesOption",
    "JsonOption",
    "MaxFramesOption",
    "MaxInstancesOption",
    "ModeOption",
    "OutputOption",
    "OverlayOption",
    "OverlayToOption",
    "OverwriteOption",
    "PrecisionOption",
    "ReconnectOption",
    "RerunOption",
    "ServeOption",
    "ShowOption",
    "SourceArgument",
    "StrideOption",
    "ThresholdOption",
    "TimeoutOption",
    "TrackerFramesOption",
    "TrackerTopKOption",
    "VideoIdOption",
    "WindowLengthOption",
]

# groups of --help
_LOOK_FOR, _TRACKING = "What to look for", "Tracking"
_WHERE, _OUTPUT = "Where it runs", "What is read and written"
_WATCH, _LIVE = "Seeing it while it runs", "Cameras and streams"


BundleArgument = Annotated[Path, typer.Argument(help="A bundle of `openvis export`.")]
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A video file, a folder of images, the number of a camera, the address of a stream, a "
        "named pipe, or - for stdin."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Takes the results; made by this command. Needed unless --jsonl or a view is given.",
    ),
]
JsonLinesOption = Annotated[
    str | None,
    typer.Option(
        metavar="-",
        rich_help_panel=_WATCH,
        help="Write each frame's line to stdout as soon as it is known; - is the one place. In "
        "video mode that is after the last frame; --mode stream has a file's lines while it runs.",
    ),
]
EveryFrameOption = Annotated[
    bool,
    typer.Option(
        "--every-frame",
        rich_help_panel=_LIVE,
        help="Segment every frame of a camera or stream, however late it gets. Else the newest "
        "wins, and what comes meanwhile is dropped.",
    ),
]
StrideOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_OUTPUT,
        help="Segment every Nth frame, also of files; results.json has one mask for each of them.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        min=0.1,
        metavar="SECONDS",
        rich_help_panel=_LIVE,
        help="Without data for so long an address counts as broken.",
    ),
]
ReconnectOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        rich_help_panel=_LIVE,
        help="Try a camera or stream that broke off again for so long; 0: not at all.",
    ),
]
ClassifierOption = Annotated[
    Path | None,
    typer.Option(
        metavar="NPY",
        rich_help_panel=_LOOK_FOR,
        help="Text embeddings of the classes, float [classes, width], in place of running "
        "CLIP's text encoder.",
    ),
]
ImageEmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="NPY",
        rich_help_panel=_LOOK_FOR,
        help="OVFormer: CLIP's embeddings of the frames, float [frames, 512], in place of "
        "computing them.",
    ),
]
ModeOption = Annotated[
    Literal["auto", "video", "stream"],
    typer.Option(
        metavar="MODE",
        rich_help_panel=_TRACKING,
        help="video scores the whole video officially; stream is causal, with flat memory; auto "
        "is stream for cameras and addresses only.",
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="tensorrt, tensorrt-rtx, onnxruntime, or auto: TensorRT where `openvis build` made "
        "engines for this GPU, else ONNX Runtime.",
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="cpu, cuda, or auto: CUDA where it works.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="One that the bundle holds: fp32, fp16, int8 or, on CPUs, int8-fp32.",
    ),
]
CudaOption = Annotated[
    Literal["auto", "cuda-python", "pycuda"],
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="CUDA binding: auto, cuda-python (has CUDA graphs), pycuda.",
    ),
]
EngineVerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        rich_help_panel=_WHERE,
        help="Compare engines with ONNX Runtime before their first run.",
    ),
]
ThresholdOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="P",
        rich_help_panel=_OUTPUT,
        help="Lowest score that is drawn and logged.",
    ),
]
MaxInstancesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_OUTPUT,
        help="Most instances of a frame that are shown.",
    ),
]
MaxFramesOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", rich_help_panel=_OUTPUT, help="Stop after this many frames."),
]
TrackerFramesOption = Annotated[
    int | None,
    typer.Option(
        metavar="T",
        rich_help_panel=_TRACKING,
        help="CLIP-VIS: T, frames that the tracker remembers (9).",
    ),
]
TrackerTopKOption = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        rich_help_panel=_TRACKING,
        help="CLIP-VIS: K, frames that match together (5; paper: 3).",
    ),
]
WindowLengthOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_TRACKING,
        help="Frames of a window, up to the exported number; results wait for the last one.",
    ),
]
DetectionsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_TRACKING,
        help="Most instances in results.json; else as released.",
    ),
]
VideoIdOption = Annotated[
    int,
    typer.Option(metavar="N", rich_help_panel=_OUTPUT, help="video_id in results.json."),
]
OverlayOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_OUTPUT,
        help="Write overlay.mp4.",
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_OUTPUT,
        help="Write also a page with the video, its masks and its tracks, for any browser.",
    ),
]
RerunOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_OUTPUT,
        help="Write also a recording for Rerun's viewer; its name ends in .rrd.",
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_OUTPUT,
        help="Of overlay.mp4: auto (one of hardware that works here, else libx264), libx264, "
        "h264_nvenc, h264_videotoolbox, h264_qsv, h264_amf, h264_v4l2m2m or mpeg4.",
    ),
]
EncoderPresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_OUTPUT,
        help="ultrafast to veryslow, as x264 names them. Default: veryfast.",
    ),
]
EncoderQualityOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=51,
        metavar="CRF",
        rich_help_panel=_OUTPUT,
        help="As x264's CRF: lower is better and larger. Default: 20.",
    ),
]
ServeOption = Annotated[
    str | None,
    typer.Option(
        metavar="PORT",
        rich_help_panel=_WATCH,
        help="Show the run on a page at http://127.0.0.1:PORT/ (0: any free port). HOST:PORT "
        "lets other machines look on too.",
    ),
]
ShowOption = Annotated[
    bool,
    typer.Option(
        "--show", rich_help_panel=_WATCH, help="Show the run in a window; q or Escape ends it."
    ),
]
OverlayToOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS",
        rich_help_panel=_WATCH,
        help="Send the overlay to rtmp://, rtsp://, srt://, udp://, tcp:// or rtp://, or a device "
        "of v4l2loopback (/dev/video9); repeatable. tcp://HOST:PORT?listen waits for a player.",
    ),
]
AllowTruncatedOption = Annotated[
    bool,
    typer.Option(
        "--allow-truncated",
        rich_help_panel=_OUTPUT,
        help="Take what can be read of a damaged video.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")]
