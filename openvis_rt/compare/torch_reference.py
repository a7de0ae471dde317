"""Exported graphs against PyTorch: one random input through both, each output's difference.

An attention-mask bit that flips on rounding (see :mod:`openvis_rt.compare.differences`) does so for
one picture in a few, a defect shows in every one: so a graph that misses its gates is tried on
further inputs, and fails if it misses them on all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from openvis_rt.compare.differences import Difference, difference, grid_pixels
from openvis_rt.compare.inputs import random_inputs
from openvis_rt.errors import DependencyError, ParityError
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["TorchReference", "compare_with_torch"]

Array = npt.NDArray[np.generic]

_TRIES = 5
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
    try:
        import onnxruntime
    except ImportError as exc:
        raise DependencyError("onnxruntime", "cpu") from exc
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    for seed in range(_TRIES):
        inputs, wanted = reference.answer(seed)
        given = {t.name: inputs[t.name].astype(t.dtype) for t in spec.inputs}
        found = session.run([t.name for t in spec.outputs], given)
        differences = [
            difference(spec.name, precision, tensor, a, b, grid_pixels(spec))
            for tensor, a, b in zip(spec.outputs, found, wanted, strict=True)
        ]
        if all(d.passed for d in differences):
            return differences
    listing = "; ".join(
        f"{d.output} {d.sqnr:.0f} dB, largest {d.largest:.2e}" for d in differences if not d.passed
    )
    raise ParityError(
        f"the exported graph {spec.name!r} ({precision}) does not give PyTorch's numbers on any of "
        f"{_TRIES} inputs: {listing}. Nothing was written. {_MENDS[precision]}"
    )
