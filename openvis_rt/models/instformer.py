"""InstFormer (OpenVIS): open-world masks, then CLIP over all instances at once.

    propose:   frame -> masks, query embeddings, objectness, guidance mask
    classify:  frame, guidance mask, text embeddings -> instance tokens, class logits

Its code is not public. What the paper leaves open is chosen in :class:`Guidance` and in the fields
of :class:`InstFormerConfig`; each choice has its alternatives there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openvis_rt.errors import InputError
from openvis_rt.models.clip import encode_text, open_clip_model
from openvis_rt.models.images import padded_images
from openvis_rt.models.instance_clip import Guidance, InstanceClip, guidance_mask
from openvis_rt.models.mask2former import Mask2Former
from openvis_rt.variants import VARIANTS, Variant

__all__ = ["InstFormer", "InstFormerConfig", "InstFormerProposal", "build_instformer_r50"]

CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)  # RGB, for 0..255
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


@dataclass(frozen=True)
class InstFormerConfig:
    """What a checkpoint must say of itself beside its weights.

    Attributes:
        guidance: how instances see; see :class:`Guidance`.
        video_score: class scores of a video: the softmax of the mean logits over the frames where
            the mask is not empty, or that times the mean objectness.
        normalise_parts: the two parts of a tracking token are L2-normalised before they are joined.
        classes: of the proposal network's class head, without "no object"; 1 is class-agnostic.
        decoder_layers, queries: of the proposal network.
    """

    guidance: Guidance = field(default_factory=Guidance)
    video_score: Literal["mean-logits", "mean-logits-objectness"] = "mean-logits"
    normalise_parts: bool = True
    classes: int = 1
    decoder_layers: int = 9
    queries: int = 100

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> InstFormerConfig:
        """Inverse of :meth:`to_json`; InputError if a field is unknown or malformed."""
        try:
            return cls(**{**entry, "guidance": Guidance(**entry.get("guidance", {}))})
        except TypeError as exc:
            raise InputError(f"the model's configuration is malformed: {exc}") from exc


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
    """

    clip_model: Any  # open_clip's module; its parts have no types
    pixel_mean: Tensor
    pixel_std: Tensor
    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, variant: Variant, config: InstFormerConfig, clip_model: nn.Module) -> None:
        super().__init__()
        self.variant, self.config = variant, config
        self.proposal = Mask2Former(
            classes=config.classes, decoder_layers=config.decoder_layers, queries=config.queries
        )
        self.clip_model = clip_model
        self.instance_clip = InstanceClip(
            self.clip_model.visual, self.clip_model.logit_scale, config.guidance
        )
        for name, values in (
            ("pixel_mean", variant.pixel_mean),
            ("pixel_std", variant.pixel_std),
            ("clip_mean", CLIP_MEAN),
            ("clip_std", CLIP_STD),
        ):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def propose(self, frames: Tensor) -> InstFormerProposal:
        """Class-agnostic instances of one frame, uint8 [1, H, W, 3]."""
        divisor = self.variant.size_divisor
        images = padded_images(frames, self.pixel_mean, self.pixel_std, divisor)
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
        divisor = self.variant.size_divisor
        images = padded_images(frames, self.clip_mean, self.clip_std, divisor)
        tokens = self.instance_clip(images, guidance)
        return tokens, self.instance_clip.logits(tokens, text_embeddings)

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
    variant = VARIANTS["instformer-r50"]
    model = InstFormer(variant, config or InstFormerConfig(), open_clip_model(variant))
    return model.requires_grad_(requires_grad=False).eval()
