"""Every stage fed with the reference's own inputs, so that the first one that departs is known.

End to end one attention-mask bit that flips on rounding moves queries by 1e-3 and more, and a fault
in an early graph shows in all later ones. Here each graph gets what PyTorch gave its predecessor.
Such a bit flips in one picture of a few, a defect shows in every one: so a call that misses a gate
is followed by a call of the same sizes on another picture, and fails if it misses them on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.bundle.recorded_forms import Call, sample_of
from openvis_rt.compare.differences import grid_pixels, mask_pixels, sqnr
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.text import TextEmbedder
from openvis_rt.verify.checks import Check, check_equal, check_masks, check_output, gates_of
from openvis_rt.verify.host import detections_of, hard_orders, orders_of
from openvis_rt.verify.reference import Reference
from openvis_rt.verify.runner import GraphRunner
from openvis_rt.vocabulary import Vocabulary

__all__ = ["check_calls", "check_class_names", "check_host"]

Array = npt.NDArray[np.generic]
_SAME_SCORE = 1e-6  # sums in float64 of float32 numbers, and another machine's exp


def check_calls(
    contender: str,
    bundle: Bundle,
    backend: Backend,
    precision: str,
    reference: Reference,
    progress: Callable[[str], None] = lambda _: None,
    graphs: Collection[str] | None = None,
) -> Iterator[Check]:
    """Every call of the reference on a backend.

    Args:
        contender: name for the checks.
        bundle, backend, precision: what answers.
        reference: with the calls.
        progress: told what is run.
        graphs: whose calls; None for all.

    Yields:
        for each graph, point and output one check: of the call that passed, or of the last one.

    Raises:
        BackendError: the backend failed.
    """
    run = GraphRunner(bundle, backend, precision)
    calls = [c for c in reference.record.calls if graphs is None or c.graph in graphs]
    try:
        for (graph, point), same in groupby(calls, lambda call: (call.graph, call.point)):
            file = bundle.graph(graph, precision)
            gates = gates_of(bundle, file.precision)
            pixels = grid_pixels(file.spec)
            checks: list[Check] = []
            for call in same:
                progress(f"{contender}: {graph} {point}")
                found = run(graph, reference.inputs(call))
                checks = list(_checks_of(contender, call, found, reference, gates, pixels))
                if all(check.passed for check in checks):
                    break
            yield from checks
    finally:
        run.close()


def check_class_names(
    contender: str, bundle: Bundle, backend: Backend, precision: str, reference: Reference
) -> Iterator[Check]:
    """The classifier's rows of the class names, as the runtime makes them, beside PyTorch's.

    The row that is farthest off is told, since every name has its own.
    """
    if "text" not in bundle.graphs or "embeddings" not in reference.arrays:
        return
    embedder = TextEmbedder(
        bundle, precision, lambda: backend.open(bundle, "text", precision), cached=False
    )
    words = Vocabulary.of(reference.record.names)
    found, wanted = embedder(words), reference.arrays["embeddings"]
    ratios = [sqnr(row, other) for row, other in zip(found, wanted, strict=True)]
    worst = int(np.argmin(ratios))
    gate = gates_of(bundle, bundle.graph("text", precision).precision)["embeddings"]
    note = f"the row of {words.phrases[worst]!r}"
    yield Check(contender, "class names", "", "rows", "SQNR dB", ratios[worst], gate, note=note)


def check_host(bundle: Bundle, reference: Reference) -> Iterator[Check]:
    """What the host makes of the reference's outputs: the same tracks, the same scores."""
    record, manifest = reference.record, bundle.manifest
    for name in ("tracker", "score", "prompts", "detections"):
        found, wanted = getattr(manifest, name), getattr(record, name)
        note = "" if found == wanted else f"{found!s:.300} is set, {wanted!s:.300} was recorded"
        yield check_equal(
            "tracker" if name == "tracker" else "score", f"{name} rule", found, wanted, note
        )
    outputs, wanted_orders = reference.outputs(), reference.arrays["order"]
    hard = {name: reference.arrays[f"hard/{name}"] for name in record.tracker.tokens}
    orders = orders_of(bundle, outputs)
    yield check_equal("tracker", "tracks of the video", orders, wanted_orders)
    wide = {name: tokens.astype(np.float32) for name, tokens in hard.items()}
    wanted_hard = reference.arrays["hard_order"]
    yield check_equal("tracker", "tracks of hard tokens", hard_orders(bundle, wide), wanted_hard)
    found_all = detections_of(bundle, outputs, wanted_orders.astype(np.int64), record.rows)
    yield _check_detections(found_all, record.detected)


def _checks_of(
    contender: str,
    call: Call,
    found: dict[str, Array],
    reference: Reference,
    gates: dict[str, float],
    pixels: int,
) -> Iterator[Check]:
    for name, kept in call.outputs.items():
        value, wanted = found[name], reference.value(kept)
        if value.shape != kept.shape:
            sizes = f"its shape is {list(value.shape)}, {list(kept.shape)} was recorded"
            names = contender, call.graph, call.point, name
            yield Check(*names, "SQNR dB", math.nan, gates.get(name, 0.0), note=sizes)
            continue
        if kept.form == "sample":
            value = sample_of(value)
        yield check_output(contender, call.graph, call.point, name, value, wanted, gates, pixels)
        if call.graph == "masks":
            ours, theirs = mask_pixels(value), mask_pixels(wanted)
            yield check_masks(contender, call.graph, call.point, ours, theirs, gates)
    if call.masks is not None and found["mask_logits"].shape == call.outputs["mask_logits"].shape:
        theirs = reference.value(call.masks).astype(np.bool_)
        logits = np.asarray(found["mask_logits"][: len(theirs)], np.float32)
        yield check_masks(contender, call.graph, call.point, logits > 0, theirs, gates)


def _check_detections(
    found: list[tuple[int, int, float]], wanted: list[tuple[int, int, float]]
) -> Check:
    """Detections of the video: pairs of track and class and their scores; ties in any order."""
    scores = {(track, category): score for track, category, score in found}
    differing = len({pair[:2] for pair in wanted} ^ scores.keys())
    for track, category, score in wanted:
        other = scores.get((track, category), score)
        differing += not abs(other - score) <= _SAME_SCORE  # NaN is no score
    return Check(
        "host", "score", "", "detections of the video", "values that differ", float(differing), 0.0
    )
