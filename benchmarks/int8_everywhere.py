"""INT8 everywhere, for benchmarks/int8_accuracy.py: onnxruntime.quantization left alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from miniature_runs import SIZE

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Session
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession


class Replaced(OnnxRuntime):
    """ONNX Runtime with other files for some graphs of a bundle."""

    def __init__(self, files: Mapping[str, Path], threads: int) -> None:
        super().__init__("cpu", threads=threads)
        self._files = files

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str = "fp32",
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> Session:
        """See :class:`~openvis_rt.runtime.backends.base.Backend`."""
        if graph not in self._files:
            return super().open(bundle, graph, precision, slots=slots, fetched=fetched)
        spec = bundle.graph(graph, precision).spec
        return OnnxRuntimeSession(str(self._files[graph]), spec, "cpu", self._threads)


def quantised_everywhere(
    bundle: Bundle, windows: Sequence[Sequence[np.ndarray[Any, Any]]], folder: Path, threads: int
) -> Replaced:
    """Every graph that a picture reaches, with all operators in INT8 and min-max ranges.

    Args:
        bundle: of a miniature.
        windows: uint8 [H, W, 3] frames of the world, to calibrate on.
        folder: takes the graphs; those that are there are not made again.
        threads: that compute one graph.
    """
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder.mkdir(parents=True, exist_ok=True)
    known: list[dict[str, Any]] = [{"frames": np.stack(window)} for window in windows]
    files = {}
    for name in [n for n in bundle.graphs if n in ("propose", "embed", "classify")]:
        path = bundle.graph_path(name, "fp32")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs = [given(session, values) for values in known]
        files[name] = folder / f"{name}.onnx"
        if not files[name].exists():
            with tempfile.TemporaryDirectory() as aside:
                prepared = Path(aside, "prepared.onnx")
                quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
                partial = files[name].with_suffix(".partial")
                quantize_static(str(prepared), str(partial), Reader(iter(inputs)))
                partial.rename(files[name])
        outputs = [o.name for o in session.get_outputs()]
        for values, fed in zip(known, inputs, strict=True):
            values |= dict(zip(outputs, session.run(None, fed), strict=True))
    return Replaced(files, threads)


def given(session: onnxruntime.InferenceSession, known: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a graph for a window: frames, what other graphs made, and made-up names."""
    values = {}
    for wanted in session.get_inputs():
        if wanted.name == "pictures":
            side = wanted.shape[1]
            values["pictures"] = np.stack([centre(f, side) for f in known["frames"]])
        elif wanted.name == "text_embeddings":
            rows = np.random.default_rng(0).standard_normal((64, wanted.shape[1]), np.float32)
            values[wanted.name] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        else:
            values[wanted.name] = known[wanted.name]
    return values


def centre(frame: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """The middle of a frame of the world, whose height is CLIP's picture."""
    assert (*frame.shape[:2], side) == (*SIZE, SIZE[0])
    left = (SIZE[1] - side) // 2
    return frame[:, left : left + side]


@dataclass
class Reader:
    """What onnxruntime.quantization reads its calibration from."""

    inputs: Iterator[dict[str, Any]]

    def get_next(self) -> dict[str, Any] | None:
        """The next inputs, until there are none."""
        return next(self.inputs, None)
