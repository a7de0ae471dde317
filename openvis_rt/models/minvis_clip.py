"""MinVIS-CLIP: a square crop of every instance through plain CLIP, N passes for N instances.

The baseline that OpenVIS argues against (its section 4). Its proposals are InstFormer's, so that
only the classifier differs:

    propose:   frame -> masks, query embeddings, objectness
    classify:  frame, masks, text embeddings -> instance tokens, class logits

The text says "masked square crop of each instance, 224 px, background 0, CLIP mean and deviation".
What it leaves open is chosen here, for instance i with its mask m_i on the frame's pixels I:

    m_i      the mask logits bilinear to the padded frame, cut to the frame, > 0
    box      its first and last row and column; the side s of the square is the longer of the two
             lengths, and its middle the box's, half a pixel towards 0 where it lies between two
    crop_i   the square of I m_i, bilinear to 224 x 224 without antialiasing, as

                 crop_i = R_i (I m_i) C_i^T,    R_i [224, H], C_i [224, W]

A square that reaches over the frame's border is filled up with background: it keeps its middle and
its proportions. An instance without a pixel is the whole frame's square, all background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.errors import InputError
from openvis_rt.models.clip import encode_image, picture_side
from openvis_rt.models.images import Normalise
from openvis_rt.models.instformer import (
    InstFormer,
    clip_and_proposal,
    default_config,
    object_logits,
)
from openvis_rt.models.mask2former import Mask2Former
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.network import Network
from openvis_rt.systems.instformer import InstFormerConfig
from openvis_rt.systems.minvis_clip import MINVIS_CLIP
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD, Variant

__all__ = [
    "Background",
    "CropConfig",
    "MaskedCrops",
    "MinVisClip",
    "boxes_of",
    "build",
    "crop_weights",
]

Background = Literal["black", "mean"]


@dataclass(frozen=True)
class CropConfig:
    """The choice that is a field.

    Attributes:
        background: what is outside the mask. ``black``: pixels of 0, before the normalisation, in
            the order in which the text names the steps. ``mean``: 0 after it, CLIP's mean colour.
    """

    background: Background = "black"

    def __post_init__(self) -> None:
        if self.background not in get_args(Background):
            raise InputError(
                f"background is one of {', '.join(get_args(Background))}; got {self.background!r}"
            )


def boxes_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Squares around masks.

    Args:
        mask: float32 [N, H, W] of 0 and 1.

    Returns:
        their first row and column, float32 [N, 2] of whole numbers, which may lie outside the
        frame; and their sides, float32 [N, 1]. Without a pixel: the square of the whole frame.
    """
    spans = [_span(mask.amax(dim=axis)) for axis in (2, 1)]
    first, length = (torch.stack(values, dim=1) for values in zip(*spans, strict=True))
    side = length.amax(dim=1, keepdim=True)
    return first + ((length - side) / 2).floor(), side


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First place and length of what lies between the outermost ones of float32 [N, L], 0 or 1."""
    size = occupied.shape[1]
    place = torch.arange(size, dtype=occupied.dtype, device=occupied.device)
    last = (occupied * (place + 1)).amax(dim=1)  # one behind it; 0 where there is none
    first = size - (occupied * (size - place)).amax(dim=1)
    empty = 1 - occupied.amax(dim=1)
    first = first * (1 - empty)
    return first, last + empty * size - first


def crop_weights(start: Tensor, side: Tensor, size: int, frame: int) -> Tensor:
    """Bilinear weights of a crop along one axis.

    Args:
        start: first pixel of the crop, float32 [N, 1]; it may be negative.
        side: its length in pixels, float32 [N, 1], at least 1.
        size: pixels of the result.
        frame: pixels of the frame.

    Returns:
        float32 [N, size, frame]: what ``F.interpolate(crop, mode="bilinear", align_corners=False)``
        takes of each pixel. Pixels outside the frame have no column, so they count as 0.
    """
    centres = torch.arange(size, dtype=start.dtype, device=start.device) + 0.5
    inside = centres * (side / size) - 0.5
    place = start + torch.minimum(inside.clamp(min=0.0), side - 1)  # [N, size]
    pixels = torch.arange(frame, dtype=start.dtype, device=start.device)
    return (1 - (place[..., None] - pixels).abs()).clamp(min=0.0)


class MaskedCrops(nn.Module):
    """Frame and masks to CLIP's input.

    Its path in an exported graph ends in ``crops``, by which the FP16 export knows what to leave in
    FP32 (:mod:`openvis_rt.export.fp16.keeps`).

    Args:
        size: pixels of a crop's side.
        config: see its class.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, config: CropConfig) -> None:
        super().__init__()
        self.size, self.config = size, config
        for name, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, frames: Tensor, mask_logits: Tensor) -> Tensor:
        """Crop every instance.

        Args:
            frames: uint8, or float32 of 0..255, [1, H, W, 3], RGB.
            mask_logits: float32 [N, 1, h, w] at stride 4 of the padded frame.

        Returns:
            float32 [N, 3, size, size].
        """
        height, width = frames.shape[1:3]
        padded = [4 * side for side in mask_logits.shape[-2:]]
        logits = F.interpolate(mask_logits, size=padded, mode="bilinear", align_corners=False)
        mask = (logits[:, 0, :height, :width] > 0).to(torch.float32)
        start, side = boxes_of(mask)
        rows = crop_weights(start[:, :1], side, self.size, height)
        columns = crop_weights(start[:, 1:], side, self.size, width)
        pixels = frames.to(torch.float32).permute(0, 3, 1, 2)
        if self.config.background == "mean":
            pixels = (pixels - self.mean) / self.std
        shown = pixels * mask[:, None]  # [N, 3, H, W]
        crops = rows[:, None] @ (shown @ columns.transpose(1, 2)[:, None])
        return crops if self.config.background == "mean" else (crops - self.mean) / self.std


class MinVisClip(Network):
    """The network.

    Args:
        variant: sizes and normalisation.
        config: see its class.
        clip_model: open_clip's whole model, used as it is.
        proposal: finds the instances.
    """

    def __init__(
        self, variant: Variant, config: CropConfig, clip_model: nn.Module, proposal: Mask2Former
    ) -> None:
        super().__init__(variant)
        self.config = config
        self.proposal, self.clip_model = proposal, clip_model
        self.crops = MaskedCrops(picture_side(clip_model), config)
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)

    @classmethod
    def from_instformer(
        cls, model: InstFormer, config: CropConfig | None = None, variant: Variant | None = None
    ) -> MinVisClip:
        """The baseline over an InstFormer's own proposals and CLIP.

        Its parts are shared, not copied. Where the model's adapter was merged into CLIP, the crops
        go through the adapted CLIP as well: for plain CLIP, give a model without an adapter.

        Args:
            model: whose parts it takes.
            config: see its class; None for the default.
            variant: its own; None for the system's first.
        """
        variant = variant or MINVIS_CLIP.variants[0]
        out = cls(variant, config or CropConfig(), model.clip_model, model.proposal)
        return out.requires_grad_(requires_grad=False).eval()

    def sizes(self) -> dict[str, int]:
        """N and C."""
        return self.proposal.predictor.sizes()

    def propose(self, frames: Tensor) -> dict[str, Tensor]:
        """Class-agnostic instances of one frame, uint8 [1, H, W, 3]: the outputs of `propose`."""
        found = self.proposal(self.normalise(frames))
        logits, queries = found.mask_logits[0], found.queries[0]
        objects = object_logits(found.class_logits[0])
        masks = logits[:, None]  # [N, T, h, w]
        return {
            "mask_logits": masks,
            "queries": queries,
            "object_logits": objects,
            "mask_area": mask_quality(masks)[0][:, 0],
        }

    def classify(
        self, frames: Tensor, mask_logits: Tensor, text_embeddings: Tensor
    ) -> dict[str, Tensor]:
        """Tokens and class logits of all instances of a frame, a pass of CLIP for each.

        Args:
            frames: uint8 [1, H, W, 3], the frame that was proposed on.
            mask_logits: float32 [N, 1, h, w], from :meth:`propose` or any other source.
            text_embeddings: float32 [K, D], L2-normalised rows.

        Returns:
            ``instance_tokens``, CLIP's image embeddings float32 [N, D], not normalised, and
            ``class_scores`` float32 [N, K]: exp(logit_scale) (<= 100) times their cosine with the
            texts.
        """
        tokens = encode_image(self.clip_model.visual, self.crops(frames, mask_logits))
        unit = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        scale = self.clip_model.logit_scale.exp().clamp(max=100.0)
        return {"instance_tokens": tokens, "class_scores": scale * (unit @ text_embeddings.T)}


def build(variant: Variant, config: InstFormerConfig | None = None) -> MinVisClip:
    """MinVIS-CLIP, untrained.

    Args:
        variant: whose image encoder and CLIP it has.
        config: an InstFormer's, of which the sizes and CLIP's activation count; None for the
            variant's.
    """
    config = config or default_config(variant)
    model = MinVisClip(variant, CropConfig(), *clip_and_proposal(variant, config))
    return model.requires_grad_(requires_grad=False).eval()
