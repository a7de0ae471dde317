"""TEMPORARY names of yesterday, until every caller is moved to :mod:`openvis_rt.systems`."""

from openvis_rt.systems import SYSTEMS, VARIANTS, variant_named
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD, Variant

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "GRAPHS_OF_FAMILY",
    "OLD_TRACKERS",
    "VARIANTS",
    "Variant",
    "variant_named",
]
GRAPHS_OF_FAMILY = {name: system.graphs for name, system in SYSTEMS.items()}
OLD_TRACKERS = {
    "clip-vis": "temporal-top-k",
    "instformer": "rollout",
    "minvis-clip": "previous-frame",
    "ovformer-video": "previous-window",
    "ovformer-frame": "momentum",
    "ov2seg": "momentum",
    "minvis": "previous-frame",
}
