"""Mask2Former: backbone, pixel decoder and query decoder under the official key names.

:class:`Trunk` is what the systems that build on it share. :class:`Mask2Former` is the original
with a closed vocabulary, as MinVIS and InstFormer's proposals use it: its class head has one output
for each class that the checkpoint was trained on and one for "no object"; a class-agnostic model
has one class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.models.query_decoder import QueryDecoder
from openvis_rt.models.resnet import ResNet
from openvis_rt.models.swin import HEAD, Swin
from openvis_rt.systems.system import Variant

__all__ = [
    "Backbone",
    "ClassDecoder",
    "Instances",
    "Mask2Former",
    "SegmentationHead",
    "Trunk",
    "backbone_of",
    "mask2former",
    "pixel_decoder_of",
]

Backbone = ResNet | Swin
"""Normalised images float32 [B, 3, H, W] to ``res2``..``res5`` at strides 4..32."""


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


class ClassDecoder(QueryDecoder):
    """The query decoder with a class head: ``classes`` outputs, and one for "no object"."""

    def __init__(
        self, *, classes: int, layers: int, queries: int, width: int = 256, hidden: int = 2048
    ) -> None:
        super().__init__(layers=layers, queries=queries, width=width, hidden=hidden)
        self.class_embed = nn.Linear(width, classes + 1)


P = TypeVar("P", bound=QueryDecoder)


class SegmentationHead(nn.Module, Generic[P]):
    """Pixel decoder and query decoder."""

    predictor: P

    def __init__(self, pixel_decoder: PixelDecoder, predictor: P) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor


class Trunk(nn.Module, Generic[P]):
    """The network up to the queries; ``state_dict`` has the keys of the official checkpoints.

    Args:
        backbone: images to ``res2``..``res5``; its ``channels`` are theirs.
        predictor: the query decoder, with the heads of its system.
        pixel_decoder: for the same width.
    """

    sem_seg_head: SegmentationHead[P]

    def __init__(self, backbone: Backbone, predictor: P, pixel_decoder: PixelDecoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = SegmentationHead(pixel_decoder, predictor)

    @property
    def predictor(self) -> P:
        """The query decoder."""
        return self.sem_seg_head.predictor

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and masks of normalised, padded images, float32 [B, 3, H, W].

        Returns:
            as the query decoder: embeddings after ``decoder_norm``, float32 [B, N, C], and mask
            logits [B, N, h, w] at stride 4; of a window [1, N, C] and [1, N, B, h, w].
        """
        mask_features, memory = self.sem_seg_head.pixel_decoder(self.backbone(images))
        queries, mask_logits = self.predictor(mask_features, memory)
        return queries, mask_logits


class Mask2Former(Trunk[ClassDecoder]):
    """The network with a closed vocabulary."""

    def forward(self, images: Tensor) -> Instances:
        """Instances of normalised, padded images, float32 [B, 3, H, W]."""
        queries, mask_logits = self.decode(images)
        return Instances(mask_logits, queries, self.predictor.class_embed(queries))


def mask2former(
    variant: Variant, *, classes: int, decoder_layers: int, queries: int
) -> Mask2Former:
    """An untrained network.

    Args:
        variant: says which image encoder.
        classes: of the class head, without "no object".
        decoder_layers: the public config's DEC_LAYERS less one.
        queries: N.
    """
    predictor = ClassDecoder(
        classes=classes,
        layers=decoder_layers,
        queries=queries,
        width=variant.sizes.width,
        hidden=variant.sizes.decoder_hidden,
    )
    return Mask2Former(backbone_of(variant), predictor, pixel_decoder_of(variant))


def pixel_decoder_of(variant: Variant) -> PixelDecoder:
    """The variant's untrained pixel decoder."""
    sizes = variant.sizes
    return PixelDecoder(
        variant.feature_channels, sizes.width, sizes.encoder_layers, sizes.encoder_hidden
    )


def backbone_of(variant: Variant) -> Backbone:
    """The variant's untrained image encoder, where that is not CLIP's own."""
    first, second, third, last = variant.feature_channels
    if variant.encoder == "swin":
        heads = (first // HEAD, second // HEAD, third // HEAD, last // HEAD)
        return Swin(first, heads=heads)
    return ResNet(variant.sizes.blocks, variant.feature_channels)
