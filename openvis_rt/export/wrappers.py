"""The graphs of each family as modules whose every input is an explicit tensor.

Names, types and order of inputs and outputs are those of :mod:`openvis_rt.systems.graphs`.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from openvis_rt.models.clip import encode_text
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.instformer import InstFormer
from openvis_rt.models.mask_quality import mask_quality
from openvis_rt.models.minvis import MinVis
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.models.ovformer import OVFormer
from openvis_rt.models.resize import PillowResize
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

__all__ = [
    "Classify",
    "Embed",
    "InstFormerClassify",
    "InstFormerPropose",
    "MinVisClassify",
    "MinVisClipClassify",
    "MinVisClipPropose",
    "MinVisPropose",
    "OVFormerClassify",
    "OVFormerPropose",
    "Ov2SegClassify",
    "Propose",
    "Text",
    "example_inputs",
]

_TORCH_TYPES = {
    "uint8": torch.uint8,
    "bool": torch.bool,
    "int64": torch.int64,
    "float32": torch.float32,
}
_EXAMPLE_LENGTH = 3  # of dynamic axes while tracing; 0 and 1 would be taken for constants


M = TypeVar("M", bound=nn.Module)


class _Graph(nn.Module, Generic[M]):
    """A graph of a network.

    Args:
        model: the network.
    """

    model: M

    def __init__(self, model: M) -> None:
        super().__init__()
        self.model = model


class _OnFrames(_Graph[M]):
    """A graph that takes frames.

    Args:
        model: the network.
        resize: brings frames of the source's size to the network's; None where the host does.
    """

    def __init__(self, model: M, resize: PillowResize | None = None) -> None:
        super().__init__(model)
        self.resize = nn.Identity() if resize is None else resize


class Propose(_OnFrames[ClipVis]):
    """CLIP-VIS: frame to instances; see `propose` in :mod:`openvis_rt.systems.graphs`."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames uint8 [1, H, W, 3] to the outputs of `propose`, in order."""
        found = self.model.propose(self.resize(frames))
        pool_mask = self.model.pool_mask(found.mask_logits)
        area, mass = mask_quality(found.mask_logits)
        return (
            found.mask_logits.transpose(0, 1),  # [N, T, h, w]
            found.queries[0],
            found.object_logits[0],
            found.mask_iou[0],
            found.features,
            pool_mask[0],
            area[0],
            mass[0],
        )


class Classify(_Graph[ClipVis]):
    """CLIP-VIS: masked instances to class scores."""

    def forward(
        self, features: Tensor, pool_mask: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`ClipVis.classify`."""
        return self.model.classify(features, pool_mask, text_embeddings)


class InstFormerPropose(_OnFrames[InstFormer]):
    """InstFormer: frame to instances and their guidance."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames uint8 [1, H, W, 3] to the outputs of `propose`, in order."""
        found = self.model.propose(self.resize(frames))
        masks = found.mask_logits[:, None]  # [N, T, h, w]
        area = mask_quality(masks)[0][:, 0]
        return masks, found.queries, found.object_logits, found.guidance, area


class InstFormerClassify(_OnFrames[InstFormer]):
    """InstFormer: all instances of a frame in one pass."""

    def forward(
        self, frames: Tensor, guidance_mask: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`InstFormer.classify`."""
        return self.model.classify(self.resize(frames), guidance_mask, text_embeddings)


class MinVisClipPropose(_OnFrames[MinVisClip]):
    """MinVIS-CLIP: frame to instances."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames uint8 [1, H, W, 3] to the outputs of `propose`, in order."""
        found = self.model.propose(self.resize(frames))
        masks = found.mask_logits[:, None]  # [N, T, h, w]
        return masks, found.queries, found.object_logits, mask_quality(masks)[0][:, 0]


class MinVisClipClassify(_OnFrames[MinVisClip]):
    """MinVIS-CLIP: a crop of each instance."""

    def forward(
        self, frames: Tensor, mask_logits: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`MinVisClip.classify`."""
        return self.model.classify(self.resize(frames), mask_logits, text_embeddings)


class OVFormerPropose(_OnFrames[OVFormer]):
    """OV2Seg and OVFormer: a frame or a window to instances."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames uint8 [T, H, W, 3] to the outputs of `propose`, in order."""
        found = self.model.propose(self.resize(frames))
        area, mass = mask_quality(found.mask_logits)  # [N, T] each
        sums = (area,) if self.model.variant.window_length > 1 else (area[:, 0], mass[:, 0])
        return found.mask_logits, found.queries, found.object_logits, *sums


class Embed(_OnFrames[OVFormer]):
    """OVFormer: whole frames to CLIP's image embeddings."""

    def forward(self, pictures: Tensor) -> Tensor:
        """See :meth:`OVFormer.embed`."""
        return self.model.embed(self.resize(pictures))


class OVFormerClassify(_Graph[OVFormer]):
    """OVFormer: queries beside image embeddings to class logits."""

    def forward(
        self, queries: Tensor, image_embeddings: Tensor, text_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`OVFormer.classify`."""
        return self.model.classify(queries, text_embeddings, image_embeddings)


class Ov2SegClassify(_Graph[OVFormer]):
    """OV2Seg: queries to class logits."""

    def forward(self, queries: Tensor, text_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`OVFormer.classify`."""
        return self.model.classify(queries, text_embeddings)


class MinVisPropose(_OnFrames[MinVis]):
    """MinVIS: frame to instances."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames uint8 [1, H, W, 3] to the outputs of `propose`, in order."""
        masks, queries = self.model.propose(self.resize(frames))
        return masks, queries, mask_quality(masks)[0][:, 0]


class MinVisClassify(_Graph[MinVis]):
    """MinVIS: queries to class logits."""

    def forward(self, queries: Tensor) -> Tensor:
        """See :meth:`MinVis.classify`."""
        return self.model.classify(queries)


class Text(nn.Module):
    """Tokens to embeddings; see `text` in :mod:`openvis_rt.systems.graphs`.

    Args:
        clip_model: open_clip's model.
    """

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.clip_model = clip_model

    def forward(self, tokens: Tensor) -> Tensor:
        """See :func:`openvis_rt.models.clip.encode_text`."""
        return encode_text(self.clip_model, tokens)


def example_inputs(spec: GraphSpec) -> dict[str, Tensor]:
    """Zeros of the right shapes and types for tracing, by input name."""
    return {tensor.name: _example(tensor) for tensor in spec.inputs}


def _example(tensor: TensorSpec) -> Tensor:
    shape = [d if isinstance(d, int) else _EXAMPLE_LENGTH for d in tensor.shape]
    return torch.zeros(shape, dtype=_TORCH_TYPES[tensor.dtype])
