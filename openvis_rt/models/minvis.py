"""MinVIS: Mask2Former frame by frame, with the classes that it was trained on.

propose:   frame -> masks, query embeddings
classify:  queries -> class logits, the last of them "no object"
"""

from __future__ import annotations

from torch import Tensor, nn

from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import Mask2Former
from openvis_rt.systems.variants import VARIANTS, Variant

__all__ = ["MinVis", "build_minvis_r50"]


class MinVis(nn.Module):
    """The network with its variant's normalisation.

    Args:
        variant: sizes and normalisation.
        network: under the official key names.
    """

    def __init__(self, variant: Variant, network: Mask2Former) -> None:
        super().__init__()
        self.variant, self.network = variant, network
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)

    def propose(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Instances of one frame, uint8 [1, H, W, 3].

        Returns:
            mask logits float32 [N, 1, h, w] and query embeddings float32 [N, C].
        """
        queries, mask_logits = self.network.decode(self.normalise(frames))
        return mask_logits.transpose(0, 1), queries[0]

    def classify(self, queries: Tensor) -> Tensor:
        """Logits float32 [N, Kc] of queries [N, C]."""
        logits: Tensor = self.network.predictor.class_embed(queries)
        return logits


def build_minvis_r50(*, classes: int = 40, decoder_layers: int = 9, queries: int = 100) -> MinVis:
    """MinVIS with ResNet-50, untrained; 40 classes are YouTube-VIS's."""
    network = Mask2Former(classes=classes, decoder_layers=decoder_layers, queries=queries)
    model = MinVis(VARIANTS["minvis-r50"], network)
    return model.requires_grad_(requires_grad=False).eval()
