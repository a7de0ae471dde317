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
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded import read_calls
from openvis_rt.compare.differences import ENGINES
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.engines.plan import Sidecar
from openvis_rt.errors import DependencyError, EngineError, ParityError, UnavailableError
from openvis_rt.runtime.backends.base import Backend, slots_of
from openvis_rt.runtime.backends.engine_pair import RUNS, TRIES, EnginePair
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.proof import (
    SCHEMA,
    Corner,
    Held,
    Proof,
    read_proof,
    write_proof,
)
from openvis_rt.runtime.backends.proof_places import fits, place_of, places_of

__all__ = ["ProvenBackend", "prove", "prove_graph", "prove_here"]

Array = npt.NDArray[np.generic]


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
    proof = read_proof(plan, held)
    if proof is None:
        progress(f"comparing the engine {plan.name} with ONNX Runtime, once")
        corners = tuple(_corners(backend, bundle, graph, precision, sidecar))
        proof = Proof(held, f"onnxruntime {_onnxruntime_version()} on the CPU", corners)
        write_proof(proof, plan)
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
    facts = [SCHEMA, RUNS, TRIES, ENGINES[precision], _onnxruntime_version()]
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
            pair = EnginePair(
                engine, truth, slots, ENGINES[bundle.graph(graph, precision).precision]
            )
            fixed = bundle.manifest.preprocess.mask_sizes  # where the engine has no range of them
            for place in places_of(sidecar, spec, fixed):
                yield from pair.seeded(place)
            yield from _recorded_corners(pair, bundle, sidecar, fixed)
        finally:
            truth.close()
    finally:
        engine.close()


def _recorded_corners(
    pair: EnginePair, bundle: Bundle, sidecar: Sidecar, fixed: dict[str, tuple[int, ...]]
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
