"""Image embeddings of a video's frames, which OVFormer can be given in place of computing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from contents import Put, changed_bytes, no_files, texts
from court import Case, Outcome
from smallfiles import Arguments, arrays, cases, npy
from workshop import Workshop

__all__ = ["FEW", "ROWS"]

FRAMES = 8  # of the video


def image_embeddings(workshop: Workshop) -> Iterator[Case]:
    """The rows in other types, shapes and files; then more and fewer rows than there are frames."""
    bundle = workshop.exported("ovformer-mini")
    manifest = json.loads((bundle / "bundle.json").read_text())
    inputs = manifest["graphs"]["fp32"]["classify"]["spec"]["inputs"]
    width = next(tensor["shape"][-1] for tensor in inputs if tensor["name"] == "image_embeddings")
    rows = np.random.default_rng(0).standard_normal((FRAMES, width)).astype(np.float32)

    def use(folder: Path, put: Put) -> Arguments:
        put(folder / "rows.npy")
        given = ["-c", "disc", "-c", "square", "--only", "--image-embeddings", "rows.npy"]
        return ["run", bundle, workshop.video, *given, "--no-overlay", "-o", "out"]

    strange = chain(no_files(), texts(b"1 2\n"), arrays(rows), changed_bytes(npy(rows), 50))
    for case in cases(chain(strange, _others(rows)), use, "rows.npy"):
        yield Case(case.name, case.make, case.writes, check=_warned)


def _others(rows: Any) -> Iterator[tuple[str, Put]]:
    found = {
        "more rows than frames": np.concatenate((rows, rows)),
        "one row too many": np.concatenate((rows, rows[:1])),
        "one row too few": rows[:-1],
        "a million rows": np.ones((1_000_000, rows.shape[1]), np.float16),
        "half of the width": rows[:, : rows.shape[1] // 2],
        "turned": rows.T,
    }
    for name, array in found.items():
        yield name, lambda path, array=array: path.write_bytes(npy(array))


def _warned(folder: Path, outcome: Outcome) -> str | None:
    """What was taken is finite, has a row for each frame, or was warned of."""
    if outcome.code:
        return None
    rows = np.load(folder / "rows.npy")
    if not np.isfinite(rows.astype(np.float32)).all():
        return "rows that are not finite were taken"
    if len(rows) != FRAMES and "image embeddings" not in outcome.stderr:
        return f"{len(rows)} rows were taken for {FRAMES} frames"
    if not np.linalg.norm(rows.astype(np.float32), axis=1).all():
        return "a row of zeros was taken"
    return None


ROWS = {"image embeddings": image_embeddings}
FEW = {"image embeddings": 2}
