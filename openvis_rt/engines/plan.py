"""The JSON beside each engine: what was built, with what and from what; which one fits where.

``<graph>.<precision>.plan`` is a bare plan, as every tool of the vendor expects it, and
``<graph>.<precision>.json`` describes it. An engine without its sidecar is not loaded. This module
imports no library beyond the standard one, so that a runtime can read sidecars.

An engine is used only where all of this holds:

    bundle       built from the ONNX file that the bundle holds now
    bytes        the file has the size and the SHA-256 that were written
    platform     the same system and processor
    library      the same backend in exactly the same version; with ``--version-compatible`` also
                 any newer version, and never an older one
    GPU          its compute capability is among the engine's targets, or at least 8.0 where it was
                 built with ``--hardware-compatible ampere+``; and it is the same model as the one
                 that the engine was built on, if it was on one and not ``--hardware-compatible``
"""

from __future__ import annotations

import dataclasses
import json
import sysconfig
from typing import TYPE_CHECKING, NamedTuple

from openvis_rt.engines.library import version_numbers
from openvis_rt.errors import EngineError, InputError, RecordError
from openvis_rt.files import output_file, sha256_of
from openvis_rt.given_files import given_json
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.systems.graphs import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from openvis_rt.bundle.bundle import Bundle

__all__ = [
    "AMPERE_PLUS",
    "LIBRARY_DEFAULTS",
    "SCHEMA",
    "BuildOptions",
    "Profile",
    "ShapeValues",
    "Sidecar",
    "capability_number",
    "check_plan",
    "find_plan",
    "plan_folder",
    "plan_path",
    "sidecar_path",
]

SCHEMA = 2
_LARGEST = 16 << 20  # bytes of a sidecar; usual ones have 5 KB

AMPERE_PLUS = "ampere+"
"""The target of an engine for every GPU from compute capability 8.0 on."""


class Profile(NamedTuple):
    """Sizes of one dynamic axis: the engine takes min to max and is tuned for opt."""

    min: int
    opt: int
    max: int


class ShapeValues(NamedTuple):
    """Values of an input that holds sizes, such as height and width; as :class:`Profile`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What a build may ask of the library; None leaves it to the library.

    Attributes:
        workspace_mib: most temporary GPU memory of one layer, MiB.
        optimization_level: 0 (quick build) to 5 (longest search).
        version_compatible: the engine also runs on newer versions, and may be slower.
        hardware_compatible: ``ampere+``, or ``same-compute-capability``, which is for other models
            of the builder's own compute capability.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None


LIBRARY_DEFAULTS = BuildOptions()
"""Nothing is asked."""


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What the JSON holds.

    Attributes:
        graph: its name in the bundle.
        precision: that of the graph's file: ``fp32``, ``fp16`` or ``int8``.
        precision_built: the same, by the types of the layers.
        plan_sha256: of the file's bytes.
        plan_bytes: the file's size.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        library_version: of the library that built it.
        platform: system and processor of the builder; an engine runs on no other.
        gpu: name of the GPU that it was built on; None where none took part.
        targets: compute capabilities, ascending, such as ``sm87``; or ``ampere+`` alone.
        options: as the library was asked.
        onnx_sha256: of the graph's file in the bundle, before anything was rewritten.
        replaced_grid_samples: GridSample nodes that became gathers.
        replacement_error: largest difference of these gathers to GridSample in ONNX Runtime, as a
            part of the largest sampled value; None where it was not measured.
        inputs: in the network's order; a dynamic size is a symbol.
        outputs: the same; a size that follows from the inputs is ``?``.
        profiles: for each symbol of the inputs.
        shape_values: for each input that holds sizes.
        layers: layer type -> type that it computes in -> number of layers.
        layers_from: ``network``, the parsed, strongly typed one, which fixes every type; engines
            of earlier versions may say ``inspector``.
        build_seconds: wall time, with rewriting and its check.
        created_with: version of this distribution.
        schema: of this JSON.
    """

    graph: str
    precision: str
    precision_built: str
    plan_sha256: str
    plan_bytes: int
    backend: str
    library_version: str
    platform: str
    gpu: str | None
    targets: tuple[str, ...]
    options: BuildOptions
    onnx_sha256: str
    replaced_grid_samples: int
    replacement_error: float | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, Profile]
    shape_values: dict[str, ShapeValues]
    layers: dict[str, dict[str, int]]
    layers_from: str
    build_seconds: float
    created_with: str
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Write to ``path``, whole or not at all."""
        with output_file(path) as partial:
            text = json.dumps(json_from_record(self), indent=2)
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read what :meth:`write` wrote.

        Raises:
            EngineError: the file is missing, is no JSON, has another schema, or a wrong field.
        """
        if not path.exists():
            raise EngineError(f"{path} is missing; an engine without it is not used.")
        try:
            entry = given_json(path, _LARGEST)
        except InputError as exc:  # for the caller, an engine that is missing here
            raise EngineError(f"{exc}.") from exc
        try:
            if isinstance(entry, dict) and entry.get("schema") != SCHEMA:
                raise RecordError("", f"its schema is {entry.get('schema')!r}")
            return record_from_json(cls, entry)
        except RecordError as exc:
            raise EngineError(f"{path} is not a sidecar of schema {SCHEMA}: {exc}.") from exc


def plan_folder(bundle_path: Path, backend: str, targets: Sequence[str]) -> Path:
    """Where a backend's engines for these targets stand in a bundle."""
    return bundle_path / "engines" / "-".join((backend, *targets))


def plan_path(
    bundle_path: Path, backend: str, targets: Sequence[str], graph: str, precision: str
) -> Path:
    """Where one graph's engine stands; the precision is that of the graph's file."""
    return plan_folder(bundle_path, backend, targets) / f"{graph}.{precision}.plan"


def sidecar_path(plan_path: Path) -> Path:
    """The JSON that belongs to an engine."""
    return plan_path.with_suffix(".json")


def capability_number(target: str) -> int:
    """87 of ``sm87``, to put targets in order."""
    return int(target.removeprefix("sm"))


def check_plan(plan_path: Path, onnx_sha256: str) -> Sidecar:
    """The sidecar of an engine that is whole and was built from this ONNX file.

    Args:
        plan_path: ``<bundle>/engines/<target>/<graph>.<precision>.plan``.
        onnx_sha256: of the graph's file as it is in the bundle now.

    Raises:
        EngineError: the engine or its sidecar is missing or damaged, or the ONNX file is another
            one now.
    """
    bundle = plan_path.parents[2]
    if not plan_path.is_file():
        raise EngineError(f"there is no engine {plan_path}. Build it with: openvis build {bundle}")
    try:
        sidecar = Sidecar.read(sidecar_path(plan_path))
    except EngineError as exc:
        raise EngineError(f"{exc} Build it again with: openvis build {bundle}") from exc
    problem = _damage(plan_path, sidecar) or _other_graph(sidecar, onnx_sha256)
    if problem:
        again = _build_command(
            bundle,
            sidecar.backend,
            sidecar.precision,
            sidecar.graph,
            targets=sidecar.targets,
            options=sidecar.options,
        )
        raise EngineError(f"{plan_path} {problem}. Build it again with: {again}")
    return sidecar


def find_plan(
    bundle: Bundle,
    graph: str,
    precision: str,
    *,
    backend: str,
    version: str,
    capability: str | None,
    gpu: str | None = None,
) -> tuple[Path, Sidecar]:
    """The engine of a graph that this library and this GPU can load, and its sidecar.

    Of several, the one built for the fewest targets, by this very version.

    Args:
        bundle: the bundle, opened.
        graph: its name.
        precision: of the bundle; the graph's file may compute in a wider one.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: of the library that is to load it.
        capability: of the GPU, such as ``sm87``; None if that is not known, and then any fits.
        gpu: its name; the same.

    Raises:
        BundleError: the bundle does not hold this graph in this precision.
        EngineError: no engine fits; the message has every candidate with what was found and what
            was needed, and the command that builds one.
    """
    name = f"{graph}.{bundle.graph(graph, precision).precision}.plan"
    problems = []
    fitting: list[tuple[Path, Sidecar]] = []
    for plan in sorted(bundle.path.glob(f"engines/*/{name}")):
        try:
            sidecar = Sidecar.read(sidecar_path(plan))
        except EngineError as exc:
            problems.append(str(exc))
            continue
        problem = _misfit(sidecar, backend, version, capability, gpu) or _other_graph(
            sidecar, bundle.graph_sha256(graph, precision)
        )
        if problem:
            problems.append(f"{plan} {problem}")
        else:
            fitting.append((plan, sidecar))
    fitting.sort(key=lambda found: _distance(found[1], version))
    for plan, sidecar in fitting:
        damage = _damage(plan, sidecar)  # reads the whole file, so only of what would be used
        if not damage:
            return plan, sidecar
        problems.append(f"{plan} {damage}")
    targets = (capability,) if backend == "tensorrt-rtx" and capability else ()
    command = _build_command(bundle.path, backend, precision, graph, targets=targets)
    raise EngineError(
        f"{bundle.path} has no engine {name} for {backend} {version}"
        f"{f' on {capability}' if capability else ''}.\n"
        + "".join(f"  {problem}\n" for problem in problems)
        + f"Build it with: {command}"
    )


def _misfit(
    sidecar: Sidecar, backend: str, version: str, capability: str | None, gpu: str | None
) -> str | None:
    """Why this library and GPU cannot load an engine, as the end of a sentence about it."""
    platform = sysconfig.get_platform()
    if sidecar.backend != backend:
        return f"is an engine of {sidecar.backend}, and {backend} was asked for"
    if sidecar.platform != platform:
        return f"was built on {sidecar.platform}, and this is {platform}"
    if not _version_fits(sidecar, version):
        rule = " or newer" if sidecar.options.version_compatible else " exactly"
        return (
            f"was built by {backend} {sidecar.library_version} and needs that version{rule}; "
            f"this is {version}"
        )
    if capability is not None and not _capability_fits(sidecar.targets, capability):
        return f"was built for {', '.join(sidecar.targets)}, and this GPU is {capability}"
    known = backend == "tensorrt" and sidecar.gpu and gpu  # TensorRT-RTX compiles for a capability
    if known and sidecar.gpu != gpu and sidecar.options.hardware_compatible is None:
        return (
            f"was built on {sidecar.gpu}, and this is {gpu}: on another model of the same "
            "capability TensorRT may be slow or wrong; --hardware-compatible builds for both"
        )
    return None


def _version_fits(sidecar: Sidecar, version: str) -> bool:
    if sidecar.options.version_compatible:
        return version_numbers(version) >= version_numbers(sidecar.library_version)
    return version == sidecar.library_version


def _capability_fits(targets: Sequence[str], capability: str) -> bool:
    return capability in targets or (AMPERE_PLUS in targets and capability_number(capability) >= 80)


def _distance(sidecar: Sidecar, version: str) -> tuple[bool, bool, int]:
    """Smaller is the better engine of two that fit."""
    other_version = sidecar.library_version != version
    return AMPERE_PLUS in sidecar.targets, other_version, len(sidecar.targets)


def _other_graph(sidecar: Sidecar, onnx_sha256: str) -> str | None:
    if onnx_sha256 == sidecar.onnx_sha256:
        return None
    return (
        f"was built from another {sidecar.graph} graph: the bundle's ONNX file has SHA-256 "
        f"{onnx_sha256}, and the engine is of {sidecar.onnx_sha256}"
    )


def _damage(plan_path: Path, sidecar: Sidecar) -> str | None:
    size = plan_path.stat().st_size
    if size != sidecar.plan_bytes:
        return f"has {size} bytes, and {sidecar.plan_bytes} were written"
    digest = sha256_of(plan_path)
    if digest != sidecar.plan_sha256:
        return (
            f"was changed after it was built: its SHA-256 is {digest}, and it was "
            f"{sidecar.plan_sha256}"
        )
    return None


def _build_command(
    bundle: Path,
    backend: str,
    precision: str,
    graph: str,
    *,
    targets: Sequence[str],
    options: BuildOptions = LIBRARY_DEFAULTS,
) -> str:
    """The command that builds such an engine."""
    words = ["openvis build", str(bundle), "--backend", backend, "--precision", precision]
    if backend == "tensorrt-rtx" and targets:
        words += ["--targets", ",".join(targets)]
    if options.version_compatible:
        words.append("--version-compatible")
    if options.hardware_compatible:
        words += ["--hardware-compatible", options.hardware_compatible]
    return " ".join([*words, "--graph", graph])
