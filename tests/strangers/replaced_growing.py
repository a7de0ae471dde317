"""A bundle that is replaced while another verb makes something of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from court import Case, Outcome
from replaced import MAKERS, SABOTAGE, SAID, Twins
from workshop import Workshop

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BundleError

__all__ = ["ROWS"]

CALIBRATE = [
    "calibrate",
    "bundle",
    "video.mp4",
    "--frames",
    "4",
    "--stride",
    "1",
    "--allow-few",
    "--no-check",
]
INTO = [*CALIBRATE, "--into", "--precision", "int8-fp32"]
ASIDE = [*CALIBRATE, "-o", "out", "--precision", "int8-fp32"]
TRITON = ["triton", "bundle", "-o", "out", "-c", "disc"]
_T, _P = "text.onnx", "propose.onnx"
# the arguments, the moment, how it is replaced, which file of it, and the right exit codes
CASES: list[tuple[Sequence[str], str, str, Sequence[object], tuple[int, ...]]] = [
    (INTO, "its files were checked", "a folder renamed over it", (), (2,)),
    (INTO, "ranges are to be counted", "each file written over", (), (2,)),
    (INTO, "ranges are to be counted", "a link led elsewhere", (), (2,)),
    (INTO, "ranges were counted", "a file written over", (_P,), (2,)),
    (INTO, "ranges were counted", "a folder renamed over it", (), (2,)),
    (INTO, "INT8 graphs are to be added", "a folder renamed over it", (), (2,)),
    (INTO, "INT8 graphs are to be added", "a link led elsewhere", (), (2,)),
    (INTO, "INT8 graphs are to be added", "each file renamed over", (), (2,)),
    (INTO, "INT8 graphs are to be added", "all of it removed", (), (2,)),
    (INTO, "INT8 graphs are being added", "a folder renamed over it", (), (2,)),
    (INTO, "INT8 graphs are being added", "each file renamed over", (), (2,)),
    (INTO, "INT8 graphs are being added", "all of it removed", (), (2,)),
    (ASIDE, "INT8 graphs are to be added", "a folder renamed over it", (), (2,)),
    (ASIDE, "INT8 graphs are to be added", "a bit flipped", (_T,), (2,)),
    (ASIDE, "INT8 graphs are to be added", "a file removed", ("bundle.json",), (0,)),
    (ASIDE, "INT8 graphs are being added", "a folder renamed over it", (), (0,)),
    (TRITON, "its files were checked", "a folder renamed over it", (), (2,)),
    (TRITON, "its files were checked", "a bit flipped", (_P,), (2,)),
    (TRITON, "its files were checked", "a file removed", (_T,), (2,)),
    (TRITON, "its files were checked", "a file removed", ("bundle.json",), (0,)),
]


def _judged(twins: Twins, place: str, whole: bool, folder: Path, outcome: Outcome) -> str | None:
    if not (folder / "acted").exists():
        return "the moment never came"
    if outcome.code:
        if (folder / "out").exists():
            return "an output of what failed"
        if not SAID.search(" ".join(outcome.stderr.split())):
            return f"it does not say that the bundle was changed: {outcome.stderr[-300:]!r}"
        return _damage(folder / "bundle") if whole else None
    if found := _damage(folder / place):
        return found
    wanted, made = Bundle.open(twins.bundle).manifest.files, Bundle.open(folder / place)
    for name, entry in made.manifest.files.items():
        if name in wanted and entry != wanted[name]:
            return f"{name} is of the other bundle"
    return None


def _damage(bundle: Path) -> str | None:
    try:
        Bundle.open(bundle)
    except BundleError as exc:
        return f"what stands there is damaged: {exc}"
    return None


def growing(workshop: Workshop) -> Iterator[Case]:
    """Verbs that write what they make of a bundle's graphs."""
    twins = Twins(workshop, workshop.bundle)
    for words, moment, how, what, codes in CASES:
        link = how == "a link led elsewhere"
        place = {"calibrate": "out" if "-o" in words else "bundle"}.get(
            words[0], "out/openvis/1/bundle"
        )

        def make(folder: Path, words: Sequence[str] = words, link: bool = link) -> Sequence[str]:
            twins.prepared(folder, twins.bundle, link=link)
            return words

        about = f" ({what[0]})" if what else ""
        yield Case(
            f"{words[0]}: when {moment}, {how}{about}",
            make,
            writes=MAKERS
            | {".*.calibrating-*.npz"},  # from which it goes on when it is tried again
            codes=frozenset(codes),
            check=partial(_judged, twins, place, not what and "removed" not in how),
            keeps=True,
            seconds=60,  # a calibration is made in each, which takes four to twelve
            sabotage=(SABOTAGE, [{"moment": moment, "how": how, "what": what}]),
        )


FEW = {"replaced, other verbs": 1}
ROWS = {"replaced, other verbs": growing}
