"""OV2Seg: queries mapped into CLIP's space, without a look at the frame (Wang et al., LV-VIS).

Facts are of the released evaluation script (`scripts/eval_video.sh`) and the measured behaviour of
`ov2seg_model_video.py`.
"""

from __future__ import annotations

from openvis_rt.systems.graphs import (
    FRAMES,
    MASK_AREA,
    MASK_LOGITS,
    MASK_MASS,
    MASKS,
    OBJECT_LOGITS,
    QUERIES,
    TEXT,
    TEXT_EMBEDDINGS,
    GraphSpec,
    TensorSpec,
    by_name,
)
from openvis_rt.systems.system import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Score,
    Signature,
    System,
    Tracker,
    Variant,
)

__all__ = ["OV2SEG", "ZERO_SHOT_OUTPUTS"]

ZERO_SHOT_OUTPUTS = (
    TensorSpec("instance_tokens", "float32", ("N", "D"), "in CLIP's shared space, not normalised"),
    TensorSpec(
        "class_scores", "float32", ("N", "K"), "50 * cosine: logits of sigmoids", fetched=True
    ),
)
"""Of `classify`, here and in OVFormer."""

OV2SEG = System(
    name="ov2seg",
    title="OV2Seg",
    network="ovformer",
    graphs=by_name(
        GraphSpec(
            "propose", (FRAMES,), (MASK_LOGITS, QUERIES, OBJECT_LOGITS, MASK_AREA, MASK_MASS)
        ),
        GraphSpec("classify", (QUERIES, TEXT_EMBEDDINGS), ZERO_SHOT_OUTPUTS),
        TEXT,
        MASKS,
    ),
    tracker=Tracker("momentum", parameters={"alpha": 0.7}),
    score=Score("frame-logits"),
    tracks_by="momentum memory, {alpha}",
    signature=Signature(
        "ov2seg",
        (
            r"sem_seg_head\.predictor\.class_embed\.linear\.",
            r"sem_seg_head\.predictor\.object_embed\.",
        ),
    ),
    variants=(
        Variant(
            name="ov2seg-r50",
            system="ov2seg",
            backbone="ResNet-50 (ImageNet-21k)",
            encoder="resnet",
            encoder_key="backbone.res5.",
            feature_channels=(256, 512, 1024, 2048),
            decoder_layers=6,
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=480,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            detections=50,
        ),
        Variant(
            name="ov2seg-swin-b",
            system="ov2seg",
            backbone="Swin-B (ImageNet-21k)",
            encoder="swin",
            encoder_key="backbone.patch_embed.",
            feature_channels=(128, 256, 512, 1024),
            decoder_layers=6,
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=480,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            detections=50,
        ),
    ),
)
