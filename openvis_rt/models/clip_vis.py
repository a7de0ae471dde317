"""CLIP-VIS: CLIP's image encoder, the shared trunk, three heads, and classification under masks.

    propose:   frame -> masks, query embeddings, objectness, predicted IoU, CLIP's dense feature
    classify:  dense feature, masks, text embeddings -> p(class | instance)

Paper: CLIP-VIS, section III. Where the public code differs from the paper, the code is followed,
since the released weights were trained with it: attention pooling for ResNet-50, softmax of 100
cos.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.clip import ClipBackbone, clip_backbone
from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import SegmentationHead
from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.models.query_decoder import MLP, QueryDecoder
from openvis_rt.systems.variants import VARIANTS, Variant

__all__ = [
    "ClipVis",
    "Proposal",
    "build_clip_vis_convnext_b",
    "build_clip_vis_r50",
]


@dataclass(frozen=True)
class Proposal:
    """What one batch of frames shows.

    Attributes:
        mask_logits: float32 [B, N, h, w] at stride 4 of the padded frame.
        queries: float32 [B, N, C], after ``decoder_norm``.
        object_logits: float32 [B, N, 2]; class 0 is an object.
        mask_iou: float32 [B, N], 0..1.
        features: CLIP's dense feature, float32 [B, Cf, h/8, w/8].
    """

    mask_logits: Tensor
    queries: Tensor
    object_logits: Tensor
    mask_iou: Tensor
    features: Tensor


class ClipVisDecoder(QueryDecoder):
    """The shared query decoder with CLIP-VIS's objectness and IoU heads."""

    def __init__(self, *, layers: int, queries: int = 100, width: int = 256) -> None:
        super().__init__(layers=layers, queries=queries, width=width)
        self.iou_head = MLP(width, width, 1, 3)
        self.object_embed = MLP(width, width, 2, 3)

    def heads(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits [B, N, 2] and predicted IoU [B, N] of normed embeddings [B, N, C]."""
        return self.object_embed(embedding), self.iou_head(embedding)[..., 0].sigmoid()


class ClipVis(nn.Module):
    """The network; ``state_dict`` has the keys of the official checkpoints."""

    def __init__(
        self, variant: Variant, backbone: ClipBackbone, head: SegmentationHead[ClipVisDecoder]
    ) -> None:
        super().__init__()
        self.variant = variant
        self.backbone = backbone
        self.sem_seg_head = head
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)

    def propose(self, frames: Tensor) -> Proposal:
        """Class-agnostic instances of each frame; frames uint8 [B, H, W, 3]."""
        features = self.backbone(self.normalise(frames))
        mask_features, memory = self.sem_seg_head.pixel_decoder(features)
        predictor = self.sem_seg_head.predictor
        queries, mask_logits = predictor(mask_features, memory)
        object_logits, mask_iou = predictor.heads(queries)
        return Proposal(mask_logits, queries, object_logits, mask_iou, features["res5"])

    def pool_mask(self, mask_logits: Tensor) -> Tensor:
        """Where to pool.

        Args:
            mask_logits: float32 [B, N, h, w] at stride 4.

        Returns:
            bool [B, N, h/8, w/8]: bilinear(mask_logits) > 0 on the grid of the dense feature.
        """
        size = (mask_logits.shape[-2] // 8, mask_logits.shape[-1] // 8)
        return F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False) > 0

    def classify(
        self, features: Tensor, pool_mask: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Classify the instances of one frame.

        Args:
            features: CLIP's dense feature, float32 [1, Cf, hp, wp].
            pool_mask: bool [N, hp, wp].
            text_embeddings: float32 [K, D], L2-normalised rows.

        Returns:
            instance tokens float32 [N, D], and class scores float32 [N, K]: over the K rows,
            softmax(exp(logit_scale) * cos). Rows that are synonyms of one class are merged by
            the runtime (`merge_synonyms` in its scoring).
        """
        tokens = self.backbone.pool(features, pool_mask)
        unit = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        logits = self.backbone.logit_scale() * (unit @ text_embeddings.T)
        if self.variant.empty_mask_is_uniform:  # type: ignore[attr-defined]
            logits = logits * pool_mask.flatten(1).any(dim=1, keepdim=True).to(logits.dtype)
        return tokens, logits.softmax(-1)


def _build(variant: Variant, *, decoder_layers: int, queries: int) -> ClipVis:
    head = SegmentationHead(
        PixelDecoder(variant.feature_channels),
        ClipVisDecoder(layers=decoder_layers, queries=queries),
    )
    return ClipVis(variant, clip_backbone(variant), head).requires_grad_(requires_grad=False).eval()


def build_clip_vis_r50(*, decoder_layers: int = 9, queries: int = 100) -> ClipVis:
    """CLIP-VIS with CLIP's ResNet-50; 6 decoder layers for LVIS weights, 9 for COCO + YTVIS."""
    return _build(VARIANTS["clip-vis-r50"], decoder_layers=decoder_layers, queries=queries)


def build_clip_vis_convnext_b(*, decoder_layers: int = 9, queries: int = 100) -> ClipVis:
    """CLIP-VIS with CLIP's ConvNeXt-B; 6 or 9 decoder layers as for ResNet-50."""
    return _build(VARIANTS["clip-vis-convnext-b"], decoder_layers=decoder_layers, queries=queries)
