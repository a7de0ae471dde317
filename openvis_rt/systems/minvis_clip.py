"""MinVIS-CLIP: a masked crop of each instance through CLIP, the baseline of OpenVIS (section 4)."""

from __future__ import annotations

from openvis_rt.systems.graphs import (
    CLASS_LOGITS,
    FRAMES,
    INSTANCE_TOKENS,
    MASK_AREA,
    MASK_LOGITS,
    MASKS,
    OBJECT_LOGITS,
    QUERIES,
    TEXT,
    TEXT_EMBEDDINGS,
    GraphSpec,
    by_name,
)
from openvis_rt.systems.instformer import INSTFORMER
from openvis_rt.systems.system import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Score,
    System,
    Tracker,
    Variant,
)

__all__ = ["MINVIS_CLIP"]

MINVIS_CLIP = System(
    name="minvis-clip",
    title="MinVIS-CLIP (N times CLIP)",
    network="minvis_clip",
    graphs=by_name(
        GraphSpec("propose", (FRAMES,), (MASK_LOGITS, QUERIES, OBJECT_LOGITS, MASK_AREA)),
        GraphSpec(
            "classify", (FRAMES, MASK_LOGITS, TEXT_EMBEDDINGS), (INSTANCE_TOKENS, CLASS_LOGITS)
        ),
        TEXT,
        MASKS,
    ),
    tracker=Tracker("momentum", parameters={"alpha": 1.0}),
    score=Score("mean-logits", {"formula": "softmax", "visible_only": True}),
    tracks_by="the previous frame",
    signature=INSTFORMER.signature,  # an InstFormer without what was trained on top
    variants=(
        Variant(
            name="minvis-clip-r50",
            system="minvis-clip",
            backbone="ResNet-50 (Mask2Former), CLIP ViT-B/32 (OpenAI) on crops",
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
    ),
)
