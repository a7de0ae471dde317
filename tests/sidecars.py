"""A sidecar of an engine that no library made, for tests of what is read of it."""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from typing import Any

from openvis_rt.engines.plan import BuildOptions, Profile, ShapeValues, Sidecar
from openvis_rt.systems.graphs import TensorSpec

__all__ = ["HERE", "PLAN", "sidecar"]

PLAN = b"a plan"
HERE = sysconfig.get_platform()


def sidecar(**changes: Any) -> Sidecar:
    """Of an engine with the bytes PLAN, less what is changed."""
    whole = Sidecar(
        graph="classify",
        precision="fp32",
        precision_built="fp32",
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_bytes=len(PLAN),
        backend="tensorrt-rtx",
        library_version="1.7.1",
        platform=HERE,
        gpu=None,
        targets=("sm86",),
        options=BuildOptions(),
        onnx_sha256="1" * 64,
        replaced_grid_samples=0,
        replacement_error=None,
        inputs=(TensorSpec("text_embeddings", "float32", ("K", 16)),),
        outputs=(TensorSpec("class_scores", "float32", (10, "?")),),
        profiles={"K": Profile(1, 64, 4096)},
        shape_values={"frame_size": ShapeValues((1, 1), (20, 30), (40, 60))},
        layers={"MATRIX_MULTIPLY": {"float32": 2}},
        layers_from="network",
        build_seconds=0.5,
        created_with="0.1.0",
    )
    return dataclasses.replace(whole, **changes)
