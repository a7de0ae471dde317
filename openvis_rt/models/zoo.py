"""Every model of this package by its name, untrained."""

from __future__ import annotations

from collections.abc import Callable

from openvis_rt.models.clip_vis import ClipVis, build_clip_vis_convnext_b, build_clip_vis_r50
from openvis_rt.models.crop_clip import MinVisClip, build_minvis_clip_r50
from openvis_rt.models.instformer import InstFormer, build_instformer_r50

__all__ = ["MODELS", "Model"]

Model = ClipVis | InstFormer | MinVisClip
"""What a checkpoint becomes; its ``variant`` says which family it is."""

MODELS: dict[str, Callable[..., Model]] = {
    "clip-vis-r50": build_clip_vis_r50,
    "clip-vis-convnext-b": build_clip_vis_convnext_b,
    "instformer-r50": build_instformer_r50,
    "minvis-clip-r50": build_minvis_clip_r50,
}
"""Builders of the variants; each has defaults for all that a checkpoint would say."""
