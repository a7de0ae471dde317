"""``openvis inspect``: what is in a bundle, in one file of it, or in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from openvis_rt.bundle.bundle import MANIFEST, Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.checkpoints.formats import refuse_foreign_file
from openvis_rt.cli.int8_blocks import (
    calibration_of,
    int8_facts,
    json_from_calibration,
    print_calibration,
)
from openvis_rt.cli.ui import Console, print_json, say
from openvis_rt.engines.plan import check_plan
from openvis_rt.errors import BundleError, DependencyError, EngineError
from openvis_rt.files import sha256_of
from openvis_rt.records import json_from_record
from openvis_rt.systems.graphs import TensorSpec

_DEPTH = 3  # folders between an engine and its bundle


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle's folder, a graph or engine in it, or a checkpoint.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Say what a bundle, one of its files or a checkpoint holds.

    A bundle's files are compared with the hashes in its manifest, and the manifest with what an
    export of its system writes. Only checkpoints need torch.
    """
    if path.is_file():
        facts = _part_of_a_bundle(path) or _checkpoint(path)
        if as_json:
            print_json(facts)
        else:
            _print_facts(facts)
        return
    bundle = Bundle.open(path)
    check_contract(bundle.manifest)
    engines, calibration = engines_of(bundle), calibration_of(bundle)
    if as_json:
        facts = {"engines": engines, "calibration": json_from_calibration(bundle, calibration)}
        print_json({**json_from_record(bundle.manifest), **facts})
        return
    _print_bundle(bundle, engines)
    if calibration is not None:
        print_calibration(bundle, calibration)


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """A line for each fact; what a fact holds inside stands below it, set in."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            say(f"{indent}{key}:")
            _print_facts(value, f"{indent}  ")
            continue
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        say(f"{indent}{key}: {text}")


def _print_bundle(bundle: Bundle, engines: dict[str, str]) -> None:
    manifest = bundle.manifest
    height, width = manifest.preprocess.network_size
    windows = (
        f", in windows of up to {manifest.window_length}" if manifest.window_length > 1 else ""
    )
    tracker = [f"{name} {value}" for name, value in manifest.tracker.parameters.items()]
    _print_facts(
        {
            "model": f"{manifest.variant} ({manifest.system})",
            "weights": manifest.checkpoint,
            "frames": f"{height}x{width} (height x width){windows}",
            "tracker": [manifest.tracker.name, *tracker],
            "detections of a video": manifest.detections,
        }
    )
    alike = _alike(bundle)
    table = Table("graph", "tensor", "", *map("\n".join, alike), "shape")
    for name in bundle.graphs:
        specs = [manifest.graphs[precisions[0]][name].spec for precisions in alike]
        for side in ("inputs", "outputs"):
            for same in zip(*(getattr(spec, side) for spec in specs), strict=True):
                types = [tensor.dtype for tensor in same]
                shape = _shape(same[0])
                table.add_row(name, same[0].name, side.removesuffix("puts"), *types, shape)
        table.add_section()
    Console(highlight=False, markup=False).print(table)
    for name, entry in manifest.files.items():
        say(f"{entry.bytes / 1e6:9.3f} MB  {name}  sha256 {entry.sha256[:16]}")
    say("every file has the hash that the manifest names")
    for name, state in engines.items():
        say(f"engine {name}:\n  {state}")
    if not engines:
        say("no engines; `openvis build` makes them")


def _alike(bundle: Bundle) -> list[list[str]]:
    """The bundle's precisions, those together whose graphs have the same tensors."""
    found: list[list[str]] = []
    for precision, graphs in bundle.manifest.graphs.items():
        specs = {name: file.spec for name, file in graphs.items()}
        for group in found:
            if specs == {n: f.spec for n, f in bundle.manifest.graphs[group[0]].items()}:
                group.append(precision)
                break
        else:
            found.append([precision])
    return found


def _part_of_a_bundle(path: Path) -> dict[str, Any] | None:
    """What the manifest of the bundle around it says of a file; None if no manifest lists it.

    Raises:
        BundleError: the file was changed since the export, or the manifest is damaged.
    """
    folders = path.absolute().parents[:_DEPTH]
    folder = next((folder for folder in folders if (folder / MANIFEST).is_file()), None)
    if folder is None:
        return None
    bundle = Bundle.open(folder, verify=False)
    name = path.absolute().relative_to(folder).as_posix()
    facts: dict[str, Any] = {"file": str(path), "bundle": str(folder)}
    facts["model"] = bundle.manifest.variant
    if path.suffix == ".plan" and name in (engines := engines_of(bundle)):
        return {**facts, "engine": engines[name]}
    if name not in bundle.manifest.files:
        return None
    digest = sha256_of(path)
    if digest != bundle.manifest.files[name].sha256:
        raise BundleError(
            f"{path} was changed since {folder} was exported: its sha256 is {digest[:16]}..., and "
            "the manifest names another. Export the bundle again with `openvis export`."
        )
    facts |= {"bytes": path.stat().st_size, "sha256": digest}
    precisions = bundle.manifest.graphs.items()
    held = [(p, graph) for p, graphs in precisions for graph in graphs.values()]
    serving = {precision: graph for precision, graph in held if graph.file == name}
    for graph in [*serving.values()][:1]:
        facts |= {"graph": graph.spec.name, "precision": graph.precision, "serves": [*serving]}
        facts |= int8_facts(bundle, graph.spec.name, graph.precision)
        for side in ("inputs", "outputs"):
            tensors = getattr(graph.spec, side)
            facts[side] = {t.name: f"{t.dtype} {_shape(t)}  {t.doc}".rstrip() for t in tensors}
    return facts


def _shape(tensor: TensorSpec) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def engines_of(bundle: Bundle) -> dict[str, str]:
    """Engines below the bundle, and whether each is whole and built from these graphs."""
    from openvis_rt.runtime.backends.proof import proof_words, proofs_of

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
            compared = proof_words(proofs_of(plan, made.plan_sha256))
            state = (
                f"fits this bundle; {made.precision_built}, by {made.backend} "
                f"{made.library_version} for {where}; {compared}"
            )
        except (BundleError, EngineError) as exc:
            state = str(exc)
        found[name] = state
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    refuse_foreign_file(path)  # before torch is asked for
    try:
        from openvis_rt.checkpoints.load import Checkpoint
    except ImportError as exc:
        raise DependencyError(exc.name or "torch", "export") from exc
    return Checkpoint.open(path).describe()
