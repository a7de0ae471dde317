"""Where a command's output may lead: terminals of odd widths, odd encodings, readers that leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from court import Case, Interrupt, Outcome
from workshop import Workshop

from openvis_rt.runtime.video.generated import write_sample_video

__all__ = ["ROWS"]

LEADING = Path(__file__).with_name("leading.py")
RUN = ("run", "BUNDLE", "VIDEO", "-c", "disc", "-c", "café", "--only")
INTO = (*RUN, "-o", "out")
LINES = (*RUN, "--jsonl", "-")
MANY_LINES = ("run", "BUNDLE", "LONGER", "-c", "disc", "--jsonl", "-", "--threshold", "0")
Environment = dict[str, str | None]
_C: Environment = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_ASCII: Environment = {"PYTHONIOENCODING": "ascii"}
# the words, where the streams lead, a number for that, the environment, and the exit codes
CASES: list[tuple[Sequence[str], str, int, Environment, tuple[int, ...]]] = [
    *((("models", "--json"), "a terminal", width, {}, (0,)) for width in (1, 0, 7, 60_000)),
    *((("inspect", "BUNDLE", "--json"), "a terminal", width, {}, (0,)) for width in (1, 0, 80)),
    *(((*INTO, "--json"), "a terminal", width, {}, (0,)) for width in (1, 0)),
    *((LINES, "a terminal", width, {}, (0,)) for width in (1, 80)),
    (INTO, "a terminal", 1, {}, (0,)),
    (INTO, "a terminal", 0, {"TERM": "dumb"}, (0,)),
    (INTO, "a terminal", 80, {"TERM": None, "NO_COLOR": None}, (0,)),
    (INTO, "a terminal", 80, {"TERM": "xterm-256color", "NO_COLOR": None}, (0,)),
    *((INTO, "a terminal", 80, {"COLUMNS": value}, (0,)) for value in ("0", "-1", "x", "10" * 9)),
    (("--help",), "a terminal", 1, {}, (0,)),
    (("run", "--help"), "a terminal", 0, {"TERM": "dumb"}, (0,)),
    (("inspect", "BUNDLE"), "a terminal", 1, {}, (0,)),
    ((*INTO, "--json"), "as it is", 0, _ASCII, (0,)),
    (INTO, "as it is", 0, _ASCII, (0,)),
    (LINES, "as it is", 0, _ASCII, (0,)),
    ((*INTO, "--json"), "as it is", 0, _C, (0,)),
    (LINES, "as it is", 0, _C, (0,)),
    (INTO, "a terminal", 40, _C, (0,)),
    (("run", "BUNDLE", "café.mp4", "-c", "é", "-o", "out"), "as it is", 0, _ASCII, (2,)),
    (("run", "BUNDLE", "café.mp4", "-c", "é", "-o", "out"), "as it is", 0, _C, (2,)),
    ((*INTO, "--json"), "closed", 0, {}, (0,)),
    (LINES, "closed", 0, {}, (0,)),
    (("run", "BUNDLE", "-", "-c", "disc", "-o", "out"), "closed", 0, {}, (2,)),
    ((*INTO, "--json"), "closed", 1, {}, (0, 2)),
    (LINES, "closed", 1, {}, (2,)),
    (LINES, "closed", 2, {}, (0,)),
    (LINES, "full", 1, {}, (2,)),
    (LINES, "full", 2, {}, (0,)),
    (LINES, "only to be read", 1, {}, (2,)),
    (("models", "--json"), "only to be read", 1, {}, (2,)),
    *((LINES, "a reader that leaves", count, {}, (0,)) for count in (0, 1, 200, 2000, -1)),
    *((("models", "--json"), "a reader that leaves", n, {}, (0,)) for n in (0, 100, -1)),
    (INTO, "a terminal that hangs up", 10, {}, (0,)),
    (INTO, "a terminal that hangs up", 2500, {}, (0,)),
    (MANY_LINES, "nobody", 1, {}, (130,)),
    (("models", "--json"), "nobody", 1, {}, (130,)),
]


def _judged(
    words: Sequence[str], place: str, value: int, folder: Path, outcome: Outcome
) -> str | None:
    if "Exception ignored" in outcome.stderr:
        return f"a fault at the end: {outcome.stderr[-300:]!r}"
    if "out" in words:
        lines = folder / "out/frames.jsonl"
        if (outcome.code == 0) != lines.is_file():
            return "the exit code and the files do not agree"
        if outcome.code == 0 and len(lines.read_text().splitlines()) != 8:
            return "frames are missing"
    if outcome.code or place not in ("as it is", "a terminal", "a reader that leaves"):
        return None
    seen = folder / "seen"
    text = seen.read_text(errors="replace") if seen.exists() else outcome.stdout
    if "--jsonl" in words:
        found = [line for line in text.splitlines() if line.startswith('{"frame"')]
        whole = value if place == "a reader that leaves" else -1
        if whole < 0 and [json.loads(line)["frame"] for line in found] != list(range(8)):
            return f"the lines are not those of the frames: {text[:300]!r}"
    elif "--json" in words and (place != "a reader that leaves" or value < 0):
        begin = min((at for at in (text.find("{\n"), text.find("[\n")) if at >= 0), default=0)
        try:
            json.JSONDecoder().raw_decode(text[begin:])
        except ValueError as exc:
            return f"no JSON ({exc}): {text[begin:][:300]!r}"
    return None


def outputs(workshop: Workshop) -> Iterator[Case]:
    """Streams that lead to odd places, of verbs that write data to them and of those that talk."""
    longer = workshop.place / "longer.mp4"  # its lines are more than a pipe of one page takes
    write_sample_video(longer, width=96, height=64, fps=8, seconds=5, objects=2)
    names = {"BUNDLE": workshop.bundle, "VIDEO": workshop.video, "LONGER": longer}
    for words, place, value, environment, codes in CASES:
        given = [str(names.get(word, word)) for word in words]
        about = "".join(f", {name}={text}" for name, text in environment.items())
        yield Case(
            f"{' '.join(words)}: {place} ({value}){about}",
            lambda _folder, given=given: given,
            writes=frozenset({"out", "seen", ".ses"}),  # the last is ONNX Runtime's own
            codes=frozenset(codes),
            check=partial(_judged, words, place, value),
            keeps=True,
            interrupt=Interrupt(signal.SIGINT, 8.0) if place == "nobody" else None,
            sabotage=(LEADING, [given, place, value, environment]),
        )


FEW = {"outputs": 1}  # each is a new Python
ROWS = {"outputs": outputs}
