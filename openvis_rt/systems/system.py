"""What is written down of a system and of its models; each system fills it in, in its own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.vocabulary import VILD_PROMPTS

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Encoder",
    "Score",
    "Signature",
    "Sizes",
    "System",
    "Tracker",
    "Variant",
]

Colour = tuple[float, float, float]
Encoder = Literal["resnet", "swin", "clip-resnet", "clip-convnext"]
"""Kind of the image encoder under the mask network; the last two are CLIP's own."""

CLIP_MEAN: Colour = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD: Colour = (68.5005327, 66.6321579, 70.32316305)
"""CLIP's normalisation, RGB, for 0..255."""
IMAGENET_MEAN: Colour = (123.675, 116.28, 103.53)
IMAGENET_STD: Colour = (58.395, 57.12, 57.375)
"""Detectron2's normalisation, RGB, for 0..255."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a network in which the released models agree, and the miniatures do not.

    Attributes:
        width: C, of queries, memory and mask features.
        encoder_layers, encoder_hidden: of the pixel decoder, and of its feed-forward networks.
        decoder_hidden: of the query decoder's feed-forward networks.
        blocks: of res2..res5, where the image encoder is a ResNet and not CLIP's own.
    """

    width: int = 256
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_hidden: int = 2048
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One deployable model.

    Attributes:
        name: what the command line calls it.
        system: the name of the system that it belongs to.
        backbone: the image encoders, for people.
        encoder: the kind of the image encoder.
        encoder_key: how a checkpoint's key begins that only this image encoder has.
        feature_channels: channels of res2..res5.
        decoder_layers, queries: of an untrained model; a checkpoint says its own.
        sizes: the other numbers of the network.
        clip: the architecture's name in open_clip; empty where the vocabulary is the checkpoint's.
        clip_config: open_clip's arguments for a CLIP that it has no name for.
        takes_clip: CLIP's weights are no part of the checkpoint.
        quick_gelu: OpenAI's weights were trained with QuickGELU in both towers.
        embed_dim: D, width of CLIP's shared embedding; 0 without CLIP.
        weights: where its weights are to be had, for people.
        short_side, max_side: pixels of the resized frame (detectron2's ResizeShortestEdge).
        size_divisor: the resized frame is padded to multiples of it.
        pixel_mean, pixel_std: RGB, for values 0..255.
        window_length: frames of a window; 1 where the model works frame by frame.
        prompts: templates of the text classifier.
        other_names: the list of :mod:`openvis_rt.vocabulary` that a handful of names competes with
            by default, where a name's score is its share among the names; else empty.
        detections: instances reported for one video.
    """

    name: str
    system: str
    backbone: str
    encoder: Encoder
    encoder_key: str
    feature_channels: tuple[int, int, int, int]
    decoder_layers: int = 9
    queries: int = 100
    sizes: Sizes = Sizes()
    clip: str
    clip_config: Mapping[str, Any] | None = None
    takes_clip: bool = False
    quick_gelu: bool
    embed_dim: int
    weights: str = "public checkpoint"
    short_side: int
    max_side: int = 1333
    size_divisor: int = 32
    pixel_mean: Colour
    pixel_std: Colour
    window_length: int = 1
    prompts: tuple[str, ...] = VILD_PROMPTS
    other_names: str = ""
    detections: int


@dataclass(frozen=True)
class Tracker:
    """An association rule and what it matches.

    Attributes:
        name: a rule of :mod:`openvis_rt.runtime.tracking`: ``temporal-top-k`` (parameters
            ``frames`` T and ``top_k`` K), ``momentum`` (``alpha``, the weight of the newest frame;
            1 is the previous frame or window alone), or ``rollout``, whose recurrence is the
            bundle's ``tracker.safetensors`` if it has one.
        tokens: the outputs that are joined, in this order, to the embedding that is matched.
        normalise_parts: each of them is L2-normalised before they are joined.
        parameters: the rule's own.
    """

    name: str
    tokens: tuple[str, ...] = ("queries",)
    normalise_parts: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How a video's class scores follow from its frames'.

    Attributes:
        name: a rule of :mod:`openvis_rt.runtime.tracking`: ``frame-probabilities`` (CLIP-VIS),
            ``frame-logits`` (OV2Seg), or ``mean-logits``, with ``formula`` (see
            :mod:`openvis_rt.runtime.tracking.mean_logits`) and ``visible_only``: a frame counts
            for a track only where it shows a pixel of it.
        parameters: the rule's own.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """What tells that a file of weights is of one kind.

    Attributes:
        words: what such a checkpoint is of, for people.
        keys: regular expressions; each matches the beginning of some key of it.
    """

    words: str
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class System:
    """A system of models: everything that is known of it before a file is read.

    Attributes:
        name: such as ``clip-vis``.
        title: as its paper calls it.
        network: the module of :mod:`openvis_rt.models` whose ``build`` makes it.
        graphs: what is exported, in the order in which a frame meets them. `embed` and `text` need
            CLIP's weights, and are left out where a model has none.
        tracker, score: how tracks are matched and scored.
        tracks_by: the tracker, for people; the tracker's parameters are filled in.
        signature: of its checkpoints.
        variants: its models.
    """

    name: str
    title: str
    network: str
    graphs: Mapping[str, GraphSpec]
    tracker: Tracker
    score: Score
    tracks_by: str
    signature: Signature
    variants: tuple[Variant, ...]
