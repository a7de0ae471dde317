"""``openvis export``: an official checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from openvis_rt.cli.names import embedded_names
from openvis_rt.cli.ui import (
    CONSOLE,
    Console,
    parse_size,
    parse_source_size,
    print_json,
    progress_bar,
    warn,
)
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import refuse_existing
from openvis_rt.records import json_from_record
from openvis_rt.systems import variant_named
from openvis_rt.vocabulary import NAME_LISTS

if TYPE_CHECKING:
    from openvis_rt.export.bundle import ExportResult

_WEIGHTS, _GRAPHS = "Weights", "Graphs"  # groups of --help
ON_THE_HOST = (
    "frames are resized on the host, which takes a processor 5 to 17 ms a frame at 720p to 1080p; "
    "for a GPU, export with --source-size 1080p, or with one of your videos in its place"
)


ModelArgument = Annotated[str, typer.Argument(help="A model of `openvis models`.")]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Becomes the bundle; made by this command."
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_WEIGHTS,
        help="Official weights: .pth with a 'model' entry, or .safetensors.",
    ),
]
RandomWeightsOption = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        rich_help_panel=_WEIGHTS,
        help="Random weights instead, to try the toolchain without a checkpoint.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        rich_help_panel=_GRAPHS,
        help="Height x width of the resized frame, such as 480x864; the graph pads it to "
        "multiples of 32. Default: the model's rule for 16:9 video, such as 480x853.",
    ),
]
SourceSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        rich_help_panel=_GRAPHS,
        help="Of the source video: HxW, 720p, 1080p, 1440p, 4k, or a video file. Then the graph "
        "itself resizes, like Pillow, and the host does not: right for a GPU.",
    ),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TAG",
        rich_help_panel=_WEIGHTS,
        help="CLIP's weights for OVFormer and OV2Seg, whose checkpoints hold none: a file, or "
        "a tag of open_clip such as ViT-B-32:openai. Without it the bundle takes text "
        "classifiers, and OVFormer's image embeddings, from files only.",
    ),
]
QuickGeluOption = Annotated[
    bool | None,
    typer.Option(
        rich_help_panel=_WEIGHTS,
        help="CLIP's activation: QuickGELU for OpenAI's weights, which OVFormer and OV2Seg "
        "use. A tag tells; for a file, the default is QuickGELU.",
        show_default=False,
    ),
]
WindowLengthOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=_GRAPHS,
        help="Most frames of a window, up to 64, for ovformer-video; any shorter window runs "
        "as well. Default: 5, as released.",
    ),
]
PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_GRAPHS,
        help="fp32, fp16 or both, with a comma or repeated; one that cannot be had is then an "
        "error. Default: both, without fp16 where these weights fail its comparison with PyTorch. "
        "fp16 halves the files and is what TensorRT is fast with; norms, softmax, mask and class "
        "scores stay FP32 in it (docs/fp16.md).",
    ),
]
ReferenceOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_GRAPHS,
        help="Record PyTorch's answers in the bundle (1 to 5 MB), so that `openvis verify` needs "
        "no torch.",
    ),
]
NamesOption = Annotated[
    str | None,
    typer.Option(
        metavar="LISTS",
        rich_help_panel=_GRAPHS,
        help=f"Embed these names now, so that runs need not: {', '.join(NAME_LISTS)} (several with "
        "commas), or none. Default: the list that competes with a few -c names; coco takes 10 to "
        "30 s, lvis 3 to 8 minutes.",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the bundle if there is one.")
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_GRAPHS, help="Compare every graph with PyTorch, in ONNX Runtime."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]


def export(
    model: ModelArgument,
    output: OutputOption,
    checkpoint: CheckpointOption = None,
    random_weights: RandomWeightsOption = None,
    size: SizeOption = None,
    source_size: SourceSizeOption = None,
    clip: ClipOption = None,
    quick_gelu: QuickGeluOption = None,
    window_length: WindowLengthOption = None,
    precision: PrecisionOption = None,
    overwrite: OverwriteOption = False,
    verify: VerifyOption = True,
    reference: ReferenceOption = True,
    names: NamesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs.

    Each graph is compared with PyTorch before the bundle takes its name.

    Example: `openvis export clip-vis-r50 --checkpoint clipvis_r50.pth -o bundle`

    With CLIP beside it: `openvis export ovformer-video-r50 --checkpoint ovformer_r50_lvvis.pth
    --clip ViT-B-32:openai -o bundle`
    """
    weights = checkpoint if random_weights is None else random_weights
    if checkpoint is not None and random_weights is not None:
        raise InputError("give either --checkpoint FILE or --random-weights SEED")
    if random_weights is not None and clip is not None:
        raise InputError("random weights include CLIP's; --clip goes with --checkpoint")
    if quick_gelu is not None and clip is None:
        raise InputError("--quick-gelu and --no-quick-gelu are of CLIP's weights; give --clip too")
    network, source = parse_size(size, "--size"), parse_source_size(source_size)
    refuse_existing(output, overwrite=overwrite)  # before minutes of work
    variant = variant_named(model)
    embedded = embedded_names(names, variant.other_names)
    require_export()
    from openvis_rt.checkpoints.load import load_model
    from openvis_rt.export.bundle import (
        checked_precisions,
        checked_size,
        checked_window_length,
        export_bundle,
    )
    from openvis_rt.runtime.text import keep_embeddings

    named = [name.strip() for text in precision or () for name in text.split(",")]
    precisions = checked_precisions(named) if named else None
    checked_size(variant, network, source)
    checked_window_length(variant, window_length)
    with progress_bar() as bar:
        bar("loading the weights", 0, None)
        loaded = load_model(model, weights, clip, quick_gelu)
        for doubt in loaded.warnings:
            warn(doubt)
        result = export_bundle(
            loaded.model,
            output,
            network_size=network,
            source_size=source,
            window_length=window_length,
            precisions=precisions,
            checkpoint=loaded.facts,
            overwrite=overwrite,
            verify=verify,
            progress=bar,
        )
        for left_out, why in result.left_out.items():
            warn(f"{left_out.upper()} is left out, and the rest is written: {why}")
        for doubt in result.warnings:
            warn(doubt)
        written = result.bundle
        if reference:
            from openvis_rt.verify.torch_recording import add_reference

            written = add_reference(written, loaded.model, bar)
        written = keep_embeddings(written, embedded, partial(bar, "embedding class names"), warn)
    _tell(result, output, as_json=as_json)
    if source is None and not as_json:
        CONSOLE.print(ON_THE_HOST, markup=False)


def _tell(result: ExportResult, output: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "bundle": output,
                "graphs": json_from_record(result.bundle.manifest)["graphs"],
                "differences": [d.to_json() for d in result.differences],
                "left_out": result.left_out,
                "warnings": result.warnings,
            }
        )
        return
    if result.differences:
        table = Table(
            "graph", "precision", "output", "largest difference from PyTorch", "relative", "SQNR dB"
        )
        for d in result.differences:
            table.add_row(
                *(d.graph, d.precision, d.output + ", masks given" * d.given_masks),
                *(f"{d.largest:.1e}", f"{d.relative:.1e}", f"{d.sqnr:.0f}"),
            )
        Console().print(table)
    CONSOLE.print(f"wrote {output}", markup=False)


def require_export() -> None:
    """Import what an export needs.

    Raises:
        DependencyError: one of the libraries is missing.
    """
    for module in ("torch", "open_clip", "onnx", "onnxscript"):
        try:
            import_module(module)
        except ImportError as exc:
            raise DependencyError(exc.name or module, "export") from exc
