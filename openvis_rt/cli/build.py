"""``openvis build``: the graphs of a bundle to TensorRT plans."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from openvis_rt.errors import UnavailableError

if TYPE_CHECKING:
    from openvis_rt.engines.build import BuildResult

__all__ = ["build"]

_BACKENDS = ("tensorrt-rtx",)


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory; plans are put into it.")],
    *,
    backend: Annotated[
        str, typer.Option(help=f"The library to build with: {', '.join(_BACKENDS)}.")
    ] = "tensorrt-rtx",
    precision: Annotated[str, typer.Option(help="Of the ONNX graphs to build from.")] = "fp32",
    targets: Annotated[
        str, typer.Option(help="Compute capabilities, with commas. No GPU is needed to build.")
    ] = "sm86,sm89,sm120",
    graph: Annotated[
        list[str] | None, typer.Option(help="Only this graph; may be repeated.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build also what an earlier build left and still fits.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Hold rewritten graphs against the originals in ONNX Runtime.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Compile a bundle's graphs to TensorRT plans, each with a JSON that says what was built."""
    if backend not in _BACKENDS:
        raise UnavailableError(
            f"there is no builder for the backend {backend!r} yet; this version builds with "
            f"{', '.join(_BACKENDS)}. Give that with --backend."
        )
    from openvis_rt.bundle import Bundle
    from openvis_rt.engines.build import build_engines

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening the bundle", total=None)

        def report(name: str, phase: str, done: int, steps: int) -> None:
            progress.update(task, description=f"{name}: {phase}", completed=done, total=steps)

        results = build_engines(
            Bundle.open(bundle),
            targets=targets.split(","),
            precision=precision,
            graphs=graph,
            verify=verify,
            force=force,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps([_entry(result) for result in results], indent=2))
    else:
        Console().print(_table(results))


def _entry(result: BuildResult) -> dict[str, object]:
    return {"plan": str(result.plan), "skipped": result.skipped, **result.sidecar.to_json()}


def _table(results: list[BuildResult]) -> Table:
    table = Table("graph", "layers", "layer types", "seconds", "MB", "plan")
    for result in results:
        sidecar = result.sidecar
        types: dict[str, int] = {}
        for counts in sidecar.layers.values():
            for dtype, number in counts.items():
                types[dtype] = types.get(dtype, 0) + number
        table.add_row(
            sidecar.graph,
            str(sum(types.values())),
            ", ".join(f"{dtype} {number}" for dtype, number in sorted(types.items())),
            "up to date" if result.skipped else f"{sidecar.build_seconds:.1f}",
            f"{sidecar.plan_bytes / 1e6:.1f}",
            str(result.plan),
        )
    return table
