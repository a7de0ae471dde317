"""``openvis inspect``: what is in a bundle or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from openvis_rt.bundle import Bundle
from openvis_rt.cli.ui import print_json
from openvis_rt.errors import DependencyError


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
                Console().print(f"{key}: {value}", highlight=False)
        return
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    engines = sorted(p.relative_to(path).as_posix() for p in path.glob("engines/*/*.plan"))
    if as_json:
        print_json({**manifest.to_json(), "engines": engines})
        return
    console = Console(highlight=False)
    rule = manifest.preprocess
    console.print(f"{manifest.variant} ({manifest.family}), weights: {manifest.checkpoint}")
    console.print(
        f"frames {rule.network_size[0]}x{rule.network_size[1]}, tracker {manifest.tracker.name} "
        f"T={manifest.tracker.frames} K={manifest.tracker.top_k}, "
        f"{manifest.detections} detections a video"
    )
    table = Table("graph", "tensor", "", "type", "shape")
    for spec in manifest.graphs.values():
        for side, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(d) for d in tensor.shape)
                table.add_row(spec.name, tensor.name, side, tensor.dtype, f"\\[{shape}]")
        table.add_section()
    console.print(table)
    for name, entry in manifest.files.items():
        console.print(f"{entry['bytes'] / 1e6:8.1f} MB  {name}  sha256 {entry['sha256'][:16]}")
    console.print("engines: " + (", ".join(engines) or "none; `openvis build` makes them"))
    console.print("every file has the hash that the manifest names")


def _checkpoint(path: Path) -> dict[str, Any]:
    try:
        from openvis_rt.export.source import describe_checkpoint
    except ImportError as exc:
        raise DependencyError(exc.name or "torch", "export") from exc
    return describe_checkpoint(path)
