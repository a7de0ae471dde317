"""Where an engine is compared: lengths and sizes of its profile, and those of recorded calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from openvis_rt.engines.plan import Profile, Sidecar
from openvis_rt.systems.graphs import GraphSpec

__all__ = ["Place", "fits", "place_of", "places_of"]

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """Lengths by dynamic axis, and heights and widths in pixels by the input that is given them."""

    lengths: dict[str, int]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def places_of(sidecar: Sidecar, spec: GraphSpec, fixed: Sizes) -> Iterator[Place]:
    """The least, the usual and the largest lengths and sizes, and every window's length.

    Batches have been wrong at one length and right at another. The largest size is tried with the
    least lengths, and the largest lengths with the usual size, since nothing runs both at once.

    Args:
        sidecar: the engine's profiles.
        spec: the graph's.
        fixed: values of inputs that hold sizes, where the engine has them built in.
    """
    symbols = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
    profiles = {s: profile for s, profile in sidecar.profiles.items() if s in symbols}
    sizes = sidecar.shape_values
    usual = {t.name: fixed[t.name] for t in spec.overridable if t.name in fixed}
    usual |= {name: tuple(values.opt) for name, values in sizes.items()}
    ends = [("min", "min"), ("opt", "opt"), ("max", "opt"), ("min", "max")]
    found: list[Place] = []
    for length, size in ends if sizes else ends[:3]:
        own = {name: tuple(getattr(values, size)) for name, values in sizes.items()}
        found.append(Place(_at(profiles, length), {**usual, **own}))
    windows = range(profiles["T"].min, profiles["T"].max + 1) if "T" in profiles else ()
    seen = {place.lengths.get("T") for place in found}
    middle = _at(profiles, "opt")
    found += [Place({**middle, "T": length}, usual) for length in windows if length not in seen]
    yield from (place for i, place in enumerate(found) if place not in found[:i])


def _at(profiles: dict[str, Profile], end: str) -> dict[str, int]:
    return {symbol: int(getattr(profile, end)) for symbol, profile in profiles.items()}


def place_of(spec: GraphSpec, inputs: Mapping[str, npt.NDArray[np.generic]], fixed: Sizes) -> Place:
    """Where some inputs belong; sizes that they do not give are the fixed ones."""
    lengths = {
        symbol: size
        for tensor in spec.inputs
        for symbol, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(symbol, str)
    }
    given = {t.name: inputs.get(t.name) for t in spec.overridable}
    sizes = {n: fixed[n] if v is None else tuple(map(int, v)) for n, v in given.items()}
    return Place(lengths, sizes)


def fits(place: Place, sidecar: Sidecar) -> bool:
    """Whether an engine takes these lengths and sizes."""
    profiles, values = sidecar.profiles, sidecar.shape_values
    bounds = [(profiles[s].min, length, profiles[s].max) for s, length in place.lengths.items()]
    for name, size in place.sizes.items():
        if name in values:
            bounds += zip(values[name].min, size, values[name].max, strict=True)
    return all(low <= found <= high for low, found, high in bounds)
