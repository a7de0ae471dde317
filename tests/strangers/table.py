"""What strangers send, row by row: how many cases there were, and which of them fell.

    python tests/strangers/table.py [ROW ...] [--every N] [--json FILE] [--list]

Each file beside this one that has ``ROWS`` gives rows: a name, and a function that takes a
:class:`Workshop` (good files to start from) and gives its cases. CI runs a few of each row.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # as pytest's setting has it

from court import Case, Court, court
from workshop import Workshop

__all__ = ["FEW", "FILES", "few", "rows"]

Row = Callable[[Workshop], Iterable[Case]]
FILES = (
    *("names", "live_sources", "live_rtsp", "live_hls", "live_ends", "videos"),
    *("streams", "pictures", "checkpoints", "archives", "flipped", "caches"),
    *("finished", "graphs", "manifests", "smallfiles", "locked", "records", "benchmarks"),
    "references",
    *(
        "batches",
        "replaced",
        "replaced_growing",
        "replaced_measured",
        "times",
        "sounds",
        "repositories",
        "embeddings",
    ),
    *("folders", "outputs"),
)


FEW = 3  # cases of a row that CI runs, where a file does not say another number in its FEW


def few() -> dict[str, int]:
    """How many cases of each row CI runs."""
    found = dict.fromkeys(rows(), FEW)
    for file in FILES:
        found |= getattr(importlib.import_module(file), "FEW", {})
    return found


def rows() -> dict[str, Row]:
    """Every row, in the order of the files."""
    found: dict[str, Row] = {}
    for file in FILES:
        found |= importlib.import_module(file).ROWS
    return found


def tried(
    row: Row, workshop: Workshop, bench: Court, every: int = 1, begin: int = 0
) -> Iterator[dict[str, object]]:
    """Each (or each ``every``-th) case of a row: name, code, seconds, MB and what is wrong."""
    for case in islice(row(workshop), begin, None, every):
        with tempfile.TemporaryDirectory() as folder:
            outcome, wrong = bench.judge(case, Path(folder))
        yield {
            "case": case.name,
            "code": outcome.code,
            "seconds": outcome.seconds,
            "megabytes": outcome.megabytes,
            "wrong": wrong,
            "stderr": outcome.stderr[-2000:] if wrong else "",
        }


def main() -> None:
    """Print a line for each row, and below it each case that fell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every case, a line each")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args()
    chosen = {name: row for name, row in rows().items() if name in options.rows or not options.rows}
    if options.list or not chosen:
        print("\n".join(rows()))
        sys.exit(0 if options.list else 2)
    fallen = 0
    with tempfile.TemporaryDirectory() as place, court() as bench:
        workshop = Workshop(Path(place), bench)
        for name, row in chosen.items():
            cases = []
            for found in tried(row, workshop, bench, options.every):
                cases.append(found)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps({"row": name, **found}) + "\n")
                if found["wrong"]:
                    print(f"    FELL  {found['case']}: {'; '.join(found['wrong'])}", flush=True)
            fallen += sum(bool(case["wrong"]) for case in cases)
            _print_row(name, cases)
    sys.exit(bool(fallen))


def _print_row(name: str, cases: list[dict[str, object]]) -> None:
    codes = Counter(case["code"] for case in cases)
    said = ", ".join(f"{count} exit {code}" for code, count in sorted(codes.items()))
    fell = sum(bool(case["wrong"]) for case in cases)
    slowest = max((case["seconds"] for case in cases), default=0)
    largest = max((case["megabytes"] for case in cases), default=0)
    print(
        f"{name:24s} {len(cases):5d} cases, {fell} fell ({said}); at most {slowest:.1f} s, "
        f"{largest:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
