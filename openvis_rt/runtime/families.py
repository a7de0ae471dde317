"""The family of a bundle's model, with its tracker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openvis_rt.bundle.bundle import TRACKER, Bundle
from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.clip_vis import ClipVis
from openvis_rt.runtime.family import Family, Tracker
from openvis_rt.runtime.instformer import InstFormer
from openvis_rt.runtime.minvis import MinVis
from openvis_rt.runtime.minvis_clip import MinVisClip
from openvis_rt.runtime.ovformer import Ov2Seg, OvFormerFrame, OvFormerVideo
from openvis_rt.runtime.tracking.association import Momentum, TemporalTopK
from openvis_rt.runtime.tracking.rollout import Rollout, cell_from_file
from openvis_rt.systems.variants import OLD_TRACKERS

__all__ = ["family_of"]

_TRACKERS = OLD_TRACKERS
_FAMILIES: dict[str, Callable[[Tracker], Family]] = {
    "clip-vis": ClipVis,
    "minvis-clip": MinVisClip,
    "ovformer-video": OvFormerVideo,
    "ovformer-frame": OvFormerFrame,
    "ov2seg": Ov2Seg,
    "minvis": MinVis,
}


def family_of(bundle: Bundle, frames: int | None = None, top_k: int | None = None) -> Family:
    """How a bundle's system matches and scores.

    Args:
        bundle: its manifest and, where it has one, its ``tracker.safetensors``.
        frames, top_k: T and K in place of the manifest's, for the temporal top-K tracker.

    Raises:
        BundleError: the family or its tracker is not known here, or the tracker's file is damaged.
        InputError: T or K for a tracker that has none.
    """
    manifest = bundle.manifest
    wanted = _TRACKERS.get(manifest.family)
    if manifest.tracker.name != wanted:
        raise BundleError(
            f"{bundle.path} holds a model of the family {manifest.family!r} with the tracker "
            f"{manifest.tracker.name!r}; this version of openvis-rt runs "
            f"{', '.join(f'{family} with {tracker}' for family, tracker in _TRACKERS.items())}"
        )
    given = {"frames": frames, "top_k": top_k}
    given = {name: value for name, value in given.items() if value is not None}
    if given and wanted != "temporal-top-k":
        raise InputError(f"the tracker {wanted} of {manifest.variant} has no T and no K")
    parameters = {**manifest.tracker.parameters, **given}
    tracker = _tracker(bundle, parameters)
    if manifest.family == "instformer":
        return InstFormer(
            tracker,
            normalise_parts=parameters["normalise_parts"],
            objectness=parameters["video_score"] == "mean-logits-objectness",
        )
    return _FAMILIES[manifest.family](tracker)


def _tracker(bundle: Bundle, parameters: dict[str, Any]) -> Tracker:
    name = bundle.manifest.tracker.name
    if name == "temporal-top-k":
        return TemporalTopK(parameters["frames"], parameters["top_k"])
    if name == "momentum":
        return Momentum(parameters["alpha"])
    file = bundle.path / TRACKER
    if name != "rollout" or not file.is_file():
        return Momentum()
    queries, tokens = (
        _width(bundle, graph, output)
        for graph, output in (("propose", "queries"), ("classify", "instance_tokens"))
    )
    return Rollout(cell_from_file(file, queries + tokens))


def _width(bundle: Bundle, graph: str, output: str) -> int:
    precision = next(iter(bundle.manifest.graphs))
    outputs = bundle.graph(graph, precision).spec.outputs
    return int(next(t.shape[-1] for t in outputs if t.name == output))
