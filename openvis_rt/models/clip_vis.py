"""CLIP-VIS: CLIP's image encoder, the shared trunk, three heads, and classification under masks.

    propose:   frame -> masks, query embeddings, objectness, predicted IoU, CLIP's dense feature
    classify:  dense feature, masks, text embeddings -> p(class | instance)

Paper: CLIP-VIS, section III. Where the public code differs from the paper, the code is followed,
since the released weights were trained with it: attention pooling for ResNet-50, softmax of 100
cos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from openvis_rt.models.clip import ClipBackbone, clip_backbone
from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import SegmentationHead, pixel_decoder_of
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.network import Network
from openvis_rt.models.query_decoder import MLP, QueryDecoder, decoder_sizes
from openvis_rt.systems.clip_vis import ClipVisVariant
from openvis_rt.systems.system import Variant

__all__ = ["ClipVis", "ClipVisDecoder", "build", "sizes_of_checkpoint"]


class ClipVisDecoder(QueryDecoder):
    """The shared query decoder with CLIP-VIS's objectness and IoU heads."""

    def __init__(
        self, *, layers: int, queries: int = 100, width: int = 256, hidden: int = 2048
    ) -> None:
        super().__init__(layers=layers, queries=queries, width=width, hidden=hidden)
        self.iou_head = MLP(width, width, 1, 3)
        self.object_embed = MLP(width, width, 2, 3)

    def heads(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits [B, N, 2] and predicted IoU [B, N] of normed embeddings [B, N, C]."""
        return self.object_embed(embedding), self.iou_head(embedding)[..., 0].sigmoid()


class ClipVis(Network):
    """The network; ``state_dict`` has the keys of the official checkpoints."""

    def __init__(
        self, variant: Variant, backbone: ClipBackbone, head: SegmentationHead[ClipVisDecoder]
    ) -> None:
        super().__init__(variant)
        assert isinstance(variant, ClipVisVariant)
        self.empty_mask_is_uniform = variant.empty_mask_is_uniform
        self.backbone = backbone
        self.sem_seg_head = head
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)

    @property
    def clip_model(self) -> Any:  # the backbone's, whose keys the checkpoints have
        """open_clip's whole model."""
        return self.backbone.clip_model

    def sizes(self) -> dict[str, int]:
        """N and C."""
        return self.sem_seg_head.predictor.sizes()

    def propose(self, frames: Tensor) -> dict[str, Tensor]:
        """Class-agnostic instances of one frame, uint8 [1, H, W, 3]: the outputs of `propose`."""
        features = self.backbone(self.normalise(frames))
        mask_features, memory = self.sem_seg_head.pixel_decoder(features)
        predictor = self.sem_seg_head.predictor
        queries, mask_logits = predictor(mask_features, memory)
        object_logits, mask_iou = predictor.heads(queries)
        pool_mask = self.pool_mask(mask_logits)
        area, mass = mask_quality(mask_logits)
        return {
            "mask_logits": mask_logits.transpose(0, 1),  # [N, T, h, w]
            "queries": queries[0],
            "object_logits": object_logits[0],
            "mask_iou": mask_iou[0],
            "features": features["res5"],
            "pool_mask": pool_mask[0],
            "mask_area": area[0],
            "mask_mass": mass[0],
        }

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
    ) -> dict[str, Tensor]:
        """Classify the instances of one frame.

        Args:
            features: CLIP's dense feature, float32 [1, Cf, hp, wp].
            pool_mask: bool [N, hp, wp].
            text_embeddings: float32 [K, D], L2-normalised rows.

        Returns:
            ``instance_tokens`` float32 [N, D], and ``class_scores`` float32 [N, K]: over the K
            rows, softmax(exp(logit_scale) * cos). Rows that are synonyms of one class are merged by
            the runtime (`merge_synonyms` in its scoring).
        """
        tokens = self.backbone.pool(features, pool_mask)
        unit = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        logits = self.backbone.logit_scale() * (unit @ text_embeddings.T)
        if self.empty_mask_is_uniform:
            logits = logits * pool_mask.flatten(1).any(dim=1, keepdim=True).to(logits.dtype)
        return {"instance_tokens": tokens, "class_scores": logits.softmax(-1)}


def build(
    variant: Variant, decoder_layers: int | None = None, queries: int | None = None
) -> ClipVis:
    """CLIP-VIS, untrained.

    Args:
        variant: whose CLIP is the image encoder.
        decoder_layers: 6 for LVIS weights, 9 for those of COCO and YouTube-VIS; None for the
            variant's.
        queries: N; None for the variant's.
    """
    sizes = variant.sizes
    head = SegmentationHead(
        pixel_decoder_of(variant),
        ClipVisDecoder(
            layers=decoder_layers or variant.decoder_layers,
            queries=queries or variant.queries,
            width=sizes.width,
            hidden=sizes.decoder_hidden,
        ),
    )
    return ClipVis(variant, clip_backbone(variant), head).requires_grad_(requires_grad=False).eval()


def sizes_of_checkpoint(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What :func:`build` needs to know of a checkpoint."""
    return decoder_sizes(state)
