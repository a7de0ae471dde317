"""kill -9 before each change that a command makes to the folder of its output.

    python tests/faults/crash_points.py [VERB ...] [--every N]

The command is run once to number what it changes there (files opened to be written, renames,
exchanges, folders, removals, flushes), and then once for each number, to be killed before it.
Then the old output or the new one stands under its name, whole; and the same command, run again,
ends well and leaves nothing beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "strangers")]

from court import court  # noqa: E402
from verbs import VERBS, Goods, Verb, copied  # noqa: E402

from openvis_rt.files import sha256_of  # noqa: E402

__all__ = ["Counts", "points"]

SABOTAGE = Path(__file__).with_name("sabotage.py")
KILLED = -9


@dataclass
class Counts:
    """Of one verb: kills, what stood afterwards, litter beside it, and what fell."""

    killed: int = 0
    old: int = 0
    new: int = 0
    nothing: int = 0
    litter: int = 0
    fell: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.killed} kills: {self.old} old, {self.new} new, {self.nothing} nothing yet; "
            f"litter beside it {self.litter} times; fell {len(self.fell)}"
        )


def points(goods: Goods, verb: Verb, *, older: bool, every: int = 1, begin: int = 1) -> Counts:
    """Kill a command at each (or each ``every``-th) point; with an older output, or without."""
    counts = Counts()
    number = begin
    while _point(goods, verb, number, older, counts):
        number += every
    return counts


def _point(goods: Goods, verb: Verb, number: int, older: bool, counts: Counts) -> bool:
    """One kill; false where the command ended before it."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name, "place")
        place.mkdir()
        out = place / verb.file
        before = _prepare(goods, verb, out) if older else None
        arguments = [*verb.arguments(goods, out)]
        arguments += ["--overwrite"] if older and verb.overwrites else []
        order: list[object] = ["points", str(place), str(Path(name, "log")), number]
        outcome = goods.bench.run(
            [str(a) for a in arguments], Path(name), seconds=60, sabotage=(SABOTAGE, order)
        )
        if outcome.code != KILLED:
            assert outcome.code == 0, outcome.stderr
            return False
        counts.killed += 1
        where = (Path(name, "log").read_text().splitlines() or ["the begin"])[-1]
        where = f"point {number}, after {where.replace(name, '')}"
        counts.fell += [f"{where}: {wrong}" for wrong in _wrongs(goods, verb, out, before, counts)]
    return True


def _prepare(goods: Goods, verb: Verb, out: Path) -> dict[str, str]:
    """An older output, made once; the digests of its files."""
    kept = goods.folder / f"older {verb.arguments(goods, Path(verb.file))[:1]}{id(verb)}"
    if not kept.exists():
        if verb.grows:
            copied(goods.bundle, kept)
        else:
            made = goods.folder / "made" / verb.file
            goods.must(*verb.arguments(goods, made))
            made.rename(kept)
    copied(kept, out)
    if out.is_dir() and not verb.grows:
        for file in out.glob("*.jsonl"):  # another time: what is new differs from it
            file.write_text(file.read_text().replace("}\n", " }\n"))
    return _digests(out)


def _digests(out: Path) -> dict[str, str]:
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): sha256_of(path) for path in sorted(files)}


def _wrongs(
    goods: Goods, verb: Verb, out: Path, before: dict[str, str] | None, counts: Counts
) -> Iterator[str]:
    counts.litter += any(path != out for path in out.parent.iterdir())
    if not out.exists():
        counts.nothing += 1
        if before is not None:
            yield "neither the old nor the new stands under its name"
    elif before is not None and _digests(out) == before:
        counts.old += 1
    else:
        counts.new += 1
        try:
            verb.whole(out)
        except Exception as exc:
            yield f"what stands there is not whole: {exc!r}"[:300]
    again = [*verb.arguments(goods, out)]
    again += ["--overwrite"] if out.exists() and verb.overwrites else []
    outcome = goods.bench.run([str(a) for a in again], out.parent.parent, seconds=60)
    if outcome.code:
        yield f"the next command ends with {outcome.code}: {outcome.stderr[-300:]}"
        return
    try:
        verb.whole(out)
    except Exception as exc:
        yield f"what the next command wrote is not whole: {exc!r}"[:300]
    left = [path.name for path in out.parent.iterdir() if path != out]
    left += [path.name for path in out.rglob(".*")]
    if left and out.parent.joinpath(left[0]).exists():
        yield f"the next command left {', '.join(left)}"


def main() -> None:
    """Print a line for each verb, with and without an older output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verbs", nargs="*", metavar="VERB")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--goods", type=Path, help="keeps what is made first, for the next time")
    given = parser.parse_args()
    fell = 0
    with court() as bench, tempfile.TemporaryDirectory() as folder:
        goods = Goods(given.goods or Path(folder), bench)
        for name in given.verbs or VERBS:
            for older in (True,) if VERBS[name].grows else (False, True):
                counts = points(goods, VERBS[name], older=older, every=given.every)
                print(f"{name}, {'over an older one' if older else 'new'}: {counts}", flush=True)
                for words in counts.fell:
                    print(f"    {words}", flush=True)
                fell += len(counts.fell)
    sys.exit(bool(fell))


if __name__ == "__main__":
    main()
