"""CLIP through open_clip: image encoder as a backbone, pooling under a mask, text tower.

Behaviour of `clipvis/modeling/backbone/clip.py`. The whole CLIP model is held as ``clip_model``,
under open_clip's own parameter names, because the official checkpoints carry it so.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.attention import BLOCKED
from openvis_rt.models.clip_blocks import block_after, rows_after
from openvis_rt.systems.graphs import CONTEXT_LENGTH
from openvis_rt.systems.system import Variant

__all__ = [
    "EOT",
    "ClipBackbone",
    "ClipConvNeXt",
    "ClipResNet",
    "clip_backbone",
    "encode_image",
    "encode_text",
    "open_clip_model",
    "picture_side",
]

EOT = 49407
"""Token that ends a phrase; CLIP reads the phrase's embedding there."""


class ClipBackbone(nn.Module):
    """CLIP as a frozen backbone; sub-classes say where features come from and how to pool them."""

    clip_model: Any  # open_clip's module; its parts have no types

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.clip_model = clip_model

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of normalised images.

        Args:
            images: float32 [B, 3, H, W], H and W multiples of 32.

        Returns:
            ``res2``..``res5`` at strides 4..32, float32; ``res5`` is also CLIP's dense feature.
        """

    @abstractmethod
    def pool(self, dense: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of the instances under their masks, in CLIP's image-text space.

        Args:
            dense: CLIP's dense feature of one frame, float32 [1, Cf, h, w].
            mask: bool [N, h, w]; an instance may have no pixel at all.

        Returns:
            float32 [N, D], not normalised.
        """

    def logit_scale(self) -> Tensor:
        """Float32 scalar: exp of CLIP's temperature, at most 100."""
        scale = self.clip_model.logit_scale
        assert isinstance(scale, Tensor)
        return scale.exp().clamp(max=100.0)


def encode_text(clip: Any, tokens: Tensor) -> Tensor:
    """Embeddings of token sequences, read at the end-of-text token.

    A token never sees a later one, so what follows the end of a phrase is of no account: rows that
    are cut behind the longest phrase have the same embeddings as those of 77.

    Args:
        clip: open_clip's model.
        tokens: int64 [B, L], L <= 77, each row with one end.

    Returns:
        float32 [B, D], not normalised.
    """
    length, side = tokens.shape[1], CONTEXT_LENGTH
    # the causal mask is finite here; CLIP's own buffer holds infinities
    causal = torch.triu(torch.ones(side, side, device=tokens.device), diagonal=1) * BLOCKED
    causal = causal[:length, :length]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    *blocks, last = clip.transformer.resblocks
    for block in blocks:
        x = block_after(block, x, causal)
    at_end = (tokens == EOT).to(x.dtype)[:, None]  # [B, 1, L]
    x = rows_after(last, at_end @ x, x, (at_end @ causal)[:, None])
    out: Tensor = clip.ln_final(x)[:, 0] @ clip.text_projection
    return out


def encode_image(visual: Any, images: Tensor) -> Tensor:
    """Embeddings of whole pictures, read at the class token.

    Args:
        visual: open_clip's ``VisionTransformer``.
        images: float32 [B, 3, S, S] by CLIP's mean and deviation, S the picture's side.

    Returns:
        float32 [B, D], not normalised.
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, P, d]
    first = visual.class_embedding.expand(patches.shape[0], 1, -1)  # len() would fix B
    x = visual.ln_pre(torch.cat((first, patches), dim=1) + visual.positional_embedding)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block_after(block, x)
    x = rows_after(last, x[:, :1], x)
    out: Tensor = visual.ln_post(x)[:, 0] @ visual.proj
    return out


class ClipResNet(ClipBackbone):
    """OpenAI's modified ResNet, pooled by CLIP's attention pool with the mask as attention mask.

    The query is the mean over the whole frame, the same for every instance; the keys are the pixels
    alone (unlike CLIP's own pool, where the mean token is a key as well):

        token_i = W_c softmax_p( q . k_p / sqrt(d) + bias_i,p ) v_p + b_c

    The query being one for all pixels, q . (W_k x_p + b_k) = (W_k^T q) . x_p + q . b_k is computed
    with the projection at the query, one row in place of one for each pixel; q . b_k is the same
    for all pixels, and softmax does not see it. An instance without a pixel gets b_c alone.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`ClipBackbone`."""
        visual = self.clip_model.visual
        x = visual.stem(images)
        features = {}
        for index in range(1, 5):
            x = getattr(visual, f"layer{index}")(x)
            features[f"res{index + 1}"] = x
        return features

    def pool(self, dense: Tensor, mask: Tensor) -> Tensor:
        """See :class:`ClipBackbone`."""
        head = self.clip_model.visual.attnpool
        height, width = dense.shape[-2:]
        table = head.positional_embedding
        side = int((table.shape[0] - 1) ** 0.5)
        grid = table[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        pixels = (dense + grid).flatten(2)[0]  # [Cf, P]
        query = dense.mean(dim=(2, 3)) + table[:1]  # [1, Cf]
        q, v = (
            proj(x).unflatten(-1, (head.num_heads, -1)).transpose(0, 1)  # [heads, ., d]
            for proj, x in ((head.q_proj, query), (head.v_proj, pixels.T))
        )
        keyed = head.k_proj.weight.unflatten(0, (head.num_heads, -1))  # [heads, d, Cf]
        q = (q * q.shape[-1] ** -0.5) @ keyed  # [heads, 1, Cf]
        logits = (q[:, 0] @ pixels)[:, None]  # [heads, 1, P]
        flat = mask.flatten(1)
        weights = (logits + (~flat).to(logits.dtype) * BLOCKED).softmax(-1)  # [heads, N, P]
        seen = flat.any(dim=1, keepdim=True).to(logits.dtype)
        pooled = (weights @ v).transpose(0, 1).flatten(1) * seen
        out: Tensor = head.c_proj(pooled)
        return out


class ClipConvNeXt(ClipBackbone):
    """LAION's ConvNeXt, averaged under the mask, then the encoder's own norm and projection.

        token_i = W LN( sum_p m_i,p f_p / (sum_p m_i,p + 1e-8) )

    An instance without a pixel gets the answer to a zero vector, as the public code gives it.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`ClipBackbone`."""
        trunk = self.clip_model.visual.trunk
        x = trunk.stem(images)
        features = {}
        for index, stage in enumerate(trunk.stages):
            x = stage(x)
            features[f"res{index + 2}"] = x
        return features

    def pool(self, dense: Tensor, mask: Tensor) -> Tensor:
        """See :class:`ClipBackbone`."""
        visual = self.clip_model.visual
        flat = mask.flatten(1).to(dense.dtype)
        # a count is 0 or at least 1, so this is the public `sum + 1e-8` to the last bit; written
        # out, torch's exporter takes 1e-8 for 0 and drops it, and FP16 has no 1e-8
        share = flat / flat.sum(dim=1, keepdim=True).clamp(min=1.0)
        pooled = share @ dense.flatten(2)[0].T  # [N, Cf]
        norm = visual.trunk.head.norm
        pooled = F.layer_norm(pooled, pooled.shape[-1:], norm.weight, norm.bias, norm.eps)
        out: Tensor = visual.head.proj(pooled)
        return out


def clip_backbone(variant: Variant) -> ClipBackbone:
    """An untrained backbone of that variant, in open_clip's modules."""
    kinds = {"clip-resnet": ClipResNet, "clip-convnext": ClipConvNeXt}
    return kinds[variant.encoder](open_clip_model(variant))


def open_clip_model(variant: Variant) -> nn.Module:
    """The variant's untrained CLIP, as open_clip makes it."""
    if variant.clip_config is not None:
        small: nn.Module = CLIP(**variant.clip_config, quick_gelu=variant.quick_gelu)
        return small
    log = logging.getLogger()
    log.addFilter(_not_about_random_weights)  # they are loaded later, from the checkpoint
    try:
        model: nn.Module = open_clip.create_model(
            variant.clip, pretrained=None, force_quick_gelu=variant.quick_gelu
        )
    finally:
        log.removeFilter(_not_about_random_weights)
    return model


def picture_side(clip: Any) -> int:
    """Pixels of the square picture that the image encoder of open_clip's model was trained with."""
    size = clip.visual.image_size
    return int(size if isinstance(size, int) else size[0])


def _not_about_random_weights(record: logging.LogRecord) -> bool:
    return "No pretrained weights loaded" not in record.getMessage()
