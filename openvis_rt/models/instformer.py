"""InstFormer (OpenVIS): open-world masks, then CLIP over all instances at once.

    propose:   frame -> masks, query embeddings, objectness, guidance mask
    classify:  frame, guidance mask, text embeddings -> instance tokens, class logits

Its code is not public. What the paper leaves open is chosen in :mod:`.instformer_config`; each
choice has its alternatives there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from openvis_rt.models.clip import encode_text, open_clip_model
from openvis_rt.models.images import Normalise
from openvis_rt.models.instance_clip import InstanceClip, guidance_mask
from openvis_rt.models.mask2former import Mask2Former
from openvis_rt.systems.instformer import InstFormerConfig
from openvis_rt.systems.variants import CLIP_MEAN, CLIP_STD, VARIANTS, Variant

__all__ = ["InstFormer", "InstFormerConfig", "InstFormerProposal", "build_instformer_r50"]


@dataclass(frozen=True)
class InstFormerProposal:
    """What a frame shows.

    Attributes:
        mask_logits: float32 [N, h, w] at stride 4 of the padded frame.
        queries: float32 [N, C].
        object_logits: float32 [N, 2]; class 0 is an object of any kind.
        guidance: float32 [N, P], row by row of the patch grid.
    """

    mask_logits: Tensor
    queries: Tensor
    object_logits: Tensor
    guidance: Tensor


class InstFormer(nn.Module):
    """The network.

    Args:
        variant: sizes and normalisation.
        config: see its class.
        clip_model: open_clip's whole model; its vision transformer is given instance tokens.
        proposal: finds the instances.

    Attributes:
        tracker: weights of the rollout's recurrence under torch's names, such as ``weight_ih_l0``
            float32 [768, 768]; empty: tokens are matched as they are. They run in the runtime and
            are no part of ``state_dict``.
    """

    clip_model: Any  # open_clip's module; its parts have no types

    def __init__(
        self,
        variant: Variant,
        config: InstFormerConfig,
        clip_model: nn.Module,
        proposal: Mask2Former,
    ) -> None:
        super().__init__()
        self.variant, self.config = variant, config
        self.proposal = proposal
        self.clip_model = clip_model
        self.tracker: dict[str, Tensor] = {}
        self.instance_clip = InstanceClip(
            self.clip_model.visual, self.clip_model.logit_scale, config.guidance
        )
        divisor = variant.size_divisor
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, divisor)
        self.normalise_for_clip = Normalise(CLIP_MEAN, CLIP_STD, divisor)

    def propose(self, frames: Tensor) -> InstFormerProposal:
        """Class-agnostic instances of one frame, uint8 [1, H, W, 3]."""
        images = self.normalise(frames)
        found = self.proposal(images)
        masks = found.mask_logits[0]
        patch = self.instance_clip.patch
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        return InstFormerProposal(
            masks,
            found.queries[0],
            object_logits(found.class_logits[0]),
            guidance_mask(masks, grid, self.config.guidance),
        )

    def classify(
        self, frames: Tensor, guidance: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and class logits of all instances of a frame in one pass.

        Args:
            frames: uint8 [1, H, W, 3], the frame that was proposed on.
            guidance: float32 [N, P], from :meth:`propose` or any other source of masks.
            text_embeddings: float32 [K, D], L2-normalised rows.

        Returns:
            instance tokens float32 [N, D], not normalised, and exp(logit_scale) times their cosine
            with the texts, float32 [N, K].
        """
        tokens = self.instance_clip(self.normalise_for_clip(frames), guidance)
        return tokens, self.instance_clip.logits(tokens, text_embeddings)

    @property
    def tracking_width(self) -> int:
        """Of a tracking token: the query's width and the instance token's."""
        projection = self.clip_model.visual.proj  # [768, 512]
        token = projection.shape[1 if self.config.guidance.projected else 0]
        return int(self.proposal.sem_seg_head.predictor.query_feat.embedding_dim + token)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """See :func:`openvis_rt.models.clip.encode_text`."""
        return encode_text(self.clip_model, tokens)


def object_logits(class_logits: Tensor) -> Tensor:
    """Two logits, any object and none, whose softmax is that of the classes' sum and the rest.

    Args:
        class_logits: float32 [N, classes + 1], the last is "no object".

    Returns:
        float32 [N, 2]: logsumexp of the classes, and the last.
    """
    objects, nothing = class_logits[:, :-1], class_logits[:, -1:]
    if objects.shape[1] > 1:
        objects = objects.logsumexp(dim=1, keepdim=True)
    return torch.cat((objects, nothing), dim=1)


def build_instformer_r50(config: InstFormerConfig | None = None) -> InstFormer:
    """InstFormer with Mask2Former's ResNet-50 and CLIP ViT-B/32, untrained."""
    variant, config = VARIANTS["instformer-r50"], config or InstFormerConfig()
    clip = open_clip_model(replace(variant, quick_gelu=config.quick_gelu))
    proposal = Mask2Former(
        classes=config.classes, decoder_layers=config.decoder_layers, queries=config.queries
    )
    model = InstFormer(variant, config, clip, proposal)
    return model.requires_grad_(requires_grad=False).eval()
