"""Swin Transformer under the key names of Mask2Former's ``D2SwinTransformer`` checkpoints.

The map of a stage is cut into windows of w x w cells, and cells attend within their window:

    x = x + Attention(LN(x)),   x = x + W_2 gelu(W_1 LN(x) + b_1) + b_2
    Attention(Q, K, V) = softmax(Q K^T / sqrt(d) + R + M) V

R is a learnt bias of each head for the offset of two cells in a window. The map is padded with
zeros to whole windows after the norm, and padded cells are keys like any other. Every second block
moves the windows by s = w // 2 cells: it rolls the padded map by -s on both axes, and M keeps apart
the cells that only the roll brought together,

    M_pq = 0 if region(p) = region(q), else -100,

a region being a piece of the rolled map between the cuts at -w and -s on each axis. It does so on a
map of a single window as well, where other implementations leave the shift out.

Between stages the four cells of every 2x2 square become one, of twice the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DEPTHS", "EMBED_DIM", "HEAD", "HEADS", "WINDOW", "Swin"]

EMBED_DIM = 128
DEPTHS = (2, 2, 18, 2)
HEADS = (4, 8, 16, 32)
WINDOW = 12
"""Of Swin-B."""
HEAD = 32
"""Channels of an attention head, in every Swin."""

_PATCH = 4
_APART = -100.0  # as trained: finite, so strong logits still see a little across


def _pad_to_multiple(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C] with zeros below and to the right, until ``size`` divides H and W."""
    height, width = x.shape[1:3]
    if height % size == 0 and width % size == 0:
        return x  # a padding by nothing would stay in the graph
    return F.pad(x, (0, 0, 0, -width % size, 0, -height % size))


def _windows_from_map(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] to [B, windows, w * w, C], both in row-major order."""
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x.reshape(batch, rows, window, columns, window, channels).transpose(2, 3)
    return x.reshape(batch, rows * columns, window * window, channels)


def _map_from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`_windows_from_map`."""
    batch, channels = x.shape[0], x.shape[-1]
    rows, columns = height // window, width // window
    x = x.reshape(batch, rows, columns, window, window, channels).transpose(2, 3)
    return x.reshape(batch, height, width, channels)


def _shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """M of a padded map, float32 [1, windows, 1, w * w, w * w]."""

    def region(size: int) -> Tensor:  # 0, 1 or 2 for each cell of an axis
        cell = torch.arange(size, device=device)
        return (cell >= size - window).long() + (cell >= size - window // 2).long()

    regions = region(height)[:, None] * 3 + region(width)  # [H, W]
    cells = _windows_from_map(regions[None, :, :, None], window)  # [1, windows, w * w, 1]
    apart = cells != cells.transpose(2, 3)
    return apart[:, :, None].to(torch.float32) * _APART


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 [B, 3, H, W] to [B, H / 4, W / 4, C], a last incomplete patch filled with 0."""
        height, width = images.shape[2:]
        if height % _PATCH or width % _PATCH:
            images = F.pad(images, (0, -width % _PATCH, 0, -height % _PATCH))
        out: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return out


class _WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        side = 2 * window - 1  # offsets on an axis
        self.relative_position_bias_table = nn.Parameter(torch.empty(side * side, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        cell = torch.arange(window * window)
        row, column = cell // window, cell % window
        down = row[:, None] - row + window - 1
        right = column[:, None] - column + window - 1
        self.register_buffer("relative_position_index", down * side + right, persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Float32 [B, windows, w * w, C] to the same; mask: [1, windows, 1, w * w, w * w]."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # [B, windows, heads, w * w, d]
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        bias = self.relative_position_bias_table[self.relative_position_index]
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias.permute(2, 0, 1)
        if mask is not None:
            # not added to the bias: the sum has a table for each window and each head
            logits = logits + mask
        out: Tensor = self.proj((logits.softmax(-1) @ v).transpose(2, 3).flatten(-2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Float32 [B, H, W, C] to the same; the windows are shifted where there is a mask."""
        padded = _pad_to_multiple(self.norm1(x), self.window)
        height, width = padded.shape[1:3]
        shift = 0 if mask is None else self.window // 2
        if shift:
            padded = padded.roll((-shift, -shift), (1, 2))
        windows = self.attn(_windows_from_map(padded, self.window), mask)
        attended = _map_from_windows(windows, self.window, height, width)
        if shift:
            attended = attended.roll((shift, shift), (1, 2))
        x = x + attended[:, : x.shape[1], : x.shape[2]]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        x = _pad_to_multiple(x, 2)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return out


class _Stage(nn.Module):
    def __init__(
        self, depth: int, width: int, heads: int, window: int, mlp_ratio: int, last: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(_Block(width, heads, window, mlp_ratio) for _ in range(depth))
        self.downsample = nn.Identity() if last else _Downsample(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 [B, H, W, C] to the same, and to the next stage's input."""
        height, width = (size + -size % self.window for size in x.shape[1:3])
        mask = _shift_mask(height, width, self.window, x.device)  # one constant for all blocks
        for index, block in enumerate(self.blocks):
            x = block(x, mask if index % 2 else None)
        return x, self.downsample(x)


class Swin(nn.Module):
    """Images to features of four strides.

    Args:
        embed_dim: channels of the first stage; each later stage has twice as many.
        depths, heads: blocks, and heads of their attention, of each stage.
        window: side of a window in cells.
        mlp_ratio: hidden over outer width of the MLPs.

    Attributes:
        channels: of res2..res5.
    """

    def __init__(
        self,
        embed_dim: int = EMBED_DIM,
        depths: tuple[int, int, int, int] = DEPTHS,
        heads: tuple[int, int, int, int] = HEADS,
        window: int = WINDOW,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.channels = (embed_dim, 2 * embed_dim, 4 * embed_dim, 8 * embed_dim)
        self.patch_embed = _PatchEmbed(embed_dim)
        self.layers = nn.ModuleList(
            _Stage(depth, width, count, window, mlp_ratio, last=width == self.channels[-1])
            for depth, width, count in zip(depths, self.channels, heads, strict=True)
        )
        for index, width in enumerate(self.channels):
            setattr(self, f"norm{index}", nn.LayerNorm(width))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images float32 [B, 3, H, W] to ``res2``..``res5`` at strides 4..32.

        A size that a stride does not divide is rounded up. A graph's H and W are fixed: the masks
        and the paddings follow from them; B may be dynamic.
        """
        x = self.patch_embed(images)
        features = {}
        for index, stage in enumerate(self.layers):
            out, x = stage(x)
            features[f"res{index + 2}"] = getattr(self, f"norm{index}")(out).permute(0, 3, 1, 2)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
