"""An engine beside ONNX Runtime, on the machine that runs it, before it serves.

Compilers for GPUs have been silently wrong for this class of models (docs/engines.md), so an engine
is believed only after its outputs were compared, every one of them, at the least, the usual and the
largest of its dynamic sizes. That takes a minute, once: what came of it stands in a file beside the
engine, or in the user's cache directory where the bundle cannot be written, and holds for these
bytes of the engine on this GPU with this library.

Inputs are seeded, as those of an export's comparison. Attention-mask bits may flip on rounding, so
one of a few inputs has to be within the gates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.compare.differences import ENGINES, differing_share, grid_pixels, sqnr
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.engines.plan import Profile, Sidecar
from openvis_rt.errors import InputError, OutputError, ParityError
from openvis_rt.files import output_file
from openvis_rt.given_files import given_json
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.runtime.backends.base import Backend, Session
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.text_cache import cache_places
from openvis_rt.systems.graphs import GraphSpec

__all__ = [
    "Compared",
    "Corner",
    "Proof",
    "ProvenBackend",
    "corners_of",
    "proof_beside",
    "proof_words",
    "prove",
    "read_proof",
]

Array = npt.NDArray[np.generic]

SCHEMA = 1
_TRIES = 3
_LARGEST = 1 << 20  # bytes of a proof


@dataclass(frozen=True)
class Compared:
    """One output beside ONNX Runtime's.

    Attributes:
        output: its name.
        measure: ``dB``, the signal-to-noise ratio; or ``share`` of a mask's pixels that differ.
        value: of the measure; None for an infinite ratio.
        gate: the least ratio, or the largest share.
        passed: whether it is within the gate.
    """

    output: str
    measure: str
    value: float | None
    gate: float
    passed: bool


@dataclass(frozen=True)
class Corner:
    """Every output at some lengths of the dynamic axes."""

    lengths: dict[str, int]
    outputs: tuple[Compared, ...]


@dataclass(frozen=True)
class Proof:
    """What came of comparing an engine.

    Attributes:
        plan_sha256: of the engine.
        gpu, library: that ran it, with the library's version.
        reference: what it was compared with.
        corners: at each set of lengths.
        schema: of this record.
    """

    plan_sha256: str
    gpu: str
    library: str
    reference: str
    corners: tuple[Corner, ...]
    schema: int = SCHEMA

    @property
    def facts(self) -> tuple[str, str, str]:
        """What it holds for: these bytes of the engine, on this GPU, with this library."""
        return self.plan_sha256, self.gpu, self.library

    @property
    def failures(self) -> list[tuple[Corner, Compared]]:
        """What is outside its gate, and where."""
        return [(c, found) for c in self.corners for found in c.outputs if not found.passed]


class ProvenBackend(Backend, Protocol):
    """A backend of engines."""

    @property
    def gpu(self) -> str:
        """The GPU's name."""

    @property
    def library(self) -> str:
        """The library and its version."""

    def engine(self, bundle: Bundle, graph: str, precision: str) -> tuple[Path, Sidecar]:
        """The engine of a graph and its sidecar; EngineError if none fits."""


def prove(
    backend: ProvenBackend,
    bundle: Bundle,
    precision: str,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Proof]:
    """Compare every engine of a bundle that was not compared here before.

    Args:
        backend: whose engines; each graph is opened in it by itself, and closed.
        bundle, precision: of the engines.
        progress: told of each engine before it is compared.

    Returns:
        the proof of each graph, also where it was known.

    Raises:
        ParityError: an output of an engine is too far from ONNX Runtime's; the message says which,
            where and what to try. It is kept, so that the engine is refused at once next time.
        DependencyError: ONNX Runtime is not installed.
    """
    found = {}
    for graph in bundle.graphs:
        plan, sidecar = backend.engine(bundle, graph, precision)
        proof = read_proof(plan, bundle.path, sidecar.plan_sha256, backend.gpu, backend.library)
        if proof is None:
            progress(f"comparing the engine {plan.name} with ONNX Runtime, once")
            proof = _compared(backend, bundle, graph, precision, sidecar)
            _write(proof, plan, bundle.path)
        found[graph] = proof
        if proof.failures:
            raise ParityError(_refusal(plan, graph, precision, proof))
    return found


def read_proof(plan: Path, bundle: Path, sha256: str, gpu: str, library: str) -> Proof | None:
    """What is known of an engine on this GPU with this library; None if it was not compared."""
    facts = (sha256, gpu, library)
    found = (_read(place) for place in _places(plan, bundle, *facts))
    return next((proof for proof in found if proof is not None and proof.facts == facts), None)


def proof_beside(plan: Path, sha256: str) -> Proof | None:
    """What stands beside an engine of these bytes, of whatever GPU compared it last; None without.

    A proof of other bytes, which a new build leaves behind, is none of this engine.
    """
    proof = _read(_beside_plan(plan))
    return proof if proof is not None and proof.plan_sha256 == sha256 else None


def _read(place: Path) -> Proof | None:
    """A proof; None where there is none, or a damaged one: the engine is compared again."""
    try:
        return record_from_json(Proof, given_json(place, _LARGEST))
    except InputError:
        return None


def _beside_plan(plan: Path) -> Path:
    return plan.with_suffix(".proof.json")


def _places(plan: Path, bundle: Path, *facts: str) -> list[Path]:
    """Where a proof may stand: beside the engine, and in the user's cache."""
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    _, *elsewhere = cache_places(bundle)
    proofs = [place.with_name("proofs") / f"{name}.json" for place in elsewhere]
    return [_beside_plan(plan), *proofs]


def _write(proof: Proof, plan: Path, bundle: Path) -> None:
    for place in _places(plan, bundle, *proof.facts):
        try:
            with output_file(place) as partial:
                text = json.dumps(json_from_record(proof), indent=1)
                partial.write_text(text + "\n", encoding="utf-8")
        except OutputError:
            continue
        return


def _compared(
    backend: ProvenBackend, bundle: Bundle, graph: str, precision: str, sidecar: Sidecar
) -> Proof:
    """Run an engine and its ONNX file on the same inputs, at every corner."""
    spec = bundle.graph(graph, precision).spec
    names = [tensor.name for tensor in spec.outputs]
    reference = OnnxRuntime("cpu")
    engine = backend.open(bundle, graph, precision, fetched=names)
    try:
        truth = reference.open(bundle, graph, precision)
        try:
            corners = tuple(
                _corner(engine, truth, bundle, precision, lengths)
                for lengths in corners_of(sidecar.profiles, spec)
            )
        finally:
            truth.close()
    finally:
        engine.close()
    import onnxruntime

    told = f"onnxruntime {onnxruntime.__version__} on the CPU"
    return Proof(sidecar.plan_sha256, backend.gpu, backend.library, told, corners)


def corners_of(profiles: dict[str, Profile], spec: GraphSpec) -> Iterator[dict[str, int]]:
    """The least, the usual and the largest lengths of the dynamic axes, and every window's.

    Batches have been wrong at one length and right at another.
    """
    found: list[dict[str, int]] = []
    symbols = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
    profiles = {symbol: profile for symbol, profile in profiles.items() if symbol in symbols}
    for end in ("min", "opt", "max"):
        lengths = {symbol: int(getattr(profile, end)) for symbol, profile in profiles.items()}
        if lengths not in found:
            found.append(lengths)
    if "T" in profiles:
        usual = {symbol: profile.opt for symbol, profile in profiles.items()}
        windows = range(profiles["T"].min, profiles["T"].max + 1)
        missing = [length for length in windows if all(f["T"] != length for f in found)]
        found += [{**usual, "T": length} for length in missing]
    yield from found


def _corner(
    engine: Session, truth: Session, bundle: Bundle, precision: str, lengths: dict[str, int]
) -> Corner:
    """The outputs at some lengths, on the first inputs on which all are within their gates."""
    gates = ENGINES[bundle.graph(truth.spec.name, precision).precision]
    for seed in range(_TRIES):
        inputs = random_inputs(truth.spec, seed, lengths)
        found, wanted = (_outputs(session, inputs, bundle) for session in (engine, truth))
        pixels = grid_pixels(truth.spec) * lengths.get("T", 1)
        told = tuple(_beside(name, found[name], wanted[name], gates, pixels) for name in wanted)
        if all(one.passed for one in told):
            break
    return Corner(lengths, told)


def _outputs(session: Session, inputs: dict[str, Array], bundle: Bundle) -> dict[str, Array]:
    sizes = bundle.manifest.preprocess.mask_sizes
    for tensor in session.spec.overridable:
        session.write(tensor.name, np.array(sizes[tensor.name], np.int64))
    for tensor in session.spec.inputs:
        session.write(tensor.name, inputs[tensor.name].astype(tensor.dtype))
    session.run()
    return {t.name: np.array(session.fetch(t.name)) for t in session.spec.outputs}


def _beside(
    name: str, found: Array, wanted: Array, gates: dict[str, float], pixels: int
) -> Compared:
    if found.shape != wanted.shape:
        return Compared(name, "share", 1.0, gates["bits"], passed=False)
    share = differing_share(name, found, wanted, pixels)
    if share is not None:
        return Compared(name, "share", share, gates["bits"], passed=share <= gates["bits"])
    ratio = sqnr(found, wanted)
    value = ratio if math.isfinite(ratio) else None
    return Compared(name, "dB", value, gates[name], passed=bool(ratio >= gates[name]))


def _refusal(plan: Path, graph: str, precision: str, proof: Proof) -> str:
    lines = []
    for corner, one in proof.failures:
        where = ", ".join(f"{symbol} = {length}" for symbol, length in corner.lengths.items())
        number = "NaN or infinity" if one.value is None else f"{one.value:.3g} {one.measure}"
        bound = "at most" if one.measure == "share" else "at least"
        lines.append(
            f"  {one.output}{f' at {where}' if where else ''}: {number}, needed {bound} "
            f"{one.gate:g}"
        )
    other = "" if precision == "fp32" else ", another precision (--precision fp32)"
    return (
        f"the engine {plan} of graph {graph!r} does not give ONNX Runtime's numbers on "
        f"{proof.gpu} with {proof.library}, so it does not serve:\n" + "\n".join(lines) + "\n"
        f"Try another version of the library{other}, or --backend onnxruntime. `openvis build` "
        "makes it anew, and --no-verify runs it as it is."
    )


def proof_words(proof: Proof | None) -> str:
    """The state of an engine's proof, for people."""
    if proof is None:
        return "not compared with ONNX Runtime yet"
    if proof.failures:
        return f"refused on {proof.gpu}: {proof.failures[0][1].output} is too far from ONNX Runtime"
    ratios = [o.value for c in proof.corners for o in c.outputs if o.measure == "dB"]
    least = min((value for value in ratios if value is not None), default=math.inf)
    words = f"{least:.0f} dB at least" if math.isfinite(least) else "the same numbers"
    return f"compared with ONNX Runtime on {proof.gpu}: {words}"
