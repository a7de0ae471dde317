"""``openvis build``: the graphs of a bundle to TensorRT plans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.bundle import Bundle
from openvis_rt.cli.ui import print_json, progress_bar
from openvis_rt.engines.build import BuildResult, build_engines
from openvis_rt.errors import UnavailableError

_BACKENDS = ("tensorrt-rtx",)


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory; plans are put into it.")],
    *,
    backend: Annotated[
        str, typer.Option(help=f"The library to build with: {', '.join(_BACKENDS)}.")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="Which of the bundle's graphs to build.")] = "fp32",
    targets: Annotated[
        str, typer.Option(help="Compute capabilities, with commas. No GPU is needed to build.")
    ] = "sm86,sm89,sm120",
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

    Example: `openvis build bundle --targets sm86,sm89`
    """
    if backend not in _BACKENDS:
        raise UnavailableError(
            f"there is no builder for the backend {backend!r} yet; this version builds with "
            f"{', '.join(_BACKENDS)}. Give that with --backend."
        )
    with progress_bar() as bar:
        bar("checking the bundle", 0, None)
        results = build_engines(
            Bundle.open(bundle),
            targets=targets.split(","),
            precision=precision,
            graphs=graph,
            verify=verify,
            force=force,
            report=lambda name, phase, done, steps: bar(f"{name}: {phase}", done, steps),
        )
    if as_json:
        print_json([{"plan": r.plan, "skipped": r.skipped, **r.sidecar.to_json()} for r in results])
    else:
        Console().print(_table(results))


def _table(results: list[BuildResult]) -> Table:
    table = Table("graph", "layers", "layer types", "seconds", "MB", "plan")
    for result in results:
        sidecar = result.sidecar
        types = Counter[str]()
        for counts in sidecar.layers.values():
            types.update(counts)
        table.add_row(
            sidecar.graph,
            str(types.total()),
            ", ".join(f"{dtype} {number}" for dtype, number in sorted(types.items())),
            "up to date" if result.skipped else f"{sidecar.build_seconds:.1f}",
            f"{sidecar.plan_bytes / 1e6:.1f}",
            str(result.plan),
        )
    return table
