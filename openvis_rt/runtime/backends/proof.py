"""What came of comparing an engine with ONNX Runtime (:mod:`.proving`): the record and its places.

A proof stands beside its engine, ``GRAPH.PRECISION.GPU.proof.json``, or in the user's cache
directory where the bundle cannot be written. It holds for these bytes of the engine on this GPU
with this library, and for the rules that it was compared by; with anything else the engine is
compared anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openvis_rt.errors import InputError, OutputError
from openvis_rt.files import output_file
from openvis_rt.given_files import given_json
from openvis_rt.records import json_from_record, record_from_json
from openvis_rt.runtime.text_cache import cache_place

__all__ = [
    "LARGEST_RATIO",
    "Compared",
    "Corner",
    "Held",
    "Proof",
    "proof_words",
    "proofs_of",
    "read_proof",
    "write_proof",
]

SCHEMA = 2
LARGEST_RATIO = 300.0
"""dB that stand for equality: a ratio of float64 numbers that differ at all is below it."""
_LARGEST = 1 << 20  # bytes of a proof


@dataclass(frozen=True)
class Compared:
    """One output beside ONNX Runtime's.

    Attributes:
        output: its name.
        measure: ``dB``, the signal-to-noise ratio, at most :data:`LARGEST_RATIO`; or ``share`` of a
            mask's pixels that differ, 0 to 1.
        value: of the measure; None if the engine gave NaN or infinity.
        gate: the least ratio, or the largest share.
        passed: whether it is within the gate.
    """

    output: str
    measure: Literal["dB", "share"]
    value: float | None
    gate: float
    passed: bool


@dataclass(frozen=True)
class Corner:
    """Every output of one slot, at some lengths of the dynamic axes.

    Attributes:
        lengths: of each dynamic axis.
        outputs: beside ONNX Runtime's.
        sizes: given heights and widths in pixels, by input.
        slot: of the session, from 0.
        inputs: ``seeded``, or ``recorded`` in the bundle.
    """

    lengths: dict[str, int]
    outputs: tuple[Compared, ...]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    slot: int = 0
    inputs: Literal["seeded", "recorded"] = "seeded"

    @property
    def words(self) -> str:
        """Where it is, for people."""
        facts = [f"{symbol} = {length}" for symbol, length in self.lengths.items()]
        facts += [f"{name} = {'x'.join(map(str, size))}" for name, size in self.sizes.items()]
        facts += [f"slot {self.slot}"] * bool(self.slot)
        facts += ["recorded inputs"] * (self.inputs == "recorded")
        return ", ".join(facts)


@dataclass(frozen=True)
class Held:
    """What a proof holds for.

    Attributes:
        plan_sha256: of the engine.
        gpu: that ran it.
        library: that ran it, with its version.
        rules: a digest of the gates and of the versions of what it was compared by.
    """

    plan_sha256: str
    gpu: str
    library: str
    rules: str


@dataclass(frozen=True)
class Proof:
    """What came of comparing an engine.

    Attributes:
        held: what it holds for.
        reference: what the engine was compared with.
        corners: each set of lengths and sizes in each slot.
        schema: of this record.
    """

    held: Held
    reference: str
    corners: tuple[Corner, ...]
    schema: int = SCHEMA

    @property
    def failures(self) -> list[tuple[Corner, Compared]]:
        """What is outside its gate, and where."""
        return [(c, found) for c in self.corners for found in c.outputs if not found.passed]


def read_proof(plan: Path, held: Held) -> Proof | None:
    """What is known of an engine as it runs here; None if it was not compared."""
    found = (_read(place) for place in _places(plan, held))
    return next((proof for proof in found if proof is not None and proof.held == held), None)


def proofs_of(plan: Path, sha256: str) -> list[Proof]:
    """Every proof of an engine of these bytes, of whatever GPU, beside it and in the user's cache.

    A proof of other bytes, which a new build leaves behind, is none of this engine.
    """
    places = sorted(plan.parent.glob(f"{plan.stem}.*.proof.json"))
    places += sorted(folder.glob("*.json")) if (folder := _users_folder()) is not None else []
    proofs = [proof for proof in map(_read, places) if proof is not None]
    return [proof for proof in proofs if proof.held.plan_sha256 == sha256]


def write_proof(proof: Proof, plan: Path) -> None:
    """Keep a proof in the first place that can be written; where there is none it is made anew."""
    for place in _places(plan, proof.held):
        try:
            with output_file(place) as partial:
                text = json.dumps(json_from_record(proof), indent=1)
                partial.write_text(text + "\n", encoding="utf-8")
        except OutputError:
            continue
        return


def proof_words(proofs: list[Proof]) -> str:
    """The state of an engine's proofs, for people."""
    if not proofs:
        return "not compared with ONNX Runtime yet"
    return "; ".join(dict.fromkeys(map(_words, proofs)))


def _words(proof: Proof) -> str:
    gpu = proof.held.gpu
    if proof.failures:
        return f"refused on {gpu}: {proof.failures[0][1].output} is too far from ONNX Runtime"
    ratios = [o.value for c in proof.corners for o in c.outputs if o.measure == "dB"]
    least = min((value for value in ratios if value is not None), default=LARGEST_RATIO)
    words = f"{least:.0f} dB at least" if least < LARGEST_RATIO else "the same numbers"
    return f"compared with ONNX Runtime on {gpu}: {words}"


def _read(place: Path) -> Proof | None:
    """A proof; None where there is none, or a damaged one: the engine is compared again."""
    try:
        return record_from_json(Proof, given_json(place, _LARGEST))
    except InputError:
        return None


def _places(plan: Path, held: Held) -> Iterator[Path]:
    """Where a proof may stand; several GPUs may share a bundle."""
    gpu = re.sub(r"[^a-z0-9]+", "-", held.gpu.lower()).strip("-") or "gpu"
    yield plan.with_name(f"{plan.stem}.{gpu}.proof.json")
    facts = json.dumps(json_from_record(held), sort_keys=True)
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    if (folder := _users_folder()) is not None:
        yield folder / f"{name}.json"


def _users_folder() -> Path | None:
    place = cache_place()
    return None if place is None else place.with_name("proofs")
