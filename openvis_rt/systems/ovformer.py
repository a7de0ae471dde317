"""OVFormer: queries aligned with CLIP's embeddings of whole frames (Fang et al.).

Two systems of one paper and one code base: VideoOVFormer has queries of a window of frames
(`video_ovformer_model.py`), OVFormerVideo works frame by frame (`ovformer_model_video.py`). Facts
are of the public configs `configs/{lvvis,youtubevis_2019}/*ovformer_{R50,SwinB}_bs8.yaml`.

Checkpoints of the two have the same keys and shapes, but were trained on different data, and most
say so. A loss that weighs the 1203 classes of LVIS's images is the per-frame model's; one of
LV-VIS's 1196 is in both (`ovformer/modeling/criterion.py` has either). Then the classifier tells,
if it has LVIS's or LV-VIS's columns, and one for the background.
"""

from __future__ import annotations

from openvis_rt.systems.graphs import (
    FRAMES,
    IMAGE_EMBEDDINGS,
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
from openvis_rt.systems.miniature import MINI_CLIP_VIT, MINI_SIZES
from openvis_rt.systems.ov2seg import OV2SEG, ZERO_SHOT_OUTPUTS
from openvis_rt.systems.system import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Score,
    Signature,
    System,
    Tracker,
    Variant,
)

__all__ = ["CLASSIFIER", "LOSS_WEIGHTS", "LVIS_CLASSES", "LVVIS_CLASSES", "OVFORMERS"]

LOSS_WEIGHTS = "criterion.freq_weight"  # [classes]
CLASSIFIER = "sem_seg_head.predictor.class_embed.zs_weight"  # [D, classes + 1]
LVIS_CLASSES, LVVIS_CLASSES = 1203, 1196

_SIGNATURE = Signature("ovformer", (r"sem_seg_head\.predictor\.class_embed\.cross_attention\.",))
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
    (IMAGE_EMBEDDINGS,),
)
_CLASSIFY = GraphSpec("classify", (QUERIES, IMAGE_EMBEDDINGS, TEXT_EMBEDDINGS), ZERO_SHOT_OUTPUTS)

_VIDEO = System(
    name="ovformer-video",
    title="OVFormer (VideoOVFormer)",
    network="ovformer",
    graphs=by_name(
        GraphSpec(
            "propose",
            (FRAMES,),
            (
                MASK_LOGITS,
                QUERIES,
                OBJECT_LOGITS,
                TensorSpec(
                    "mask_area",
                    "float32",
                    ("N", "T"),
                    "number of mask_logits > 0, a frame",
                    fetched=True,
                ),
            ),
        ),
        _EMBED,
        _CLASSIFY,
        TEXT,
        MASKS,
    ),
    tracker=Tracker("momentum", parameters={"alpha": 1.0}),
    score=Score("mean-logits", {"formula": "sigmoid-objectness", "visible_only": False}),
    tracks_by="the previous window",
    signature=_SIGNATURE,
    variants=(
        Variant(
            name="ovformer-video-r50",
            system="ovformer-video",
            backbone="ResNet-50 (ImageNet-21k), CLIP ViT-B/32 (OpenAI) on whole frames",
            encoder="resnet",
            encoder_key="backbone.res5.",
            feature_channels=(256, 512, 1024, 2048),
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=360,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            window_length=5,
            prompts=("A photo of {}",),
            detections=50,
        ),
        Variant(
            name="ovformer-video-swin-b",
            system="ovformer-video",
            backbone="Swin-B (ImageNet-21k), CLIP ViT-B/32 (OpenAI) on whole frames",
            encoder="swin",
            encoder_key="backbone.patch_embed.",
            feature_channels=(128, 256, 512, 1024),
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=480,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            window_length=5,
            prompts=("A photo of {}",),
            detections=50,
        ),
        Variant(
            name="ovformer-mini",
            system="ovformer-video",
            backbone="ResNet, CLIP ViT of patch 16 on whole frames (miniatures)",
            encoder="resnet",
            encoder_key="backbone.res5.",
            feature_channels=(64, 128, 192, 256),
            decoder_layers=3,
            queries=20,
            sizes=MINI_SIZES,
            clip="a miniature",
            clip_config=MINI_CLIP_VIT,
            takes_clip=True,
            quick_gelu=False,
            embed_dim=128,
            weights="a miniature: `docs/training.md`",
            short_side=128,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            window_length=5,
            prompts=("A photo of {}",),
            detections=10,
        ),
    ),
)

_FRAME = System(
    name="ovformer-frame",
    title="OVFormer (OVFormerVideo)",
    network="ovformer",
    graphs=by_name(
        GraphSpec(
            "propose", (FRAMES,), (MASK_LOGITS, QUERIES, OBJECT_LOGITS, MASK_AREA, MASK_MASS)
        ),
        _EMBED,
        _CLASSIFY,
        TEXT,
        MASKS,
    ),
    tracker=OV2SEG.tracker,
    score=OV2SEG.score,
    tracks_by=OV2SEG.tracks_by,
    signature=_SIGNATURE,
    variants=(
        Variant(
            name="ovformer-frame-r50",
            system="ovformer-frame",
            backbone="ResNet-50 (ImageNet-21k), CLIP ViT-B/32 (OpenAI) on whole frames",
            encoder="resnet",
            encoder_key="backbone.res5.",
            feature_channels=(256, 512, 1024, 2048),
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=360,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            prompts=("A photo of {}",),
            detections=10,  # of YouTube-VIS; 20 of OVIS, 50 of BURST and LV-VIS
        ),
        Variant(
            name="ovformer-frame-swin-b",
            system="ovformer-frame",
            backbone="Swin-B (ImageNet-21k), CLIP ViT-B/32 (OpenAI) on whole frames",
            encoder="swin",
            encoder_key="backbone.patch_embed.",
            feature_channels=(128, 256, 512, 1024),
            clip="ViT-B-32",
            takes_clip=True,
            quick_gelu=True,
            embed_dim=512,
            weights="public checkpoint, and CLIP beside it",
            short_side=480,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            prompts=("A photo of {}",),
            detections=10,
        ),
    ),
)

OVFORMERS = (_VIDEO, _FRAME)
"""VideoOVFormer and OVFormerVideo."""
