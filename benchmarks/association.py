"""What association costs: every rule against N queries, and temporal top-K against T and K.

    python benchmarks/association.py [--queries 50 100 200 300] [--frames 3 9 20]
        [--top-k 1 3 5] [--repeats 50]

Inside the timed region is one ``step`` of the rule with its memory full: unit rows, cost matrices,
Hungarian assignments, the recurrence, the memory. One BLAS thread, as in the pipeline. Two kinds
of queries: objects that stay themselves (each frame's are the first one's with a tenth of noise, in
another order), and noise, for which the Hungarian algorithm works longest. Medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from openvis_rt.bench.markdown import table
from openvis_rt.runtime.tracking.association import Momentum, TemporalTopK
from openvis_rt.runtime.tracking.rollout import Cell, Rollout
from openvis_rt.runtime.tracking.rules import Association

WIDTH = 256  # of a query embedding
TOKEN = 768  # of InstFormer's tracking token
RECURRENCES = {  # gates of each cell: rows of its weights over the width
    "rnn": 1,
    "gru": 3,
    "lstm": 4,
}


def main() -> None:
    """Print the tables and, as the last line, JSON."""
    options = parse()
    found: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for queries in options.queries:
            for name, make, width in rules():
                found.append(measured(name, make, queries, width, options.repeats))
        for frames in options.frames:
            for top_k in options.top_k:
                rule = measured(
                    "temporal-top-k",
                    lambda frames=frames, top_k=top_k: TemporalTopK(frames, top_k),
                    100,
                    WIDTH,
                    options.repeats,
                    memory=frames,
                )
                found.append({**rule, "T": frames, "K": top_k})
    header = ["rule", "N", "width", "T", "K", "objects, ms", "noise, ms"]
    rows = [
        [
            *(row["rule"], str(row["N"]), str(row["width"])),
            *(str(row.get(key, "")) for key in ("T", "K")),
            *(f"{row[kind]:.3f}" for kind in ("objects", "noise")),
        ]
        for row in found
    ]
    print("\n".join(table(header, rows)))
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", nargs="+", type=int, default=[50, 100, 200, 300])
    parser.add_argument("--frames", nargs="*", type=int, default=[3, 9, 20])
    parser.add_argument("--top-k", nargs="*", type=int, default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=50)
    return parser.parse_args()


def rules() -> list[tuple[str, Callable[[], Association], int]]:
    """Every rule as released: its name, what makes it, and the width of what it matches."""
    return [
        ("temporal-top-k", lambda: TemporalTopK(9, 5), WIDTH),
        ("momentum 0.7", lambda: Momentum(0.7), WIDTH),
        ("previous frame", lambda: Momentum(1.0), WIDTH),
        *(
            (f"rollout {kind}", lambda kind=kind: Rollout(cell(kind)), TOKEN)
            for kind in (*RECURRENCES, "linear", "mlp")
        ),
    ]


def cell(kind: str) -> Cell:
    """A recurrence with seeded weights, as torch starts them."""
    rng = np.random.default_rng(0)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-(TOKEN**-0.5), TOKEN**-0.5, shape).astype(np.float32)

    if kind == "linear":
        return Cell({"weight": uniform(TOKEN, TOKEN), "bias": uniform(TOKEN)})
    if kind == "mlp":
        layers = range(2)
        weights = {f"layers.{i}.weight": uniform(TOKEN, TOKEN) for i in layers}
        return Cell(weights | {f"layers.{i}.bias": uniform(TOKEN) for i in layers})
    rows = RECURRENCES[kind] * TOKEN
    names = ("ih", "hh")
    weights = {f"weight_{name}_l0": uniform(rows, TOKEN) for name in names}
    return Cell(weights | {f"bias_{name}_l0": uniform(rows) for name in names})


def measured(
    name: str,
    make: Callable[[], Association],
    queries: int,
    width: int,
    repeats: int,
    memory: int = 9,
) -> dict[str, Any]:
    """Milliseconds of a step for both kinds of queries."""
    row: dict[str, Any] = {"rule": name, "N": queries, "width": width}
    for kind in ("objects", "noise"):
        rng, rule = np.random.default_rng(0), make()
        first = rng.standard_normal((queries, width), np.float32)
        seconds = []
        for repeat in range(memory + repeats):
            frame = rng.standard_normal((queries, width), np.float32)
            if kind == "objects":
                frame = (first + 0.1 * frame)[rng.permutation(queries)]
            begin = time.perf_counter()
            rule.step(frame)
            if repeat >= memory:
                seconds.append(time.perf_counter() - begin)
        row[kind] = median(seconds) * 1e3
    return row


if __name__ == "__main__":
    main()
