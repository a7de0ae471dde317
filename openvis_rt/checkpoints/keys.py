"""Whose checkpoint a file is, by its keys; and the few keys that changed their names.

OVFormer's two models have the same keys and shapes, but were trained on different data, and most
checkpoints say so. A loss that weighs the 1203 classes of LVIS's images is the per-frame model's;
one of LV-VIS's 1196 is in both (`ovformer/modeling/criterion.py` has either). Then the classifier
tells, if it has LVIS's or LV-VIS's columns, and one for the background.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openvis_rt.checkpoints.weights import load_weights

__all__ = [
    "CLASSIFIER",
    "LOSS_WEIGHTS",
    "decoder_layers",
    "family_of_keys",
    "load_checkpoint",
    "query_count",
    "timm_key",
    "trained_family",
    "variant_of_keys",
]

_HEAD = r"sem_seg_head\.predictor\."
_STATIC_QUERY = re.compile(r"(.*\.predictor\.)static_query\.weight")  # before version 2
_PARTS = {  # of a ResNet's stem and blocks: timm's name and detectron2's
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_TIMM = re.compile(r"backbone\.base\.(?:layer(\d)\.(\d+)\.)?(conv\d|bn\d|downsample\.\d)\.(\w+)")
_DETECTRON2 = re.compile(
    r"backbone\.(?:stem|res(\d)\.(\d+))\.(conv\d(?:\.norm)?|shortcut(?:\.norm)?)\.(\w+)"
)
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
_LVIS, _LVVIS = 1203, 1196  # classes


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, under today's key names; see :func:`load_weights`.

    OVFormer's and OV2Seg's ResNet has timm's names in the file, and gets detectron2's.
    """
    return {_todays_key(key): value for key, value in load_weights(path).items()}


def _todays_key(key: str) -> str:
    if match := _TIMM.fullmatch(key):
        layer, block, part, kind = match.groups()
        stage = f"res{int(layer) + 1}.{block}" if layer else "stem"  # timm counts from 1
        return f"backbone.{stage}.{_PARTS[part]}.{kind}" if part in _PARTS else key
    return _STATIC_QUERY.sub(r"\1query_feat.weight", key)


def timm_key(key: str) -> str:
    """The name that OVFormer's and OV2Seg's checkpoints have for a key of today."""
    if not (match := _DETECTRON2.fullmatch(key)):
        return key
    stage, block, part, kind = match.groups()
    theirs = next(name for name, ours in _PARTS.items() if ours == part)
    return f"backbone.base.{f'layer{int(stage) - 1}.{block}.' if stage else ''}{theirs}.{kind}"


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
    weights, classifier = (state.get(key) for key in (LOSS_WEIGHTS, CLASSIFIER))
    if weights is not None and weights.shape == (_LVIS,):
        return "ovformer-frame"
    columns = 0 if classifier is None or classifier.ndim != 2 else classifier.shape[1]
    return {_LVIS + 1: "ovformer-frame", _LVVIS + 1: "ovformer-video"}.get(columns)


def query_count(state: Mapping[str, Tensor]) -> int:
    """How many queries a state dict has; 0 if none are found."""
    key = "sem_seg_head.predictor.query_feat.weight"
    return len(state[key]) if key in state else 0


def decoder_layers(state: Mapping[str, Tensor]) -> int:
    """How many decoder layers a state dict has, wherever its segmentation head is."""
    pattern = re.compile(r"(?:.*\.)?sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.")
    found = [int(m.group(1)) for key in state if (m := pattern.match(key))]
    return max(found, default=-1) + 1
