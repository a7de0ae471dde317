"""The models that this toolchain knows, described without any heavy library.

Facts are of the papers and the public implementations' configs, which stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openvis_rt.errors import InputError
from openvis_rt.vocabulary import VILD_PROMPTS

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "VARIANTS",
    "Variant",
    "variant_named",
]


CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)
"""CLIP's normalisation, RGB, for 0..255."""
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Variant:
    """One deployable model.

    Attributes:
        name: what the command line calls it.
        family: the system it belongs to; it decides graphs and scoring.
        tracker: its association rule, the same through a family; see
            :class:`openvis_rt.bundle.bundle.Tracker`.
        backbone: the image encoder, for people.
        clip: the architecture's name in open_clip; empty where the vocabulary is the checkpoint's.
        takes_clip: CLIP's weights are no part of the checkpoint.
        quick_gelu: OpenAI's weights were trained with QuickGELU in both towers.
        embed_dim: D, width of CLIP's shared embedding.
        feature_channels: channels of res2..res5.
        pooling: of CLIP-VIS: how CLIP's dense feature is pooled under a mask, ``attention`` or
            ``average``.
        empty_mask_is_uniform: of CLIP-VIS: an instance without a pixel gets 1/K for every class
            (else the classifier's answer to a zero vector).
        weights: where its weights are to be had, for people.
        short_side, max_side: pixels of the resized frame (detectron2's ResizeShortestEdge).
        size_divisor: the resized frame is padded to multiples of it.
        pixel_mean, pixel_std: RGB, for values 0..255.
        window_length: frames of a window; 1 where the model works frame by frame.
        prompts: templates of the text classifier.
        tracker_frames, tracker_top_k: T and K of the temporal top-K association, as released.
        tracker_alpha: weight of the newest frame in the momentum memory (`ov2seg_model_video.py`).
        detections: instances reported for one video.
    """

    name: str
    family: str
    tracker: str
    backbone: str
    clip: str
    quick_gelu: bool
    embed_dim: int
    feature_channels: tuple[int, int, int, int]
    takes_clip: bool = False
    pooling: str = ""
    empty_mask_is_uniform: bool = False
    weights: str = "public checkpoint"
    short_side: int = 480
    max_side: int = 1333
    size_divisor: int = 32
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    window_length: int = 1
    prompts: tuple[str, ...] = VILD_PROMPTS
    tracker_frames: int = 9
    tracker_top_k: int = 5
    tracker_alpha: float = 0.7
    detections: int = 50


_INSTFORMER = Variant(
    name="instformer-r50",
    family="instformer",
    tracker="rollout",
    backbone="ResNet-50 (Mask2Former), CLIP ViT-B/32 (OpenAI)",
    clip="ViT-B-32",
    quick_gelu=True,
    embed_dim=512,
    feature_channels=(256, 512, 1024, 2048),
    weights="none public: `openvis assemble`",
    short_side=360,
    detections=10,
    pixel_mean=_IMAGENET_MEAN,
    pixel_std=_IMAGENET_STD,
)
_OVFORMER = Variant(  # configs/{lvvis,youtubevis_2019}/*ovformer_{R50,SwinB}_bs8.yaml
    name="ovformer-video-r50",
    family="ovformer-video",
    tracker="previous-window",
    backbone="ResNet-50 (ImageNet-21k), CLIP ViT-B/32 (OpenAI) on whole frames",
    clip="ViT-B-32",
    takes_clip=True,
    quick_gelu=True,
    embed_dim=512,
    feature_channels=(256, 512, 1024, 2048),
    weights="public checkpoint, and CLIP beside it",
    short_side=360,
    window_length=5,
    prompts=("A photo of {}",),
    pixel_mean=_IMAGENET_MEAN,
    pixel_std=_IMAGENET_STD,
)
_OV2SEG = replace(  # scripts/eval_video.sh
    _OVFORMER,
    name="ov2seg-r50",
    family="ov2seg",
    tracker="momentum",
    backbone="ResNet-50 (ImageNet-21k)",
    short_side=480,
    window_length=1,
    prompts=VILD_PROMPTS,
)


def _with_swin(variant: Variant) -> Variant:
    return replace(
        variant,
        name=variant.name.replace("r50", "swin-b"),
        backbone=variant.backbone.replace("ResNet-50", "Swin-B"),
        feature_channels=(128, 256, 512, 1024),
        short_side=480,
    )


_OVFORMER_FRAME = replace(
    _OVFORMER,
    name="ovformer-frame-r50",
    family="ovformer-frame",
    tracker="momentum",
    window_length=1,
    detections=10,  # of YouTube-VIS; 20 of OVIS, 50 of BURST and LV-VIS
)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(  # configs/clipvis_video_{R50,ConvNeXt-B}.yaml
            name="clip-vis-r50",
            family="clip-vis",
            tracker="temporal-top-k",
            backbone="CLIP ResNet-50 (OpenAI)",
            clip="RN50",
            quick_gelu=True,
            pooling="attention",
            empty_mask_is_uniform=True,
            embed_dim=1024,
            feature_channels=(256, 512, 1024, 2048),
        ),
        Variant(
            name="clip-vis-convnext-b",
            family="clip-vis",
            tracker="temporal-top-k",
            backbone="CLIP ConvNeXt-B wide 320 (LAION aesthetic)",
            clip="convnext_base_w_320",
            quick_gelu=False,
            pooling="average",
            empty_mask_is_uniform=False,
            embed_dim=640,
            feature_channels=(128, 256, 512, 1024),
        ),
        _INSTFORMER,
        replace(
            _INSTFORMER,
            name="minvis-clip-r50",
            family="minvis-clip",
            tracker="previous-frame",
            backbone="ResNet-50 (Mask2Former), CLIP ViT-B/32 (OpenAI) on crops",
        ),
        _OVFORMER,
        _with_swin(_OVFORMER),
        _OVFORMER_FRAME,
        _with_swin(_OVFORMER_FRAME),
        _OV2SEG,
        _with_swin(_OV2SEG),
        replace(
            _INSTFORMER,
            name="minvis-r50",
            family="minvis",
            tracker="previous-frame",
            backbone="ResNet-50 (Mask2Former)",
            weights="public checkpoint",
            clip="",
            embed_dim=0,
        ),
    )
}


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        InputError: there is none; the message lists those that exist.
    """
    if name not in VARIANTS:
        raise InputError(f"there is no model {name!r}; known models: {', '.join(VARIANTS)}")
    return VARIANTS[name]
