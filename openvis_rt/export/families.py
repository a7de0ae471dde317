"""What an export does differently for each family of models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openvis_rt.bundle.bundle import Tracker
from openvis_rt.export.wrappers import (
    Classify,
    Embed,
    InstFormerClassify,
    InstFormerPropose,
    MinVisClassify,
    MinVisClipClassify,
    MinVisClipPropose,
    MinVisPropose,
    Ov2SegClassify,
    OVFormerClassify,
    OVFormerPropose,
    Propose,
    Text,
)
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.instformer import InstFormer
from openvis_rt.models.minvis import MinVis
from openvis_rt.models.minvis_clip import MinVisClip
from openvis_rt.models.ovformer import OVFormer
from openvis_rt.models.query_decoder import QueryDecoder
from openvis_rt.models.resize import PillowResize, resize_to_clip
from openvis_rt.models.zoo import Model
from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.systems.variants import GRAPHS_OF_FAMILY, OLD_TRACKERS

__all__ = [
    "clip_of",
    "clip_side",
    "graphs_of",
    "network_modules",
    "query_sizes",
    "tracker_of",
    "tracker_weights",
]


def graphs_of(model: Model) -> dict[str, GraphSpec]:
    """The family's graphs; without those that need CLIP where its weights are not at hand."""
    needs_clip = ("embed", "text") if clip_of(model) is None else ()
    graphs = GRAPHS_OF_FAMILY[model.variant.family]
    return {name: spec for name, spec in graphs.items() if name not in needs_clip}


def network_modules(
    model: Model, source: tuple[int, int] | None, size: tuple[int, int]
) -> dict[str, nn.Module]:
    """The modules that are traced, one for each graph but `masks`.

    Args:
        model: with its weights.
        source: (H, W) of the source's frames where the graphs resize.
        size: (H, W) of the network's frame.
    """
    resize = None if source is None else PillowResize(source, size)
    modules = dict(zip(("propose", "classify"), _seams(model, resize), strict=True))
    graphs = graphs_of(model)
    if "embed" in graphs:
        assert isinstance(model, OVFormer)
        crop = None if source is None else resize_to_clip(source, clip_side(model))
        modules["embed"] = Embed(model, crop)
    if "text" in graphs:
        modules["text"] = Text(clip_of(model))
    return modules


def _seams(model: Model, resize: PillowResize | None) -> tuple[nn.Module, nn.Module]:
    """`propose` and `classify`."""
    if isinstance(model, ClipVis):
        return Propose(model, resize), Classify(model)
    if isinstance(model, InstFormer):
        return InstFormerPropose(model, resize), InstFormerClassify(model, resize)
    if isinstance(model, MinVisClip):
        return MinVisClipPropose(model, resize), MinVisClipClassify(model, resize)
    if isinstance(model, MinVis):
        return MinVisPropose(model, resize), MinVisClassify(model)
    classify = Ov2SegClassify if model.variant.family == "ov2seg" else OVFormerClassify
    return OVFormerPropose(model, resize), classify(model)


def clip_of(model: Model) -> Any:
    """open_clip's model inside it; None where there is none."""
    if isinstance(model, MinVis):
        return None
    return model.backbone.clip_model if isinstance(model, ClipVis) else model.clip_model


def clip_side(model: Model) -> int:
    """Pixels of the square picture that CLIP's image encoder was trained with; 0 without CLIP."""
    if (clip := clip_of(model)) is None:
        return 0
    size = clip.visual.image_size
    return int(size if isinstance(size, int) else size[0])


def query_sizes(model: Model) -> dict[str, int]:
    """N, C, and where there are any Dt and Kc of the family's graphs."""
    if isinstance(model, ClipVis):
        predictor: QueryDecoder = model.sem_seg_head.predictor
    elif isinstance(model, OVFormer | MinVis):
        predictor = model.network.predictor
    else:
        predictor = model.proposal.predictor
    queries = predictor.query_feat
    sizes = {"N": queries.num_embeddings, "C": queries.embedding_dim}
    if isinstance(model, InstFormer):
        sizes["Dt"] = model.tracking_width - sizes["C"]
    if isinstance(model, MinVis):
        sizes["Kc"] = model.network.predictor.class_embed.out_features
    return sizes


def tracker_weights(model: Model) -> dict[str, Tensor]:
    """What goes into the bundle's ``tracker.safetensors``; empty where there is nothing to know."""
    return model.tracker if isinstance(model, InstFormer) else {}


def tracker_of(model: Model) -> Tracker:
    """The family's association rule, as the model has it."""
    variant = model.variant
    parameters: dict[str, Any] = {}
    if isinstance(model, InstFormer):
        config = model.config
        parameters = {"normalise_parts": config.normalise_parts, "video_score": config.video_score}
    elif OLD_TRACKERS[variant.family] == "temporal-top-k":
        parameters = {"frames": 9, "top_k": 5}
    elif OLD_TRACKERS[variant.family] == "momentum":
        parameters = {"alpha": 0.7}
    return Tracker(OLD_TRACKERS[variant.family], parameters)
