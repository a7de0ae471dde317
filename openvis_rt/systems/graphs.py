"""The graphs of a bundle and the names, types and axes of their inputs and outputs.

These names are a contract: other programs drive the graphs by them. They stand here once and are
used by export, engines, runtime and tests. Sizes are symbols; a bundle's manifest fills them with
its numbers.

    N       queries
    T       frames of one call: 1 for per-frame models, dynamic for windows, 1 to `window_length`
    H, W    network size, pixels; the graph pads it, right and bottom, to multiples of 32: H' x W'
    h, w    stride-4 grid, H'/4 x W'/4
    hp, wp  stride-32 grid, H'/32 x W'/32
    P       patches of CLIP's vision transformer: of 32 pixels a side, or 16 in a miniature
    C       query width;  D  embedding width of CLIP;  Dt  width of a token
    Cf      channels of CLIP's dense feature
    Hc, Wc  CLIP's picture of a whole frame: 224 x 224, or the source's size if the graph resizes
    K       rows of the text classifier, dynamic
    Kc      classes of a closed vocabulary, and "no object"
    B       prompts, dynamic
    L       tokens of the longest prompt with its start and end, dynamic, up to CLIP's 77
    n       selected queries, dynamic
    Hs, Ws  the source frame's size, the overridable `frame_size` of `masks`
    Wb      bytes of a row of a mask: ceil(Ws / 8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = [
    "CLASS_LOGITS",
    "CONTEXT_LENGTH",
    "DYNAMIC_AXES",
    "FEATURES",
    "FRAMES",
    "GUIDANCE_MASK",
    "HALF_TENSORS",
    "IMAGE_EMBEDDINGS",
    "INSTANCE_TOKENS",
    "INT8",
    "INT8_FP32",
    "MASKS",
    "MASKS_PER_RUN",
    "MASK_AREA",
    "MASK_IOU",
    "MASK_LOGITS",
    "MASK_MASS",
    "OBJECT_LOGITS",
    "POOL_MASK",
    "PRECISIONS",
    "QUANTISED",
    "QUERIES",
    "TEXT",
    "TEXT_EMBEDDINGS",
    "GraphSpec",
    "TensorSpec",
    "bindings",
    "by_name",
    "masks_per_run",
]

DYNAMIC_AXES = frozenset({"K", "B", "L", "n", "T", "Hs", "Wb"})
"""Symbols that may stay symbols in an exported graph; of these, T is a number but for windows."""

CONTEXT_LENGTH = 77
"""The most tokens that CLIP's text encoder reads, with start and end: the largest L."""

PRECISIONS = ("fp32", "fp16")
"""In which graphs can be exported."""

INT8, INT8_FP32 = "int8", "int8-fp32"
QUANTISED = (INT8, INT8_FP32)
"""In which a calibration makes graphs: INT8 with FP16, for TensorRT, and INT8 with FP32, for ONNX
Runtime on a CPU."""

HALF_TENSORS = frozenset({"features"})
"""Inputs and outputs that are FP16 in FP16 graphs: large, and passed from graph to graph on the
device."""

MASKS_PER_RUN = 8
"""The most masks of one run of `masks`, n times T; more are made in more runs, so buffers stay
small. Where a window has more frames than that, a run makes one query's masks."""


def masks_per_run(window_length: int) -> int:
    """The largest n, for windows of up to so many frames; one query's masks at the least."""
    return max(1, MASKS_PER_RUN // window_length)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: the name in the ONNX file.
        dtype: numpy's name of the type, such as ``float32``.
        shape: numbers, or symbols of this module's docstring.
        doc: what the numbers mean: range or unit.
        fetched: the host reads this output; others stay on the device.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    doc: str = ""
    fetched: bool = False

    def with_sizes(self, sizes: dict[str, int]) -> TensorSpec:
        """The same tensor with every symbol that ``sizes`` knows replaced by its number."""
        shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in self.shape)
        return replace(self, shape=shape)


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its name and its tensors, in the order of the ONNX file.

    Attributes:
        name: the file's stem.
        inputs, outputs: what a caller gives and gets.
        overridable: initializers that are inputs as well: ONNX Runtime takes a caller's value in
            place of the file's. A TensorRT plan has them as inputs, with no default, or, where the
            bundle has a fixed source size, as constants.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    overridable: tuple[TensorSpec, ...] = ()

    def with_sizes(self, sizes: dict[str, int]) -> GraphSpec:
        """The same graph with known symbols replaced by numbers."""
        return GraphSpec(
            self.name,
            tuple(t.with_sizes(sizes) for t in self.inputs),
            tuple(t.with_sizes(sizes) for t in self.outputs),
            self.overridable,
        )


FRAMES = TensorSpec(
    "frames",
    "uint8",
    ("T", "H", "W", 3),
    "RGB 0..255 at network size, or at the source's where the graph resizes",
)
MASK_LOGITS = TensorSpec(
    "mask_logits", "float32", ("N", "T", "h", "w"), "mask logits at stride 4; > 0 is the instance"
)
QUERIES = TensorSpec(
    "queries", "float32", ("N", "C"), "query embeddings, not normalised", fetched=True
)
OBJECT_LOGITS = TensorSpec(
    "object_logits", "float32", ("N", 2), "class 0 object, class 1 none", fetched=True
)
MASK_IOU = TensorSpec(
    "mask_iou", "float32", ("N",), "predicted IoU of the mask, 0..1", fetched=True
)
MASK_AREA = TensorSpec("mask_area", "float32", ("N",), "number of mask_logits > 0", fetched=True)
MASK_MASS = TensorSpec("mask_mass", "float32", ("N",), "sum of their sigmoids", fetched=True)
TEXT_EMBEDDINGS = TensorSpec("text_embeddings", "float32", ("K", "D"), "L2-normalised rows")
INSTANCE_TOKENS = TensorSpec(
    "instance_tokens", "float32", ("N", "D"), "CLIP embeddings, not normalised"
)
POOL_MASK = TensorSpec(
    "pool_mask", "bool", ("N", "hp", "wp"), "mask_logits bilinear to the feature's grid, > 0"
)
GUIDANCE_MASK = TensorSpec(
    "guidance_mask",
    "float32",
    ("N", "P"),
    "added to the attention logits of instance n for patch p, rows of patches; from `propose` or "
    "any other source of masks",
)
CLASS_LOGITS = TensorSpec(
    "class_scores", "float32", ("N", "K"), "exp(logit_scale) * cosine: logits", fetched=True
)
IMAGE_EMBEDDINGS = TensorSpec(
    "image_embeddings",
    "float32",
    ("T", "D"),
    "CLIP's image embedding of each whole frame, not normalised; from `embed` or a file",
)
FEATURES = TensorSpec("features", "float32", ("T", "Cf", "hp", "wp"), "CLIP's dense feature")

TEXT = GraphSpec(
    "text",
    (TensorSpec("tokens", "int64", ("B", "L"), "CLIP's byte-pair tokens, 0-padded"),),
    (TensorSpec("embeddings", "float32", ("B", "D"), "not normalised", fetched=True),),
)
MASKS = GraphSpec(
    "masks",
    (
        MASK_LOGITS,
        TensorSpec("selected", "int64", ("n",), "indices of the wanted queries, 0..N-1"),
    ),
    (
        TensorSpec(
            "masks",
            "uint8",
            ("n", "T", "Hs", "Wb"),
            "eight pixels of a row, the first one the highest bit; 1 is the instance, and bits "
            "beyond Ws are 0. The ONNX file gives bool [n, T, Hs, Ws]",
            fetched=True,
        ),
    ),
    (
        TensorSpec("picture_size", "int64", (2,), "height, width of the picture in network pixels"),
        TensorSpec("frame_size", "int64", (2,), "height, width of the masks: Hs, Ws"),
    ),
)


def by_name(*graphs: GraphSpec) -> dict[str, GraphSpec]:
    """Graphs by their names, in order."""
    return {graph.name: graph for graph in graphs}


def bindings(graphs: Mapping[str, GraphSpec]) -> list[tuple[str, str, str]]:
    """Which inputs are tensors of another graph, since they have the same name there.

    Args:
        graphs: of one model, in the order in which a frame meets them.

    Returns:
        (graph, input, source): the input reads the source's tensor of that name, an output of it
        or, as ``frames``, an input; the latest graph before it that has one is the source.
    """
    found, sources = [], dict[str, str]()
    for graph in graphs.values():
        found += [(graph.name, t.name, sources[t.name]) for t in graph.inputs if t.name in sources]
        sources |= {t.name: graph.name for t in graph.outputs}
        for tensor in graph.inputs:
            sources.setdefault(tensor.name, graph.name)
    return found
