"""Random inputs of a graph, to try it on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from openvis_rt.systems.graphs import HALF_TENSORS, GraphSpec

__all__ = ["random_inputs"]

Array = npt.NDArray[np.generic]


def random_inputs(
    spec: GraphSpec, seed: int, lengths: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Inputs of a graph by name, the same for the same seed.

    Pictures are patches of colour, tokens are phrases, text embeddings have length 1, and the first
    mask has no pixel.

    Args:
        spec: the graph's.
        seed: of the numbers.
        lengths: of dynamic axes; the others have lengths that an export does not trace.
    """
    rng = np.random.default_rng(seed)
    lengths = {"K": 7, "B": 5, "L": 32, "n": 4, "T": 2, **(lengths or {})}
    out: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = [d if isinstance(d, int) else lengths[d] for d in tensor.shape]
        if tensor.name == "tokens":
            value: Array = np.zeros(shape, np.int64)
            longest = min(30, max(2, shape[1] - 1))  # words and the two ends fit
            for row, words in enumerate(rng.integers(1, longest, shape[0])):  # as text is
                value[row, : words + 2] = [49406, *rng.integers(1, 49405, words), 49407]
        elif tensor.name == "selected":
            value = rng.permutation(max(4, shape[0]))[: shape[0]]
        elif tensor.dtype == "uint8":
            value = _picture(rng, shape)
        elif tensor.dtype == "bool":
            value = rng.random(shape) < 0.3
            value[0] = False  # an instance without a pixel
        else:
            value = rng.standard_normal(shape, np.float32)
            if tensor.name in HALF_TENSORS:  # numbers that every precision can be given
                value = value.astype(np.float16).astype(np.float32)
        if tensor.name == "text_embeddings":
            value = value / np.linalg.norm(value, axis=-1, keepdims=True)
        out[tensor.name] = value
    return out


def _picture(rng: np.random.Generator, shape: list[int]) -> Array:
    """Patches of colour with some noise: uint8 [T, H, W, 3]."""
    _, height, width, _ = shape
    patches = rng.integers(20, 236, (-(-height // 24), -(-width // 24), 3))
    picture = patches.repeat(24, axis=0).repeat(24, axis=1)[None, :height, :width]
    return (picture + rng.integers(-20, 20, shape)).astype(np.uint8)
