"""InstFormer: the masks guide the attention of instance tokens inside CLIP (OpenVIS, section 3).

Its code is not public. What the paper leaves open is a field of :class:`InstFormerConfig`, which an
assembled checkpoint records.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from openvis_rt.errors import InputError
from openvis_rt.records import check_fields
from openvis_rt.systems.graphs import (
    CLASS_LOGITS,
    FRAMES,
    GUIDANCE_MASK,
    MASK_AREA,
    MASK_LOGITS,
    MASKS,
    OBJECT_LOGITS,
    QUERIES,
    TEXT,
    TEXT_EMBEDDINGS,
    GraphSpec,
    TensorSpec,
    by_name,
)
from openvis_rt.systems.miniature import MINI_CLIP_VIT, MINI_SIZES
from openvis_rt.systems.system import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Score,
    Signature,
    System,
    Tracker,
    Variant,
)

__all__ = [
    "INSTFORMER",
    "Guidance",
    "InstFormerConfig",
    "ToGrid",
    "Values",
    "VideoScore",
    "instformer_score",
    "instformer_tracker",
]

ToGrid = Literal["area", "bilinear", "max"]
Values = Literal["logit", "binary"]
VideoScore = Literal["mean-logits", "mean-logits-objectness"]
_MOST_CLASSES, _MOST_LAYERS, _MOST_QUERIES = 100_000, 100, 10_000


@dataclass(frozen=True)
class Guidance:
    """How instances see; the first value of each field is the default, for reasons in the paper.

    A value of another type, or out of range, is an InputError.

    Attributes:
        to_grid: mask logits to the patch grid: ``area`` average, ``bilinear`` sampling, or ``max``.
        values: ``logit``: the guidance is scale * logit; ``binary``: 0 where the logit is above 0,
            else -100 (the paper's ablation).
        scale, clamp: of ``logit`` guidance, which ends within -clamp..clamp.
        sees_register: instances see the register as well.
        first_block: the block from which on there are instance tokens; 0 in the paper. The side
            adapter of SAN, the nearest public relative, begins at 9.
        projected: instance tokens end in CLIP's shared space (512); else they are what comes before
            the projection (768), and only class logits take them through it.
    """

    to_grid: ToGrid = "area"
    values: Values = "logit"
    scale: float = 1.0
    clamp: float = 30.0
    sees_register: bool = False
    first_block: int = 0
    projected: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.clamp > 0 and self.first_block >= 0):
            raise InputError(
                "clamp must be above 0 and first_block at least 0; got "
                f"{self.clamp} and {self.first_block}"
            )


@dataclass(frozen=True)
class InstFormerConfig:
    """What a checkpoint must say of itself beside its weights.

    A value of another type, or out of range, is an InputError.

    Attributes:
        guidance: how instances see; see :class:`Guidance`.
        video_score: class scores of a video: the softmax of the mean logits over the frames where
            the mask is not empty, or that times the mean objectness.
        normalise_parts: the two parts of a tracking token are L2-normalised before they are joined.
        quick_gelu: CLIP's activation. OpenAI's weights were trained with x * sigmoid(1.702 x),
            LAION's and DataComp's with the exact GELU.
        classes: of the proposal network's class head, without "no object"; 1 is class-agnostic.
        decoder_layers, queries: of the proposal network.
    """

    guidance: Guidance = field(default_factory=Guidance)
    video_score: VideoScore = "mean-logits"
    normalise_parts: bool = True
    quick_gelu: bool = True
    classes: int = 1
    decoder_layers: int = 9
    queries: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        fit = (
            1 <= self.classes <= _MOST_CLASSES
            and 1 <= self.decoder_layers <= _MOST_LAYERS
            and 1 <= self.queries <= _MOST_QUERIES
        )
        if not fit:
            raise InputError(
                "classes, decoder_layers and queries must be at least 1, and at most "
                f"{_MOST_CLASSES}, {_MOST_LAYERS} and {_MOST_QUERIES}; got "
                f"{self.classes}, {self.decoder_layers} and {self.queries}"
            )


INSTFORMER = System(
    name="instformer",
    title="InstFormer (OpenVIS)",
    network="instformer",
    graphs=by_name(
        GraphSpec(
            "propose", (FRAMES,), (MASK_LOGITS, QUERIES, OBJECT_LOGITS, GUIDANCE_MASK, MASK_AREA)
        ),
        GraphSpec(
            "classify",
            (FRAMES, GUIDANCE_MASK, TEXT_EMBEDDINGS),
            (
                TensorSpec(
                    "instance_tokens",
                    "float32",
                    ("N", "Dt"),
                    "not normalised; in CLIP's shared space, or before its projection",
                    fetched=True,
                ),
                CLASS_LOGITS,
            ),
        ),
        TEXT,
        MASKS,
    ),
    # as the released configuration has them; a checkpoint's own may differ, see the two functions
    tracker=Tracker("rollout", tokens=("queries", "instance_tokens"), normalise_parts=True),
    score=Score("mean-logits", {"formula": "softmax", "visible_only": True}),
    tracks_by="rollout of tracking tokens",
    signature=Signature("instformer", (r"proposal\.sem_seg_head\.", r"clip\.visual\.")),
    variants=(
        Variant(
            name="instformer-r50",
            system="instformer",
            backbone="ResNet-50 (Mask2Former), CLIP ViT-B/32 (OpenAI)",
            encoder="resnet",
            encoder_key="proposal.backbone.res5.",
            feature_channels=(256, 512, 1024, 2048),
            clip="ViT-B-32",
            quick_gelu=True,
            embed_dim=512,
            weights="none public: `openvis assemble`",
            other_names="coco",
            short_side=360,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            detections=10,
        ),
        Variant(
            name="instformer-mini",
            system="instformer",
            backbone="ResNet, CLIP ViT of patch 16 (miniatures)",
            encoder="resnet",
            encoder_key="proposal.backbone.res5.",
            feature_channels=(64, 128, 192, 256),
            decoder_layers=3,
            queries=20,
            sizes=MINI_SIZES,
            clip="a miniature",
            clip_config=MINI_CLIP_VIT,
            quick_gelu=False,
            embed_dim=128,
            weights="a miniature: `docs/training.md`",
            other_names="miniature",
            short_side=128,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            detections=10,
        ),
    ),
)


def instformer_tracker(config: InstFormerConfig) -> Tracker:
    """The association of a model with these choices."""
    return replace(INSTFORMER.tracker, normalise_parts=config.normalise_parts)


def instformer_score(config: InstFormerConfig) -> Score:
    """The video score of a model with these choices."""
    objectness = config.video_score == "mean-logits-objectness"
    formula = "softmax-objectness" if objectness else "softmax"
    return Score("mean-logits", {**INSTFORMER.score.parameters, "formula": formula})
