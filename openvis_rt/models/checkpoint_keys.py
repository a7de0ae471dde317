"""Whose checkpoint a file is, by its keys; and the few keys that changed their names.

OVFormer's two models have the same keys and shapes, but were trained on different data, and their
checkpoints say so: the loss weighs 1203 classes of LVIS's images (the per-frame model) or 1196 of
LV-VIS's videos (the video model), and the classifier has as many and the background.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openvis_rt.models.weights import load_weights

__all__ = [
    "CLASSIFIER",
    "LOSS_WEIGHTS",
    "decoder_layers",
    "family_of_keys",
    "load_checkpoint",
    "query_count",
    "trained_family",
    "variant_of_keys",
]

_HEAD = r"sem_seg_head\.predictor\."
_BASE = r"backbone\.base\."  # OVFormer's and OV2Seg's ResNet has timm's names; ours detectron2's
RENAMED = {
    r"(.*\.predictor\.)static_query\.weight": r"\1query_feat.weight",  # before version 2
    _BASE + r"conv1\.(.*)": r"backbone.stem.conv1.\1",
    _BASE + r"bn1\.(.*)": r"backbone.stem.conv1.norm.\1",
    **{  # timm counts its layers from 1, and detectron2 its stages from 2
        _BASE + rf"layer{n}\.(\d+)\.{theirs}\.(.*)": rf"backbone.res{n + 1}.\1.{ours}.\{last}"
        for n in range(1, 5)
        for theirs, ours, last in (
            (r"conv(\d)", r"conv\2", 3),
            (r"bn(\d)", r"conv\2.norm", 3),
            (r"downsample\.0", "shortcut", 2),
            (r"downsample\.1", "shortcut.norm", 2),
        )
    },
}
_SIGNATURES = {  # family: keys that only its checkpoints have, and keys that they cannot have
    "clip-vis": (r"backbone\.clip_model\.visual\.", r"sem_seg_head\.predictor\.iou_head\."),
    "instformer": (r"proposal\.sem_seg_head\.", r"clip\.visual\."),
    "openvis (its public code)": (r"clip_adapter\.clip_model\.",),
    "ovformer": (_HEAD + r"class_embed\.cross_attention\.",),
    "ov2seg": (_HEAD + r"class_embed\.linear\.", _HEAD + r"object_embed\."),
    "mask2former or minvis": (r"sem_seg_head\.predictor\.mask_embed\.",),
    "open_clip (CLIP alone)": (r"visual\.", r"token_embedding\."),
    "CLIP under Hugging Face's names": (r"vision_model\.", r"text_model\."),
}
_R50, _SWIN = {"backbone.res5.": "r50"}, {"backbone.patch_embed.": "swin-b"}
_BACKBONES = {  # of each family: the first letters of keys that only one image encoder has
    "clip-vis": {
        "backbone.clip_model.visual.trunk.": "convnext-b",
        "backbone.clip_model.visual.layer4.": "r50",
    },
    "instformer": {"proposal.backbone.res5.": "r50"},
    "ovformer": _R50 | _SWIN,
    "ov2seg": _R50 | _SWIN,
    "mask2former or minvis": _R50,
}
LOSS_WEIGHTS = "criterion.freq_weight"  # [classes]
CLASSIFIER = "sem_seg_head.predictor.class_embed.zs_weight"  # [D, classes + 1]
_TRAINED = {1203: "ovformer-frame", 1196: "ovformer-video"}  # classes of LVIS and of LV-VIS


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, under today's key names; see :func:`load_weights`."""
    state = load_weights(path)
    for pattern, target in RENAMED.items():
        state = {re.sub(f"^{pattern}$", target, key): value for key, value in state.items()}
    return state


def family_of_keys(keys: Mapping[str, Any] | set[str]) -> str | None:
    """The system that a state dict with these keys belongs to, in words; None if none is known."""
    for family, patterns in _SIGNATURES.items():
        if all(any(re.match(p, key) for key in keys) for p in patterns):
            return family
    return None


def variant_of_keys(state: Mapping[str, Tensor]) -> str | None:
    """The variant that a state dict belongs to, by system and image encoder, if one is known."""
    family = family_of_keys(state)
    backbones = _BACKBONES.get(family or "", {})
    found = (b for part, b in backbones.items() if any(key.startswith(part) for key in state))
    if family is None or (backbone := next(found, None)) is None:
        return None
    systems = {"ovformer": trained_family(state), "mask2former or minvis": "minvis"}
    system = systems.get(family, family)
    return None if system is None else f"{system}-{backbone}"


def trained_family(state: Mapping[str, Tensor]) -> str | None:
    """``ovformer-frame`` or ``ovformer-video``, by the data that trained it; None if untold."""
    weights, columns = (state.get(key) for key in (LOSS_WEIGHTS, CLASSIFIER))
    if weights is not None and (family := _TRAINED.get(weights.shape[-1])):
        return family
    return None if columns is None else _TRAINED.get(columns.shape[-1] - 1)


def query_count(state: Mapping[str, Tensor]) -> int:
    """How many queries a state dict has; 0 if none are found."""
    key = "sem_seg_head.predictor.query_feat.weight"
    return len(state[key]) if key in state else 0


def decoder_layers(state: Mapping[str, Tensor]) -> int:
    """How many decoder layers a state dict has, wherever its segmentation head is."""
    pattern = re.compile(r"(?:.*\.)?sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.")
    found = [int(m.group(1)) for key in state if (m := pattern.match(key))]
    return max(found, default=-1) + 1
