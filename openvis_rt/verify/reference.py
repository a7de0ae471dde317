"""The recorded reference: PyTorch's answers in the bundle, so that a board without it verifies.

The recorded calls (:mod:`openvis_rt.bundle.recorded`), and of the sequence

    reference/results.jsonl   its results, one line a frame, as `openvis run` writes them
"""

from __future__ import annotations

import io
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
    damaged,
    frame_name,
    read_calls,
    read_part,
)
from openvis_rt.bundle.recorded_forms import Record, Stored
from openvis_rt.errors import BundleError, InputError
from openvis_rt.records import json_from_record
from openvis_rt.runtime.video.results import FrameLog, FrameResult, result_from_line
from openvis_rt.vocabulary import Vocabulary

__all__ = ["Reference", "file_names", "read_reference", "write_reference"]

RESULTS = f"{FOLDER}/results.jsonl"
_LARGEST_RESULTS = 64 << 20  # bytes


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
        results = _read_results(bundle)
        reference = Reference(stored.frames, stored.arrays, record, results)
        _check_whole(reference)
    except BundleError:
        raise
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


def _read_results(bundle: Bundle) -> list[FrameResult]:
    lines = io.BytesIO(read_part(bundle, RESULTS, _LARGEST_RESULTS))
    return [result_from_line(line) for line in lines]


def _check_whole(reference: Reference) -> None:
    """ValueError if names, results or detections are not of this video."""
    record = reference.record
    height, width = reference.frames[0].shape[:2]
    found = [(result.index, result.height, result.width) for result in reference.results]
    if found != [(index, height, width) for index in range(record.frames)]:
        raise ValueError(f"the results are not of {record.frames} frames of {width} x {height}")
    words = Vocabulary.of(record.names)
    if "embeddings" in reference.arrays and words.rows_of_class != record.rows:
        raise ValueError("the names have other synonyms than were recorded")
    tracks, classes = reference.arrays["order"].shape[1], len(record.rows)
    if not all(0 <= t < tracks and 0 <= c < classes for t, c, _ in record.detected):
        raise ValueError(f"a detection is of none of {tracks} tracks and {classes} classes")


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
    if digest:
        return f"sha256 {digest}..."
    return ", ".join(f"{name} {value}" for name, value in checkpoint.items())[:200]
