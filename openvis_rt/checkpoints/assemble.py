"""The parts of an InstFormer from what people have: files of Mask2Former and of tokens."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from pathlib import Path

from torch import Tensor

from openvis_rt.checkpoints.keys import (
    decoder_layers,
    family_of_keys,
    load_checkpoint,
    query_count,
)
from openvis_rt.checkpoints.weights import load_weights, some_of, without_ignored
from openvis_rt.errors import CheckpointError

__all__ = ["ProposalSizes", "proposal_weights", "token_weights"]

_MASK2FORMER = "mask2former or minvis"
_PREDICTOR = "sem_seg_head.predictor."


@dataclass(frozen=True)
class ProposalSizes:
    """What a Mask2Former's weights are for; fields as in InstFormerConfig."""

    classes: int
    decoder_layers: int
    queries: int


def proposal_weights(path: Path) -> tuple[dict[str, Tensor], ProposalSizes]:
    """A Mask2Former checkpoint.

    Args:
        path: of Mask2Former or MinVIS, ``.pth`` or ``.safetensors``.

    Returns:
        its weights under detectron2's keys, and how many classes, decoder layers and queries they
        are for.

    Raises:
        CheckpointError: it cannot be read or is of another system.
    """
    state = without_ignored(load_checkpoint(path))
    family = family_of_keys(state)
    head = state.get(f"{_PREDICTOR}class_embed.weight")
    if family != _MASK2FORMER or head is None or head.ndim != 2:
        raise CheckpointError(
            f"{path} looks like a checkpoint of {family or 'no system known here'}; the proposal "
            "network needs one of Mask2Former or MinVIS, with a class head (keys such as "
            f"{_PREDICTOR}class_embed.weight; found {some_of(list(state)[:3])})"
        )
    sizes = ProposalSizes(len(head) - 1, decoder_layers(state), query_count(state))
    if min(astuple(sizes)) < 1:
        raise CheckpointError(f"{path}: every size is at least 1; found {sizes}")
    return state, sizes


def token_weights(path: Path) -> dict[str, Tensor]:
    """Trained tokens, ``register`` and ``instance`` [768], one or both.

    Args:
        path: keys may begin with ``tokens.``; leading axes of length 1 are dropped.

    Raises:
        CheckpointError: it cannot be read, or holds anything else.
    """
    state = {re.sub(r"^tokens\.", "", k): v for k, v in load_weights(path).items()}
    strange = sorted(state.keys() - {"register", "instance"})
    if strange or not state:
        raise CheckpointError(
            f"{path}: tokens are `register` and `instance`; found {some_of(strange) or 'nothing'}"
        )
    return {k: v.flatten() if v.ndim and v.numel() == v.shape[-1] else v for k, v in state.items()}
