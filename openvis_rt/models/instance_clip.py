"""InstCLIP: one pass of CLIP's image encoder for all instances of a frame (OpenVIS, section 3.2).

The token sequence is [register; N instances; P patches]. The register stands where CLIP's class
token stood; register and instances start as copies of the class token. Every layer computes

    softmax(Q K^T / sqrt(d) + M) V,    M the same for all layers and heads

              register   instance j          patch p
    register    0          -100                0
    instance i  -100       0 if i = j,         g(i, p), the guidance
                           else -100
    patch       0          -100                0

exp(-100) is 0 in float32 beside any other term, so the register and the patches never depend on the
instances: they are plain CLIP, which needs no mask, and instance i needs its own key, the patches'
and, if it is to see it, the register's. That form costs (1 + P)^2 + N (1 + P) products in place of
(1 + N + P)^2, and of the mask only the [N, P] block remains, the ``guidance_mask`` input.
:meth:`InstanceClip.forward` computes that; :meth:`InstanceClip.forward_full` the equation as it
stands, to hold it against.

With guidance 0 everywhere an instance token sees what CLIP's class token sees, and is CLIP's image
embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.errors import InputError
from openvis_rt.models.clip_blocks import attended, block_after, finished, heads_of
from openvis_rt.systems.instformer import Guidance

__all__ = [
    "HIDDEN",
    "Guidance",
    "InstanceClip",
    "guidance_mask",
    "instances_after",
    "position_table",
]

HIDDEN = -100.0
"""Added to the logit of a key that must not be seen."""


def guidance_mask(mask_logits: Tensor, grid: tuple[int, int], rule: Guidance) -> Tensor:
    """What each instance is told of each patch.

    Args:
        mask_logits: float32 [N, h, w] at stride 4.
        grid: patches of a column and of a row.
        rule: see its class.

    Returns:
        float32 [N, P], patches row by row.
    """
    x = mask_logits[:, None]  # instances are the batch, which alone may be empty
    if rule.to_grid == "bilinear":
        x = F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
    elif rule.to_grid == "area":
        x = F.adaptive_avg_pool2d(x, grid)
    else:
        x = F.adaptive_max_pool2d(x, grid)
    x = x.flatten(1)
    if rule.values == "binary":
        return (x <= 0).to(x.dtype) * HIDDEN
    return (x * rule.scale).clamp(-rule.clamp, rule.clamp)


class InstanceClip(nn.Module):
    """CLIP's vision transformer with instance tokens.

    Args:
        visual: open_clip's ``VisionTransformer``; its parameters keep their names.
        logit_scale: CLIP's temperature, a logarithm; the model's own parameter, not a copy.
        rule: see :class:`~openvis_rt.systems.instformer.Guidance`.

    Raises:
        InputError: the rule's first block is beyond the encoder's.
    """

    visual: Any  # open_clip's module; its parts have no types
    register_token: Tensor
    instance_token: Tensor

    def __init__(self, visual: nn.Module, logit_scale: nn.Parameter, rule: Guidance) -> None:
        super().__init__()
        self.visual, self.rule = visual, rule
        self.log_scale = logit_scale
        if not rule.first_block < len(self.visual.transformer.resblocks):
            raise InputError(
                f"first_block {rule.first_block} is beyond the encoder's "
                f"{len(self.visual.transformer.resblocks)} blocks"
            )
        self.set_tokens()

    def set_tokens(self, register: Tensor | None = None, instance: Tensor | None = None) -> None:
        """Give the register and the instances their tokens, float32 [d] each.

        None is CLIP's class token as it is now, so weights are loaded first.
        """
        token = self.visual.class_embedding.detach()
        for name, given in (("register_token", register), ("instance_token", instance)):
            value = (token if given is None else given).to(token.dtype).clone()
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        return int(self.visual.conv1.kernel_size[0])

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens before the first block.

        Args:
            images: float32 [1, 3, H, W] by CLIP's mean and deviation; sides multiples of the patch.

        Returns:
            register and patches float32 [1 + P, d], and one instance token [1, d].
        """
        patches = self.visual.conv1(images)
        height, width = patches.shape[-2:]
        table = self.visual.positional_embedding
        place = table[:1]  # of CLIP's class token; every copy of it stands there
        tokens = patches[0].flatten(1).T + position_table(table[1:], height, width)
        plain = torch.cat((self.register_token[None] + place, tokens))
        norm = self.visual.ln_pre
        return norm(plain), norm(self.instance_token[None] + place)

    def forward(self, images: Tensor, guidance: Tensor) -> Tensor:
        """Instance tokens of a frame.

        Args:
            images: as for :meth:`embed`.
            guidance: float32 [N, P], added to the logits of the patches.

        Returns:
            float32 [N, 512], or [N, 768] before the projection; not normalised.
        """
        plain, instances = self._begin(images, len(guidance))
        return self.run(plain, instances, guidance)

    def run(self, plain: Tensor, instances: Tensor, guidance: Tensor) -> Tensor:
        """The blocks from ``first_block`` on, and the output.

        Args:
            plain: register and patches before that block, float32 [1 + P, d].
            instances: instance tokens before it, float32 [N, d].
            guidance: float32 [N, P].

        Returns:
            as :meth:`forward`.
        """
        count = len(instances)
        bias = F.pad(guidance, (1, 0)) if self.rule.sees_register else guidance
        tokens = torch.cat((instances, plain))  # one matrix for all that is done token by token
        *blocks, last = self.visual.transformer.resblocks[self.rule.first_block :]
        for block in blocks:
            query, key, value = heads_of(block, block.ln_1(tokens))
            guided = _guided(query[:, :count], key, value, bias)
            plainly = attended(query[:, count:], key[:, count:], value[:, count:])
            tokens = finished(block, tokens, torch.cat((guided, plainly), dim=1))
        return self._out(instances_after(last, tokens, bias))

    def run_full(self, plain: Tensor, instances: Tensor, guidance: Tensor) -> Tensor:
        """:meth:`run` as the paper's equation stands: one attention over all tokens."""
        mask, count = self.full_mask(guidance), len(guidance)
        for block in self.visual.transformer.resblocks[self.rule.first_block :]:
            tokens = block_after(block, torch.cat((plain[:1], instances, plain[1:])), mask)
            plain = torch.cat((tokens[:1], tokens[1 + count :]))
            instances = tokens[1 : 1 + count]
        return self._out(instances)

    def forward_full(self, images: Tensor, guidance: Tensor) -> Tensor:
        """:meth:`forward` by :meth:`run_full`."""
        return self.run_full(*self._begin(images, len(guidance)), guidance)

    def _begin(self, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Tokens before ``first_block``; instances that begin late are copies of the register."""
        plain, instance = self.embed(images)
        for block in self.visual.transformer.resblocks[: self.rule.first_block]:
            plain = block_after(block, plain)
        if self.rule.first_block:
            instance = plain[:1]
        return plain, instance.expand(count, -1)

    def full_mask(self, guidance: Tensor) -> Tensor:
        """M of this module's docstring, float32 [1 + N + P, 1 + N + P], from guidance [N, P]."""
        count, patches = guidance.shape
        size = 1 + count + patches
        mask = guidance.new_zeros(size, size)
        mask[:, 1 : 1 + count] = HIDDEN
        mask[1 : 1 + count, 0] = 0.0 if self.rule.sees_register else HIDDEN
        rows = torch.arange(1, 1 + count)
        mask[rows, rows] = 0.0
        mask[1 : 1 + count, 1 + count :] = guidance
        return mask

    def logits(self, tokens: Tensor, text_embeddings: Tensor) -> Tensor:
        """exp(logit_scale) (<= 100) times cosine.

        Args:
            tokens: float32 [N, D], of :meth:`forward`.
            text_embeddings: float32 [K, 512], unit rows.

        Returns:
            float32 [N, K]. A token of length 0 has cosine 0 with everything.
        """
        if not self.rule.projected:
            tokens = tokens @ self.visual.proj
        unit = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        out: Tensor = self.log_scale.exp().clamp(max=100.0) * (unit @ text_embeddings.T)
        return out

    def _out(self, instances: Tensor) -> Tensor:
        out: Tensor = self.visual.ln_post(instances)
        projected: Tensor = out @ self.visual.proj if self.rule.projected else out
        return projected


def position_table(table: Tensor, height: int, width: int) -> Tensor:
    """CLIP's square position table for another grid.

    Args:
        table: float32 [side * side, d].
        height, width: of the grid.

    Returns:
        float32 [height * width, d], resampled bicubic; the table itself where the size is its own.
    """
    side = int(len(table) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T


def instances_after(block: Any, tokens: Tensor, bias: Tensor) -> Tensor:
    """A block for the instances alone: tokens [N + 1 + P, d] before it to [N, d]; see _guided."""
    count = len(bias)
    query, key, value = heads_of(block, block.ln_1(tokens))
    return finished(block, tokens[:count], _guided(query[:, :count], key, value, bias))


def _guided(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """What instances see: each itself, and the last tokens under the guidance.

    Args:
        query: of the N instances, [heads, N, d].
        key, value: of all tokens, instances first, [heads, N + 1 + P, d].
        bias: float32 [N, S], for the last S tokens: the patches, with the register before them
            where it is seen.

    Returns:
        [heads, N, d].
    """
    count, seen = bias.shape
    first = key.shape[1] - seen
    query = query * query.shape[-1] ** -0.5
    own = (query * key[:, :count]).sum(-1, keepdim=True)  # [heads, N, 1]
    others = query @ key[:, first:].transpose(1, 2) + bias  # [heads, N, S]
    weights = torch.cat((own, others), dim=-1).softmax(-1)
    out: Tensor = weights[..., :1] * value[:, :count] + weights[..., 1:] @ value[:, first:]
    return out
