"""The pixel decoder that all systems share: a multi-scale deformable encoder and one FPN step.

Behaviour of `modeling/pixel_decoder/msdeformattn.py` (Mask2Former lineage): three levels, strides
32, 16, 8 in that order, six post-norm encoder layers, then the stride-8 map joins res2 for the
stride-4 mask features. Padded areas take part like any others (the public code's padding masks are
all false).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.models.positions import sine_positions

__all__ = ["DeformableAttention", "PixelDecoder"]

Sizes = list[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, eq. 3).

        out(q) = W_o sum_l sum_p A[q, l, p] * bilinear(W_v value_l, reference(q) + offset[q, l, p] /
        size_l)

    sampled for each head on its own channels; zero outside the map. A is a softmax over levels and
    points.
    """

    def __init__(self, width: int = 256, heads: int = 8, levels: int = 3, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, sizes: Sizes) -> Tensor:
        """Sample every level around each query's reference point.

        Args:
            query: float32 [B, L, width], L = sum of the levels' cells.
            reference: float32 [L, 2], (x, y) in 0..1.
            value: float32 [B, L, width], the levels one after the other, rows first.
            sizes: (height, width) of each level.

        Returns:
            float32 [B, L, width].
        """
        batch, length, width = query.shape
        heads, levels, points = self.heads, self.levels, self.points
        weights = self.attention_weights(query).view(batch, length, heads, levels * points)
        weights = weights.softmax(-1).permute(0, 2, 3, 1)  # [B, heads, levels * points, L]
        shares = weights.reshape(batch * heads, 1, levels * points, length).split(points, dim=2)
        grids = self._grids(query, reference, sizes).unbind(2)  # [B, heads, points, L, 2] each
        values = self.value_proj(value).split([h * w for h, w in sizes], dim=1)
        mixed = None
        for level_value, grid, share, size in zip(values, grids, shares, sizes, strict=True):
            samples = F.grid_sample(
                level_value.transpose(1, 2).reshape(batch * heads, -1, *size),
                grid.reshape(batch * heads, points, length, 2),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # [B * heads, width / heads, points, L]
            seen = (samples * share).sum(2)
            mixed = seen if mixed is None else mixed + seen
        assert mixed is not None
        out: Tensor = self.output_proj(mixed.view(batch, width, length).transpose(1, 2))
        return out

    def _grids(self, query: Tensor, reference: Tensor, sizes: Sizes) -> Tensor:
        """Where each level is sampled, as ``grid_sample`` takes it: -1..1 from edge to edge.

        2 (r + o / size) - 1 = (2 r - 1) + (2 / size) o; the factor is the projection's, and so are
        its rows, which hold o = W q + b for all levels.

        Returns:
            float32 [B, heads, levels, points, L, 2].
        """
        heads, levels, points = self.heads, self.levels, self.points
        scale = torch.tensor([[2 / w, 2 / h] for h, w in sizes], dtype=torch.float32)
        scale = scale.to(query.device)[:, None].expand(heads, levels, points, 2).reshape(-1, 1)
        project = self.sampling_offsets
        offsets = F.linear(query, project.weight * scale, project.bias * scale[:, 0])
        offsets = offsets.unflatten(2, (heads, levels, points, 2)).permute(0, 2, 3, 4, 1, 5)
        grids: Tensor = offsets + (2 * reference - 1)
        return grids


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, src: Tensor, position: Tensor, reference: Tensor, sizes: Sizes) -> Tensor:
        src = self.norm1(src + self.self_attn(src + position, reference, src, sizes))
        out: Tensor = self.norm2(src + self.linear2(F.relu(self.linear1(src))))
        return out


class _Encoder(nn.Module):
    def __init__(self, layers: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(width, hidden) for _ in range(layers))


class _Transformer(nn.Module):
    def __init__(self, levels: int, width: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.encoder = _Encoder(layers, width, hidden)

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        sizes: Sizes = [(x.shape[2], x.shape[3]) for x in sources]
        width = sources[0].shape[1]
        src = torch.cat([x.flatten(2).transpose(1, 2) for x in sources], dim=1)
        position = torch.cat(
            [
                (sine_positions(h, w, width).flatten(1) + embed[:, None]).T
                for (h, w), embed in zip(sizes, self.level_embed, strict=True)
            ]
        )[None]
        reference = torch.cat([_cell_centres(h, w) for h, w in sizes])
        for layer in self.encoder.layers:
            src = layer(src, position, reference, sizes)
        maps = src.split([h * w for h, w in sizes], dim=1)
        return [m.transpose(1, 2).unflatten(2, size) for m, size in zip(maps, sizes, strict=True)]


class _ConvNorm(nn.Conv2d):
    """A convolution without bias, its norm inside (key names of detectron2's ``Conv2d``)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(32, outputs)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        out: Tensor = self.norm(super().forward(input))
        return out


class PixelDecoder(nn.Module):
    """Features of four strides to mask features and three scales of memory."""

    def __init__(
        self,
        channels: tuple[int, int, int, int],
        width: int = 256,
        layers: int = 6,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width))
            for c in reversed(channels[1:])
        )
        self.transformer = _Transformer(3, width, layers, hidden)
        self.adapter_1 = _ConvNorm(channels[0], width, 1)
        self.layer_1 = _ConvNorm(width, width, 3)
        self.mask_features = nn.Conv2d(width, width, 1)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: ``res2``..``res5``, float32 [B, c, H/s, W/s] at strides 4, 8, 16, 32.

        Returns:
            mask features float32 [B, width, H/4, W/4], and the memory [s32, s16, s8], each
            float32 [B, width, H/s, W/s].
        """
        sources = [
            proj(features[name])
            for proj, name in zip(self.input_proj, ("res5", "res4", "res3"), strict=True)
        ]
        memory = self.transformer(sources)
        lateral = self.adapter_1(features["res2"])
        top = F.interpolate(
            memory[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        merged = F.relu(self.layer_1(lateral + top))
        return self.mask_features(merged), memory


def _cell_centres(height: int, width: int) -> Tensor:
    """Float32 [height * width, 2]: (x, y) of each cell's centre in 0..1, rows first."""
    y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1)
