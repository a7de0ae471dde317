"""Every model of this package by its name, untrained."""

from __future__ import annotations

from collections.abc import Callable

from openvis_rt.models.clip_vis import ClipVis, build_clip_vis_convnext_b, build_clip_vis_r50
from openvis_rt.models.instformer import InstFormer, build_instformer_r50
from openvis_rt.models.minvis import MinVis, build_minvis_r50
from openvis_rt.models.minvis_clip import MinVisClip, build_minvis_clip_r50
from openvis_rt.models.ovformer import (
    OVFormer,
    build_ov2seg_r50,
    build_ov2seg_swin_b,
    build_ovformer_frame_r50,
    build_ovformer_frame_swin_b,
    build_ovformer_video_r50,
    build_ovformer_video_swin_b,
)

__all__ = ["MODELS", "Model"]

Model = ClipVis | InstFormer | MinVisClip | OVFormer | MinVis
"""What a checkpoint becomes; its ``variant`` says which family it is."""

MODELS: dict[str, Callable[..., Model]] = {
    "clip-vis-r50": build_clip_vis_r50,
    "clip-vis-convnext-b": build_clip_vis_convnext_b,
    "instformer-r50": build_instformer_r50,
    "minvis-clip-r50": build_minvis_clip_r50,
    "ovformer-video-r50": build_ovformer_video_r50,
    "ovformer-video-swin-b": build_ovformer_video_swin_b,
    "ovformer-frame-r50": build_ovformer_frame_r50,
    "ovformer-frame-swin-b": build_ovformer_frame_swin_b,
    "ov2seg-r50": build_ov2seg_r50,
    "ov2seg-swin-b": build_ov2seg_swin_b,
    "minvis-r50": build_minvis_r50,
}
"""Builders of the variants; each has defaults for all that a checkpoint would say."""
