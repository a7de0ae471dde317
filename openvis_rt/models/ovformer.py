"""OV2Seg and OVFormer: queries that are classified in CLIP's space, frame by frame or clip by clip.

    propose:   frames -> masks, query embeddings, objectness
    embed:     CLIP's picture of each frame -> image embeddings           (OVFormer)
    classify:  queries, image embeddings, text embeddings -> tokens, class logits

One network in three forms, which the variant tells: OV2Seg has no image embeddings; OVFormerVideo
has them, a frame a call; VideoOVFormer has queries of a whole window of 1 to ``window_length`` frames.
Public code: `ovformer_model_video.py`, `video_ovformer_model.py`; OV2Seg, whose heads these share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from openvis_rt.models.clip import encode_text, open_clip_model
from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import Backbone, Trunk
from openvis_rt.models.resnet import ResNet
from openvis_rt.models.swin import Swin
from openvis_rt.models.zero_shot import ZeroShotDecoder, ZeroShotWindowDecoder
from openvis_rt.systems.variants import CLIP_MEAN, CLIP_STD, VARIANTS, Variant

__all__ = [
    "OVFormer",
    "OVFormerProposal",
    "build_ov2seg_r50",
    "build_ov2seg_swin_b",
    "build_ovformer_frame_r50",
    "build_ovformer_frame_swin_b",
    "build_ovformer_video_r50",
    "build_ovformer_video_swin_b",
]


@dataclass(frozen=True)
class OVFormerProposal:
    """What a window, or a frame, shows.

    Attributes:
        mask_logits: float32 [N, T, h, w] at stride 4 of the padded frames.
        queries: float32 [N, C], after ``decoder_norm``.
        object_logits: float32 [N, 2]; class 0 is an object.
    """

    mask_logits: Tensor
    queries: Tensor
    object_logits: Tensor


class OVFormer(nn.Module):
    """The network, and CLIP where its weights are at hand.

    Args:
        variant: which form, sizes and normalisation.
        network: under the official key names.
        clip_model: open_clip's whole model, for image and text embeddings; None without it, and
            then both come from files.
    """

    clip_model: Any  # open_clip's module; its parts have no types

    def __init__(
        self, variant: Variant, network: Trunk[ZeroShotDecoder], clip_model: nn.Module | None
    ) -> None:
        super().__init__()
        self.variant, self.network, self.clip_model = variant, network, clip_model
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)
        self.normalise_picture = Normalise(CLIP_MEAN, CLIP_STD)

    def propose(self, frames: Tensor) -> OVFormerProposal:
        """Instances of a window, uint8 [T, H, W, 3]; T is 1 but for VideoOVFormer."""
        queries, mask_logits = self.network.decode(self.normalise(frames))
        masks = mask_logits[0] if self.variant.window_length > 1 else mask_logits.transpose(0, 1)
        return OVFormerProposal(masks, queries[0], self.network.predictor.object_embed(queries[0]))

    def embed(self, pictures: Tensor) -> Tensor:
        """CLIP's image embeddings.

        Args:
            pictures: uint8, or float32 of 0..255, [T, 224, 224, 3], RGB: the centre crop of each
                frame whose short side was resized to 224 (Pillow's bicubic).

        Returns:
            float32 [T, D], not normalised.
        """
        embeddings: Tensor = self.clip_model.visual(self.normalise_picture(pictures))
        return embeddings

    def classify(
        self, queries: Tensor, text_embeddings: Tensor, image_embeddings: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify queries.

        Args:
            queries: float32 [N, C], from :meth:`propose`.
            text_embeddings: float32 [K, D], L2-normalised rows.
            image_embeddings: float32 [T, D] of the queries' frames; of OVFormer.

        Returns:
            tokens float32 [N, D], not normalised, and logits float32 [N, K], each class for itself:
            its probability is their sigmoid.
        """
        head = self.network.predictor.class_embed
        tokens = head(queries, image_embeddings)
        return tokens, head.logits(tokens, text_embeddings)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """See :func:`openvis_rt.models.clip.encode_text`."""
        return encode_text(self.clip_model, tokens)


def _build(
    name: str,
    backbone: Backbone,
    *,
    decoder_layers: int = 9,
    queries: int = 100,
    with_clip: bool = True,
    quick_gelu: bool = True,
) -> OVFormer:
    variant = VARIANTS[name]
    decoder = ZeroShotDecoder if variant.window_length == 1 else ZeroShotWindowDecoder
    predictor = decoder(
        layers=decoder_layers,
        queries=queries,
        embed_dim=variant.embed_dim,
        aligned=variant.family != "ov2seg",
    )
    clip = open_clip_model(replace(variant, quick_gelu=quick_gelu)) if with_clip else None
    model = OVFormer(variant, Trunk(backbone, predictor), clip)
    return model.requires_grad_(requires_grad=False).eval()


def build_ovformer_video_r50(**sizes: Any) -> OVFormer:
    """VideoOVFormer with ResNet-50, untrained.

    Args:
        sizes: ``decoder_layers`` (9), ``queries`` (100); ``with_clip`` (true) and its
            ``quick_gelu`` (true).
    """
    return _build("ovformer-video-r50", ResNet(), **sizes)


def build_ovformer_video_swin_b(**sizes: Any) -> OVFormer:
    """VideoOVFormer with Swin-B; sizes as for ResNet-50."""
    return _build("ovformer-video-swin-b", Swin(), **sizes)


def build_ovformer_frame_r50(**sizes: Any) -> OVFormer:
    """OVFormerVideo with ResNet-50; sizes as for the video model."""
    return _build("ovformer-frame-r50", ResNet(), **sizes)


def build_ovformer_frame_swin_b(**sizes: Any) -> OVFormer:
    """OVFormerVideo with Swin-B; sizes as for the video model."""
    return _build("ovformer-frame-swin-b", Swin(), **sizes)


def build_ov2seg_r50(*, decoder_layers: int = 6, **sizes: Any) -> OVFormer:
    """OV2Seg with ResNet-50; sizes as for OVFormer, but 6 decoder layers."""
    return _build("ov2seg-r50", ResNet(), decoder_layers=decoder_layers, **sizes)


def build_ov2seg_swin_b(*, decoder_layers: int = 6, **sizes: Any) -> OVFormer:
    """OV2Seg with Swin-B; sizes as for OVFormer, but 6 decoder layers."""
    return _build("ov2seg-swin-b", Swin(), decoder_layers=decoder_layers, **sizes)
