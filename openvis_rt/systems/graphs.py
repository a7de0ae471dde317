"""The graphs of a bundle and the names, types and axes of their inputs and outputs.

These names are a contract: other programs drive the graphs by them. They stand here once and are
used by export, engines, runtime and tests. Sizes are symbols; a bundle's manifest fills them with
its numbers.

    N       queries
    T       frames of one call: 1 for per-frame models, dynamic for windows, 1 to `window_length`
    H, W    network size, pixels; the graph pads it, right and bottom, to multiples of 32: H' x W'
    h, w    stride-4 grid, H'/4 x W'/4
    hp, wp  stride-32 grid, H'/32 x W'/32;  P  hp * wp
    C       query width;  D  embedding width of CLIP;  Dt  width of a token
    Cf      channels of CLIP's dense feature
    Hc, Wc  CLIP's picture of a whole frame: 224 x 224, or the source's size if the graph resizes
    K       rows of the text classifier, dynamic
    Kc      classes of a closed vocabulary, and "no object"
    B       prompts, dynamic
    n       selected queries, dynamic
    Hs, Ws  the source frame's size, the overridable `frame_size` of `masks`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "CLIP_VIS_GRAPHS",
    "DYNAMIC_AXES",
    "GRAPHS_OF_FAMILY",
    "INSTFORMER_GRAPHS",
    "MASKS_PER_RUN",
    "MINVIS_CLIP_GRAPHS",
    "MINVIS_GRAPHS",
    "OV2SEG_GRAPHS",
    "OVFORMER_FRAME_GRAPHS",
    "OVFORMER_VIDEO_GRAPHS",
    "PRECISIONS",
    "GraphSpec",
    "TensorSpec",
    "masks_per_run",
]

DYNAMIC_AXES = frozenset({"K", "B", "n", "T", "Hs", "Ws"})
"""Symbols that may stay symbols in an exported graph; of these, T is a number but for clips."""

PRECISIONS = ("fp32", "fp16")
"""In which graphs can be exported."""

MASKS_PER_RUN = 8
"""The most masks of one run of `masks`, n times T, but for windows of more frames, where a run is one
query's; more are more runs, so buffers stay small."""


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
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    doc: str = ""

    def with_sizes(self, sizes: dict[str, int]) -> TensorSpec:
        """The same tensor with every symbol that ``sizes`` knows replaced by its number."""
        shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in self.shape)
        return TensorSpec(self.name, self.dtype, shape, self.doc)

    def to_json(self) -> dict[str, Any]:
        """The form that ``bundle.json`` holds."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "doc": self.doc,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> TensorSpec:
        """Inverse of :meth:`to_json`."""
        return cls(
            str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"]), str(entry["doc"])
        )


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

    def to_json(self) -> dict[str, Any]:
        """The form that ``bundle.json`` holds."""
        return {
            "name": self.name,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "overridable": [t.to_json() for t in self.overridable],
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> GraphSpec:
        """Inverse of :meth:`to_json`."""
        return cls(
            str(entry["name"]),
            tuple(TensorSpec.from_json(t) for t in entry["inputs"]),
            tuple(TensorSpec.from_json(t) for t in entry["outputs"]),
            tuple(TensorSpec.from_json(t) for t in entry["overridable"]),
        )


_FRAMES = TensorSpec(
    "frames",
    "uint8",
    ("T", "H", "W", 3),
    "RGB 0..255 at network size, or at the source's where the graph resizes",
)
_MASK_LOGITS = TensorSpec(
    "mask_logits", "float32", ("N", "T", "h", "w"), "mask logits at stride 4; > 0 is the instance"
)
_QUERIES = TensorSpec("queries", "float32", ("N", "C"), "query embeddings, not normalised")
_OBJECT_LOGITS = TensorSpec("object_logits", "float32", ("N", 2), "class 0 object, class 1 none")
_MASK_AREA = TensorSpec("mask_area", "float32", ("N",), "number of mask_logits > 0")
_MASK_MASS = TensorSpec("mask_mass", "float32", ("N",), "sum of their sigmoids")
_TEXT_EMBEDDINGS = TensorSpec("text_embeddings", "float32", ("K", "D"), "L2-normalised rows")
_TOKENS = TensorSpec("instance_tokens", "float32", ("N", "D"), "CLIP embeddings, not normalised")
_POOL_MASK = TensorSpec(
    "pool_mask", "bool", ("N", "hp", "wp"), "mask_logits bilinear to the feature's grid, > 0"
)
_GUIDANCE = TensorSpec(
    "guidance_mask",
    "float32",
    ("N", "P"),
    "added to the attention logits of instance n for patch p, rows of patches; from `propose` or "
    "any other source of masks",
)
_CLASS_LOGITS = TensorSpec(
    "class_scores", "float32", ("N", "K"), "exp(logit_scale) * cosine: logits"
)
_IMAGE_EMBEDDINGS = TensorSpec(
    "image_embeddings",
    "float32",
    ("T", "D"),
    "CLIP's image embedding of each whole frame, not normalised; from `embed` or a file",
)
_FEATURES = TensorSpec("features", "float32", ("T", "Cf", "hp", "wp"), "CLIP's dense feature")

_TEXT = GraphSpec(
    "text",
    (TensorSpec("tokens", "int64", ("B", 77), "CLIP's byte-pair tokens, 0-padded"),),
    (TensorSpec("embeddings", "float32", ("B", "D"), "not normalised"),),
)
_MASKS = GraphSpec(
    "masks",
    (
        _MASK_LOGITS,
        TensorSpec("selected", "int64", ("n",), "indices of the wanted queries, 0..N-1"),
    ),
    (TensorSpec("masks", "uint8", ("n", "T", "Hs", "Ws"), "1 is the instance, else 0"),),
    (
        TensorSpec("picture_size", "int64", (2,), "height, width of the picture in network pixels"),
        TensorSpec("frame_size", "int64", (2,), "height, width of the masks: Hs, Ws"),
    ),
)


def _by_name(*graphs: GraphSpec) -> dict[str, GraphSpec]:
    return {graph.name: graph for graph in graphs}


CLIP_VIS_GRAPHS = _by_name(
    GraphSpec(
        "propose",
        (_FRAMES,),
        (
            _MASK_LOGITS,
            _QUERIES,
            _OBJECT_LOGITS,
            TensorSpec("mask_iou", "float32", ("N",), "predicted IoU of the mask, 0..1"),
            _FEATURES,
            _POOL_MASK,
            _MASK_AREA,
            _MASK_MASS,
        ),
    ),
    GraphSpec(
        "classify",
        (_FEATURES, _POOL_MASK, _TEXT_EMBEDDINGS),
        (
            _TOKENS,
            TensorSpec(
                "class_scores",
                "float32",
                ("N", "K"),
                "softmax over the K rows of exp(logit_scale) * cosine; uniform where the mask "
                "is empty and the model says so",
            ),
        ),
    ),
    _TEXT,
    _MASKS,
)
"""CLIP-VIS: the masks are pooled over CLIP's own dense feature."""

INSTFORMER_GRAPHS = _by_name(
    GraphSpec(
        "propose", (_FRAMES,), (_MASK_LOGITS, _QUERIES, _OBJECT_LOGITS, _GUIDANCE, _MASK_AREA)
    ),
    GraphSpec(
        "classify",
        (_FRAMES, _GUIDANCE, _TEXT_EMBEDDINGS),
        (
            TensorSpec(
                "instance_tokens",
                "float32",
                ("N", "Dt"),
                "not normalised; in CLIP's shared space, or before its projection",
            ),
            _CLASS_LOGITS,
        ),
    ),
    _TEXT,
    _MASKS,
)
"""InstFormer: the masks guide the attention of instance tokens inside CLIP."""

MINVIS_CLIP_GRAPHS = _by_name(
    GraphSpec("propose", (_FRAMES,), (_MASK_LOGITS, _QUERIES, _OBJECT_LOGITS, _MASK_AREA)),
    GraphSpec(
        "classify",
        (_FRAMES, _MASK_LOGITS, _TEXT_EMBEDDINGS),
        (_TOKENS, _CLASS_LOGITS),
    ),
    _TEXT,
    _MASKS,
)
"""MinVIS-CLIP: a masked crop of each instance through CLIP."""

_ZERO_SHOT_OUTPUTS = (
    TensorSpec("instance_tokens", "float32", ("N", "D"), "in CLIP's shared space, not normalised"),
    TensorSpec("class_scores", "float32", ("N", "K"), "50 * cosine: logits of sigmoids"),
)
_EMBED = GraphSpec(
    "embed",
    (
        TensorSpec(
            "pictures",
            "uint8",
            ("T", "Hc", "Wc", 3),
            "RGB: CLIP's centre crop of each frame, or the frames where the graph resizes",
        ),
    ),
    (_IMAGE_EMBEDDINGS,),
)
_CLASSIFY_ALIGNED = GraphSpec(
    "classify", (_QUERIES, _IMAGE_EMBEDDINGS, _TEXT_EMBEDDINGS), _ZERO_SHOT_OUTPUTS
)

OVFORMER_VIDEO_GRAPHS = _by_name(
    GraphSpec(
        "propose",
        (_FRAMES,),
        (
            _MASK_LOGITS,
            _QUERIES,
            _OBJECT_LOGITS,
            TensorSpec("mask_area", "float32", ("N", "T"), "number of mask_logits > 0, a frame"),
        ),
    ),
    _EMBED,
    _CLASSIFY_ALIGNED,
    _TEXT,
    _MASKS,
)
"""VideoOVFormer: queries of a whole window, aligned with CLIP's embeddings of its frames."""

OVFORMER_FRAME_GRAPHS = _by_name(
    GraphSpec(
        "propose", (_FRAMES,), (_MASK_LOGITS, _QUERIES, _OBJECT_LOGITS, _MASK_AREA, _MASK_MASS)
    ),
    _EMBED,
    _CLASSIFY_ALIGNED,
    _TEXT,
    _MASKS,
)
"""OVFormerVideo: the same frame by frame."""

OV2SEG_GRAPHS = _by_name(
    OVFORMER_FRAME_GRAPHS["propose"],
    GraphSpec("classify", (_QUERIES, _TEXT_EMBEDDINGS), _ZERO_SHOT_OUTPUTS),
    _TEXT,
    _MASKS,
)
"""OV2Seg: queries mapped into CLIP's space, without a look at the frame."""

MINVIS_GRAPHS = _by_name(
    GraphSpec("propose", (_FRAMES,), (_MASK_LOGITS, _QUERIES, _MASK_AREA)),
    GraphSpec(
        "classify",
        (_QUERIES,),
        (
            TensorSpec(
                "class_scores", "float32", ("N", "Kc"), "logits; the last class is 'no object'"
            ),
        ),
    ),
    _MASKS,
)
"""MinVIS: a closed vocabulary, the classes that the checkpoint was trained on."""

GRAPHS_OF_FAMILY = {
    "clip-vis": CLIP_VIS_GRAPHS,
    "instformer": INSTFORMER_GRAPHS,
    "minvis-clip": MINVIS_CLIP_GRAPHS,
    "ovformer-video": OVFORMER_VIDEO_GRAPHS,
    "ovformer-frame": OVFORMER_FRAME_GRAPHS,
    "ov2seg": OV2SEG_GRAPHS,
    "minvis": MINVIS_GRAPHS,
}
"""By the family of a variant. `embed` and `text` need CLIP's weights, and a bundle of OVFormer or
OV2Seg that was exported without them has neither."""
