"""An engine beside ONNX Runtime, on the machine that runs it, before it serves.

Compilers for GPUs have been silently wrong for this class of models (docs/engines.md), so an engine
is believed only after its outputs were compared, every one of them:

    where   at the least, the usual and the largest of its dynamic lengths and sizes, at every
            length of a window, and on the inputs that the bundle has recorded
    how     in every slot, both in flight at once; the third run there, on inputs that the earlier
            ones did not have, since from the second on a CUDA graph is launched

That takes a minute, once: :mod:`.proof` says where the result stands and what it holds for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.compare.differences import ENGINES, differing_share, grid_pixels, sqnr
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.engines.plan import Profile, Sidecar
from openvis_rt.errors import DependencyError, ParityError
from openvis_rt.runtime.backends.base import Backend, Session
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.proof import (
    LARGEST_RATIO,
    SCHEMA,
    Compared,
    Corner,
    Held,
    Proof,
    read_proof,
    write_proof,
)
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["Place", "ProvenBackend", "places_of", "prove", "prove_graph"]

Array = npt.NDArray[np.generic]
Inputs = dict[str, Array]

_RUNS = 3  # in a slot; the last is compared
_TRIES = 3  # inputs, where attention-mask bits may flip on rounding


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


@dataclass(frozen=True)
class Place:
    """Where an engine is compared: lengths by dynamic axis, and sizes in pixels by input."""

    lengths: dict[str, int]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


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
    return {
        graph: prove_graph(backend, bundle, graph, precision, progress) for graph in bundle.graphs
    }


def prove_graph(
    backend: ProvenBackend,
    bundle: Bundle,
    graph: str,
    precision: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Proof:
    """As :func:`prove`, of one graph."""
    plan, sidecar = backend.engine(bundle, graph, precision)
    rules = _rules(bundle.graph(graph, precision).precision)
    held = Held(sidecar.plan_sha256, backend.gpu, backend.library, rules)
    proof = read_proof(plan, bundle.path, held)
    if proof is None:
        progress(f"comparing the engine {plan.name} with ONNX Runtime, once")
        corners = tuple(_corners(backend, bundle, graph, precision, sidecar))
        proof = Proof(held, f"onnxruntime {_onnxruntime_version()} on the CPU", corners)
        write_proof(proof, plan, bundle.path)
    if proof.failures:
        raise ParityError(_refusal(plan, graph, precision, proof))
    return proof


def _onnxruntime_version() -> str:
    try:
        import onnxruntime
    except ImportError as exc:
        raise DependencyError("onnxruntime", "cpu") from exc
    return str(onnxruntime.__version__)


def _rules(precision: str) -> str:
    """A digest of what decides whether an engine of a precision passes."""
    facts = [SCHEMA, _RUNS, _TRIES, ENGINES[precision], _onnxruntime_version()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _corners(
    backend: ProvenBackend, bundle: Bundle, graph: str, precision: str, sidecar: Sidecar
) -> Iterator[Corner]:
    """Run an engine and its ONNX file on the same inputs, at every place."""
    spec = bundle.graph(graph, precision).spec
    names = [tensor.name for tensor in spec.outputs]
    engine = backend.open(bundle, graph, precision, slots=backend.slots, fetched=names)
    try:
        truth = OnnxRuntime("cpu").open(bundle, graph, precision)
        try:
            pair = _Pair(engine, truth, backend.slots, _gates(bundle, graph, precision))
            fixed = bundle.manifest.preprocess.mask_sizes  # where the engine has no range of them
            for place in places_of(sidecar, spec, fixed):
                yield from pair.seeded(place)
        finally:
            truth.close()
    finally:
        engine.close()


def _gates(bundle: Bundle, graph: str, precision: str) -> dict[str, float]:
    return ENGINES[bundle.graph(graph, precision).precision]


def places_of(
    sidecar: Sidecar, spec: GraphSpec, fixed: dict[str, tuple[int, ...]]
) -> Iterator[Place]:
    """The least, the usual and the largest lengths and sizes, and every window's length.

    Batches have been wrong at one length and right at another. The largest size is tried with the
    least lengths, and the largest lengths with the usual size, since nothing runs both at once.

    Args:
        sidecar: the engine's profiles.
        spec: the graph's.
        fixed: values of inputs that hold sizes, where the engine has them built in.
    """
    symbols = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
    profiles = {s: profile for s, profile in sidecar.profiles.items() if s in symbols}
    sizes = sidecar.shape_values
    usual = {t.name: fixed[t.name] for t in spec.overridable if t.name in fixed}
    usual |= {name: tuple(values.opt) for name, values in sizes.items()}
    ends = [("min", "min"), ("opt", "opt"), ("max", "opt"), ("min", "max")]
    found: list[Place] = []
    for length, size in ends if sizes else ends[:3]:
        own = {name: tuple(getattr(values, size)) for name, values in sizes.items()}
        found.append(Place(_at(profiles, length), {**usual, **own}))
    windows = range(profiles["T"].min, profiles["T"].max + 1) if "T" in profiles else ()
    seen = {place.lengths.get("T") for place in found}
    middle = _at(profiles, "opt")
    found += [Place({**middle, "T": length}, usual) for length in windows if length not in seen]
    yield from (place for i, place in enumerate(found) if place not in found[:i])


def _at(profiles: dict[str, Profile], end: str) -> dict[str, int]:
    return {symbol: int(getattr(profile, end)) for symbol, profile in profiles.items()}


@dataclass(frozen=True)
class _Pair:
    """An engine's session and ONNX Runtime's, of one graph."""

    engine: Session
    truth: Session
    slots: int
    gates: dict[str, float]

    def seeded(self, place: Place) -> list[Corner]:
        """Every slot at one place, on the first inputs on which it is within its gates.

        Attention-mask bits that lie on the edge flip on rounding, so of a graph with a query
        decoder one of a few inputs has to pass, and each has to be numbers.
        """
        spec = self.truth.spec
        flips = any(tensor.name == "queries" for tensor in spec.outputs)
        corners: list[Corner] = []
        for attempt in range(_TRIES if flips else 1):
            seeds = [1 + attempt * self.slots + slot for slot in range(self.slots)]
            inputs = [random_inputs(spec, seed, place.lengths) for seed in seeds]
            others = [random_inputs(spec, 0, place.lengths)] * (_RUNS - 1)
            now = self.compared(place, inputs, others, "seeded")
            corners = [
                old if _passed(old) else new for old, new in zip(corners or now, now, strict=True)
            ]
            if all(map(_passed, corners)) or any(o.value is None for c in now for o in c.outputs):
                break
        return corners

    def compared(
        self,
        place: Place,
        inputs: list[Inputs],
        others: list[Inputs],
        source: Literal["seeded", "recorded"],
    ) -> list[Corner]:
        """Every slot on inputs of its own, after runs on other inputs."""
        for values in [*([other] * self.slots for other in others), inputs]:
            for slot, value in enumerate(values):
                _give(self.engine, value, place, slot)
                self.engine.run(slot)
        corners = []
        for slot, value in enumerate(inputs):
            found = _outputs(self.engine, slot)
            _give(self.truth, value, place, 0)
            self.truth.run()
            wanted = _outputs(self.truth, 0)
            pixels = grid_pixels(self.truth.spec) * place.lengths.get("T", 1)
            told = tuple(self._beside(n, found[n], wanted[n], pixels) for n in wanted)
            corners.append(Corner(place.lengths, told, place.sizes, slot, source))
        return corners

    def _beside(self, name: str, found: Array, wanted: Array, pixels: int) -> Compared:
        if found.shape != wanted.shape:
            return Compared(name, "share", 1.0, self.gates["bits"], passed=False)
        if not np.isfinite(found.astype(np.float64, copy=False)).all():
            return Compared(name, "dB", None, self.gates.get(name, 0.0), passed=False)
        share = differing_share(name, found, wanted, pixels)
        if share is not None:
            bound = self.gates["bits"]
            return Compared(name, "share", float(share), bound, passed=bool(share <= bound))
        ratio = min(float(sqnr(found, wanted)), LARGEST_RATIO)
        return Compared(name, "dB", ratio, self.gates[name], passed=ratio >= self.gates[name])


def _passed(corner: Corner) -> bool:
    return all(one.passed for one in corner.outputs)


def _give(session: Session, inputs: Inputs, place: Place, slot: int) -> None:
    for name, size in place.sizes.items():
        session.write(name, np.array(size, np.int64), slot)
    for tensor in session.spec.inputs:
        session.write(tensor.name, inputs[tensor.name].astype(tensor.dtype), slot)


def _outputs(session: Session, slot: int) -> dict[str, Array]:
    return {t.name: np.array(session.fetch(t.name, slot)) for t in session.spec.outputs}


def _refusal(plan: Path, graph: str, precision: str, proof: Proof) -> str:
    lines = []
    for corner, one in proof.failures:
        number = "NaN or infinity" if one.value is None else f"{one.value:.3g} {one.measure}"
        bound = "at most" if one.measure == "share" else "at least"
        where = f" at {corner.words}" if corner.words else ""
        lines.append(f"  {one.output}{where}: {number}, needed {bound} {one.gate:g}")
    other = "" if precision == "fp32" else ", another precision (--precision fp32)"
    return (
        f"the engine {plan} of graph {graph!r} does not give ONNX Runtime's numbers on "
        f"{proof.held.gpu} with {proof.held.library}, so it does not serve:\n"
        + "\n".join(dict.fromkeys(lines))
        + f"\nTry another version of the library{other}, or --backend onnxruntime. `openvis build "
        "--force` makes it anew, and --no-verify runs it as it is."
    )
