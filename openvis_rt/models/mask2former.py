"""Mask2Former with a ResNet: instances of a frame, as MinVIS and InstFormer's proposals use it.

Keys are those of detectron2's checkpoints. The class head has one output for each class that the
checkpoint was trained on and one for "no object"; a class-agnostic model has one class.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.models.query_decoder import QueryDecoder
from openvis_rt.models.resnet import BLOCKS, CHANNELS, ResNet

__all__ = ["Instances", "Mask2Former"]


@dataclass(frozen=True)
class Instances:
    """What one batch of frames shows.

    Attributes:
        mask_logits: float32 [B, N, h, w] at stride 4 of the padded frame.
        queries: float32 [B, N, C], after ``decoder_norm``.
        class_logits: float32 [B, N, classes + 1]; the last is "no object".
    """

    mask_logits: Tensor
    queries: Tensor
    class_logits: Tensor


class _Decoder(QueryDecoder):
    def __init__(self, *, classes: int, layers: int, queries: int, width: int = 256) -> None:
        super().__init__(layers=layers, queries=queries, width=width)
        self.class_embed = nn.Linear(width, classes + 1)


class _Head(nn.Module):
    def __init__(self, pixel_decoder: PixelDecoder, predictor: _Decoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor


class Mask2Former(nn.Module):
    """The network; ``state_dict`` has the keys of the official checkpoints.

    Args:
        classes: of the class head, without "no object".
        decoder_layers: the public config's DEC_LAYERS less one.
        queries: N.
        encoder_layers: of the pixel decoder.
        blocks, channels: of the backbone's res2..res5; ResNet-50's if they are not given.
    """

    def __init__(
        self,
        *,
        classes: int = 1,
        decoder_layers: int = 9,
        queries: int = 100,
        encoder_layers: int = 6,
        blocks: tuple[int, int, int, int] = BLOCKS,
        channels: tuple[int, int, int, int] = CHANNELS,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(blocks, channels)
        self.sem_seg_head = _Head(
            PixelDecoder(channels, layers=encoder_layers),
            _Decoder(classes=classes, layers=decoder_layers, queries=queries),
        )

    def forward(self, images: Tensor) -> Instances:
        """Instances of normalised, padded images, float32 [B, 3, H, W]."""
        mask_features, memory = self.sem_seg_head.pixel_decoder(self.backbone(images))
        predictor = self.sem_seg_head.predictor
        queries, mask_logits = predictor(mask_features, memory)
        return Instances(mask_logits, queries, predictor.class_embed(queries))
