"""Which blocks become INT8: the cheapest ones, as many as a bound allows that is measured.

A mix is the cheapest so many blocks in INT8 together and the rest in FP16 (or FP32). Whether it
holds the bound is measured in every precision that the bundle gets, and the worst counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from openvis_rt.calib.block_choice import BlockChoice
from openvis_rt.calib.blocks import Block
from openvis_rt.calib.int8_graphs import versions
from openvis_rt.calib.sensitivity import Study, ranked, sqnr_of
from openvis_rt.calib.sensitivity_record import (
    BlockCost,
    Bound,
    EvaluatedOn,
    Probe,
    Sensitivity,
)
from openvis_rt.errors import InputError, ParityError

__all__ = ["chosen_mix", "longest_within"]


def chosen_mix(
    study: Study, blocks: Sequence[Block], choice: BlockChoice
) -> tuple[list[Block], Sensitivity]:
    """Rank the blocks, and pick the mix that the choice asks for.

    Returns:
        the blocks that become INT8, and the report.

    Raises:
        ParityError: not even the cheapest block holds the bound; the message has the figures.
        InputError: AP of FP32 itself is 0, or a video of the data set cannot be run.
    """
    evaluated = _evaluated(study) if study.data is not None else None
    pairs = ranked(study, blocks, with_ap=choice.ap_of_blocks)
    if not pairs:
        raise InputError("every activation is 0 on these frames: there is nothing to quantise")
    order = [block for block, _ in pairs]
    costs = [cost for _, cost in pairs]
    probes: list[Probe] = []
    count, bound = len(order), choice.bound
    if bound is not None:

        def within(number: int) -> bool:
            probes.append(_probe(study, order[:number], bound, evaluated))
            return probes[-1].within

        count = longest_within(len(order), within)
        if not count:
            raise ParityError(_nothing(bound, costs, probes[-1], evaluated, study))
    report = Sensitivity(
        study.calibration.variant,
        {name: graph.sha256 for name, graph in study.calibration.graphs.items()},
        study.calibration.method,
        study.calibration.held_out,
        tuple(replace(cost, chosen=number < count) for number, cost in enumerate(costs)),
        evaluated,
        bound,
        tuple(probes),
        versions(),
    )
    return order[:count], report


def longest_within(count: int, within: Callable[[int], bool]) -> int:
    """How many of a ranking's first items hold a bound together, by bisection.

    Args:
        count: of all items, 1 or more.
        within: whether the first so many hold it; called at most ceil(log2(count)) + 1 times.

    Returns:
        a number that holds it, as measured, and one more does not; 0 if one is too many.
    """
    if within(count):
        return count
    holds, breaks = 0, count
    while breaks - holds > 1:
        middle = (holds + breaks) // 2
        if within(middle):
            holds = middle
        else:
            breaks = middle
    return holds


def _evaluated(study: Study) -> EvaluatedOn:
    """The data set, and AP of FP32 on it."""
    data = study.data
    assert data is not None
    ap = study.ap([], study.beside_fp32, "FP32")
    if not ap:
        raise InputError(
            f"FP32 itself has an AP of 0 on {data.path}, so nothing can be told from what INT8 "
            "loses there. Give videos that the model can do, as `openvis eval` says."
        )
    return EvaluatedOn(str(data.path), data.sha256, data.videos, ap)


def _probe(
    study: Study, blocks: Sequence[Block], bound: Bound, evaluated: EvaluatedOn | None
) -> Probe:
    what = f"the {len(blocks)} cheapest blocks"
    if bound.measure == "min_sqnr":
        ratio = min(
            sqnr_of(study.measured(blocks, precision, f"{what}, {precision}"), "mask_logits")
            for precision in study.precisions
        )
        value = None if math.isinf(ratio) else ratio
        return Probe(len(blocks), value, None, ratio >= bound.value)
    assert evaluated is not None
    least, worst = evaluated.ap - bound.value, math.inf
    for precision in study.precisions:
        worst = min(worst, study.ap(blocks, precision, f"{what}, {precision}"))
        if worst < least:
            break  # what the next precision has does not count any more
    return Probe(len(blocks), None, worst, worst >= least)


def _nothing(
    bound: Bound,
    costs: Sequence[BlockCost],
    probe: Probe,
    evaluated: EvaluatedOn | None,
    study: Study,
) -> str:
    """Why nothing can be quantised, with the figures."""
    alone = ", ".join(
        f"{cost.block} {-10 * math.log10(cost.noise):.1f} dB" if cost.noise else cost.block
        for cost in costs
    )
    if bound.measure == "min_sqnr":
        found = "the same mask logits" if probe.sqnr is None else f"{probe.sqnr:.1f} dB"
        said = (
            f"no block can be INT8 with mask logits at {bound.value:g} dB or more on "
            f"{study.calibration.held_out} windows that were held out: {costs[0].block}, the "
            f"cheapest, leaves {found}"
        )
        mend = "Ask for less with --min-sqnr"
    else:
        assert evaluated is not None
        assert probe.ap is not None
        said = (
            f"no block can be INT8 within {bound.value:g} points of AP on "
            f"{evaluated.annotations}: FP32 has {evaluated.ap:.2f} there, and with "
            f"{costs[0].block}, the cheapest, it is {probe.ap:.2f}"
        )
        mend = "Allow more with --max-ap-drop, or evaluate on more videos"
    return (
        f"{said}. Each block alone, cheapest first: {alone}. Nothing was added. {mend}, or "
        "calibrate on more frames, and on such as the model will see."
    )
