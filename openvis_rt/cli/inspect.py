"""``openvis inspect``: what is in a bundle or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.ui import print_json
from openvis_rt.engines.plan import check_plan
from openvis_rt.errors import BundleError, DependencyError, EngineError


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle's directory, or a checkpoint file.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Check a bundle's hashes and show its graphs and engines, or say what a checkpoint is."""
    if path.is_file():
        facts = _checkpoint(path)
        if as_json:
            print_json(facts)
        else:
            for key, value in facts.items():
                Console().print(f"{key}: {value}", highlight=False, markup=False, soft_wrap=True)
        return
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    engines = _engines(bundle)
    if as_json:
        print_json({**manifest.to_json(), "engines": engines})
        return
    console = Console(highlight=False, markup=False)
    rule = manifest.preprocess
    console.print(f"{manifest.variant} ({manifest.family}), weights: {manifest.checkpoint}")
    windows = f" in windows of up to {manifest.window_length}" if manifest.window_length > 1 else ""
    console.print(
        f"frames {rule.network_size[0]}x{rule.network_size[1]}{windows}, "
        f"tracker {manifest.tracker.name} "
        f"{manifest.tracker.parameters}, "
        f"{manifest.detections} detections a video"
    )
    table = Table("graph", "tensor", "", *manifest.graphs, "shape")
    for name in bundle.graphs:
        specs = [graphs[name].spec for graphs in manifest.graphs.values()]
        for side in ("inputs", "outputs"):
            for same in zip(*(getattr(spec, side) for spec in specs), strict=True):
                shape = ", ".join(str(d) for d in same[0].shape)
                types = [tensor.dtype for tensor in same]
                table.add_row(name, same[0].name, side.removesuffix("puts"), *types, f"[{shape}]")
        table.add_section()
    console.print(table)
    for name, entry in manifest.files.items():
        console.print(f"{entry['bytes'] / 1e6:8.1f} MB  {name}  sha256 {entry['sha256'][:16]}")
    console.print("every file has the hash that the manifest names")
    for name, state in engines.items():
        console.print(f"engine {name}: {state}")
    if not engines:
        console.print("no engines; `openvis build` makes them")


def _engines(bundle: Bundle) -> dict[str, str]:
    """Plans below the bundle, and whether each is whole and built from these graphs."""
    found = {}
    for plan in sorted(bundle.path.glob("engines/*/*.plan")):
        name = plan.relative_to(bundle.path).as_posix()
        graph, _, precision = plan.stem.rpartition(".")
        if precision not in bundle.manifest.graphs or graph not in bundle.graphs:
            found[name] = "not made by `openvis build` for this bundle"
            continue
        try:
            made = check_plan(plan, bundle.graph_sha256(graph, precision))
            where = f"{', '.join(made.targets)}{f' ({made.gpu})' if made.gpu else ''}"
            state = (
                f"fits this bundle; {made.precision_built}, by {made.backend} "
                f"{made.library_version} for {where}"
            )
        except (BundleError, EngineError) as exc:
            state = str(exc)
        found[name] = state
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        from openvis_rt.export.source import describe_checkpoint
    except ImportError as exc:
        raise DependencyError(exc.name or "torch", "export") from exc
    return describe_checkpoint(path)
