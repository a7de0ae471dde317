"""``openvis verify``: does a bundle compute here what PyTorch computed?"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.cli.export import (
    CheckpointOption,
    ClipOption,
    JsonOption,
    QuickGeluOption,
    RandomWeightsOption,
    require_export,
)
from openvis_rt.cli.run_options import DeviceOption
from openvis_rt.cli.ui import CONSOLE, Bar, Console, print_json, progress_bar, warn
from openvis_rt.errors import DependencyError, InputError, OpenVISError, ParityError
from openvis_rt.files import output_directory, refuse_existing

if TYPE_CHECKING:
    from openvis_rt.models.network import Network
    from openvis_rt.verify.onnx_bisect import Jump
    from openvis_rt.verify.polygraphy_runs import PolygraphyResult
    from openvis_rt.verify.reference import Reference
    from openvis_rt.verify.verify import VerifyReport

_TRIED, _DIAGNOSIS = "What is tried", "Diagnosis"  # groups of --help
_FILES = {"verify.json", "verify.md", "verify.svg"}


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle of openvis export.")],
    checkpoint: CheckpointOption = None,
    random_weights: RandomWeightsOption = None,
    clip: ClipOption = None,
    quick_gelu: QuickGeluOption = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRIED,
            help="tensorrt, tensorrt-rtx, onnxruntime, or as-built (the graphs as TensorRT "
            "compiles them, in ONNX Runtime); repeat it. Default: each that works here.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRIED,
            help="A precision of the bundle; repeat it. Default: all.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    video: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_TRIED, help="Run the recorded video end to end, too (ids and masks)."
        ),
    ] = True,
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect",
            rich_help_panel=_DIAGNOSIS,
            help="If a graph departs, find the node whose error jumps. An FP32 graph needs "
            "--checkpoint for that.",
        ),
    ] = False,
    polygraphy: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=_DIAGNOSIS,
            help="Compare by Polygraphy as well, and leave inputs and outputs there as its own "
            "JSON, for `polygraphy run`, `debug reduce` and `surgeon extract`.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Gets verify.json, verify.md and verify.svg."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder of --output.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every stage that works here with PyTorch's answers.

    They are recorded in the bundle, so this needs no torch; with --checkpoint they are computed
    anew. Each stage is fed with the reference's own inputs. Exit code 4 if one departs.

    Example: `openvis verify bundle -o verified`
    """
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    if checkpoint is None and (clip is not None or quick_gelu is not None):
        raise InputError("--clip and --quick-gelu go with --checkpoint FILE")
    if polygraphy is not None and find_spec("polygraphy") is None:  # before minutes of work
        raise DependencyError("polygraphy", "verify")
    opened = Bundle.open(bundle)
    from openvis_rt.runtime.backends.registry import BackendOptions
    from openvis_rt.verify.verify import verify_bundle

    options = BackendOptions(device=device)
    with progress_bar() as bar:
        model = _model(opened, checkpoint, random_weights, clip, quick_gelu, bar)
        reference = _reference(opened, model, bar)
        report = verify_bundle(
            opened,
            reference=reference,
            backends=backend,
            precisions=precision,
            options=options,
            video=video,
            progress=bar,
        )
        jumps = _bisected(opened, report, reference, model, bar) if bisect else []
        results = _polygraphy(opened, reference, polygraphy, precision, bar)
    _tell(report, jumps, results, as_json=as_json)
    if output is not None:
        _write(output, report, overwrite=overwrite)
    if report.failed:
        from openvis_rt.verify.report import verdict

        raise ParityError(verdict(report) + ("" if bisect else ". --bisect looks for the node."))
    if far := [found for found in results if not found.passed]:
        raise ParityError(
            f"{len(far)} outputs depart by Polygraphy's measure; the first is {far[0].output} of "
            f"{far[0].graph} ({far[0].runner})"
        )


def _model(
    bundle: Bundle,
    checkpoint: Path | None,
    random_weights: int | None,
    clip: str | None,
    quick_gelu: bool | None,
    bar: Bar,
) -> Network | None:
    """The network that the bundle was exported from; None if no weights are given.

    Raises:
        InputError: the weights are others than the bundle's.
    """
    if checkpoint is None and random_weights is None:
        return None
    if checkpoint is not None and random_weights is not None:
        raise InputError("give either --checkpoint FILE or --random-weights SEED")
    require_export()
    from openvis_rt.checkpoints.load import load_model

    bar("loading the weights", 0, None)
    weights = checkpoint if checkpoint is not None else random_weights
    assert weights is not None
    loaded = load_model(bundle.manifest.variant, weights, clip, quick_gelu)
    wanted = bundle.manifest.checkpoint
    for key in ("sha256", "random_weights"):
        if loaded.facts.get(key) != wanted.get(key):
            raise InputError(
                f"{bundle.path} was exported from other weights ({key} "
                f"{str(wanted.get(key))[:16]}, and these have {str(loaded.facts.get(key))[:16]}), "
                "so a comparison would say nothing; give the weights that it was exported from"
            )
    ours, theirs = ((facts.get("clip") or {}).get("sha256") for facts in (loaded.facts, wanted))
    if ours != theirs:
        raise InputError(
            f"{bundle.path} was exported with another CLIP (sha256 {str(theirs)[:16]}, and this is "
            f"{str(ours)[:16]}); give the same --clip"
        )
    return loaded.model


def _reference(bundle: Bundle, model: Network | None, bar: Bar) -> Reference:
    if model is None:
        from openvis_rt.verify.reference import read_reference

        return read_reference(bundle)
    from openvis_rt.verify.torch_recording import record_reference

    return record_reference(bundle, model, bar)


def _bisected(
    bundle: Bundle,
    report: VerifyReport,
    reference: Reference,
    model: Network | None,
    bar: Bar,
) -> list[Jump]:
    """Nodes whose error jumps, of the first graph that departs."""
    first = report.first_departure
    if first is None:
        return []
    bar("looking for the node", 0, None)
    try:
        from openvis_rt.verify.onnx_bisect import bisect_check

        return bisect_check(bundle, first, reference, model)
    except ImportError as exc:
        warn(str(DependencyError(exc.name or "onnx", "verify")))
    except OpenVISError as exc:  # the report stands without it
        warn(str(exc))
    return []


def _polygraphy(
    bundle: Bundle,
    reference: Reference,
    folder: Path | None,
    precisions: list[str] | None,
    bar: Bar,
) -> list[PolygraphyResult]:
    if folder is None:
        return []
    from openvis_rt.verify.polygraphy_runs import run_polygraphy

    return run_polygraphy(bundle, reference, folder, precisions, lambda what: bar(what, 0, None))


def _write(output: Path, report: VerifyReport, *, overwrite: bool) -> None:
    from openvis_rt.verify.report import markdown_from_report, svg_from_report

    def ours(folder: Path) -> bool:
        return {file.name for file in folder.iterdir()} <= _FILES

    with output_directory(output, overwrite=overwrite, ours=ours) as folder:
        (folder / "verify.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
        (folder / "verify.md").write_text(markdown_from_report(report), "utf-8")
        (folder / "verify.svg").write_text(svg_from_report(report), "utf-8")


def _tell(
    report: VerifyReport, jumps: list[Jump], results: list[PolygraphyResult], *, as_json: bool
) -> None:
    from openvis_rt.verify.report import COLUMNS, rows_from_report, tightest_of, verdict

    if as_json:
        from dataclasses import asdict

        extra = {"bisected": [asdict(jump) for jump in jumps]} if jumps else {}
        if results:
            extra["polygraphy"] = [{**asdict(r), "passed": r.passed} for r in results]
        print_json({**report.to_json(), **extra})
        return
    console = Console(highlight=False)
    for contender, rows in rows_from_report(report).items():
        table = Table(*COLUMNS, title=contender, title_justify="left")
        for row in tightest_of(rows):
            table.add_row(*row.texts(), style=None if row.worst.passed else "red")
        console.print(table)
    if results:
        listed = Table("graph", "polygraphy's runner", "output", "SNR dB", "gate", "")
        for found in results:
            word = "ok" if found.passed else "DEPARTS"
            snr, gate = f"{found.snr:.1f}", f"{found.gate:.0f}"
            listed.add_row(found.graph, found.runner, found.output, snr, gate, word)
        console.print(listed)
    for jump in jumps:
        console.print(
            f"the error jumps at {jump.node} ({jump.operator}), output {jump.output}: from "
            f"{jump.before:.0f} to {jump.after:.0f} dB" + (f"; {jump.note}" if jump.note else ""),
            markup=False,
        )
    for name, why in report.passed_over.items():
        warn(f"not tried: {name}: {why}")
    if not report.failed:
        CONSOLE.print(f"{report.model}: {verdict(report)}", markup=False)
