"""A backend that answers at once, or after a set time: what is left is what the host costs.

It answers with what it made when it was first asked: queries that stay themselves, scores, and
masks that are discs of many sizes. Like a device it keeps two windows in flight, works on one after
the other, and lets the host sleep until a window is done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Array, Session, check_shape
from openvis_rt.systems.graphs import GraphSpec, TensorSpec

DISCS = 10  # different masks; query q has the one with number q modulo this


class Instant:
    """A backend whose graphs take no time of the host.

    Args:
        visible: queries whose masks have a pixel; None for all.
        delay: seconds of the device for each window.
    """

    name, device, slots = "instant", "nowhere", 2

    def __init__(self, visible: int | None = None, delay: float = 0.0) -> None:
        self.visible, self.delay = visible, delay
        self._free = 0.0
        self._ready = dict.fromkeys(range(self.slots), 0.0)

    def check(self, bundle: Bundle, precision: str) -> None:
        """Every bundle."""

    def open(
        self,
        bundle: Bundle,
        graph: str,
        precision: str,
        *,
        slots: int = 1,
        fetched: Sequence[str] | None = None,
    ) -> InstantSession:
        """One graph's answers."""
        return InstantSession(self, bundle.graph(graph, precision).spec)

    def begin(self, slot: int) -> None:
        """Start a window, behind those that were started before."""
        self._free = max(time.perf_counter(), self._free) + self.delay
        self._ready[slot] = self._free

    def wait(self, slot: int) -> None:
        """Sleep until the slot's window is done."""
        if (left := self._ready[slot] - time.perf_counter()) > 0:
            time.sleep(left)

    def counters(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing."""


class InstantSession:
    """Keeps what it answered for each set of sizes."""

    def __init__(self, backend: Instant, spec: GraphSpec) -> None:
        self.spec, self._backend = spec, backend
        self._sizes: dict[str, int] = {"T": 1}
        self._views: dict[tuple[str, int], Array] = {}
        self._sources: list[InstantSession] = []
        self._answers: dict[tuple[Any, ...], Array] = {}
        self._selected = np.zeros(0, np.int64)

    def input_view(self, name: str, shape: tuple[int, ...], slot: int = 0) -> Array:
        """Memory of the input."""
        dtype = check_shape(self.spec, name, shape)
        if (view := self._views.get((name, slot))) is None or view.shape != shape:
            view = self._views[name, slot] = np.zeros(shape, dtype)
        tensor = next(t for t in self.spec.inputs if t.name == name)
        self._note(tensor, shape)
        return view

    def write(self, name: str, value: Array, slot: int = 0) -> None:
        """Keep the sizes."""
        if name == "frame_size":
            self._sizes |= {"Hs": int(value[0]), "Ws": int(value[1])}
        if name == "selected":
            self._selected = value.astype(np.int64)
        for tensor in self.spec.inputs:
            if tensor.name == name:
                self._note(tensor, value.shape)

    def bind(self, name: str, source: Session, output: str) -> None:
        """Take the sizes of what is read."""
        assert isinstance(source, InstantSession)
        self._sources.append(source)

    def run(self, slot: int = 0) -> None:
        """At once, but for the graph that takes the device's time."""
        if self.spec.name == "propose":
            self._backend.begin(slot)

    def fetch(self, name: str, slot: int = 0) -> Array:
        """A copy, as every backend's."""
        self._backend.wait(slot)
        sizes = dict(self._sizes)
        for source in self._sources:
            sizes |= source._sizes
        tensor = next(t for t in self.spec.outputs if t.name == name)
        if name == "masks":
            key = (name, sizes["T"], sizes["Hs"], sizes["Ws"])
            if key not in self._answers:
                found = discs(np.random.default_rng(0), (DISCS, *key[1:]))
                packed = tensor.shape[-1] != "Ws"  # rows of bits, the first in the highest place
                self._answers[key] = np.packbits(found, axis=-1) if packed else found
            return self._answers[key][self._selected % DISCS]
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        if (name, shape) not in self._answers:
            self._answers[name, shape] = answer(tensor, shape, self._backend.visible)
        return self._answers[name, shape].copy()

    def close(self) -> None:
        """Forget the answers."""
        self._answers.clear()

    def _note(self, tensor: TensorSpec, shape: tuple[int, ...]) -> None:
        self._sizes |= {
            d: n for d, n in zip(tensor.shape, shape, strict=True) if isinstance(d, str)
        }


def answer(tensor: TensorSpec, shape: tuple[int, ...], visible: int | None) -> Array:
    """Seeded values of an output; the areas of all but the first ``visible`` queries are 0."""
    rng = np.random.default_rng(0)
    if tensor.name in ("mask_area", "mask_mass"):
        areas = np.full(shape, 100, tensor.dtype)
        areas[visible:] = 0
        return areas
    if tensor.name == "mask_iou":
        return np.full(shape, 0.8, tensor.dtype)
    if tensor.name == "object_logits":  # class 0 is an object, class 1 is none
        return np.tile(np.array([2, -2], tensor.dtype), (*shape[:-1], 1))
    values = rng.standard_normal(shape, np.float32)
    if tensor.name == "class_scores" and tensor.doc.startswith("softmax"):
        values = softmax(values, axis=-1)
    return values.astype(tensor.dtype)


def discs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """uint8 [n, T, Hs, Ws] of discs, a twelfth to a third of the height in radius."""
    count, length, height, width = shape
    y, x = np.ogrid[:height, :width]
    out = np.zeros(shape, np.uint8)
    for mask in out.reshape(count * length, height, width):
        centre, radius = rng.random(2), height * rng.uniform(1 / 12, 1 / 3)
        inside = (y - centre[0] * height) ** 2 + (x - centre[1] * width) ** 2 < radius**2
        mask[inside] = 1
    return out


def bundle_at(path: Path, source: tuple[int, int] | None) -> Bundle:
    """A bundle whose graphs are only driven, never run.

    Args:
        path: of any bundle.
        source: the manifest is changed in memory, as if it had been exported with this
            ``--source-size`` (height, width); None to leave it as it is.
    """
    bundle = Bundle.open(path, verify=False)
    if source is None:
        return bundle
    manifest = bundle.manifest
    graphs = {
        precision: {name: _resizing(graph, source) for name, graph in graphs.items()}
        for precision, graphs in manifest.graphs.items()
    }
    rule = replace(manifest.preprocess, source_size=source)
    return replace(bundle, manifest=replace(manifest, graphs=graphs, preprocess=rule))


def _resizing(graph: Any, source: tuple[int, int]) -> Any:
    """A graph's file whose ``frames`` are as large as the source."""
    inputs = tuple(
        replace(t, shape=(t.shape[0], *source, 3)) if t.name == "frames" else t
        for t in graph.spec.inputs
    )
    return replace(graph, spec=replace(graph.spec, inputs=inputs))
