"""The tracker and the score of a bundle, by the names that its manifest records.

A rule is an entry of one of the two tables below; a system with a rule of its own adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openvis_rt.bundle.bundle import TRACKER, Bundle
from openvis_rt.errors import BundleError, InputError
from openvis_rt.runtime.tracking.association import Momentum, TemporalTopK, unit_rows
from openvis_rt.runtime.tracking.mean_logits import FORMULAS, MeanLogits
from openvis_rt.runtime.tracking.rollout import LARGEST, Rollout, cell_from_bytes
from openvis_rt.runtime.tracking.scoring import Detection, FrameLogits, FrameProbabilities
from openvis_rt.systems.system import Score, Tracker

__all__ = [
    "Association",
    "Matcher",
    "Scores",
    "association_from_tracker",
    "check_score",
    "matcher_from_bundle",
    "scores_from_rule",
    "tracker_weights",
]

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Output = Mapping[str, Floats]
"""What the host reads of a window, by output name, in the queries' order."""


class Association(Protocol):
    """An association rule, with the memory of one video."""

    def reset(self) -> None:
        """Forget every frame; the next one starts new tracks."""

    def step(self, queries: Floats) -> Ints:
        """For each track its query, int64 [N], of embeddings float32 [N, C]."""


class Scores(Protocol):
    """Sums of one video, for N tracks and C classes."""

    def add_output(self, output: Output, order: Ints) -> None:
        """Add a frame or window; ``output`` is in the queries' order, track j is ``order[j]``."""

    def running_scores(self) -> tuple[Ints, Floats64, Bools]:
        """Best class [N], its score so far [N], and whether that lets the track be shown [N]."""

    def detections(self, count: int) -> list[Detection]:
        """The video's best (track, class) pairs, best first, ``count`` at most."""

    def close(self) -> None:
        """Drop what is kept."""


class Matcher:
    """Joins the outputs that are matched and gives each track its query.

    Args:
        rule: which outputs, and whether each part is L2-normalised first.
        association: the rule itself; it belongs to the matcher.
    """

    def __init__(self, rule: Tracker, association: Association) -> None:
        self._rule, self._association = rule, association

    @property
    def recurrence_seconds(self) -> float:
        """Seconds since it was made in which a recurrence predicted; 0 for rules without one."""
        return float(getattr(self._association, "recurrence_seconds", 0.0))

    def reset(self) -> None:
        """Forget the video."""
        self._association.reset()

    def step(self, output: Output) -> Ints:
        """For each track its query, int64 [N]."""
        parts = [output[name] for name in self._rule.tokens]
        if self._rule.normalise_parts:
            parts = [unit_rows(part) for part in parts]
        return self._association.step(parts[0] if len(parts) == 1 else np.concatenate(parts, 1))


def association_from_tracker(
    rule: Tracker,
    recurrence: bytes | None,
    token_width: int,
    given: Mapping[str, int | None] | None = None,
) -> Association:
    """The association of a bundle.

    Args:
        rule: of the manifest.
        recurrence: the bytes of ``tracker.safetensors``; None if the bundle has none.
        token_width: of what is matched: the sum of the widths of ``rule.tokens``.
        given: parameters in place of the rule's own, None for those that are not given.

    Raises:
        BundleError: the rule is not known here, or the recurrence's file is damaged or of another
            width.
        InputError: a parameter is given that the rule has not, or is out of range.
    """
    if rule.name not in _ASSOCIATIONS:
        raise BundleError(
            f"the bundle tracks by {rule.name!r}; this version of openvis-rt knows "
            f"{', '.join(_ASSOCIATIONS)}"
        )
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    if unknown := chosen.keys() - rule.parameters.keys():
        raise InputError(
            f"the tracker {rule.name} has no {' and no '.join(sorted(unknown))}; it has "
            f"{', '.join(rule.parameters) or 'no parameters'}"
        )
    _check_parameters("tracker", rule)
    return _ASSOCIATIONS[rule.name]({**rule.parameters, **chosen}, recurrence, token_width)


def tracker_weights(bundle: Bundle) -> bytes | None:
    """The bytes of a bundle's ``tracker.safetensors``; None if it has none.

    Raises:
        BundleError: they are not those that were written.
    """
    return bundle.read_file(TRACKER, LARGEST) if TRACKER in bundle.manifest.files else None


def matcher_from_bundle(bundle: Bundle, **given: int | None) -> Matcher:
    """The matcher of a bundle, with parameters of its tracker in place of the manifest's.

    Raises:
        BundleError, InputError: as :func:`association_from_tracker`; or the tracker matches an
            output that the host does not read, or none.
    """
    rule, widths = bundle.manifest.tracker, _fetched_widths(bundle)
    if not rule.tokens or not widths.keys() >= set(rule.tokens):
        raise BundleError(
            f"the bundle tracks by the outputs {list(rule.tokens)}; the host reads {list(widths)}"
        )
    width = sum(widths[name] for name in rule.tokens)
    return Matcher(rule, association_from_tracker(rule, tracker_weights(bundle), width, given))


def check_score(bundle: Bundle) -> None:
    """Refuse a rule that is not known here, or that needs what the graphs do not give.

    Raises:
        BundleError: as for :func:`scores_from_rule`; or an output is missing.
    """
    rule = bundle.manifest.score
    scores_from_rule(rule, 1, [1], keep=False).close()
    needed = {"class_scores", "mask_area", *_READS.get(rule.name, ())}
    if "objectness" in str(rule.parameters.get("formula")):
        needed.add("object_logits")
    if missing := sorted(needed - _fetched_widths(bundle).keys()):
        raise BundleError(f"the bundle scores by {rule.name!r}, and its graphs give no {missing}")


def _fetched_widths(bundle: Bundle) -> dict[str, int]:
    """The last axis of each output that the host reads; 0 where it is no number."""
    precision = next(iter(bundle.manifest.graphs))
    return {
        tensor.name: last if isinstance(last := tensor.shape[-1], int) else 0
        for name in ("propose", "classify")
        for tensor in bundle.graph(name, precision).spec.outputs
        if tensor.fetched
    }


def scores_from_rule(
    rule: Score, tracks: int, rows: list[int], *, keep: bool, reported: int | None = None
) -> Scores:
    """Empty sums for a new video.

    Args:
        rule: of the manifest.
        tracks: N.
        rows: of `classify`'s scores for each class, in order.
        keep: keep what :meth:`Scores.detections` needs of every frame.
        reported: how many of the classes, from the first on, can be reported; None for all.

    Raises:
        BundleError: the rule is not known here.
    """
    if rule.name not in _SCORES:
        raise BundleError(
            f"the bundle scores videos by {rule.name!r}; this version of openvis-rt knows "
            f"{', '.join(_SCORES)}"
        )
    _check_parameters("score", rule)
    return _SCORES[rule.name](rule.parameters, tracks, rows, keep, reported)


def _check_parameters(what: str, rule: Tracker | Score) -> None:
    """BundleError unless a rule has its parameters, each of its type."""
    needed = _PARAMETERS.get(rule.name, {})
    found = {name: type(value) for name, value in rule.parameters.items()}
    if found != needed:
        listed = ", ".join(f"{name} ({kind.__name__})" for name, kind in needed.items())
        raise BundleError(
            f"the {what} {rule.name!r} has the parameters {listed or 'none'}; the bundle says "
            f"{rule.parameters}"
        )


def _rollout(_parameters: Mapping[str, Any], recurrence: bytes | None, width: int) -> Association:
    # without a recurrence a track's last token is its prediction
    return Momentum() if recurrence is None else Rollout(cell_from_bytes(recurrence, width))


def _mean_logits(
    parameters: Mapping[str, Any], tracks: int, rows: list[int], keep: bool, reported: int | None
) -> MeanLogits:
    formula = FORMULAS.get(parameters["formula"])
    if formula is None:
        raise BundleError(
            f"mean logits are scored by {', '.join(FORMULAS)}; the bundle says "
            f"{parameters['formula']!r}"
        )
    visible_only = parameters["visible_only"]
    return MeanLogits(
        tracks, rows, formula, visible_only=visible_only, keep=keep, reported=reported
    )


_ASSOCIATIONS: dict[str, Callable[[Mapping[str, Any], bytes | None, int], Association]] = {
    "temporal-top-k": lambda p, _file, _width: TemporalTopK(p["frames"], p["top_k"]),
    "momentum": lambda p, _file, _width: Momentum(p["alpha"]),
    "rollout": _rollout,
}
_SCORES: dict[str, Callable[[Mapping[str, Any], int, list[int], bool, int | None], Scores]] = {
    "frame-probabilities": lambda _, n, rows, keep, reported: FrameProbabilities(
        n, rows, keep=keep, reported=reported
    ),
    "frame-logits": lambda _, n, rows, keep, reported: FrameLogits(
        n, rows, keep=keep, reported=reported
    ),
    "mean-logits": _mean_logits,
}
_PARAMETERS: dict[str, dict[str, type]] = {
    "temporal-top-k": {"frames": int, "top_k": int},
    "momentum": {"alpha": float},
    "mean-logits": {"formula": str, "visible_only": bool},
}
_READS = {
    "frame-probabilities": ("object_logits", "mask_iou", "mask_mass"),
    "frame-logits": ("object_logits", "mask_mass"),
}
"""Outputs that a score reads beside the class scores and the masks' areas."""
