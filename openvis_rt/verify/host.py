"""What the host does with recorded outputs: association, sums and scores, without any network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.tracking.rules import (
    Matcher,
    association_from_tracker,
    matcher_from_bundle,
    scores_from_rule,
    tracker_weights,
)

__all__ = ["Output", "detections_of", "hard_orders", "hard_tokens", "orders_of"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Output = Mapping[str, Floats]
"""What the host reads of a window, by output name."""

_STEPS, _QUERIES = 20, 12  # of the tokens that are hard to follow
_NOISE = 0.9  # of a token's own length
_REPLACED = 0.15  # share of the tokens that another object takes


def orders_of(bundle: Bundle, outputs: Sequence[Output]) -> Ints:
    """The query of each track in each window, int64 [windows, N], by the bundle's tracker."""
    matcher = matcher_from_bundle(bundle)
    matcher.reset()
    return np.stack([matcher.step(output) for output in outputs])


def detections_of(
    bundle: Bundle, outputs: Sequence[Output], orders: Ints, rows: list[int]
) -> list[tuple[int, int, float]]:
    """The video's detections by the bundle's score: track, class from 0, score, best first.

    Args:
        bundle: whose score.
        outputs: of each window, in the queries' order.
        orders: the query of each track in each window.
        rows: of each class.
    """
    manifest = bundle.manifest
    scores = scores_from_rule(manifest.score, orders.shape[1], rows, keep=True)
    for output, order in zip(outputs, orders, strict=True):
        scores.add_output(output, order)
    found = scores.detections(manifest.detections)
    scores.close()
    return [(d.track, d.category, d.score) for d in found]


def hard_tokens(bundle: Bundle, seed: int) -> dict[str, Floats]:
    """Tokens that are hard to follow, by output name: float32 [20, 12, C], numbers of FP16.

    Each step has the same objects in another order and with noise almost of their own size, and
    some of them are others: so what a tracker remembers, and for how long, decides its tracks.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(_QUERIES) for _ in range(_STEPS)]
    return {
        name: np.stack(list(_hard_steps(rng, orders, width)))
        for name, width in _token_widths(bundle).items()
    }


def hard_orders(bundle: Bundle, tokens: Mapping[str, Floats]) -> Ints:
    """The query of each track at each step of :func:`hard_tokens`, int64 [20, 12]."""
    rule = bundle.manifest.tracker
    width = sum(_token_widths(bundle).values())
    matcher = Matcher(rule, association_from_tracker(rule, tracker_weights(bundle), width))
    steps = zip(*(tokens[name] for name in rule.tokens), strict=True)
    return np.stack([matcher.step(dict(zip(rule.tokens, parts, strict=True))) for parts in steps])


def _hard_steps(rng: np.random.Generator, orders: Sequence[Ints], width: int) -> Iterator[Floats]:
    objects = rng.standard_normal((_QUERIES, width))
    for order in orders:
        others = rng.random(_QUERIES) < _REPLACED
        objects[others] = rng.standard_normal((int(others.sum()), width))
        seen = objects + _NOISE * rng.standard_normal(objects.shape)
        yield seen[order].astype(np.float16).astype(np.float32)


def _token_widths(bundle: Bundle) -> dict[str, int]:
    precision = next(iter(bundle.manifest.graphs))
    outputs = [
        t for name in ("propose", "classify") for t in bundle.graph(name, precision).spec.outputs
    ]
    widths = {t.name: t.shape[-1] for t in outputs}
    return {name: int(widths[name]) for name in bundle.manifest.tracker.tokens}
