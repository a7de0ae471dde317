"""An engine beside ONNX Runtime, on the machine that runs it, before it serves.

Compilers for GPUs have been silently wrong for this class of models (docs/engines.md), so an engine
is believed only after its outputs were compared, every one of them:

    where   at the least, the usual and the largest of its dynamic lengths and sizes, at every
            length of a window, and on the inputs that the bundle has recorded
    how     in every slot while the other one works on something else; at the earliest the third
            run there, on inputs that the earlier ones did not have, since from the second on a CUDA
            graph is launched

That takes a minute, once: :mod:`.proof` says where the result stands and what it holds for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded import read_calls
from openvis_rt.compare.differences import ENGINES, differing_share, grid_pixels, sqnr
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.engines.plan import Sidecar
from openvis_rt.errors import DependencyError, EngineError, ParityError, UnavailableError
from openvis_rt.runtime.backends.base import Backend, Session, slots_of
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
from openvis_rt.runtime.backends.proof_places import Place, fits, place_of, places_of

__all__ = ["ProvenBackend", "prove", "prove_graph", "prove_here"]

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


def prove_here(
    name: str,
    bundle: Bundle,
    graphs: Iterable[tuple[str, str]],
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Proof] | None:
    """As :func:`prove`, of engines that were just built, if this machine runs them.

    Args:
        name: of the backend.
        bundle: that they were built into.
        graphs: graph and precision of each.
        progress: see :func:`prove`.

    Returns:
        proofs by ``GRAPH.PRECISION``; None where there is no GPU, or one of another kind: they are
        compared at their first load there.
    """
    from openvis_rt.runtime.backends.tensorrt.backend import TensorRt

    try:
        backend = TensorRt(name, warn=progress)
    except UnavailableError:
        return None
    found = {}
    with closing(backend):
        for graph, precision in graphs:
            try:
                backend.engine(bundle, graph, precision)
            except EngineError:
                return None
            proof = prove_graph(backend, bundle, graph, precision, progress)
            found[f"{graph}.{precision}"] = proof
    return found


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
    slots = slots_of(graph, backend.slots)
    engine = backend.open(bundle, graph, precision, slots=slots, fetched=names)
    try:
        truth = OnnxRuntime("cpu").open(bundle, graph, precision)
        try:
            pair = _Pair(engine, truth, slots, _gates(bundle, graph, precision))
            fixed = bundle.manifest.preprocess.mask_sizes  # where the engine has no range of them
            for place in places_of(sidecar, spec, fixed):
                yield from pair.seeded(place)
            yield from _recorded_corners(pair, bundle, sidecar, fixed)
        finally:
            truth.close()
    finally:
        engine.close()


def _recorded_corners(
    pair: _Pair, bundle: Bundle, sidecar: Sidecar, fixed: dict[str, tuple[int, ...]]
) -> Iterator[Corner]:
    """Every slot on what the bundle has recorded of its graph, a call of each kind of sizes.

    The recorded inputs are real pictures and what PyTorch made of them; calls that are larger than
    the engine's profile are left out.
    """
    spec = pair.truth.spec
    if (found := read_calls(bundle)) is None:
        return
    record, stored = found
    calls = [call for call in record.calls if call.graph == spec.name]
    for point in dict.fromkeys(call.point for call in calls):
        corners: list[Corner] = []
        for call in [call for call in calls if call.point == point][: pair.tries]:
            inputs = stored.inputs(call)
            place = place_of(spec, inputs, fixed)
            if not fits(place, sidecar):
                continue
            other = random_inputs(spec, 0, place.lengths)
            corners = pair.better(corners, pair.compared(place, inputs, other, "recorded"))
            if pair.settled(corners):
                break
        yield from corners


def _gates(bundle: Bundle, graph: str, precision: str) -> dict[str, float]:
    return ENGINES[bundle.graph(graph, precision).precision]


@dataclass(frozen=True)
class _Pair:
    """An engine's session and ONNX Runtime's, of one graph."""

    engine: Session
    truth: Session
    slots: int
    gates: dict[str, float]

    @property
    def tries(self) -> int:
        """Inputs of which one has to pass.

        In a graph with a query decoder attention-mask bits that lie on the edge flip on rounding.
        """
        flips = any(tensor.name == "queries" for tensor in self.truth.spec.outputs)
        return _TRIES if flips else 1

    def seeded(self, place: Place) -> list[Corner]:
        """Every slot at one place, on the first inputs on which it is within its gates."""
        corners: list[Corner] = []
        other = random_inputs(self.truth.spec, 0, place.lengths)
        for seed in range(1, 1 + self.tries):
            inputs = random_inputs(self.truth.spec, seed, place.lengths)
            corners = self.better(corners, self.compared(place, inputs, other, "seeded"))
            if self.settled(corners):
                break
        return corners

    def compared(
        self, place: Place, inputs: Inputs, other: Inputs, source: Literal["seeded", "recorded"]
    ) -> list[Corner]:
        """Every slot on some inputs, after runs on other ones, which the other slots go on with."""
        for _ in range(_RUNS - 1):
            self._run([other] * self.slots, place)
        _give(self.truth, inputs, place, 0)
        self.truth.run()
        wanted = _outputs(self.truth, 0)
        pixels = grid_pixels(self.truth.spec) * place.lengths.get("T", 1)
        corners = []
        for slot in range(self.slots):
            self._run([inputs if s == slot else other for s in range(self.slots)], place)
            found = _outputs(self.engine, slot)
            told = tuple(self._beside(n, found[n], wanted[n], pixels) for n in wanted)
            corners.append(Corner(place.lengths, told, place.sizes, slot, source))
        return corners

    def _run(self, values: list[Inputs], place: Place) -> None:
        """Run every slot; none is waited for."""
        for slot, value in enumerate(values):
            _give(self.engine, value, place, slot)
            self.engine.run(slot)

    @staticmethod
    def better(earlier: list[Corner], now: list[Corner]) -> list[Corner]:
        """Of each slot the try that passed, else the last one; what is no number stays."""
        return [
            old if _passed(old) and not _is_broken(new) else new
            for old, new in zip(earlier or now, now, strict=True)
        ]

    @staticmethod
    def settled(corners: list[Corner]) -> bool:
        """Whether no further try can change the verdict."""
        return all(map(_passed, corners)) or any(map(_is_broken, corners))

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


def _is_broken(corner: Corner) -> bool:
    return any(one.value is None for one in corner.outputs)


def _give(session: Session, inputs: Inputs, place: Place, slot: int) -> None:
    """Write inputs to a slot, and the sizes, which every slot has in common."""
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
