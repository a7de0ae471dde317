"""What an export does differently for each family of models."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openvis_rt.bundle import Tracker
from openvis_rt.export.resize import PillowResize
from openvis_rt.export.wrappers import (
    Classify,
    InstFormerClassify,
    InstFormerPropose,
    MinVisClipClassify,
    MinVisClipPropose,
    Propose,
    Text,
)
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.models.crop_clip import MinVisClip
from openvis_rt.models.instformer import InstFormer

__all__ = [
    "Model",
    "clip_of",
    "network_modules",
    "query_sizes",
    "tracker_of",
    "tracker_weights",
]

Model = ClipVis | InstFormer | MinVisClip
"""What can be exported; its ``variant`` says which family it is."""


def network_modules(model: Model, resize: PillowResize | None) -> dict[str, nn.Module]:
    """The modules that are traced, one for each graph but `masks`.

    Args:
        model: with its weights.
        resize: where the graphs take frames of the source's size.
    """
    modules: dict[str, nn.Module] = {"text": Text(clip_of(model))}
    if isinstance(model, ClipVis):
        return {**modules, "propose": Propose(model, resize), "classify": Classify(model)}
    if isinstance(model, MinVisClip):
        return {
            **modules,
            "propose": MinVisClipPropose(model, resize),
            "classify": MinVisClipClassify(model, resize),
        }
    return {
        **modules,
        "propose": InstFormerPropose(model, resize),
        "classify": InstFormerClassify(model, resize),
    }


def clip_of(model: Model) -> Any:
    """open_clip's model inside it."""
    return model.backbone.clip_model if isinstance(model, ClipVis) else model.clip_model


def query_sizes(model: Model) -> dict[str, int]:
    """N, C and Dt of the family's graphs."""
    head = model.sem_seg_head if isinstance(model, ClipVis) else model.proposal.sem_seg_head
    queries = head.predictor.query_feat
    tokens = model.variant.embed_dim
    if isinstance(model, InstFormer) and not model.config.guidance.projected:
        tokens = model.instance_clip.instance_token.shape[0]
    return {"N": queries.num_embeddings, "C": queries.embedding_dim, "Dt": tokens}


def tracker_weights(model: Model) -> dict[str, Tensor]:
    """What goes into the bundle's ``tracker.safetensors``; empty where there is nothing to know."""
    return model.tracker if isinstance(model, InstFormer) else {}


def tracker_of(model: Model) -> Tracker:
    """The family's association rule, as the model has it."""
    if isinstance(model, ClipVis):
        frames, top_k = model.variant.tracker_frames, model.variant.tracker_top_k
        return Tracker("temporal-top-k", {"frames": frames, "top_k": top_k})
    if isinstance(model, MinVisClip):
        return Tracker("previous-frame", {})
    return Tracker(
        "rollout",
        {
            "normalise_parts": model.config.normalise_parts,
            "video_score": model.config.video_score,
        },
    )
