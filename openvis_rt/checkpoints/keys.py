"""Whose checkpoint a file is, by its keys; and the few keys that changed their names.

What identifies a system's checkpoints is written with the system; what can only be told apart from
them, since people have such files as well, is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from openvis_rt.systems import SYSTEMS
from openvis_rt.systems.ovformer import (
    CLASSIFIER,
    LOSS_WEIGHTS,
    LVIS_CLASSES,
    LVVIS_CLASSES,
    OVFORMERS,
)
from openvis_rt.systems.system import Signature, System, Variant

__all__ = [
    "CLIP",
    "HUGGING_FACE_CLIP",
    "UNKNOWN",
    "has_sizes_of",
    "renamed",
    "signature_of",
    "systems_of",
    "timm_key",
    "trained_system",
    "variant_of",
]

UNKNOWN = Signature("no system known here", ())
CLIP = Signature("open_clip (CLIP alone)", (r"visual\.", r"token_embedding\."))
HUGGING_FACE_CLIP = Signature(
    "CLIP under Hugging Face's names",
    (
        *(r"vision_model\.encoder\.layers\.", r"text_model\.encoder\.layers\."),
        *(r"visual_projection\.weight", r"text_projection\.weight"),
    ),
)
_FOREIGN = (  # before the systems: OpenVIS's public code has Mask2Former's keys as well
    CLIP,
    HUGGING_FACE_CLIP,
    Signature(
        "a model under Hugging Face's names that is not a whole CLIP (SigLIP, or one tower alone)",
        (r"(vision|text)_model\.",),
    ),
    Signature("openvis (its public code)", (r"clip_adapter\.clip_model\.",)),
)

# [C, channels of res5, 1, 1]
_FIRST_PROJECTION = "sem_seg_head.pixel_decoder.input_proj.0.0.weight"
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


def signature_of(keys: Iterable[str]) -> Signature:
    """The kind of file that has these keys; :data:`UNKNOWN` if it is none of those known."""
    keys = list(keys)
    for signature in (*_FOREIGN, *(system.signature for system in SYSTEMS.values())):
        if all(any(re.match(pattern, key) for key in keys) for pattern in signature.keys):
            return signature
    return UNKNOWN


def systems_of(state: Mapping[str, Tensor]) -> list[System]:
    """The systems whose checkpoint a state dict can be; several if they share their keys."""
    signature, trained = signature_of(state), trained_system(state)
    found = [system for system in SYSTEMS.values() if system.signature == signature]
    return [trained] if trained in found else found


def trained_system(state: Mapping[str, Tensor]) -> System | None:
    """Which of OVFormer's two models a state dict is, by the data that trained it; None if untold.

    :mod:`openvis_rt.systems.ovformer` says how it is known.
    """
    video, frame = OVFORMERS
    weights, classifier = (state.get(key) for key in (LOSS_WEIGHTS, CLASSIFIER))
    if weights is not None and weights.shape == (LVIS_CLASSES,):
        return frame
    columns = 0 if classifier is None or classifier.ndim != 2 else classifier.shape[1]
    return {LVIS_CLASSES + 1: frame, LVVIS_CLASSES + 1: video}.get(columns)


def variant_of(system: System, state: Mapping[str, Tensor]) -> Variant | None:
    """The system's variant whose image encoder a state dict has; None if it has none such.

    Of several with the same keys it is the one whose sizes the pixel decoder has.
    """
    found = [v for v in system.variants if any(key.startswith(v.encoder_key) for key in state)]
    return max(found, key=lambda v: (len(v.encoder_key), has_sizes_of(v, state)), default=None)


def has_sizes_of(variant: Variant, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict's pixel decoder is as wide as the variant's, and as its image encoder.

    It is false of a state dict without a pixel decoder.
    """
    projection = next((state[key] for key in state if key.endswith(_FIRST_PROJECTION)), None)
    if projection is None:
        return False
    return projection.shape[:2] == (variant.sizes.width, variant.feature_channels[-1])


def renamed(key: str) -> str:
    """Today's name of a key: detectron2's where a file has timm's, and Mask2Former's latest."""
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
