"""An InstFormer in small: the real classes with few channels, and a CLIP of three blocks."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn of while they are imported
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from openvis_rt.models.instformer import InstFormer
from openvis_rt.models.mask2former import ClassDecoder, Mask2Former
from openvis_rt.models.pixel_decoder import PixelDecoder
from openvis_rt.models.resnet import ResNet
from openvis_rt.systems import VARIANTS
from openvis_rt.systems.instformer import InstFormerConfig

WIDTH, EMBED, BLOCKS, PATCH, SIDE = 64, 32, 3, 32, 96
QUERIES = 10
VARIANT = replace(
    VARIANTS["instformer-r50"],  # the command knows models by their names
    backbone="tiny",
    clip="none",
    embed_dim=EMBED,
    feature_channels=(32, 64, 128, 256),
    short_side=60,
    max_side=160,
)
CONFIG = InstFormerConfig(decoder_layers=2, queries=QUERIES)


def tiny_clip(seed: int = 0, *, blocks: int = BLOCKS) -> CLIP:
    """A ViT of patch 32 on a grid of 3 x 3, with its text tower; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(
            EMBED,
            CLIPVisionCfg(
                layers=blocks, width=WIDTH, head_width=16, patch_size=PATCH, image_size=SIDE
            ),
            CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
            quick_gelu=True,
        )
        for block in clip.visual.transformer.resblocks:  # biases start at 0, which would hide slips
            torch.nn.init.normal_(block.attn.in_proj_bias, std=0.5)
    return clip.requires_grad_(requires_grad=False).eval()


def tiny_proposal(config: InstFormerConfig = CONFIG, seed: int = 0) -> Mask2Former:
    """A Mask2Former with few channels and one block a stage."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = ClassDecoder(
            classes=config.classes, layers=config.decoder_layers, queries=config.queries
        )
        backbone = ResNet((1, 1, 1, 1), VARIANT.feature_channels)
        return Mask2Former(backbone, predictor, PixelDecoder(backbone.channels, layers=1))


def tiny_instformer(config: InstFormerConfig | None = None, *, seed: int = 0) -> InstFormer:
    """The model with random weights; takes what the builder takes after the variant."""
    config = config or CONFIG
    model = InstFormer(VARIANT, config, tiny_clip(seed), tiny_proposal(config, seed))
    return model.requires_grad_(requires_grad=False).eval()
