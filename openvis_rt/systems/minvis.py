"""MinVIS: a closed vocabulary, the classes that the checkpoint was trained on."""

from __future__ import annotations

from openvis_rt.systems.graphs import (
    FRAMES,
    MASK_AREA,
    MASK_LOGITS,
    MASKS,
    QUERIES,
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

__all__ = ["MINVIS"]

MINVIS = System(
    name="minvis",
    title="MinVIS",
    network="minvis",
    graphs=by_name(
        GraphSpec("propose", (FRAMES,), (MASK_LOGITS, QUERIES, MASK_AREA)),
        GraphSpec(
            "classify",
            (QUERIES,),
            (
                TensorSpec(
                    "class_scores",
                    "float32",
                    ("N", "Kc"),
                    "logits; the last class is 'no object'",
                    fetched=True,
                ),
            ),
        ),
        MASKS,
    ),
    tracker=Tracker("momentum", parameters={"alpha": 1.0}),
    score=Score("mean-logits", {"formula": "softmax-without-last", "visible_only": False}),
    tracks_by="the previous frame",
    signature=Signature(
        "mask2former or minvis",
        (r"sem_seg_head\.predictor\.mask_embed\.", r"sem_seg_head\.predictor\.class_embed\.weight"),
    ),
    variants=(
        Variant(
            name="minvis-r50",
            system="minvis",
            backbone="ResNet-50 (Mask2Former)",
            encoder="resnet",
            encoder_key="backbone.res5.",
            feature_channels=(256, 512, 1024, 2048),
            clip="",
            quick_gelu=True,
            embed_dim=0,
            short_side=360,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            detections=10,
        ),
    ),
)
