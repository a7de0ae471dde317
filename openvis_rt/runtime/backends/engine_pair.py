"""An engine's session beside ONNX Runtime's of the same file, on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from openvis_rt.compare.differences import differing_share, grid_pixels, sqnr
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.runtime.backends.base import Session
from openvis_rt.runtime.backends.proof import LARGEST_RATIO, Compared, Corner
from openvis_rt.runtime.backends.proof_places import Place

__all__ = ["RUNS", "TRIES", "EnginePair"]

Array = npt.NDArray[np.generic]
Inputs = dict[str, Array]

RUNS = 3
"""In a slot, the last of which is compared: from the second on a CUDA graph is launched."""
TRIES = 3
"""Inputs of which one has to pass, where attention-mask bits may flip on rounding."""


@dataclass(frozen=True)
class EnginePair:
    """Two sessions of one graph.

    Attributes:
        engine: with slots, every output fetched.
        truth: ONNX Runtime's, of the file that the engine was built from.
        slots: of the engine's session.
        gates: by output, see :data:`openvis_rt.compare.differences.ENGINES`.
    """

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
        return TRIES if flips else 1

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
        for _ in range(RUNS - 1):
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
