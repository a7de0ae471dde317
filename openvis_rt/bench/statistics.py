"""Latencies, and ratios with their intervals.

A ratio of two times is a geometric mean, because a ratio and its reciprocal should tell the same:

    paired     r_i = log a_i - log b_i over rounds in which both ran;  exp(mean r +- t s / sqrt n)
    unpaired   log a_i and log b_j of two files;  exp(mean a - mean b +- t sqrt(s_a^2/n + s_b^2/m)),
               with Welch's degrees of freedom

Both are 95 % intervals of Student's t. Pairing takes out what changes slowly, such as the clock and
other work on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from openvis_rt.errors import InputError

__all__ = ["Interval", "Latency", "latency_of", "ratio_of_groups", "ratio_of_pairs"]

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Latency:
    """Seconds of many repetitions.

    Attributes:
        count: repetitions. ``p99`` of fewer than 100 is between the two slowest ones.
        mean, p50, p90, p99, smallest, largest: seconds; percentiles are interpolated.
    """

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    smallest: float
    largest: float


def latency_of(seconds: Sequence[float]) -> Latency:
    """Percentiles of at least one repetition."""
    if not seconds:
        raise InputError("a latency is of one repetition at least, and none was measured")
    values = np.asarray(seconds, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    ends = float(values.min()), float(values.max())
    return Latency(len(values), float(values.mean()), p50, p90, p99, *ends)


def ratio_of_pairs(times: Sequence[float], base: Sequence[float]) -> Interval:
    """How many times as long, by rounds in which both ran; see the module.

    Raises:
        InputError: the rounds differ in number, are fewer than two, or a time is not above 0.
    """
    if len(times) != len(base):
        raise InputError(f"pairs are needed; got {len(times)} times and {len(base)} of the base")
    logs = _logs(times) - _logs(base)
    error = float(logs.std(ddof=1)) / len(logs) ** 0.5
    return _interval(float(logs.mean()), error, len(logs) - 1)


def ratio_of_groups(new: Sequence[float], old: Sequence[float]) -> Interval:
    """How many times as long the new ones are, of runs that were not paired; see the module.

    Raises:
        InputError: a group has fewer than two times, or one is not above 0.
    """
    a, b = _logs(new), _logs(old)
    of_a, of_b = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    error, freedom = (of_a + of_b) ** 0.5, float(len(a) + len(b) - 2)
    if error > 0:
        freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return _interval(float(a.mean() - b.mean()), error, freedom)


def _logs(times: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(times, np.float64)
    if len(values) < 2 or not (values > 0).all():
        raise InputError(
            f"an interval needs two times above 0 at least; got {values.tolist()}. Measure more "
            "rounds"
        )
    logs: npt.NDArray[np.float64] = np.log(values)
    return logs


def _interval(mean: float, error: float, freedom: float) -> Interval:
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    value, low, high = (float(np.exp(mean + shift)) for shift in (0.0, -reach, reach))
    return Interval(value, low, high)
