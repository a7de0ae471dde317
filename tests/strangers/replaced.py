"""A bundle that is replaced, changed or removed while a process uses it.

Whatever stands under its name afterwards, the process gives what the bundle that it opened gives,
or says that the bundle was changed; and of no bundle a wrong embedding is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from court import Case, Outcome
from replacing import FIRST
from sealing import replaced
from workshop import Workshop

__all__ = ["MAKERS", "ROWS", "SABOTAGE", "SAID", "Twins"]

SABOTAGE = Path(__file__).with_name("replacing.py")
MAKERS = frozenset({"out", "cache", "bundle", "aside", "other", "one", "video.mp4", "acted"})
GRAPHS = ("propose.onnx", "classify.onnx", "text.onnx")
RUN = ["run", "bundle", "video.mp4", "-o", "out", "--threshold", "0", "--no-overlay", "--only"]
NAMED = [word for name in FIRST for word in ("-c", name)]
_TOKENIZER, _TRACKER = "tokenizer/tokenizer.json", "tracker.safetensors"
SAID = re.compile(
    "was changed|is missing|were written|replaced, changed or removed|cannot be trusted"
    "|replaced by another bundle"
)
Vectors = dict[str, np.ndarray[Any, Any]]


class Twins:
    """Two bundles of the same shape and of other weights, and what each of them gives."""

    def __init__(self, workshop: Workshop, bundle: Path) -> None:
        self.workshop = workshop
        self.bundle, self.other = bundle, workshop.place / f"{bundle.name}-twin"
        if not self.other.exists():
            shutil.copytree(self.bundle, self.other)
            for name in GRAPHS:
                replaced(self.other, name, _other_weights(self.bundle / name))
            replaced(self.other, _TOKENIZER, _other_numbers(self.bundle / _TOKENIZER))
            if (self.bundle / _TRACKER).exists():
                replaced(self.other, _TRACKER, _other_cell(self.bundle / _TRACKER))
        self._given: dict[tuple[Path, str], str] = {}
        self._vectors: Vectors | None = None

    def given(self, bundle: Path, program: str) -> str:
        """What a program prints, or a run writes, if nobody disturbs it."""
        if (bundle, program) not in self._given:
            folder = self.workshop.place / f"undisturbed-{bundle.name}-{program}"
            folder.mkdir()
            self.prepared(folder, bundle)
            plan: list[object] = [{"program": program}]
            outcome = self.workshop.bench.run(RUN + NAMED, folder, sabotage=(SABOTAGE, plan))
            assert outcome.code == 0, outcome.stderr
            self._given[bundle, program] = _result(folder, outcome, program)
        return self._given[bundle, program]

    def vectors(self) -> Vectors:
        """Every embedding that may be in a cache, by key."""
        if self._vectors is None:
            found: Vectors = {}
            for bundle in (self.bundle, self.other):
                for program in ("names", "another"):
                    self.given(bundle, program)
                    folder = self.workshop.place / f"undisturbed-{bundle.name}-{program}"
                    found |= _cached(folder)
            self._vectors = found
        return self._vectors

    def prepared(self, folder: Path, bundle: Path, *, link: bool = False) -> None:
        """The bundle as ``bundle`` or behind a link of that name, its twin as ``other``."""
        shutil.copytree(bundle, folder / ("one" if link else "bundle"), ignore=_no_cache)
        if link:
            (folder / "bundle").symlink_to("one")
        shutil.copytree(self.other, folder / "other", ignore=_no_cache)
        os.link(self.workshop.video, folder / "video.mp4")


def _no_cache(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "embeddings.sqlite"]


def _other_weights(path: Path) -> bytes:
    """A graph whose largest table of numbers has its rows in another order."""
    import onnx

    model = onnx.load(str(path))
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    value = onnx.numpy_helper.to_array(largest)
    largest.raw_data = np.ascontiguousarray(np.roll(value, 7, axis=0)).tobytes()
    return bytes(model.SerializeToString())


def _other_numbers(path: Path) -> bytes:
    """A tokenizer in which the words of the names have each other's numbers."""
    data = json.loads(path.read_text(encoding="utf-8"))
    words = data["model"]["vocab"]
    for one, other in (("disc</w>", "star</w>"), ("ring</w>", "red</w>")):
        words[one], words[other] = words[other], words[one]
    return json.dumps(data).encode()


def _other_cell(path: Path) -> bytes:
    """A tracker whose tables have their rows in another order."""
    from safetensors.numpy import load_file, save

    return save({name: np.roll(value, 7, axis=0) for name, value in load_file(path).items()})


def _result(folder: Path, outcome: Outcome, program: str) -> str:
    return (folder / "out/frames.jsonl").read_text() if not program else outcome.stdout


def _cached(folder: Path) -> Vectors:
    """Every embedding in a cache below a folder."""
    found: Vectors = {}
    for place in folder.rglob("embeddings.sqlite"):
        with sqlite3.connect(place) as database:
            for key, vector in database.execute("SELECT key, vector FROM embeddings"):
                found[key] = np.frombuffer(vector, "<f4")
    return found


def _judged(
    twins: Twins, program: str, codes: frozenset[int], folder: Path, outcome: Outcome
) -> str | None:
    if not (folder / "acted").exists():
        return "the moment never came"
    if outcome.code not in codes:
        return f"exit {outcome.code}: {outcome.stderr[-400:]!r}"
    if not outcome.code:
        found = _result(folder, outcome, program)
        if found != twins.given(twins.bundle, program):
            return "what it gives is not what the bundle gives that it opened"
    elif (folder / "out").exists():
        return "an output folder of a run that failed"
    elif program and outcome.stdout.strip():
        frames = json.loads(outcome.stdout)
        wanted = json.loads(twins.given(twins.bundle, "names"))[:4]
        if frames[:4] != wanted[:4] and program == "names":
            return "the frames before the other names are not those of the bundle"
    if outcome.code and not SAID.search(" ".join(outcome.stderr.split())):
        return f"it does not say that the bundle was changed: {outcome.stderr[-300:]!r}"
    known = twins.vectors()
    for key, vector in _cached(folder).items():
        if key not in known or np.abs(vector - known[key]).max() > 1e-4:
            return f"a wrong embedding is kept under {key}"
    return None


_T, _P, _C = "text.onnx", "propose.onnx", "classify.onnx"
# the moment, how it is replaced, which file of it, the program, and the right exit codes
Row = tuple[str, str, Sequence[object], str, tuple[int, ...]]
CASES: list[Row] = [
    ("its manifest was read", "a folder renamed over it", (), "", (2,)),
    ("its manifest was read", "a link led elsewhere", (), "", (2,)),
    ("its manifest was read", "a bit flipped", (_P,), "", (2,)),
    ("its manifest was read", "all of it removed", (), "", (2,)),
    ("its manifest was read", "a file became a pipe", (_C,), "", (2,)),
    ("its manifest was read", "a file became endless", (_T,), "", (2,)),
    ("its manifest was read", "a file became a folder", (_TOKENIZER,), "", (2,)),
    ("its manifest was read", "a file written over", ("bundle.json",), "", (0,)),
    ("a graph is looked into", "a file cut short", (_C,), "", (2,)),
    ("a graph is looked into", "a file written over", (_C,), "", (2,)),
    ("a graph is looked into", "a file removed", (_C,), "", (2,)),
    ("its files were checked", "a folder renamed over it", (), "", (2,)),
    ("its files were checked", "a link led elsewhere", (), "", (2,)),
    ("its files were checked", "each file renamed over", (), "", (2,)),
    ("its files were checked", "each file written over", (), "", (2,)),
    ("its files were checked", "a bit flipped", (_P, 0.9), "", (2,)),
    ("its files were checked", "a file became a link", (_P,), "", (2,)),
    ("its files were checked", "a file became a pipe", (_P,), "", (2,)),
    ("its files were checked", "a file became endless", (_P,), "", (2,)),
    ("one graph was opened", "a file renamed over", (_C,), "", (2,)),
    ("one graph was opened", "a file renamed over", (_P,), "", (0,)),
    ("one graph was opened", "a file cut short", (_P, 1000), "", (0,)),
    ("one graph was opened", "all of it removed", (), "", (2,)),
    ("its graphs were opened", "a file renamed over", (_T,), "", (2,)),
    ("its graphs were opened", "a bit flipped", (_T,), "", (2,)),
    ("its graphs were opened", "a bit flipped", (_TOKENIZER, 0.2), "", (2,)),
    ("its tokenizer is to be read", "a file cut short", (_TOKENIZER, 5000), "", (2,)),
    ("its tokenizer is to be read", "a file removed", (_TOKENIZER,), "", (2,)),
    ("its tokenizer is to be read", "a file became a pipe", (_TOKENIZER,), "", (2,)),
    ("its tokenizer is to be read", "a file became endless", (_TOKENIZER,), "", (2,)),
    ("its tokenizer is to be read", "a file renamed over", (_TOKENIZER,), "", (2,)),
    ("its tokenizer is to be read", "a file written over", (_TOKENIZER,), "names", (2,)),
    ("names are to be embedded", "a folder renamed over it", (), "", (2,)),
    ("names are to be embedded", "a file became a folder", (_T,), "", (2,)),
    ("names were embedded", "a folder renamed over it", (), "", (0,)),
    ("names were embedded", "a link led elsewhere", (), "", (0,)),
    ("names were embedded", "all of it removed", (), "", (0,)),
    ("the first frame comes", "each file written over", (), "", (0,)),
    ("the fifth frame comes", "each file written over", (), "", (0,)),
    ("the fifth frame comes", "a file cut short", (_P,), "", (0,)),
    ("the fifth frame comes", "all of it removed", (), "", (0,)),
    ("the masks of the sixth frame are made", "a folder renamed over it", (), "", (0,)),
    ("its graphs were opened", "a folder renamed over it", (), "names", (2,)),
    ("its tokenizer is to be read", "a folder renamed over it", (), "names", (2,)),
    ("other names come", "a folder renamed over it", (), "names", (2,)),
    ("other names come", "a link led elsewhere", (), "names", (2,)),
    ("other names come", "each file renamed over", (), "names", (2,)),
    ("other names come", "each file written over", (), "names", (2,)),
    ("other names come", "a file renamed over", (_T,), "names", (2,)),
    ("other names come", "a file written over", (_T,), "names", (2,)),
    ("other names come", "a bit flipped", (_T, 0.3), "names", (2,)),
    ("other names come", "a file renamed over", (_P,), "names", (0,)),
    ("other names come", "a bit flipped", (_TOKENIZER, 0.2), "names", (0,)),
    ("other names come", "a file removed", (_T,), "names", (2,)),
    ("other names come", "all of it removed", (), "names", (2,)),
    ("other names come", "a file removed", ("bundle.json",), "names", (0,)),
    ("the cache was asked for other names", "a folder renamed over it", (), "names", (2,)),
    ("the cache was asked for other names", "a link led elsewhere", (), "names", (2,)),
    ("the cache was asked for other names", "a file became a pipe", (_T,), "names", (2,)),
    ("other names were embedded", "a folder renamed over it", (), "names", (0,)),
    ("other names were embedded", "a link led elsewhere", (), "names", (0,)),
    ("other names were embedded", "all of it removed", (), "names", (0,)),
    ("other names come", "a folder renamed over it", (), "another", (2,)),
    ("other names come", "a file renamed over", (_T,), "another", (2,)),
    ("other names come", "each file written over", (), "another", (2,)),
    ("other names were embedded", "a link led elsewhere", (), "another", (0,)),
]


TRACKED: list[Row] = [
    ("its tracker is to be read", "a file renamed over", (_TRACKER,), "", (2,)),
    ("its tracker is to be read", "a file written over", (_TRACKER,), "", (2,)),
    ("its tracker is to be read", "a bit flipped", (_TRACKER, 0.9), "", (2,)),
    ("its tracker is to be read", "a file removed", (_TRACKER,), "", (2,)),
    ("its tracker is to be read", "a file became a pipe", (_TRACKER,), "", (2,)),
    ("its tracker is to be read", "a folder renamed over it", (), "", (2,)),
    ("one graph was opened", "a file written over", (_TRACKER,), "", (0,)),
    ("the fifth frame comes", "a file written over", (_TRACKER,), "", (0,)),
    ("other names come", "a folder renamed over it", (), "names", (2,)),
]


def running(workshop: Workshop) -> Iterator[Case]:
    """A run, and programs that look for other names."""
    yield from _cases(Twins(workshop, workshop.bundle), CASES)


def tracked(workshop: Workshop) -> Iterator[Case]:
    """A run of a model that has a tracker's weights."""
    yield from _cases(Twins(workshop, workshop.exported("instformer-mini")), TRACKED)


def _cases(twins: Twins, cases: Sequence[Row]) -> Iterator[Case]:
    for moment, how, what, program, codes in cases:
        about = f" ({what[0]})" if what else ""
        link = how == "a link led elsewhere"

        def make(folder: Path, link: bool = link) -> Sequence[str]:
            twins.prepared(folder, twins.bundle, link=link)
            return RUN + NAMED

        plan = {"moment": moment, "how": how, "what": what, "program": program}
        yield Case(
            f"{program or 'run'}: when {moment}, {how}{about}",
            make,
            writes=MAKERS,
            codes=frozenset(codes),
            check=partial(_judged, twins, program, frozenset(codes)),
            keeps=True,
            sabotage=(SABOTAGE, [plan]),
        )


FEW = {"replaced": 2, "replaced, tracked": 0}  # in CI: another export
ROWS = {"replaced": running, "replaced, tracked": tracked}
