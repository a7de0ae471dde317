"""A short video end to end: do the same objects keep the same numbers as with PyTorch?

Each recorded object of each frame is paired with the mask that overlaps it most. Its id agrees if
that mask overlaps it by half and has the same track id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pycocotools import mask as coco

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.classifier import Classifier
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.verify.checks import Check, gates_of
from openvis_rt.verify.reference import Reference

__all__ = ["agreement", "check_video"]

_SAME_OBJECT = 0.5  # least IoU


def check_video(
    contender: str,
    bundle: Bundle,
    backend: Backend,
    precision: str,
    reference: Reference,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Check]:
    """Run the recorded video on a backend; the pipeline closes it."""
    record, arrays = reference.record, reference.arrays
    everything = Selection(threshold=0.0, limit=len(arrays["order"][0]))
    rows = arrays.get("embeddings")
    embeddings = None if rows is None else rows.astype(np.float32)
    given = arrays.get("image_embeddings")
    with Pipeline.open(
        bundle,
        vocabulary=record.names,
        classifier=Classifier(record.names, record.rows, embeddings),
        image_embeddings=None if given is None else given.astype(np.float32),
        backend=backend,
        precision=precision,
        selection=everything,
        warn=lambda _: None,
    ) as pipeline:
        results = []
        for result in pipeline.stream(reference.frames):
            progress(f"{contender}: video, frame {result.index + 1} of {record.frames}")
            results.append(result)
    ids, ious = agreement(results, reference.results)
    gates = gates_of(bundle, precision)
    yield Check(
        contender,
        "video",
        "",
        "masks",
        "median IoU",
        float(np.median(ious or [1.0])),
        gates["video masks"],
        ious=tuple(ious),
    )
    yield Check(contender, "video", "", "track ids", "ids that agree", ids, gates["video ids"])


def agreement(
    found: Sequence[FrameResult], wanted: Sequence[FrameResult]
) -> tuple[float, list[float]]:
    """How well two runs over the same frames agree.

    Args:
        found, wanted: results of each frame; ``found`` should show at least what ``wanted`` shows.

    Returns:
        the share of wanted objects whose best partner has their track id and overlaps them by half,
        1 if there are none; and the IoU of each with its best partner.
    """
    same, ious = 0, list[float]()
    for ours, theirs in zip(found, wanted, strict=True):
        if not theirs.instances:
            continue
        if not ours.instances:
            ious += [0.0] * len(theirs.instances)
            continue
        table = coco.iou(
            [i.segmentation for i in theirs.instances],
            [i.segmentation for i in ours.instances],
            [0] * len(ours.instances),
        )
        for instance, row in zip(theirs.instances, np.asarray(table), strict=True):
            best = int(row.argmax())
            ious.append(float(row[best]))
            overlaps = bool(row[best] >= _SAME_OBJECT)
            same += overlaps and ours.instances[best].track_id == instance.track_id
    return (same / len(ious) if ious else 1.0), ious
