"""``openvis export``: an official checkpoint to a bundle of ONNX graphs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.cli.ui import CONSOLE, parse_size, print_json, progress_bar, warn
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import refuse_existing
from openvis_rt.systems.graphs import PRECISIONS
from openvis_rt.systems.variants import variant_named


def export(
    model: Annotated[str, typer.Argument(help="A model of `openvis models`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bundle's directory, made by this command.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Official weights: .pth with a 'model' entry, or .safetensors."),
    ] = None,
    random_weights: Annotated[
        int | None,
        typer.Option(help="A seed: random weights, to try the toolchain without a checkpoint."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height x width of the resized frame, such as 480x864; the graph pads it to "
            "multiples of 32. Default: the model's rule for 16:9 video, such as 480x853."
        ),
    ] = None,
    source_size: Annotated[
        str | None,
        typer.Option(
            help="Height x width of the source video: then the graph itself resizes, exactly like "
            "Pillow, and masks come at this size."
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="CLIP's weights for OVFormer and OV2Seg, whose checkpoints hold none: a file "
            "under open_clip's names, or a tag such as ViT-B-32:openai. Without it the bundle "
            "takes text classifiers, and OVFormer's image embeddings, from files only."
        ),
    ] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            help="CLIP's activation: OpenAI's weights, which OVFormer and OV2Seg are trained "
            "with, have QuickGELU. A tag knows; for a file, the default is with.",
            show_default=False,
        ),
    ] = None,
    window_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most frames of a window, up to 64, for ovformer-video; any shorter window runs "
            "as well. Default: 5, as released.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, fp16 or both, with a comma or repeated; both if not given. fp16 halves "
            "the files and is what TensorRT is fast with; norms, softmax, mask and class scores "
            "stay FP32 in it (docs/fp16.md). Take fp32 alone where weights exceed FP16's range."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle if there is one.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Compare every graph with PyTorch, in ONNX Runtime.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs, each compared with PyTorch.

    Example: `openvis export clip-vis-r50 --checkpoint clipvis_r50.pth -o bundle`

    With CLIP beside it: `openvis export ovformer-video-r50 --checkpoint ovformer_r50_lvvis.pth
    --clip ViT-B-32:openai -o bundle`
    """
    if (checkpoint is None) == (random_weights is None):
        raise InputError("give either --checkpoint FILE or --random-weights SEED")
    if random_weights is not None and clip is not None:
        raise InputError("random weights include CLIP's; --clip goes with --checkpoint")
    if quick_gelu is not None and clip is None:
        raise InputError("--quick-gelu and --no-quick-gelu are of CLIP's weights; give --clip too")
    network, source = parse_size(size, "--size"), parse_size(source_size, "--source-size")
    refuse_existing(output, overwrite=overwrite)  # before minutes of work
    variant = variant_named(model)
    require_export()
    from openvis_rt.export.bundle import (
        checked_precisions,
        checked_size,
        checked_window_length,
        export_bundle,
    )
    from openvis_rt.export.source import doubt_about, model_from_source

    wanted = [name.strip() for text in precision or PRECISIONS for name in text.split(",")]
    precisions = checked_precisions(wanted)
    checked_size(variant, network, source)
    checked_window_length(variant, window_length)
    doubt = ""
    with progress_bar() as bar:
        bar("loading the weights", 0, None)
        network_model, origin = model_from_source(
            model, checkpoint, random_weights, clip, quick_gelu
        )
        if checkpoint is not None:
            doubt = doubt_about(model, checkpoint)
        result = export_bundle(
            network_model,
            output,
            network_size=network,
            source_size=source,
            window_length=window_length,
            precisions=precisions,
            checkpoint=origin,
            overwrite=overwrite,
            verify=verify,
            progress=bar,
        )
    if doubt:
        warn(doubt)
    if as_json:
        print_json(
            {
                "bundle": output,
                "graphs": result.bundle.manifest.to_json()["graphs"],
                "differences": [d.to_json() for d in result.differences],
            }
        )
        return
    if result.differences:
        table = Table(
            "graph", "precision", "output", "largest difference from PyTorch", "relative", "SQNR dB"
        )
        for d in result.differences:
            table.add_row(
                *(d.graph, d.precision, d.output),
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
