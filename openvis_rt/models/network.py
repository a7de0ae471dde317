"""What every network answers: its graphs by the contract's names, its sizes, its rules.

A system's module in this folder has a sub-class of :class:`Network` and a function ``build(variant,
...)`` that makes an untrained one; :func:`build_network` finds it by the system's name for it. So a
new system needs a file here and nothing else of this folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from openvis_rt.models.clip import encode_text
from openvis_rt.systems import system_of
from openvis_rt.systems.graphs import GraphSpec
from openvis_rt.systems.system import Score, Tracker, Variant

__all__ = ["Network", "build_network", "sizes_of_checkpoint"]

Outputs = dict[str, Tensor]
"""Tensors by the names of :mod:`openvis_rt.systems.graphs`."""


class Network(nn.Module):
    """A model of some system.

    Args:
        variant: sizes and normalisation.

    Attributes:
        clip_model: open_clip's whole model; None without it. Each sub-class sets it.
        tracker, score: the rules that a bundle of it records.
        patch: pixels of the side of a patch of the guidance mask.
        recurrence: weights of a rollout tracker under torch's names; they run in the runtime and
            are no part of ``state_dict``. Empty where there are none.
    """

    patch: int = 32
    clip_model: Any  # open_clip's module; its parts have no types

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        system = system_of(variant)
        self.variant = variant
        self.tracker: Tracker = system.tracker
        self.score: Score = system.score
        self.recurrence: dict[str, Tensor] = {}

    @property
    def graphs(self) -> dict[str, GraphSpec]:
        """What is exported of it: the system's graphs, but those that need a CLIP that it lacks."""
        needs_clip = () if self.clip_model is not None else ("embed", "text")
        graphs = system_of(self.variant).graphs
        return {name: spec for name, spec in graphs.items() if name not in needs_clip}

    @property
    def checkpoint_module(self) -> nn.Module:
        """The module whose ``state_dict`` has the keys of the official checkpoint."""
        return self

    def sizes(self) -> dict[str, int]:
        """A number for each symbol of the graphs that the network decides: N, C, and its own."""
        raise NotImplementedError

    def propose(self, frames: Tensor) -> Outputs:
        """Instances of a window, uint8 [T, H, W, 3]: the outputs of `propose`."""
        raise NotImplementedError

    def classify(self, *args: Any, **inputs: Any) -> Outputs:
        """The outputs of `classify`; a sub-class names the inputs as its graph does."""
        raise NotImplementedError

    def embed(self, pictures: Tensor) -> Outputs:
        """CLIP's embeddings of whole frames: the output of `embed`, where a system has it."""
        raise NotImplementedError

    def text(self, tokens: Tensor) -> Outputs:
        """Embeddings of prompts, int64 [B, L], L <= 77: the output of `text`."""
        return {"embeddings": encode_text(self.clip_model, tokens)}


def build_network(variant: Variant, *args: Any, **sizes: Any) -> Network:
    """An untrained network in evaluation mode.

    Args:
        variant: which.
        args, sizes: as its module's ``build`` takes them; each has a default.

    Raises:
        InputError: the sizes contradict one another.
    """
    network: Network = _module_of(variant).build(variant, *args, **sizes)
    return network


def sizes_of_checkpoint(variant: Variant, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What an official checkpoint says of the sizes that ``build`` takes.

    Args:
        variant: of a system whose checkpoints are state dicts of its public code.
        state: the checkpoint's, under detectron2's key names.
    """
    sizes: dict[str, Any] = _module_of(variant).sizes_of_checkpoint(state)
    return sizes


def _module_of(variant: Variant) -> Any:
    return import_module(f"openvis_rt.models.{system_of(variant).network}")
