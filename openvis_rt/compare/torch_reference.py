"""Exported graphs against PyTorch: one random input through both, each output's difference.

An attention-mask bit that flips on rounding (see :mod:`openvis_rt.compare.differences`) does so for
one picture in a few, a defect shows in every one: so a graph that misses its gates is tried on
further inputs, and fails if it misses them on all. What FP16 flips, and what it loses otherwise,
:mod:`openvis_rt.export.fp16.parity` tells apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openvis_rt.compare.differences import Difference, difference, grid_pixels
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.errors import DependencyError, ParityError
from openvis_rt.systems.graphs import GraphSpec

__all__ = [
    "TRIES",
    "GraphRun",
    "TorchReference",
    "compare_with_torch",
    "differences_from_torch",
    "differences_of",
    "failures",
    "typed_inputs",
]

Array = npt.NDArray[np.generic]

TRIES = 5
"""Inputs that a graph is tried on before it fails."""
_MENDS = {
    "fp32": "This is a defect; please report it, with `openvis doctor`.",
    "fp16": "These weights may need more range or precision than FP16 has: export with "
    "--precision fp32.",
}


class TorchReference:
    """What a module answers to random inputs; each is computed once, for every precision.

    Args:
        spec: the FP32 graph's inputs and outputs.
        module: what was exported; its ``forward`` takes the inputs by name.
    """

    def __init__(self, spec: GraphSpec, module: nn.Module) -> None:
        self.spec, self._module = spec, module
        self._known: dict[int, tuple[dict[str, Array], list[Array]]] = {}

    def answer(self, seed: int) -> tuple[dict[str, Array], list[Array]]:
        """Inputs by name, and the outputs in order."""
        if seed not in self._known:
            inputs = random_inputs(self.spec, seed)
            with torch.inference_mode():
                found = self._module(**{name: torch.from_numpy(v) for name, v in inputs.items()})
            outputs = found if isinstance(found, tuple) else (found,)
            self._known[seed] = inputs, [tensor.numpy() for tensor in outputs]
        return self._known[seed]


class GraphRun:
    """A graph in ONNX Runtime on the CPU, to be compared.

    Args:
        graph: the ONNX file, or a serialised model.

    Raises:
        DependencyError: ONNX Runtime is not installed.
    """

    def __init__(self, graph: Path | bytes) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise DependencyError("onnxruntime", "cpu") from exc
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(graph, options, providers=providers)

    def __call__(self, names: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of their names."""
        found: list[Array] = self._session.run(list(names), dict(inputs))
        return found


def compare_with_torch(
    graph: Path | bytes,
    spec: GraphSpec,
    reference: TorchReference,
    precision: str = "fp32",
) -> list[Difference]:
    """Run a graph in ONNX Runtime on what PyTorch FP32 has answered.

    Args:
        graph: the ONNX file, or a serialised model: of an FP16 graph its FP16 emulation.
        spec: its inputs and outputs, with the types that they have in it.
        reference: PyTorch's side.
        precision: of the graph; it decides the gates.

    Raises:
        ParityError: an output is outside its gate.
        DependencyError: ONNX Runtime is not installed.
    """
    differences = differences_from_torch(graph, spec, reference, precision)
    if far := failures(differences):
        raise ParityError(
            f"the exported graph {spec.name!r} ({precision}) does not give PyTorch's numbers on "
            f"any of {TRIES} inputs: {far}. {_MENDS[precision]}"
        )
    return differences


def differences_from_torch(
    graph: Path | bytes, spec: GraphSpec, reference: TorchReference, precision: str
) -> list[Difference]:
    """As :func:`compare_with_torch`, which refuses what this returns.

    Returns:
        the differences on the first input on which all outputs are within their gates; on the last
        one if there is none.
    """
    run = GraphRun(graph)
    names = [t.name for t in spec.outputs]
    for seed in range(TRIES):
        inputs, wanted = reference.answer(seed)
        found = run(names, typed_inputs(spec, inputs))
        differences = differences_of(spec, found, wanted, precision)
        if not failures(differences):
            break
    return differences


def typed_inputs(spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """PyTorch's inputs in the types that a graph takes."""
    return {t.name: inputs[t.name].astype(t.dtype) for t in spec.inputs}


def differences_of(
    spec: GraphSpec,
    found: Sequence[Array],
    wanted: Sequence[Array],
    precision: str,
    *,
    given_masks: bool = False,
) -> list[Difference]:
    """Every output beside PyTorch's, in the graph's order."""
    pixels = grid_pixels(spec)
    return [
        difference(spec.name, precision, tensor, a, b, pixels, given_masks=given_masks)
        for tensor, a, b in zip(spec.outputs, found, wanted, strict=True)
    ]


def failures(differences: Sequence[Difference]) -> str:
    """The outputs that are outside their gates, for people; empty if none is."""
    return "; ".join(
        f"{d.output} {d.relative:.1%} of the bits"
        if d.sqnr == math.inf
        else f"{d.output} {d.sqnr:.0f} dB, largest {d.largest:.2e}"
        for d in differences
        if not d.passed
    )
