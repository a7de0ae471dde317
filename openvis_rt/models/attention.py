"""Scaled dot-product attention with an additive bias, under torch's own parameter names.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d) + bias) V

The bias is finite: a blocked key gets :data:`BLOCKED`, whose exponential is exactly 0 in FP32 and
FP16, so that no graph holds an infinity and no row can become NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BLOCKED", "Attention", "blocked_bias"]

BLOCKED = -1.0e4
"""Added to the logit of a blocked key; within FP16's range."""


def blocked_bias(blocked: Tensor) -> Tensor:
    """Additive bias of a boolean mask in which rows that block every key are opened.

    Args:
        blocked: bool [..., L, S]; true where query L must not see key S.

    Returns:
        float32 [..., L, S], 0 or :data:`BLOCKED` (Mask2Former: ``attn_mask[all blocked] = False``).
    """
    blocked = blocked & ~blocked.all(dim=-1, keepdim=True)
    return blocked.to(torch.float32) * BLOCKED


class Attention(nn.Module):
    """Multi-head attention, batch first; parameters named as in ``torch.nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: float32 [B, L, width].
            key, value: float32 [B, S, width].
            bias: float32, broadcast against [B, heads, L, S]; None for none.

        Returns:
            float32 [B, L, width].
        """
        width = query.shape[-1]
        weights = self.in_proj_weight.split(width)
        biases = self.in_proj_bias.split(width)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, ., d]
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            logits = logits + bias
        out: Tensor = self.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(-2))
        return out
