"""A CLIP-VIS in small: the real classes with few channels, so that a bundle exports in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn of while they are imported
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from openvis_rt.export.bundle import ExportResult, export_bundle
from openvis_rt.models.clip import ClipResNet
from openvis_rt.models.clip_vis import ClipVis, ClipVisDecoder
from openvis_rt.models.mask2former import SegmentationHead
from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.graphs import GraphSpec

QUERIES = 10
NETWORK = (60, 90)  # padded to 64x96: the crop of the masks graph has something to cut
VARIANT = replace(
    VARIANTS["clip-vis-r50"],  # the command knows models by their names
    backbone="tiny",
    clip="none",
    embed_dim=32,
    feature_channels=(32, 64, 128, 256),
    short_side=60,
    max_side=160,
    detections=20,
)


def tiny_model(*, decoder_layers: int = 2, queries: int = QUERIES, seed: int = 0) -> ClipVis:
    """The model with random weights, the same for the same arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(
            VARIANT.embed_dim,
            CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=64),
            CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
            quick_gelu=True,
        )
        head = SegmentationHead(
            PixelDecoder(VARIANT.feature_channels, layers=1),
            ClipVisDecoder(layers=decoder_layers, queries=queries),
        )
    return ClipVis(VARIANT, ClipResNet(clip), head).requires_grad_(requires_grad=False).eval()


def export_tiny(path: Path, *, seed: int = 0, **options) -> ExportResult:
    """A bundle of :func:`tiny_model`."""
    options = {"network_size": NETWORK, "checkpoint": {"random_weights": seed}, **options}
    return export_bundle(tiny_model(seed=seed), path, **options)


def traced_before(bundle: Path) -> Callable[..., onnx.ModelProto]:
    """In place of ``onnx_from_module``: the graphs of a bundle, without the seconds of tracing."""

    def load(_module: torch.nn.Module, spec: GraphSpec) -> onnx.ModelProto:
        model = onnx.load(bundle / f"{spec.name}.onnx")
        del model.metadata_props[:]
        return model

    return load
