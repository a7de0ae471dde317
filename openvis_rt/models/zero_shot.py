"""Class heads that map queries into CLIP's space (OV2Seg; OVFormer's unified embedding alignment).

    x = W2 relu(W1 q + b1) + b2                                   OV2Seg
    x = LN( x + MHA(x, key = value = e) )                         OVFormer, then

    z_k = 50 cos(x, text_k)

with e the CLIP image embeddings of the query's frames, not normalised, eight heads and no position
(`zero_shot_classifier.py`). Of a query with one frame the softmax is over one key, so its attention
is W_o (W_v e + b_v) + b_o. The public classifier has a last column of zeros for the background,
whose logit is 0; no score uses it, and the graphs leave it out. Paper: OVFormer, eq. 5-9; it writes
one head, no residual and a softmax over the classes, where the code has eight, a residual with
norm, and a sigmoid for each class.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.attention import Attention
from openvis_rt.models.query_decoder import MLP, QueryDecoder, WindowQueryDecoder

__all__ = ["TEMPERATURE", "ZeroShotDecoder", "ZeroShotHead", "ZeroShotWindowDecoder"]

TEMPERATURE = 50.0
"""Of the cosine."""


class _Alignment(nn.Module):
    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.multihead_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, image_embeddings: Tensor) -> Tensor:
        keys = image_embeddings[None]
        out: Tensor = self.norm(x + self.multihead_attn(x[None], keys, keys)[0])
        return out


class ZeroShotHead(nn.Module):
    """Queries to tokens in CLIP's space, and their logits.

    Args:
        width: C, of the queries.
        embed_dim: D, of CLIP's space.
        aligned: with the attention to image embeddings.
    """

    def __init__(self, width: int, embed_dim: int, *, aligned: bool) -> None:
        super().__init__()
        hidden = embed_dim // 2
        self.linear = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embed_dim)
        )
        self.cross_attention = _Alignment(embed_dim) if aligned else None

    def forward(self, queries: Tensor, image_embeddings: Tensor | None = None) -> Tensor:
        """Tokens float32 [N, D], not normalised.

        Args:
            queries: float32 [N, C].
            image_embeddings: of the queries' frames, float32 [T, D]; where the head is aligned.
        """
        tokens: Tensor = self.linear(queries)
        if self.cross_attention is None:
            return tokens
        assert image_embeddings is not None
        aligned: Tensor = self.cross_attention(tokens, image_embeddings)
        return aligned

    @staticmethod
    def logits(tokens: Tensor, text_embeddings: Tensor) -> Tensor:
        """Of tokens [N, D] and L2-normalised texts [K, D]: float32 [N, K]."""
        return TEMPERATURE * (F.normalize(tokens, dim=-1) @ text_embeddings.T)


class ZeroShotDecoder(QueryDecoder):
    """The query decoder with this class head, and an objectness head of two layers."""

    def __init__(
        self,
        *,
        layers: int,
        queries: int = 100,
        width: int = 256,
        hidden: int = 2048,
        embed_dim: int,
        aligned: bool,
    ) -> None:
        super().__init__(layers=layers, queries=queries, width=width, hidden=hidden)
        self.class_embed = ZeroShotHead(width, embed_dim, aligned=aligned)
        self.object_embed = MLP(width, width, 2, 2)


class ZeroShotWindowDecoder(ZeroShotDecoder, WindowQueryDecoder):
    """The same for the queries of a window."""
