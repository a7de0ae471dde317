"""MinVIS: Mask2Former frame by frame, with the classes that it was trained on.

propose:   frame -> masks, query embeddings
classify:  queries -> class logits, the last of them "no object"
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import Mask2Former, mask2former
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.network import Network
from openvis_rt.models.query_decoder import decoder_sizes
from openvis_rt.systems.system import Variant

__all__ = ["MinVis", "build", "sizes_of_checkpoint"]

_CLASS_HEAD = "sem_seg_head.predictor.class_embed.weight"  # [classes + 1, C]


class MinVis(Network):
    """The network with its variant's normalisation.

    Args:
        variant: sizes and normalisation.
        network: under the official key names.
    """

    def __init__(self, variant: Variant, network: Mask2Former) -> None:
        super().__init__(variant)
        self.network, self.clip_model = network, None
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)

    @property
    def checkpoint_module(self) -> nn.Module:
        """The network without the normalisation."""
        return self.network

    def sizes(self) -> dict[str, int]:
        """N, C, and Kc, the classes with "no object"."""
        predictor = self.network.predictor
        return {**predictor.sizes(), "Kc": predictor.class_embed.out_features}

    def propose(self, frames: Tensor) -> dict[str, Tensor]:
        """Instances of one frame, uint8 [1, H, W, 3]: the outputs of `propose`."""
        queries, mask_logits = self.network.decode(self.normalise(frames))
        masks = mask_logits.transpose(0, 1)
        return {
            "mask_logits": masks,
            "queries": queries[0],
            "mask_area": mask_quality(masks)[0][:, 0],
        }

    def classify(self, queries: Tensor) -> dict[str, Tensor]:
        """``class_scores``, logits float32 [N, Kc] of queries [N, C]."""
        return {"class_scores": self.network.predictor.class_embed(queries)}


def build(
    variant: Variant,
    decoder_layers: int | None = None,
    queries: int | None = None,
    classes: int = 40,
) -> MinVis:
    """MinVIS, untrained.

    Args:
        variant: which image encoder it has.
        decoder_layers, queries: None for the variant's.
        classes: without "no object"; 40 are YouTube-VIS's.
    """
    network = mask2former(
        variant,
        classes=classes,
        decoder_layers=decoder_layers or variant.decoder_layers,
        queries=queries or variant.queries,
    )
    return MinVis(variant, network).requires_grad_(requires_grad=False).eval()


def sizes_of_checkpoint(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What :func:`build` needs to know of a checkpoint."""
    return {**decoder_sizes(state), "classes": state[_CLASS_HEAD].shape[:1].numel() - 1}
