"""OVFormer, OV2Seg and MinVIS in small: the real classes with few channels, and a CLIP of 3 blocks.

Each function takes the sizes that the released model's builder takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import NETWORK, traced_before
from tiny_instformer import EMBED, tiny_clip

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.export import bundle as bundle_export
from openvis_rt.export.bundle import ExportResult, export_bundle
from openvis_rt.models.mask2former import Backbone, ClassDecoder, Mask2Former, Trunk
from openvis_rt.models.minvis import MinVis
from openvis_rt.models.network import Network
from openvis_rt.models.ovformer import OVFormer, is_aligned
from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.models.resnet import ResNet
from openvis_rt.models.swin import Swin
from openvis_rt.models.zero_shot import ZeroShotDecoder, ZeroShotWindowDecoder
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.system import Variant

QUERIES, CLASSES = 10, 6  # classes: of MinVIS, whose vocabulary is closed
CHANNELS = (32, 64, 128, 256)
SYSTEMS = ("ovformer-video", "ovformer-frame", "ov2seg")
OPEN = tuple(f"{system}-{backbone}" for system in SYSTEMS for backbone in ("r50", "swin-b"))


def tiny_variant(name: str) -> Variant:
    """A variant with small sizes; the command knows models by their names."""
    released = VARIANTS[name]
    return replace(
        released,
        backbone="tiny",
        clip="none" if released.clip else "",
        embed_dim=EMBED if released.embed_dim else 0,
        feature_channels=CHANNELS,
        short_side=60,
        max_side=160,
    )


def tiny_backbone(name: str) -> Backbone:
    """Of one block a stage; the third stage of the Swin has two, so that one is shifted."""
    if name.endswith("swin-b"):
        return Swin(32, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=4)
    return ResNet((1, 1, 1, 1), CHANNELS)


def tiny_ovformer(
    name: str = "ovformer-video-r50",
    *,
    decoder_layers: int = 2,
    queries: int = QUERIES,
    with_clip: bool = True,
    quick_gelu: bool = True,
    seed: int = 0,
) -> OVFormer:
    """An OVFormer or OV2Seg with random weights, the same for the same arguments."""
    variant = tiny_variant(name)
    decoder = ZeroShotDecoder if variant.window_length == 1 else ZeroShotWindowDecoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = decoder(
            layers=decoder_layers,
            queries=queries,
            embed_dim=EMBED,
            aligned=is_aligned(variant),
        )
        network = Trunk(tiny_backbone(name), predictor, PixelDecoder(CHANNELS, layers=1))
    clip = tiny_clip(seed) if with_clip else None
    return OVFormer(variant, network, clip).requires_grad_(requires_grad=False).eval()


def tiny_minvis(
    *, classes: int = CLASSES, decoder_layers: int = 2, queries: int = QUERIES, seed: int = 0
) -> MinVis:
    """A MinVIS with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = ClassDecoder(classes=classes, layers=decoder_layers, queries=queries)
        network = Mask2Former(
            ResNet((1, 1, 1, 1), CHANNELS), predictor, PixelDecoder(CHANNELS, layers=1)
        )
    model = MinVis(tiny_variant("minvis-r50"), network)
    return model.requires_grad_(requires_grad=False).eval()


def export_small(model: Network, path: Path, **options) -> ExportResult:
    """A bundle of FP32 graphs for frames of 60x90, which the graphs pad to 64x96."""
    options = {"network_size": NETWORK, "precisions": ("fp32",), **options}
    return export_bundle(model, path, checkpoint={"random_weights": 0}, **options)


def _ov2seg_of_the_frame_model() -> OVFormer:
    frame = tiny_ovformer("ovformer-frame-swin-b", decoder_layers=1, with_clip=False)
    model = tiny_ovformer("ov2seg-swin-b", decoder_layers=1, with_clip=False)
    weights = frame.network.state_dict()
    model.network.load_state_dict({key: weights[key] for key in model.network.state_dict()})
    return model


_SHARED: dict[str, tuple[Callable[[], Network], dict[str, str]]] = {
    # the model, and of which other bundle it has graphs, whose tracing takes seconds
    "ovformer-video-r50": (tiny_ovformer, {}),
    "ovformer-frame-swin-b": (
        partial(tiny_ovformer, "ovformer-frame-swin-b", decoder_layers=1),
        {"text": "ovformer-video-r50"},
    ),
    "ov2seg-swin-b": (_ov2seg_of_the_frame_model, {"propose": "ovformer-frame-swin-b"}),
    "minvis-r50": (partial(tiny_minvis, decoder_layers=1), {}),
}


def shared_bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of a tiny model, exported once a session, whichever test asks first; read only.

    Those of per-frame models have one decoder layer, and OV2Seg's has no CLIP.
    """
    path = tmp_path_factory.getbasetemp() / f"small-{name}"
    if not path.exists():
        build, known = _SHARED[name]
        trace = bundle_export.onnx_from_module
        traced = {
            graph: traced_before(shared_bundle(other, tmp_path_factory).path)
            for graph, other in known.items()
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                bundle_export,
                "onnx_from_module",
                lambda module, spec: traced.get(spec.name, trace)(module, spec),
            )
            export_small(build(), path)
    return Bundle.open(path, verify=False)
