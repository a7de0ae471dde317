"""What is known of each system: one file a system, with the standard library alone.

A new variant of a known system is an entry of its file; a new system is a file and a line here.
"""

from __future__ import annotations

from openvis_rt.errors import InputError
from openvis_rt.systems.clip_vis import CLIP_VIS
from openvis_rt.systems.instformer import INSTFORMER
from openvis_rt.systems.minvis import MINVIS
from openvis_rt.systems.minvis_clip import MINVIS_CLIP
from openvis_rt.systems.ov2seg import OV2SEG
from openvis_rt.systems.ovformer import OVFORMERS
from openvis_rt.systems.system import System, Variant

__all__ = ["SYSTEMS", "VARIANTS", "system_of", "variant_named"]

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (CLIP_VIS, INSTFORMER, MINVIS_CLIP, *OVFORMERS, OV2SEG, MINVIS)
}
"""By name, in the order in which tables list them."""

VARIANTS: dict[str, Variant] = {
    variant.name: variant for system in SYSTEMS.values() for variant in system.variants
}
"""Every model, by name."""


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        InputError: there is none; the message lists those that exist.
    """
    if name not in VARIANTS:
        raise InputError(f"there is no model {name!r}; known models: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def system_of(variant: Variant) -> System:
    """The system that a variant belongs to."""
    return SYSTEMS[variant.system]
