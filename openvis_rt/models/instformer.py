"""InstFormer (OpenVIS): open-world masks, then CLIP over all instances at once.

    propose:   frame -> masks, query embeddings, objectness, guidance mask
    classify:  frame, guidance mask, text embeddings -> instance tokens, class logits

Its code is not public. What the paper leaves open is chosen in
:class:`~openvis_rt.systems.instformer.InstFormerConfig`; each choice has its alternatives there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from openvis_rt.models.clip import open_clip_model
from openvis_rt.models.images import Normalise
from openvis_rt.models.instance_clip import InstanceClip, guidance_mask
from openvis_rt.models.mask2former import Mask2Former, mask2former
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.network import Network
from openvis_rt.systems.instformer import InstFormerConfig, instformer_score, instformer_tracker
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD, Variant

__all__ = ["InstFormer", "build", "clip_and_proposal", "default_config", "object_logits"]


class InstFormer(Network):
    """The network.

    Args:
        variant: sizes and normalisation.
        config: see its class.
        clip_model: open_clip's whole model; its vision transformer is given instance tokens.
        proposal: finds the instances.
    """

    def __init__(
        self,
        variant: Variant,
        config: InstFormerConfig,
        clip_model: nn.Module,
        proposal: Mask2Former,
    ) -> None:
        super().__init__(variant)
        self.config = config
        self.tracker, self.score = instformer_tracker(config), instformer_score(config)
        self.proposal = proposal
        self.clip_model = clip_model
        self.instance_clip = InstanceClip(
            self.clip_model.visual, self.clip_model.logit_scale, config.guidance
        )
        self.patch = self.instance_clip.patch
        divisor = variant.size_divisor
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, divisor)
        self.normalise_for_clip = Normalise(CLIP_MEAN, CLIP_STD, divisor)

    def sizes(self) -> dict[str, int]:
        """N, C, and Dt, the width of an instance token."""
        projection = self.clip_model.visual.proj  # [768, 512]
        token = projection.shape[1 if self.config.guidance.projected else 0]
        return {**self.proposal.predictor.sizes(), "Dt": int(token)}

    @property
    def tracking_width(self) -> int:
        """Of a tracking token: the query's width and the instance token's."""
        sizes = self.sizes()
        return sizes["C"] + sizes["Dt"]

    def propose(self, frames: Tensor) -> dict[str, Tensor]:
        """Class-agnostic instances of one frame, uint8 [1, H, W, 3]: the outputs of `propose`."""
        images = self.normalise(frames)
        found = self.proposal(images)
        logits = found.mask_logits[0]
        queries, objects = found.queries[0], object_logits(found.class_logits[0])
        guidance = self.guidance(logits)
        masks = logits[:, None]  # [N, T, h, w]
        return {
            "mask_logits": masks,
            "queries": queries,
            "object_logits": objects,
            "guidance_mask": guidance,
            "mask_area": mask_quality(masks)[0][:, 0],
        }

    def guidance(self, mask_logits: Tensor) -> Tensor:
        """What each instance is told of each patch.

        Args:
            mask_logits: float32 [N, h, w], at stride 4 of the padded frame.

        Returns:
            float32 [N, P].
        """
        height, width = (4 * side for side in mask_logits.shape[-2:])
        grid = (height // self.patch, width // self.patch)
        return guidance_mask(mask_logits, grid, self.config.guidance)

    def classify(
        self, frames: Tensor, guidance_mask: Tensor, text_embeddings: Tensor
    ) -> dict[str, Tensor]:
        """Tokens and class logits of all instances of a frame in one pass.

        Args:
            frames: uint8 [1, H, W, 3], the frame that was proposed on.
            guidance_mask: float32 [N, P], from :meth:`propose` or any other source of masks.
            text_embeddings: float32 [K, D], L2-normalised rows.

        Returns:
            ``instance_tokens`` float32 [N, Dt], not normalised, and ``class_scores`` float32
            [N, K]: exp(logit_scale) times their cosine with the texts.
        """
        tokens = self.instance_clip(self.normalise_for_clip(frames), guidance_mask)
        logits = self.instance_clip.logits(tokens, text_embeddings)
        return {"instance_tokens": tokens, "class_scores": logits}


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


def build(variant: Variant, config: InstFormerConfig | None = None) -> InstFormer:
    """InstFormer, untrained.

    Args:
        variant: whose image encoder and CLIP it has.
        config: see its class; None for the variant's sizes and the released choices.
    """
    config = config or default_config(variant)
    model = InstFormer(variant, config, *clip_and_proposal(variant, config))
    return model.requires_grad_(requires_grad=False).eval()


def default_config(variant: Variant) -> InstFormerConfig:
    """The variant's sizes, and the default of every choice."""
    return InstFormerConfig(
        decoder_layers=variant.decoder_layers,
        queries=variant.queries,
        quick_gelu=variant.quick_gelu,
    )


def clip_and_proposal(variant: Variant, config: InstFormerConfig) -> tuple[nn.Module, Mask2Former]:
    """The two networks that it is made of, untrained: open_clip's model and Mask2Former."""
    clip = open_clip_model(replace(variant, quick_gelu=config.quick_gelu))
    proposal = mask2former(
        variant,
        classes=config.classes,
        decoder_layers=config.decoder_layers,
        queries=config.queries,
    )
    return clip, proposal
