"""The miniatures as the packer writes them, with random weights, in the place of shipped ones."""

from __future__ import annotations

from pathlib import Path

import torch

from openvis_rt.models.network import build_network
from openvis_rt.systems import VARIANTS
from openvis_rt.training.instance_tokens import LowRank
from openvis_rt.training.miniatures import pack

MINIATURES = ("clip-vis-mini", "instformer-mini", "ovformer-mini")


def pack_random_miniatures(folder: Path, seed: int = 0) -> Path:
    """Write runs of no iteration and pack them; the folder of the packed files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip_vis, instformer, ovformer = (build_network(VARIANTS[name]) for name in MINIATURES)
        blocks = instformer.clip_model.visual.transformer.resblocks
        adapters = torch.nn.ModuleList(LowRank(block.attn.embed_dim) for block in blocks)
        width = instformer.tracking_width
        cell = torch.nn.RNN(width, width, batch_first=True)
        token = torch.randn(blocks[0].attn.embed_dim)
    tokens = {f"adapters.{key}": value for key, value in adapters.state_dict().items()}
    states = {
        "clip-resnet": clip_vis.clip_model.state_dict(),
        "clip-vis": clip_vis.sem_seg_head.state_dict(),
        "clip-vit": instformer.clip_model.state_dict(),
        "proposals": instformer.proposal.state_dict(),
        "tokens": tokens | {f"tokens.{name}": token for name in ("register", "instance")},
        "tracker": cell.state_dict(),
        "ovformer": ovformer.network.state_dict(),
    }
    for name, state in states.items():
        (folder / "runs" / name).mkdir(parents=True)
        torch.save({"model": state}, folder / "runs" / name / "last.pt")
    pack(folder / "runs", folder / "packed")
    return folder / "packed"
