"""The JSON beside each plan: what was built, with what and from what.

``<graph>.<precision>.plan`` is a bare plan, as every tool of the vendor expects it, and
``<graph>.<precision>.json`` describes it. A plan without its sidecar is not loaded. This module
imports no library beyond the standard one, so that a runtime can read sidecars.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from openvis_rt.errors import EngineError
from openvis_rt.files import output_file, sha256_of
from openvis_rt.graphs import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCHEMA", "Profile", "Sidecar", "check_plan", "precision_of_layers", "sidecar_path"]

SCHEMA = 1


class Profile(NamedTuple):
    """Sizes of one dynamic axis: the plan takes least..largest and is tuned for the usual."""

    least: int
    usual: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What the JSON holds.

    Attributes:
        graph: its name in the bundle.
        precision: what was asked for: ``fp32``, ``fp16`` or ``int8``.
        precision_built: the same, by the types of the parsed network's layers.
        plan_sha256: of the plan's bytes.
        plan_bytes: the plan's size.
        library: the module that built it, such as ``tensorrt_rtx``.
        library_version: of that module.
        platform: system and processor of the builder; a plan runs on no other.
        targets: compute capabilities, ascending.
        onnx_sha256: of the graph's file in the bundle, before anything was rewritten.
        replaced_grid_samples: GridSample nodes that became gathers.
        replacement_error: largest difference of these gathers to GridSample in ONNX Runtime, as a
            part of the largest sampled value; None where it was not measured.
        inputs: in the network's order; a dynamic size is a symbol.
        outputs: the same; a size that follows from the inputs is ``?``.
        profiles: for each symbol of the inputs.
        layers: layer type -> type of its output -> number of layers in the parsed network.
        build_seconds: wall time, with rewriting and its check.
        created_with: version of this distribution.
    """

    graph: str
    precision: str
    precision_built: str
    plan_sha256: str
    plan_bytes: int
    library: str
    library_version: str
    platform: str
    targets: tuple[str, ...]
    onnx_sha256: str
    replaced_grid_samples: int
    replacement_error: float | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, Profile]
    layers: dict[str, dict[str, int]]
    build_seconds: float
    created_with: str

    def write(self, path: Path) -> None:
        """Write to ``path``, whole or not at all."""
        with output_file(path) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read what :meth:`write` wrote.

        Raises:
            EngineError: the file is missing, is no JSON, has another schema, or a wrong field.
        """
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise EngineError(f"{path} is missing; a plan without it is not used.") from exc
        except (OSError, ValueError) as exc:
            raise EngineError(f"{path} cannot be read: {exc}") from exc
        try:
            return cls.from_json(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise EngineError(f"{path} is not a sidecar of schema {SCHEMA}: {exc}") from exc

    def to_json(self) -> dict[str, Any]:
        """The form that the file holds."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["inputs"] = [spec.to_json() for spec in self.inputs]
        fields["outputs"] = [spec.to_json() for spec in self.outputs]
        return {"schema": SCHEMA, **fields}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Sidecar:
        """Inverse of :meth:`to_json`; KeyError, TypeError or ValueError if malformed."""
        fields = dict(entry)
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}")
        names = {f.name for f in dataclasses.fields(cls)}
        if fields.keys() != names:
            raise ValueError(f"fields missing or unknown: {sorted(names ^ fields.keys())}")
        for field in dataclasses.fields(cls):
            wanted = _PLAIN_TYPES.get(str(field.type))
            if wanted is not None and not isinstance(fields[field.name], wanted):
                raise TypeError(f"{field.name} is {fields[field.name]!r}, not {field.type}")
        fields["targets"] = tuple(str(target) for target in fields["targets"])
        fields["inputs"] = tuple(TensorSpec.from_json(spec) for spec in fields["inputs"])
        fields["outputs"] = tuple(TensorSpec.from_json(spec) for spec in fields["outputs"])
        fields["profiles"] = {
            str(name): Profile(*(int(size) for size in sizes))
            for name, sizes in fields["profiles"].items()
        }
        return cls(**fields)


_PLAIN_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "tuple[str, ...]": (list,),
    "tuple[TensorSpec, ...]": (list,),
    "dict[str, dict[str, int]]": (dict,),
}


def precision_of_layers(layers: dict[str, dict[str, int]]) -> str:
    """The name of a network's precision: the narrowest type in which any of its layers computes."""
    types = {dtype for counts in layers.values() for dtype in counts}
    narrowest_first = {"int8": "int8", "bfloat16": "bf16", "float16": "fp16"}
    return next((name for dtype, name in narrowest_first.items() if dtype in types), "fp32")


def sidecar_path(plan_path: Path) -> Path:
    """The JSON that belongs to a plan."""
    return plan_path.with_suffix(".json")


def check_plan(plan_path: Path, onnx_sha256: str) -> Sidecar:
    """The sidecar of a plan that is whole and was built from this ONNX file.

    Args:
        plan_path: ``<bundle>/engines/<target>/<graph>.<precision>.plan``.
        onnx_sha256: of the graph's file as it is in the bundle now.

    Raises:
        EngineError: the plan or its sidecar is missing or damaged, or the ONNX file is another
            one now.
    """
    bundle = plan_path.parents[2]
    mend = f"Build it again with: openvis build {bundle}"
    if not plan_path.is_file():
        raise EngineError(f"there is no plan {plan_path}. Build it with: openvis build {bundle}")
    try:
        sidecar = Sidecar.read(sidecar_path(plan_path))
    except EngineError as exc:
        raise EngineError(f"{exc} {mend}") from exc
    mend += (
        f" --backend {sidecar.library.replace('_', '-')} --precision {sidecar.precision}"
        f" --targets {','.join(sidecar.targets)} --graph {sidecar.graph}"
    )
    size = plan_path.stat().st_size
    if size != sidecar.plan_bytes:
        raise EngineError(
            f"{plan_path} has {size} bytes, and {sidecar.plan_bytes} were written. {mend}"
        )
    digest = sha256_of(plan_path)
    if digest != sidecar.plan_sha256:
        raise EngineError(
            f"{plan_path} was changed after it was built: its SHA-256 is {digest}, and it was "
            f"{sidecar.plan_sha256}. {mend}"
        )
    if onnx_sha256 != sidecar.onnx_sha256:
        raise EngineError(
            f"{plan_path} was built from another {sidecar.graph} graph: the bundle's ONNX file has "
            f"SHA-256 {onnx_sha256}, and the plan is of {sidecar.onnx_sha256}. {mend}"
        )
    return sidecar
