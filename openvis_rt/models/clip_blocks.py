"""A block of CLIP's transformers, over the weights of open_clip's modules.

    x <- x + W_o softmax((s q) k^T + bias) v,    x <- x + MLP(LN(x)),    s = 1 / sqrt(d / heads)

The queries alone are scaled. PyTorch's own attention is exported with the square root of s at q and
at k, two products in place of one, and TensorRT 10.7 is reported to compute that wrongly.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

__all__ = ["attended", "block_after", "finished", "heads_of", "rows_after"]


def block_after(block: Any, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """A block over tokens.

    Args:
        block: open_clip's ``ResidualAttentionBlock``.
        tokens: float32 [..., L, d].
        bias: added to the logits, broadcast against [..., heads, L, L]; None for none.

    Returns:
        float32 [..., L, d].
    """
    query, key, value = heads_of(block, block.ln_1(tokens))
    return finished(block, tokens, attended(query, key, value, bias))


def rows_after(block: Any, rows: Tensor, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """A block for some tokens alone, as the last one is needed.

    Args:
        block: as for :func:`block_after`.
        rows: those tokens, float32 [..., R, d].
        tokens: all of them, float32 [..., L, d].
        bias: broadcast against [..., heads, R, L]; None for none.

    Returns:
        float32 [..., R, d].
    """
    width = rows.shape[-1]
    weight, offset = block.attn.in_proj_weight, block.attn.in_proj_bias
    query = F.linear(block.ln_1(rows), weight[:width], offset[:width])
    both = F.linear(block.ln_1(tokens), weight[width:], offset[width:])
    query, key, value = (_by_head(block, x) for x in (query, *both.chunk(2, -1)))
    return finished(block, rows, attended(query, key, value, bias))


def heads_of(block: Any, tokens: Tensor) -> list[Tensor]:
    """Query, key and value of normed tokens [..., L, d], each [..., heads, L, d / heads]."""
    joined = F.linear(tokens, block.attn.in_proj_weight, block.attn.in_proj_bias)
    return [_by_head(block, x) for x in joined.chunk(3, -1)]


def attended(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, [..., L, d] by [..., S, d], with a bias [..., L, S] or none."""
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    out: Tensor = (logits if bias is None else logits + bias).softmax(-1) @ value
    return out


def finished(block: Any, tokens: Tensor, seen: Tensor) -> Tensor:
    """From what the heads saw, [..., heads, L, d / heads], to the block's output [..., L, d]."""
    tokens = tokens + block.attn.out_proj(seen.transpose(-3, -2).flatten(-2))
    out: Tensor = tokens + block.mlp(block.ln_2(tokens))
    return out


def _by_head(block: Any, x: Tensor) -> Tensor:
    out: Tensor = x.unflatten(-1, (block.attn.num_heads, -1)).transpose(-3, -2)
    return out
