"""OV2Seg and OVFormer: queries in CLIP's space, frame by frame or window by window.

    propose:   frames -> masks, query embeddings, objectness
    embed:     CLIP's picture of each frame -> image embeddings           (OVFormer)
    classify:  queries, image embeddings, text embeddings -> tokens, class logits

One network in three forms, which the variant tells: OV2Seg has no image embeddings; OVFormerVideo
has them, a frame a call; VideoOVFormer has queries of a whole window of 1 to ``window_length``
frames. Public code: `ovformer_model_video.py`, `video_ovformer_model.py`; OV2Seg, whose heads these
share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from openvis_rt.models.clip import encode_image, open_clip_model
from openvis_rt.models.images import Normalise
from openvis_rt.models.mask2former import Trunk, backbone_of, pixel_decoder_of
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.network import Network
from openvis_rt.models.query_decoder import decoder_sizes
from openvis_rt.models.zero_shot import ZeroShotDecoder, ZeroShotWindowDecoder
from openvis_rt.systems import system_of
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD, Variant

__all__ = ["OVFormer", "build", "is_aligned", "sizes_of_checkpoint"]


class OVFormer(Network):
    """The network, and CLIP where its weights are at hand.

    Args:
        variant: which form, sizes and normalisation.
        network: under the official key names.
        clip_model: open_clip's whole model, for image and text embeddings; None without it, and
            then both come from files.
    """

    def __init__(
        self, variant: Variant, network: Trunk[ZeroShotDecoder], clip_model: nn.Module | None
    ) -> None:
        super().__init__(variant)
        self.network, self.clip_model = network, clip_model
        self.normalise = Normalise(variant.pixel_mean, variant.pixel_std, variant.size_divisor)
        self.normalise_picture = Normalise(CLIP_MEAN, CLIP_STD)

    @property
    def checkpoint_module(self) -> nn.Module:
        """The network without CLIP."""
        return self.network

    def sizes(self) -> dict[str, int]:
        """N and C."""
        return self.network.predictor.sizes()

    def propose(self, frames: Tensor) -> dict[str, Tensor]:
        """Instances of a window, uint8 [T, H, W, 3]: the outputs of `propose`.

        T is 1 but for VideoOVFormer, whose ``mask_area`` is of each frame, [N, T].
        """
        queries, mask_logits = self.network.decode(self.normalise(frames))
        of_window = self.variant.window_length > 1
        masks = mask_logits[0] if of_window else mask_logits.transpose(0, 1)
        found = {
            "mask_logits": masks,
            "queries": queries[0],
            "object_logits": self.network.predictor.object_embed(queries[0]),
        }
        area, mass = mask_quality(masks)  # [N, T] each
        if of_window:
            return {**found, "mask_area": area}
        return {**found, "mask_area": area[:, 0], "mask_mass": mass[:, 0]}

    def embed(self, pictures: Tensor) -> dict[str, Tensor]:
        """CLIP's image embeddings.

        Args:
            pictures: uint8, or float32 of 0..255, [T, 224, 224, 3], RGB: the centre crop of each
                frame whose short side was resized to 224 (Pillow's bicubic).

        Returns:
            ``image_embeddings`` float32 [T, D], not normalised.
        """
        images = self.normalise_picture(pictures)
        return {"image_embeddings": encode_image(self.clip_model.visual, images)}

    def classify(
        self, queries: Tensor, text_embeddings: Tensor, image_embeddings: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Classify queries.

        Args:
            queries: float32 [N, C], from :meth:`propose`.
            text_embeddings: float32 [K, D], L2-normalised rows.
            image_embeddings: float32 [T, D] of the queries' frames; of OVFormer.

        Returns:
            ``instance_tokens`` float32 [N, D], not normalised, and ``class_scores``, logits float32
            [N, K], each class for itself: its probability is their sigmoid.
        """
        head = self.network.predictor.class_embed
        tokens = head(queries, image_embeddings)
        return {"instance_tokens": tokens, "class_scores": head.logits(tokens, text_embeddings)}


def build(
    variant: Variant,
    decoder_layers: int | None = None,
    queries: int | None = None,
    *,
    with_clip: bool = True,
    quick_gelu: bool = True,
) -> OVFormer:
    """OV2Seg or OVFormer, untrained.

    Args:
        variant: which form, image encoder and CLIP.
        decoder_layers, queries: None for the variant's.
        with_clip: with CLIP's image and text encoders.
        quick_gelu: CLIP's activation.
    """
    backbone = backbone_of(variant)
    decoder = ZeroShotDecoder if variant.window_length == 1 else ZeroShotWindowDecoder
    predictor = decoder(
        layers=decoder_layers or variant.decoder_layers,
        queries=queries or variant.queries,
        embed_dim=variant.embed_dim,
        aligned=is_aligned(variant),
        width=variant.sizes.width,
        hidden=variant.sizes.decoder_hidden,
    )
    clip = open_clip_model(replace(variant, quick_gelu=quick_gelu)) if with_clip else None
    network = Trunk(backbone, predictor, pixel_decoder_of(variant))
    model = OVFormer(variant, network, clip)
    return model.requires_grad_(requires_grad=False).eval()


def is_aligned(variant: Variant) -> bool:
    """Whether queries are aligned with image embeddings: true of OVFormer, not of OV2Seg."""
    inputs = system_of(variant).graphs["classify"].inputs
    return any(tensor.name == "image_embeddings" for tensor in inputs)


def sizes_of_checkpoint(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What :func:`build` needs to know of a checkpoint."""
    return decoder_sizes(state)
