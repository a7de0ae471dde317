"""Engines for the TensorRT double: a plan and a sidecar, in place of what a build would write."""

from __future__ import annotations

import hashlib
import sysconfig

import onnx
from doubles.tensorrt_double import VERSIONS, Plan

from openvis_rt.engines.plan import (
    LIBRARY_DEFAULTS,
    Profile,
    ShapeValues,
    Sidecar,
    plan_path,
    sidecar_path,
)
from openvis_rt.engines.rewrites.packing import gives_masks, pack_masks
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.video.generated import sample_frames

CLASSES = ("cat", "dog", "monkey, ape")
EVERYTHING = Selection(threshold=0.0, limit=100)
PROFILES = {"K": (1, 8, 64), "B": (1, 16, 128), "L": (3, 16, 77), "n": (1, 8, 8), "T": (1, 5, 5)}
SIZES = {
    "picture_size": ((1, 1), (60, 90), (60, 90)),
    "frame_size": ((1, 1), (120, 180), (256, 256)),
}
TARGETS = {"tensorrt": ("sm87",), "tensorrt 10": ("sm86", "sm87"), "tensorrt-rtx": ("sm87",)}
KINDS = tuple(TARGETS)


def frames_of(count, *, width=180, height=120, seed=0):
    made = sample_frames(width=width, height=height, fps=5, seconds=count / 5, seed=seed, objects=2)
    return [image for image, _ in made]


def plan_of(bundle, graph, kind, precision="fp32", inspected=None, **changes):
    spec = bundle.graph(graph, precision).spec
    values = {t.name: SIZES[t.name] for t in spec.overridable}
    inputs = (*spec.inputs, *spec.overridable)
    fields = {
        "kind": kind,
        "onnx": str(_file_of(bundle, graph, precision)),
        "precision": inspected or bundle.graph(graph, precision).precision,
        "inputs": {t.name: (t.dtype, t.shape) for t in inputs},
        "outputs": {t.name: (t.dtype, t.shape) for t in spec.outputs},
        "profiles": PROFILES,
        "shape_values": values,
        "symbols": {"frame_size": ("Hs", "Ws")} if values else {},
    }
    return Plan(**{**fields, **changes})


def _file_of(bundle, graph, precision):
    """What a build compiles: the bundle's file, but that masks are packed."""
    path = bundle.graph_path(graph, precision)
    model = onnx.load(str(path), load_external_data=False)
    if not gives_masks(model):
        return path
    packed = bundle.path / "engines" / "packed" / path.name
    packed.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(pack_masks(model), str(packed))
    return packed


def write_plan(bundle, graph, kind="tensorrt", data=None, precision="fp32", **changes):
    """A plan with its sidecar, in the place of one that was built."""
    backend, targets = kind.removesuffix(" 10"), TARGETS[kind]
    own = bundle.graph(graph, precision).precision
    path = plan_path(bundle.path, backend, targets, graph, own)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = plan_of(bundle, graph, kind, precision, **changes).to_bytes() if data is None else data
    path.write_bytes(data)
    spec = bundle.graph(graph, precision).spec
    Sidecar(
        graph=graph,
        precision=own,
        precision_built=own,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        backend=backend,
        library_version=VERSIONS[kind],
        platform=sysconfig.get_platform(),
        gpu="Fake GPU",
        targets=targets,
        options=LIBRARY_DEFAULTS,
        onnx_sha256=bundle.graph_sha256(graph, precision),
        replaced_grid_samples=0,
        replacement_error=None,
        inputs=spec.inputs,
        outputs=spec.outputs,
        profiles={symbol: Profile(*sizes) for symbol, sizes in PROFILES.items()},
        shape_values={t.name: ShapeValues(*SIZES[t.name]) for t in spec.overridable},
        layers={},
        layers_from="network",
        build_seconds=0.0,
        created_with="test",
    ).write(sidecar_path(path))
    return path
