"""``openvis build``: the graphs of a bundle to TensorRT engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.contract import check_contract
from openvis_rt.cli.export import ON_THE_HOST
from openvis_rt.cli.ui import CONSOLE, Console, parse_size, print_json, progress_bar, warn
from openvis_rt.engines.build.engines import (
    DEFAULT_TARGETS,
    LARGEST_FRAME,
    BuildResult,
    build_engines,
    default_backend,
)
from openvis_rt.engines.plan import BuildOptions
from openvis_rt.records import json_from_record
from openvis_rt.runtime.backends.proof import Proof, proof_words
from openvis_rt.runtime.backends.proving import prove_here
from openvis_rt.systems.graphs import INT8_FP32

# groups of --help
_WHAT, _LIMITS, _RTX, _TENSORRT = (
    "What is built",
    "Limits of an engine",
    "Only for tensorrt-rtx",
    "Only for tensorrt",
)


BundleArgument = Annotated[
    Path, typer.Argument(help="The bundle's folder; engines are put into it.")
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHAT,
        help="tensorrt compiles for the GPU of this machine (Jetson, servers); tensorrt-rtx "
        "compiles for GeForce RTX GPUs and needs none here. Default: the installed one; of "
        "both, tensorrt where there is a GPU.",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_WHAT,
        help="Which of the bundle's graphs: fp32, fp16, int8 (after `openvis calibrate`), several "
        "with commas, or all.",
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        rich_help_panel=_RTX,
        help=f"Compute capabilities, separated by commas. Default: {','.join(DEFAULT_TARGETS)}.",
    ),
]
WorkspaceMibOption = Annotated[
    int | None,
    typer.Option(
        metavar="MIB",
        rich_help_panel=_LIMITS,
        help="Most temporary GPU memory of one layer. Default: all that there is.",
    ),
]
OptimizationLevelOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_TENSORRT,
        help="0 is a quick build, 5 the longest search for fast kernels. Default: the "
        "library's, 3.",
    ),
]
VersionCompatibleOption = Annotated[
    bool,
    typer.Option(
        "--version-compatible",
        rich_help_panel=_TENSORRT,
        help="Engines that newer versions load as well; maybe slower.",
    ),
]
HardwareCompatibleOption = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        rich_help_panel=_TENSORRT,
        help="Engines for other GPUs as well, maybe slower: ampere+, or in newer versions "
        "same-compute-capability.",
    ),
]
MaxClassesOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_LIMITS,
        help="Most rows of text embeddings: class names with their synonyms. Default: 4096.",
    ),
]
MaxFrameOption = Annotated[
    str,
    typer.Option(
        metavar="HxW",
        rich_help_panel=_LIMITS,
        help="Largest height x width of the masks. A smaller one saves GPU memory at run time.",
    ),
]
TimingCacheOption = Annotated[
    bool | None,
    typer.Option(
        "--timing-cache/--no-timing-cache",
        rich_help_panel=_TENSORRT,
        help="Keep measured kernel times beside the engines, so that the next build is "
        "faster. Default: yes.",
    ),
]
GraphOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", rich_help_panel=_WHAT, help="Only this graph; may be repeated."),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", rich_help_panel=_WHAT, help="Rebuild even what is up to date."),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        rich_help_panel=_WHAT,
        help="Hold rewritten graphs, and engines that run on this machine, against the originals "
        "in ONNX Runtime.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]


def build(
    bundle: BundleArgument,
    *,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
    targets: TargetsOption = None,
    workspace_mib: WorkspaceMibOption = None,
    optimization_level: OptimizationLevelOption = None,
    version_compatible: VersionCompatibleOption = False,
    hardware_compatible: HardwareCompatibleOption = None,
    max_classes: MaxClassesOption = None,
    max_frame: MaxFrameOption = f"{LARGEST_FRAME[0]}x{LARGEST_FRAME[1]}",
    timing_cache: TimingCacheOption = None,
    graph: GraphOption = None,
    force: ForceOption = False,
    verify: VerifyOption = True,
    as_json: JsonOption = False,
) -> None:
    """Compile a bundle's graphs to TensorRT engines.

    Beside each engine stands a JSON file that says what was built. What is up to date is left
    alone, so a build that was stopped goes on where it was.

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
        check_contract(opened.manifest)
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
        built = [(result.sidecar.graph, result.sidecar.precision) for result in results]
        proofs = None
        if verify:
            proofs = prove_here(backend, opened, built, lambda what: bar(what, 0, None))
    for text in dict.fromkeys(text for result in results for text in result.warnings):
        warn(text)
    if opened.manifest.preprocess.source_size is None:
        CONSOLE.print(ON_THE_HOST, markup=False)
    if as_json:
        print_json(
            [
                {
                    "engine": r.plan,
                    "skipped": r.skipped,
                    "compiled": json_from_record(r.compiled) if r.compiled else None,
                    "proof": _proof(r, proofs),
                    **json_from_record(r.sidecar),
                }
                for r in results
            ]
        )
        return
    console = Console(highlight=False)
    console.print(_table(results))
    for folder in sorted({str(result.plan.parent) for result in results}):
        console.print(f"engines are in {folder}", markup=False, soft_wrap=True)
    for name, proof in (proofs or {}).items():
        CONSOLE.print(f"{name}: {proof_words([proof])}", markup=False)
    if proofs is None:
        how = "the first load on its GPU compares each engine with ONNX Runtime"
        CONSOLE.print(how if verify else "--no-verify: no engine was compared", markup=False)


def _proof(result: BuildResult, proofs: dict[str, Proof] | None) -> Any:
    """As JSON; null where the engine was not compared on this machine."""
    name = f"{result.sidecar.graph}.{result.sidecar.precision}"
    return json_from_record(proofs[name]) if proofs else None


def _precisions(bundle: Bundle, text: str) -> list[str]:
    if text == "all":
        return [name for name in bundle.manifest.graphs if name != INT8_FP32]  # which is for CPUs
    return [name.strip() for name in text.split(",")]


def _table(results: list[BuildResult]) -> Table:
    table = Table("graph", "built as", "layers by type", "kernels", "seconds", "MB", "engine")
    for result in results:
        sidecar = result.sidecar
        types = Counter[str]()
        for counts in sidecar.layers.values():
            types.update(counts)
        table.add_row(
            sidecar.graph,
            sidecar.precision_built,
            ", ".join(f"{dtype} {number}" for dtype, number in types.most_common()),
            str(result.compiled.kernels) if result.compiled else "",
            "up to date" if result.skipped else f"{sidecar.build_seconds:.1f}",
            f"{sidecar.plan_bytes / 1e6:.1f}",
            result.plan.name,
        )
    table.caption = (
        f"layers counted in the {', '.join(sorted({r.sidecar.layers_from for r in results}))}"
    )
    return table
