"""The recorded reference: PyTorch's answers in the bundle, so that a board without it verifies.

The recorded calls (:mod:`openvis_rt.bundle.recorded`), and of the sequence

    reference/results.jsonl   its results, one line a frame, as `openvis run` writes them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded import (
    ARRAYS,
    DAMAGES,
    FOLDER,
    RECORD,
    Record,
    Stored,
    damaged,
    frame_name,
    read_calls,
)
from openvis_rt.errors import BundleError, InputError
from openvis_rt.records import json_from_record
from openvis_rt.runtime.video.results import FrameLog, FrameResult, read_frame_log

__all__ = ["Reference", "file_names", "read_reference", "write_reference"]

RESULTS = f"{FOLDER}/results.jsonl"


@dataclass(frozen=True)
class Reference(Stored):
    """A recorded reference.

    Attributes:
        frames: uint8 [H, W, 3] each, in the order of the sequence.
        arrays: stored arrays by key: those of ``record.calls``; ``embeddings``, float32 [K, D], the
            rows of the class names, where the model takes any; ``image_embeddings``, float32
            [frames, D], where they are given; ``output/<window>/<name>``, [N, ...], what the
            tracker and the sums were given; ``order``, int64 [windows, N], the query of each track;
            ``hard/<name>`` and ``hard_order``, the same for tokens that are hard to follow.
        record: what was recorded.
        results: of the sequence.
        origin: where it is from, for people.
    """

    record: Record
    results: list[FrameResult]
    origin: str = "recorded in the bundle"

    def outputs(self) -> list[dict[str, npt.NDArray[np.float32]]]:
        """What the host read of each window, by output name."""
        windows = [dict[str, npt.NDArray[np.float32]]() for _ in self.arrays["order"]]
        for key, array in self.arrays.items():
            if key.startswith("output/"):
                _, number, name = key.split("/")
                windows[int(number)][name] = array.astype(np.float32)
        return windows


def read_reference(bundle: Bundle) -> Reference:
    """The reference of a bundle.

    Raises:
        InputError: the bundle has none.
        BundleError: it is damaged, or of another checkpoint than the bundle.
    """
    found = read_calls(bundle)
    if found is None:
        raise InputError(
            f"{bundle.path} holds no recorded reference. Give --checkpoint FILE, or "
            "--random-weights SEED, to compare with PyTorch here; or export the bundle again: "
            "`openvis export` records one."
        )
    record, stored = found
    try:
        results = read_frame_log(bundle.file_path(RESULTS))
        reference = Reference(stored.frames, stored.arrays, record, results)
        _check_whole(reference)
    except DAMAGES as exc:
        raise damaged(bundle, exc) from exc
    if record.checkpoint != bundle.manifest.checkpoint:
        raise BundleError(
            f"the reference in {bundle.path} is of another checkpoint "
            f"({_source(record.checkpoint)}) than its graphs "
            f"({_source(bundle.manifest.checkpoint)}), so their numbers say nothing about each "
            "other. Export the bundle again, or give --checkpoint."
        )
    return reference


def _check_whole(reference: Reference) -> None:
    """ValueError or KeyError if something of the sequence is missing."""
    record, arrays = reference.record, reference.arrays
    if len(reference.results) != record.frames:
        raise ValueError(f"{len(reference.results)} results for {record.frames} frames")
    needed = {"order", "hard_order", *(f"hard/{name}" for name in record.tracker.tokens)}
    if missing := needed - arrays.keys():
        raise KeyError(min(missing))
    if arrays["order"].ndim != 2 or not len(arrays["order"]):
        raise ValueError("the tracks of the video are no table")


def write_reference(folder: Mapping[str, Path], reference: Reference) -> None:
    """Write every file of a reference, each to the place that its name in the bundle has here."""
    folder[RECORD].write_text(json.dumps(json_from_record(reference.record), indent=1))
    with folder[ARRAYS].open("wb") as file:
        np.savez_compressed(file, **reference.arrays)  # type: ignore[arg-type]
    for index, frame in enumerate(reference.frames):
        Image.fromarray(frame).save(folder[frame_name(index)], "PNG", optimize=True)
    with FrameLog(folder[RESULTS]) as log:
        for result in reference.results:
            log.write(result)


def file_names(frames: int) -> list[str]:
    """Names in the bundle of every file of a reference with so many frames."""
    return [RECORD, ARRAYS, RESULTS, *(frame_name(index) for index in range(frames))]


def _source(checkpoint: Mapping[str, Any]) -> str:
    digest = str(checkpoint.get("sha256", ""))[:16]
    return f"sha256 {digest}..." if digest else ", ".join(f"{k} {v}" for k, v in checkpoint.items())
