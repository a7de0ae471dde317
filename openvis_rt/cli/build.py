"""``openvis build``: the graphs of a bundle to TensorRT plans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import CONSOLE, parse_size, print_json, progress_bar, warn
from openvis_rt.engines.build.engines import (
    DEFAULT_TARGETS,
    LARGEST_FRAME,
    BuildResult,
    build_engines,
    default_backend,
)
from openvis_rt.engines.plan import BuildOptions


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory; plans are put into it.")],
    *,
    backend: Annotated[
        str | None,
        typer.Option(
            help="tensorrt compiles for the GPU of this machine (Jetson, servers); tensorrt-rtx "
            "compiles for GeForce RTX GPUs and needs none here. Default: the one that is "
            "installed; of both, tensorrt where there is a GPU."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="Which of the bundle's graphs: fp32, fp16, several with commas, or all."),
    ] = "fp32",
    targets: Annotated[
        str | None,
        typer.Option(
            help="Only for tensorrt-rtx: compute capabilities, with commas. "
            f"Default: {','.join(DEFAULT_TARGETS)}."
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(help="Most temporary GPU memory of one layer. Default: all that there is."),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            help="Only for tensorrt: 0 is a quick build, 5 the longest search for fast kernels. "
            "Default: the library's, 3."
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Only for tensorrt: plans that newer versions load as well; maybe slower.",
        ),
    ] = False,
    hardware_compatible: Annotated[
        str | None,
        typer.Option(
            help="Only for tensorrt: plans for other GPUs as well, maybe slower: ampere+, or in "
            "newer versions same-compute-capability."
        ),
    ] = None,
    max_classes: Annotated[
        int | None,
        typer.Option(
            help="Most rows of text embeddings, which is class names with their synonyms, that a "
            "plan takes. Default: 4096."
        ),
    ] = None,
    max_frame: Annotated[
        str,
        typer.Option(
            help="Largest height x width of the masks. A smaller one saves GPU memory at run time."
        ),
    ] = f"{LARGEST_FRAME[0]}x{LARGEST_FRAME[1]}",
    timing_cache: Annotated[
        bool | None,
        typer.Option(
            "--timing-cache/--no-timing-cache",
            help="Only for tensorrt: keep measured kernel times beside the plans, so that the next "
            "build is faster. Default: yes.",
        ),
    ] = None,
    graph: Annotated[
        list[str] | None, typer.Option(help="Only this graph; may be repeated.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild even what is up to date.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Hold rewritten graphs against the originals in ONNX Runtime.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Compile a bundle's graphs to TensorRT plans, each with a JSON that says what was built.

    What is up to date is left alone, so a build that was stopped goes on where it was.

    Examples: `openvis build bundle --precision fp16` on a Jetson,
    `openvis build bundle --backend tensorrt-rtx --targets sm86,sm89` anywhere.
    """
    if backend is None:
        backend = default_backend()
        CONSOLE.print(f"building with {backend} (--backend chooses)", markup=False)
    largest = parse_size(max_frame, "--max-frame")
    with progress_bar() as bar:
        bar("checking the bundle", 0, None)
        opened = Bundle.open(bundle)
        results = build_engines(
            opened,
            backend=backend,
            targets=None if targets is None else targets.split(","),
            precisions=_precisions(opened, precision),
            graphs=graph,
            options=BuildOptions(
                workspace_mib, optimization_level, version_compatible, hardware_compatible
            ),
            max_classes=max_classes,
            max_frame=largest or LARGEST_FRAME,
            timing_cache=timing_cache,
            verify=verify,
            force=force,
            report=lambda name, phase, done, steps: bar(f"{name}: {phase}", done, steps),
        )
    for text in dict.fromkeys(text for result in results for text in result.warnings):
        warn(text)
    if as_json:
        print_json([{"plan": r.plan, "skipped": r.skipped, **r.sidecar.to_json()} for r in results])
        return
    console = Console(highlight=False)
    console.print(_table(results))
    for folder in sorted({str(result.plan.parent) for result in results}):
        console.print(f"plans are in {folder}", markup=False, soft_wrap=True)


def _precisions(bundle: Bundle, text: str) -> list[str]:
    if text == "all":
        return list(bundle.manifest.graphs)
    return [name.strip() for name in text.split(",")]


def _table(results: list[BuildResult]) -> Table:
    table = Table("graph", "built as", "layers by type", "seconds", "MB", "plan")
    for result in results:
        sidecar = result.sidecar
        types = Counter[str]()
        for counts in sidecar.layers.values():
            types.update(counts)
        table.add_row(
            sidecar.graph,
            sidecar.precision_built,
            ", ".join(f"{dtype} {number}" for dtype, number in types.most_common()),
            "up to date" if result.skipped else f"{sidecar.build_seconds:.1f}",
            f"{sidecar.plan_bytes / 1e6:.1f}",
            result.plan.name,
        )
    table.caption = (
        f"layers counted in the {', '.join(sorted({r.sidecar.layers_from for r in results}))}"
    )
    return table
