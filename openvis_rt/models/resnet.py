"""ResNet under detectron2's key names, as Mask2Former and MinVIS checkpoints hold it.

The stride of a stage is in the 3x3 convolution of its first block, and every batch norm is frozen:
y = (x - mean) / sqrt(var + 1e-5) * weight + bias, whatever mode the module is in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BLOCKS", "CHANNELS", "ResNet"]

BLOCKS = (3, 4, 6, 3)
CHANNELS = (256, 512, 1024, 2048)
"""Of res2..res5 in ResNet-50."""


class FrozenNorm(nn.Module):
    """Batch norm with fixed statistics; four buffers of the channels' length."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [B, C, h, w] to the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class _Convolution(nn.Conv2d):
    """A convolution without bias, its norm inside."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = FrozenNorm(outputs)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        out: Tensor = self.norm(super().forward(input))
        return out


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.shortcut = _Convolution(inputs, outputs, 1, stride) if inputs != outputs else None
        self.conv1 = _Convolution(inputs, middle, 1)
        self.conv2 = _Convolution(middle, middle, 3, stride)
        self.conv3 = _Convolution(middle, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(3, width, 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """Images to features of four strides.

    Args:
        blocks, channels: of res2..res5; the stem has a quarter of res2's channels.

    Attributes:
        channels: of res2..res5.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int] = BLOCKS,
        channels: tuple[int, int, int, int] = CHANNELS,
    ) -> None:
        super().__init__()
        self.channels = channels
        inputs = channels[0] // 4
        self.stem = _Stem(inputs)
        for index, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
            strides = [1 if index == 0 else 2, *[1] * (count - 1)]
            stage = [
                _Bottleneck(inputs if n == 0 else outputs, outputs, stride)
                for n, stride in enumerate(strides)
            ]
            setattr(self, f"res{index + 2}", nn.Sequential(*stage))
            inputs = outputs

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images float32 [B, 3, H, W] to ``res2``..``res5`` at strides 4..32."""
        x = self.stem(images)
        features = {}
        for name in ("res2", "res3", "res4", "res5"):
            x = getattr(self, name)(x)
            features[name] = x
        return features
