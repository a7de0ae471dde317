"""CLIP-VIS: the masks are pooled over CLIP's own dense feature (Zhu et al., section III).

Facts are of the public configs `configs/clipvis_video_{R50,ConvNeXt-B}.yaml` and of
`clipvis/clipvis_video.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openvis_rt.systems.graphs import (
    FEATURES,
    FRAMES,
    INSTANCE_TOKENS,
    MASK_AREA,
    MASK_IOU,
    MASK_LOGITS,
    MASK_MASS,
    MASKS,
    OBJECT_LOGITS,
    POOL_MASK,
    QUERIES,
    TEXT,
    TEXT_EMBEDDINGS,
    GraphSpec,
    TensorSpec,
    by_name,
)
from openvis_rt.systems.miniature import MINI_CLIP_RESNET, MINI_SIZES
from openvis_rt.systems.system import (
    CLIP_MEAN,
    CLIP_STD,
    Score,
    Signature,
    System,
    Tracker,
    Variant,
)

__all__ = ["CLIP_VIS", "ClipVisVariant"]


@dataclass(frozen=True, kw_only=True)
class ClipVisVariant(Variant):
    """A model of CLIP-VIS.

    Attributes:
        empty_mask_is_uniform: an instance without a pixel gets 1/K for every class, else the
            classifier's answer to a zero vector.
    """

    empty_mask_is_uniform: bool


CLIP_VIS = System(
    name="clip-vis",
    title="CLIP-VIS",
    network="clip_vis",
    graphs=by_name(
        GraphSpec(
            "propose",
            (FRAMES,),
            (
                MASK_LOGITS,
                QUERIES,
                OBJECT_LOGITS,
                MASK_IOU,
                FEATURES,
                POOL_MASK,
                MASK_AREA,
                MASK_MASS,
            ),
        ),
        GraphSpec(
            "classify",
            (FEATURES, POOL_MASK, TEXT_EMBEDDINGS),
            (
                INSTANCE_TOKENS,
                TensorSpec(
                    "class_scores",
                    "float32",
                    ("N", "K"),
                    "softmax over the K rows of exp(logit_scale) * cosine; uniform where the mask "
                    "is empty and the model says so",
                    fetched=True,
                ),
            ),
        ),
        TEXT,
        MASKS,
    ),
    # T and K as released; the paper's best K is 3
    tracker=Tracker("temporal-top-k", parameters={"frames": 9, "top_k": 5}),
    score=Score("frame-probabilities"),
    tracks_by="temporal top-K, T = {frames}, K = {top_k}",
    signature=Signature(
        "clip-vis", (r"backbone\.clip_model\.visual\.", r"sem_seg_head\.predictor\.iou_head\.")
    ),
    variants=(
        ClipVisVariant(
            name="clip-vis-r50",
            system="clip-vis",
            backbone="CLIP ResNet-50 (OpenAI)",
            encoder="clip-resnet",
            encoder_key="backbone.clip_model.visual.layer4.",
            feature_channels=(256, 512, 1024, 2048),
            clip="RN50",
            quick_gelu=True,
            embed_dim=1024,
            empty_mask_is_uniform=True,
            other_names="coco",
            short_side=480,
            pixel_mean=CLIP_MEAN,
            pixel_std=CLIP_STD,
            detections=50,
        ),
        ClipVisVariant(
            name="clip-vis-convnext-b",
            system="clip-vis",
            backbone="CLIP ConvNeXt-B wide 320 (LAION aesthetic)",
            encoder="clip-convnext",
            encoder_key="backbone.clip_model.visual.trunk.",
            feature_channels=(128, 256, 512, 1024),
            clip="convnext_base_w_320",
            quick_gelu=False,
            embed_dim=640,
            empty_mask_is_uniform=False,
            other_names="coco",
            short_side=480,
            pixel_mean=CLIP_MEAN,
            pixel_std=CLIP_STD,
            detections=50,
        ),
        ClipVisVariant(
            name="clip-vis-mini",
            system="clip-vis",
            backbone="CLIP ResNet (miniature)",
            encoder="clip-resnet",
            encoder_key="backbone.clip_model.visual.layer4.",
            feature_channels=(64, 128, 256, 512),
            decoder_layers=3,
            queries=20,
            sizes=replace(MINI_SIZES, encoder_hidden=192, decoder_hidden=192),
            clip="a miniature",
            clip_config=MINI_CLIP_RESNET,
            quick_gelu=False,
            embed_dim=128,
            empty_mask_is_uniform=True,
            weights="a miniature: `docs/training.md`",
            other_names="miniature",
            short_side=128,
            pixel_mean=CLIP_MEAN,
            pixel_std=CLIP_STD,
            detections=10,
        ),
    ),
)
