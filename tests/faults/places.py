"""Disks that fill, places without rights, systems without calls, streams that end.

    python tests/faults/places.py [ROW ...] [--every N] [--goods FOLDER]

Each case is a command of verbs.py with one thing that goes wrong around it (sabotage.py). The exit
code is 0, 2 or 3, with words and without a traceback; what stands under the output's name is whole,
and is there where the code is 0; nothing stands beside it.
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "strangers")]

from court import Outcome, court  # noqa: E402
from verbs import VERBS, Goods, copied  # noqa: E402

__all__ = ["ROWS", "Trouble", "wrongs"]

SABOTAGE = Path(__file__).with_name("sabotage.py")
CODES = (0, 2, 3)
WRITERS = ("run", "run --mode stream", "convert to coco", "convert to html", "batch", "triton")
WRITERS += ("calibrate --into", "export")
SIZES = (0, 1, 100, 1_000, 2_000, 4_096, 8_000, 12_000, 16_000, 24_000, 32_000, 48_000, 64_000)
SIZES += (100_000, 250_000, 500_000, 1_000_000, 2_000_000, 5_000_000)


@dataclass(frozen=True)
class Trouble:
    """One case.

    Attributes:
        verb: of verbs.py, or None for ``words``.
        sabotage: arguments of its ``begin``.
        codes: exit codes that are right.
        words: arguments of a command that writes no file.
        talks: what is wrong has to be said; where stderr is what ends, it cannot be.
    """

    verb: str | None
    sabotage: tuple[object, ...]
    codes: tuple[int, ...] = CODES
    words: tuple[str, ...] = ()
    talks: bool = True

    def __str__(self) -> str:
        return f"{self.verb or ' '.join(self.words)}: {' '.join(map(str, self.sabotage))}"


def full_disk() -> Iterator[Trouble]:
    """No file may grow beyond a size."""
    for size in SIZES:
        for verb in WRITERS:
            talks = size >= 1_000  # stderr is a file here, too
            yield Trouble(verb, ("file_limit", size), talks=talks)


def calls() -> Iterator[Trouble]:
    """A system, or a file system, that has not got what is asked of it."""
    for verb in WRITERS:
        for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            # a bundle that others may change at the same time is not changed without a lock
            codes = (2,) if verb == "calibrate --into" else (0,)
            yield Trouble(verb, ("call_fails", "fcntl.flock", number), codes)
        for number in (0, errno.EINVAL, errno.ENOSYS):
            yield Trouble(verb, ("no_exchange", number), (0,))
        for name in ("os.rename", "os.replace", "os.mkdir", "os.fsync"):
            for number in (errno.EXDEV, errno.EROFS, errno.EIO, errno.ENOSPC):
                if (name, number) != ("os.mkdir", errno.EXDEV):  # which no system gives
                    yield Trouble(verb, ("call_fails", name, number))


def homes() -> Iterator[Trouble]:
    """Folders of the system that are not there."""
    for verb in WRITERS:
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
            for value in (None, "", "/nowhere/at/all", "/proc", "/dev/null"):
                yield Trouble(verb, ("environment", name, value))


def streams() -> Iterator[Trouble]:
    """stdout, stderr or both end."""
    told = (("models",), ("models", "--json"), ("doctor", "--json"), ("--help",), ("run", "--help"))
    told += (("--version",), ("inspect", "BUNDLE", "--json"), ("inspect", "BUNDLE"), ("run",))
    for end in ("gone", "leaves", "full", "closed"):
        for number in (1, 2, 3):
            for words in told:
                yield Trouble(None, ("stream", number, end), words=words, talks=number == 1)
            for verb in ("run", "convert to coco", "batch"):
                yield Trouble(verb, ("stream", number, end), talks=number == 1)


ROWS = {"full disk": full_disk, "calls": calls, "homes": homes, "streams": streams}


def wrongs(goods: Goods, case: Trouble) -> tuple[Outcome, list[str]]:
    """Run a case; its outcome and what is wrong with it."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "place", "out")
        out.parent.mkdir()
        arguments: list[object] = [a.replace("BUNDLE", str(goods.bundle)) for a in case.words]
        if case.verb is not None:
            verb = VERBS[case.verb]
            out = out.with_name(verb.file)
            if verb.grows:
                copied(goods.bundle, out)
            arguments = [*verb.arguments(goods, out)]
        outcome = goods.bench.run(
            [str(a) for a in arguments],
            Path(name),
            seconds=60,
            sabotage=(SABOTAGE, list(case.sabotage)),
        )
        return outcome, list(_wrongs(case, outcome, out))


def _wrongs(case: Trouble, outcome: Outcome, out: Path) -> Iterator[str]:
    if outcome.code not in case.codes:
        yield f"exit code {outcome.code}"
    if "Traceback" in outcome.stderr or "Exception ignored" in outcome.stderr:
        yield "a traceback"
    if outcome.code and case.talks and not outcome.stderr.strip():
        yield "no word of what was wrong"
    others = (path.name for path in out.parent.iterdir() if path != out)
    # what was counted on frames is kept, and a calibration goes on from it when it is tried again
    if left := [name for name in others if ".calibrating-" not in name]:
        yield f"left behind: {', '.join(left)}"
    if case.verb is None:
        return
    if not outcome.code and not out.exists():
        yield "no output, and exit code 0"
    if out.exists():
        try:
            VERBS[case.verb].whole(out)
        except Exception as exc:
            yield f"what stands there is not whole: {exc!r}"[:300]
        if hidden := [path.name for path in out.rglob(".*")]:
            yield f"left within: {', '.join(hidden)}"


def main() -> None:
    """Print a line for each row, and below it each case that fell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--goods", type=Path, help="keeps what is made first, for the next time")
    given = parser.parse_args()
    fell = 0
    with court() as bench, tempfile.TemporaryDirectory() as folder:
        goods = Goods(given.goods or Path(folder), bench)
        for row in given.rows or ROWS:
            count = here = 0
            for case in islice(ROWS[row](), 0, None, given.every):
                count += 1
                outcome, found = wrongs(goods, case)
                if found:
                    here += 1
                    print(f"    {case}: {'; '.join(found)}\n{outcome.stderr[-600:]}", flush=True)
            print(f"{row}: {count} cases, {here} fell", flush=True)
            fell += here
    sys.exit(bool(fell))


if __name__ == "__main__":
    main()
