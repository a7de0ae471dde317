"""Numbers of the miniatures: the same networks made small, and trained in the generated world.

Their CLIPs are open_clip's own classes under sizes that it has no name for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openvis_rt.systems.system import Sizes

__all__ = ["MINI_CLIP_RESNET", "MINI_CLIP_VIT", "MINI_SIZES"]

MINI_SIZES = Sizes(
    width=96, encoder_layers=2, encoder_hidden=256, decoder_hidden=384, blocks=(2, 2, 2, 2)
)
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}

MINI_CLIP_RESNET: Mapping[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 128, "layers": [2, 2, 2, 2], "width": 16, "head_width": 64},
    "text_cfg": _TEXT,
}
MINI_CLIP_VIT: Mapping[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 128,
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": _TEXT,
}
