"""A bundle that is replaced while a batch, an evaluation, a benchmark or `verify` uses it.

These open a bundle more than once, in processes of their own, and write down which one it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from court import Case, Outcome
from generated_data_set import write_data_set
from replaced import MAKERS, NAMED, SABOTAGE, SAID, Twins
from workshop import Workshop

__all__ = ["ROWS"]

GONE = re.compile(rf"{SAID.pattern}|was replaced or changed|is not a bundle: there is no such")
BATCH = ["batch", "bundle", "one", "-o", "out", "--no-overlay", "--threshold", "0", "--only"]
BATCH += ["--workers", "0", *NAMED]
EVAL = ["eval", "bundle", "--annotations", "DATA/annotations.json", "--videos", "DATA/frames"]
EVAL += ["-o", "out", "--no-pictures"]
BENCH = ["bench", "bundle", "--video", "video.mp4", "--frames", "2", "--rounds", "2"]
BENCH += ["--warm-up", "1", "--no-overlay", "--threads", "1", "-o", "report.json"]
PAIR = [*BENCH, "--against", "onnxruntime"]
VERIFY = ["verify", "bundle", "--backend", "onnxruntime", "--no-video"]
_T, _P, _C = "text.onnx", "propose.onnx", "classify.onnx"
_TOKENIZER = "tokenizer/tokenizer.json"
# the arguments, the moment, how it is replaced, which file of it, and the right exit codes
CASES: list[tuple[Sequence[str], str, str, Sequence[object], tuple[int, ...]]] = [
    (BATCH, "its manifest was read", "a folder renamed over it", (), (2,)),
    (BATCH, "its files were checked", "a folder renamed over it", (), (2,)),
    (BATCH, "a batch was begun", "a folder renamed over it", (), (2,)),
    (BATCH, "a batch was begun", "each file written over", (), (2,)),
    (BATCH, "a batch was begun", "a bit flipped", (_P,), (2,)),
    (BATCH, "a batch was begun", "all of it removed", (), (2,)),
    (BATCH, "its graphs were opened", "a file renamed over", (_T,), (2,)),
    (BATCH, "its first video was done", "a folder renamed over it", (), (0,)),
    (BATCH, "its first video was done", "all of it removed", (), (0,)),
    (EVAL, "its files were checked", "a folder renamed over it", (), (2,)),
    (EVAL, "its graphs were opened", "a folder renamed over it", (), (2,)),
    (EVAL, "its graphs were opened", "a bit flipped", (_TOKENIZER, 0.2), (2,)),
    (EVAL, "names were embedded", "a folder renamed over it", (), (0,)),
    (EVAL, "the first video was evaluated", "a folder renamed over it", (), (0,)),
    (EVAL, "the first video was evaluated", "each file written over", (), (0,)),
    (EVAL, "the first video was evaluated", "all of it removed", (), (0,)),
    (BENCH, "its files were checked", "a folder renamed over it", (), (2,)),
    (BENCH, "a benchmark was begun", "a folder renamed over it", (), (2,)),
    (BENCH, "a benchmark was begun", "each file written over", (), (2,)),
    (BENCH, "a benchmark was begun", "a bit flipped", (_C,), (2,)),
    (BENCH, "a benchmark was begun", "all of it removed", (), (2,)),
    (BENCH, "the first contender was opened", "a folder renamed over it", (), (0,)),
    (PAIR, "the first contender was opened", "a folder renamed over it", (), (0,)),
    (PAIR, "the first contender was opened", "all of it removed", (), (0,)),
    (VERIFY, "its files were checked", "a folder renamed over it", (), (2,)),
    (VERIFY, "PyTorch's answers are to be read", "a folder renamed over it", (), (2,)),
    (VERIFY, "PyTorch's answers were read", "a folder renamed over it", (), (2,)),
    (VERIFY, "PyTorch's answers were read", "a bit flipped", (_P,), (2,)),
    (VERIFY, "the graphs were compared", "a file renamed over", (_T,), (2,)),
    (VERIFY, "the graphs were compared", "a file renamed over", (_P,), (0,)),
]


class _Measured(Twins):
    """The twins, with PyTorch's answers in the first of them, and what undisturbed verbs write."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop, workshop.recorded)
        self.data = workshop.place / "data-set"
        if not self.data.exists():
            write_data_set(self.data, videos=3)
        self._written: dict[str, dict[str, str]] = {}

    def words(self, words: Sequence[str]) -> list[str]:
        """The arguments, in a folder that :meth:`prepared` has made."""
        return [word.replace("DATA", str(self.data)) for word in words]

    def written(self, words: Sequence[str]) -> dict[str, str]:
        """Each file of results that a verb writes if nobody disturbs it."""
        if words[0] not in self._written:
            folder = self.workshop.place / f"undisturbed-{words[0]}"
            folder.mkdir()
            self.prepared(folder, self.bundle)
            outcome = self.workshop.bench.run(self.words(words), folder, seconds=120)
            assert outcome.code == 0, outcome.stderr
            self._written[words[0]] = _files(folder)
        return self._written[words[0]]

    def prepared(self, folder: Path, bundle: Path, *, link: bool = False) -> None:
        """See :class:`Twins`; and a folder ``one`` of two videos."""
        super().prepared(folder, bundle, link=link)
        (folder / "one").mkdir()
        for name in ("a.mp4", "b.mp4"):
            (folder / "one" / name).hardlink_to(self.workshop.video)


def _files(folder: Path) -> dict[str, str]:
    names = ("results.json", "frames.jsonl")
    found = {p for name in names for p in folder.glob(f"out/**/{name}")}
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(found)}


def _judged(twins: _Measured, words: Sequence[str], folder: Path, outcome: Outcome) -> str | None:
    if not (folder / "acted").exists():
        return "the moment never came"
    if (outcome.code or words is PAIR) and not GONE.search(" ".join(outcome.stderr.split())):
        return f"it does not say that the bundle was changed: {outcome.stderr[-300:]!r}"
    if words[0] == "bench":
        report = folder / "report.json"
        if outcome.code:
            return "a report of what failed" if report.exists() else None
        return None if json.loads(report.read_text())["results"] else "a report without results"
    if words[0] == "verify":
        return None
    found, wanted = _files(folder), twins.written(words)
    if outcome.code == 0 and found.keys() != wanted.keys():
        return f"{found.keys() ^ wanted.keys()} are not what it writes"
    wrong = [name for name, text in found.items() if text != wanted[name]]
    return f"{', '.join(wrong)}: not of the bundle that was opened" if wrong else None


def measured(workshop: Workshop) -> Iterator[Case]:
    """Verbs that run a bundle over data, and say of which bundle their results are."""
    twins = _Measured(workshop)
    for words, moment, how, what, codes in CASES:

        def make(folder: Path, words: Sequence[str] = words) -> Sequence[str]:
            twins.prepared(folder, twins.bundle)
            return twins.words(words)

        about = f" ({what[0]})" if what else ""
        yield Case(
            f"{words[0]}{' against' * (words is PAIR)}: when {moment}, {how}{about}",
            make,
            writes=MAKERS | {"report.*", ".ses"},
            codes=frozenset(codes),
            check=partial(_judged, twins, words),
            keeps=True,
            seconds=60,  # a benchmark opens processes of its own
            sabotage=(SABOTAGE, [{"moment": moment, "how": how, "what": what}]),
        )


FEW = {"replaced, measured": 0}  # in CI: another export, with PyTorch's answers
ROWS = {"replaced, measured": measured}
