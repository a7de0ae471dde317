"""The masked-attention query decoder that all systems share (Mask2Former, eq. 1-3).

Behaviour of `transformer_decoder/mask2former_transformer_decoder.py`: in each layer masked
cross-attention, then self-attention, then the feed-forward network, all post-norm; the levels take
turns from stride 32. The attention mask of a layer is the last mask prediction, brought to the
layer's level,

    blocked = bilinear(e F) < 0                (the public code: sigmoid(.) < 0.5)

with mask embeddings e and mask features F. The product sums over channels and the resize over
cells, so bilinear(e F) = e bilinear(F), which is how it is computed: F is resized once for each
level, and the product is as small as the level. A query that would see nothing sees everything.
Queries belong to one frame, or, in :class:`WindowQueryDecoder`, to a whole window, whose frames'
cells they attend to all at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.attention import Attention, blocked_bias
from openvis_rt.models.positions import sine_positions, window_positions

__all__ = ["MLP", "QueryDecoder", "WindowQueryDecoder", "decoder_sizes"]

_LAST_PART = re.compile(r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.")
_QUERIES = "sem_seg_head.predictor.query_feat.weight"


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., inputs] to float32 [..., outputs]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class _CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, embed: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.multihead_attn(x + embed, key, value, bias))
        return out


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, embed: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.self_attn(x + embed, x + embed, x))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return out


class QueryDecoder(nn.Module):
    """Learned queries that become one embedding and one mask for each instance."""

    def __init__(
        self,
        *,
        layers: int,
        queries: int = 100,
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.transformer_self_attention_layers = nn.ModuleList(
            _SelfAttention(width, heads) for _ in range(layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            _CrossAttention(width, heads) for _ in range(layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            _FeedForward(width, hidden) for _ in range(layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.query_feat = nn.Embedding(queries, width)
        self.query_embed = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(levels, width)
        self.mask_embed = MLP(width, width, width, 3)

    def sizes(self) -> dict[str, int]:
        """N and C: the number of queries and their width."""
        return {"N": self.query_feat.num_embeddings, "C": self.query_feat.embedding_dim}

    @property
    def layers(self) -> int:
        """Number of decoder layers (the public config's DEC_LAYERS less one)."""
        return len(self.transformer_ffn_layers)

    def first_queries(self, mask_features: Tensor) -> Tensor:
        """The learned queries for each frame of mask features [B, C, h, w]: float32 [B, N, C]."""
        return self.query_feat.weight[None].expand(mask_features.shape[0], -1, -1)

    def cells(self, level: Tensor) -> Tensor:
        """What the queries attend to, of memory [B, C, h', w']: float32 [B, h' w', C]."""
        return level.flatten(2).transpose(1, 2)

    def positions(self, level: Tensor) -> Tensor:
        """Of these cells: float32 [h' w', C]."""
        channels, height, width = level.shape[-3:]
        return sine_positions(height, width, channels).flatten(1).T

    def attention_bias(self, mask_logits: Tensor) -> Tensor:
        """Bias of masked attention to a level.

        Args:
            mask_logits: at the level's size, float32 [B, N, h', w'], or of a window [1, N, T, h',
                w'].

        Returns:
            float32 [B, 1, N, cells].
        """
        return blocked_bias((mask_logits < 0).flatten(2))[:, None]

    def mask_logits(self, query: Tensor, mask_features: Tensor) -> Tensor:
        """Mask logits of the queries as they stand.

        Args:
            query: float32 [B, N, C], before ``decoder_norm``.
            mask_features: float32 [B, C, h, w].

        Returns:
            float32 [B, N, h, w].
        """
        embed = self.mask_embed(self.decoder_norm(query))
        logits: Tensor = (embed @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])
        return logits

    def features_at(self, mask_features: Tensor, level: Tensor) -> Tensor:
        """Mask features [B, C, h, w] at the size of memory [B, C, h', w']: [B, C, h', w']."""
        size = level.shape[-2:]
        return F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False)

    def layer(self, index: int, query: Tensor, level: Tensor, mask_logits: Tensor) -> Tensor:
        """One decoder layer.

        Args:
            index: 0..layers-1; it decides which level embedding is added.
            query: float32 [B, N, C].
            level: the pixel decoder's memory for this layer, float32 [B, C, h', w'].
            mask_logits: the last prediction at the level's size, float32 [B, N, h', w'].

        Returns:
            float32 [B, N, C].
        """
        value = self.cells(level)
        value = value + self.level_embed.weight[index % self.level_embed.num_embeddings]
        key = value + self.positions(level)
        bias = self.attention_bias(mask_logits)
        embed = self.query_embed.weight[None]
        query = self.transformer_cross_attention_layers[index](query, embed, key, value, bias)
        query = self.transformer_self_attention_layers[index](query, embed)
        out: Tensor = self.transformer_ffn_layers[index](query)
        return out

    def forward(self, mask_features: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Decode one frame's (or each frame's) instances.

        Args:
            mask_features: float32 [B, C, h, w] at stride 4.
            memory: the pixel decoder's levels, strides 32, 16, 8.

        Returns:
            query embeddings after ``decoder_norm``, float32 [B, N, C], and mask logits [B, N, h,
            w].
        """
        query = self.first_queries(mask_features)
        features = [self.features_at(mask_features, level) for level in memory]
        for index in range(self.layers):
            at = index % len(memory)
            query = self.layer(index, query, memory[at], self.mask_logits(query, features[at]))
        return self.decoder_norm(query), self.mask_logits(query, mask_features)


class WindowQueryDecoder(QueryDecoder):
    """Queries of a window (`video_mask2former_transformer_decoder.py`).

    In place of a batch of frames there is one window: memory and mask features are [T, C, ., .],
    queries [1, N, C], mask logits [1, N, T, h, w]. A query attends to the cells of every frame, in
    the frames' order, and a cell's position has its frame's added.
    """

    def first_queries(self, mask_features: Tensor) -> Tensor:  # noqa: ARG002 - one window
        """The learned queries, float32 [1, N, C]."""
        return self.query_feat.weight[None]

    def cells(self, level: Tensor) -> Tensor:
        """Of memory [T, C, h', w']: float32 [1, T h' w', C]."""
        return super().cells(level).flatten(0, 1)[None]

    def positions(self, level: Tensor) -> Tensor:
        """Of these cells: float32 [T h' w', C]."""
        frames = window_positions(level.shape[0], level.shape[1])
        return (super().positions(level) + frames[:, None]).flatten(0, 1)

    def mask_logits(self, query: Tensor, mask_features: Tensor) -> Tensor:
        """Of queries [1, N, C] and mask features [T, C, h, w]: float32 [1, N, T, h, w]."""
        embed = self.mask_embed(self.decoder_norm(query))
        features = mask_features.transpose(0, 1)  # [C, T, h, w]
        logits: Tensor = (embed @ features.flatten(1)).unflatten(2, features.shape[1:])
        return logits


def decoder_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """``decoder_layers`` and ``queries`` of an official checkpoint.

    They are at least 1, so that a file of some other network is told by its keys when it is loaded.
    Layers are counted: a number in a key is not believed.
    """
    layers = {found[1] for key in state if (found := _LAST_PART.match(key))}
    queries = state[_QUERIES].shape[:1].numel() if _QUERIES in state else 0
    return {"decoder_layers": max(1, len(layers)), "queries": max(1, queries)}
