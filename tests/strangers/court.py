"""One case of `openvis` with what a stranger sent, and what may come of it.

A case is a folder that somebody made and the command's arguments. It runs in a process of its own,
which is forked from one that has already imported everything, so that a case takes milliseconds.
What must hold, whatever the files are: the exit code is 0, 2, 3 or 4; stderr holds words and no
traceback; neither stream holds a letter that a terminal obeys; it ends within 20 seconds and 2 GB;
and nothing is left in the folder but what the command is there to write.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from openvis_rt.printable import printable

__all__ = ["CODES", "Case", "Court", "Interrupt", "Outcome", "court"]

CODES = frozenset({0, 2, 3, 4})
SECONDS = 20.0
MEGABYTES = 2_000.0


@dataclass(frozen=True)
class Outcome:
    """What a command did, or what was done to it.

    Attributes:
        code: its exit code, or minus the signal that ended it.
        seconds: wall-clock time.
        megabytes: the most memory that it had resident; some 300 are there when it begins.
        stdout, stderr: what it said.
        left: names of what stands in the folder afterwards and did not before.
        heard: seconds from a signal to the end; None if none was sent.
    """

    code: int
    seconds: float
    megabytes: float
    stdout: str
    stderr: str
    left: frozenset[str]
    heard: float | None = None


@dataclass(frozen=True)
class Interrupt:
    """A signal to a command.

    Attributes:
        number: of the signal.
        seconds: when it is sent, after the begin.
        sight: a file in the folder that must be there and not be empty first; None for none.
    """

    number: int
    seconds: float
    sight: str | None = None


def _nothing(_folder: Path) -> AbstractContextManager[Sequence[str]]:
    return nullcontext(())


@dataclass(frozen=True)
class Case:
    """One thing that a stranger sent.

    Attributes:
        name: what is strange about it, for the report.
        make: writes the files into an empty folder, and gives the arguments of ``openvis``; the
            command runs in that folder, so the arguments are best relative to it.
        writes: names in the folder that the command may leave, or patterns of them.
        codes: the exit codes that are right here.
        seconds, megabytes: what it may take, where that is not the usual.
        check: says what is wrong with an outcome that is clean, or None: for wrong results.
        around: opens what the command talks to; it is open while the command runs and while the
            outcome is checked, and gives further arguments.
        interrupt: a signal that is sent to it.
        stdin: name of what it reads as stdin, in the folder; None for nothing.
        keeps: what it writes stays where it fails, too.
        sabotage: as of :meth:`Court.run`.
        cache: the folder is the user's cache directory as well, which is empty elsewhere.
    """

    name: str
    make: Callable[[Path], Sequence[str | Path]]
    writes: frozenset[str] = frozenset({"out"})
    codes: frozenset[int] = CODES
    seconds: float = SECONDS
    megabytes: float = MEGABYTES
    check: Callable[[Path, Outcome], str | None] = field(default=lambda *_: None)
    around: Callable[[Path], AbstractContextManager[Sequence[str]]] = _nothing
    interrupt: Interrupt | None = None
    stdin: str | None = None
    keeps: bool = False
    sabotage: tuple[Path, list[object]] | None = None
    cache: bool = False


class Court:
    """Runs cases, each in a fresh folder and a fresh process. Made by :func:`court`."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent

    def run(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        *,
        seconds: float = SECONDS,
        environment: Mapping[str, str] | None = None,
        interrupt: Interrupt | None = None,
        stdin: str | None = None,
        sabotage: tuple[Path, list[object]] | None = None,
    ) -> Outcome:
        """Run ``openvis`` in a folder; after twice ``seconds`` it is killed.

        ``sabotage`` is a Python file, whose ``begin`` is called with these arguments in the process
        of the command before it begins.
        """
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        before = _names(folder)
        with tempfile.TemporaryDirectory() as aside:
            order = {
                "arguments": [str(argument) for argument in arguments],
                "folder": str(folder),
                "aside": aside,
                "limit": 2 * seconds,
                "interrupt": None if interrupt is None else asdict(interrupt),
                "stdin": os.devnull if stdin is None else str(folder / stdin),
                "sabotage": None if sabotage is None else [str(sabotage[0]), sabotage[1]],
                "environment": {
                    "TMPDIR": str(folder),
                    "XDG_CACHE_HOME": f"{aside}/cache",
                    "NO_COLOR": "1",
                    **(environment or {}),
                },
            }
            self._parent.stdin.write(json.dumps(order) + "\n")
            self._parent.stdin.flush()
            answer = json.loads(self._parent.stdout.readline())
            said = [
                Path(aside, stream).read_text(encoding="utf-8", errors="backslashreplace")
                for stream in ("stdout", "stderr")
            ]
        left = _names(folder) - before
        figures = (answer["code"], answer["seconds"], answer["megabytes"])
        return Outcome(*figures, *said, left, answer["heard"])

    def judge(self, case: Case, folder: Path) -> tuple[Outcome, list[str]]:
        """Run a case in an empty folder; its outcome and what is wrong with it, best nothing."""
        arguments = list(case.make(folder))
        with case.around(folder) as more:
            outcome = self.run(
                [*arguments, *more],
                folder,
                seconds=case.seconds,
                environment={"XDG_CACHE_HOME": str(folder)} if case.cache else None,
                interrupt=case.interrupt,
                stdin=case.stdin,
                sabotage=case.sabotage,
            )
            wrong = list(_faults(case, outcome))
            if not wrong and (found := case.check(folder, outcome)):
                wrong.append(found)
        return outcome, wrong


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir())


def _faults(case: Case, outcome: Outcome) -> Iterator[str]:
    if outcome.code not in case.codes:
        yield f"exit code {outcome.code}"
    if "Traceback (most recent call last)" in outcome.stderr:
        yield f"a traceback, {outcome.stderr.strip().splitlines()[-1][:200]!r}"
    if outcome.code and not outcome.stderr.strip():
        yield "no word of what was wrong"
    for stream in (outcome.stdout, outcome.stderr):
        if any(printable(line) != line for line in stream.splitlines()):
            yield "letters that a terminal obeys"
    if len(outcome.stderr) > 20_000:
        yield f"{len(outcome.stderr)} letters of talk"
    if outcome.seconds > case.seconds:
        yield f"{outcome.seconds:.0f} s"
    if outcome.megabytes > case.megabytes:
        yield f"{outcome.megabytes:.0f} MB"
    may_stay = {n for n in outcome.left if any(fnmatchcase(n, wanted) for wanted in case.writes)}
    if left := outcome.left - may_stay:
        yield f"left behind: {', '.join(sorted(left))}"
    if outcome.code and not case.keeps and may_stay:
        yield f"failed and yet left {', '.join(sorted(may_stay))}"


@contextmanager
def court() -> Iterator[Court]:
    """A process that forks one for each case, until the end of the block."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    parent = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread},  # what has threads cannot be forked
    )
    try:
        yield Court(parent)
    finally:
        parent.communicate()


def _serve() -> None:
    """Take orders from stdin, a line of JSON each, and answer on stdout."""
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        begin = time.monotonic()
        child = os.fork()
        if not child:
            _obey(order)
        status, usage, heard = _wait(child, begin, order)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - begin,
            "megabytes": usage,
            "heard": heard,
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    import contextlib

    names = ("openvis_rt.cli.main", "torch", "onnx", "onnxruntime", "av", "scipy.optimize")
    own = ("checkpoints.load", "export.bundle", "calib.calibrate", "bench.benchmark")
    for name in (*names, *(f"openvis_rt.{part}" for part in (*own, "serving.batch"))):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _obey(order: dict[str, object]) -> None:
    """In the child: run the command as it is run from a shell, and end."""
    import resource

    code = 1
    try:
        os.chdir(str(order["folder"]))
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        os.setpgid(0, 0)
        os.dup2(os.open(str(order["stdin"]), os.O_RDONLY), 0)
        for number, stream in ((1, "stdout"), (2, "stderr")):
            place = Path(str(order["aside"]), stream)
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600), number)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # the machine is for all
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        tempfile.tempdir = None
        from openvis_rt.cli.main import main

        if order["sabotage"]:
            file, arguments = order["sabotage"]  # type: ignore[misc]
            os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
            runpy.run_path(str(file))["begin"](*arguments)
        sys.argv = ["openvis", *order["arguments"]]  # type: ignore[misc]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, begin: float, order: dict[str, Any]) -> tuple[int, float, float | None]:
    """Status and peak MB of a child, and how long after its interrupt it ended.

    It is killed at its limit.
    """
    import signal

    until, interrupt, sent = begin + order["limit"], order["interrupt"], None
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        now = time.monotonic()
        if done:
            return status, usage.ru_maxrss / 1e3, None if sent is None else now - sent
        if interrupt and sent is None and _is_due(interrupt, Path(order["folder"]), now - begin):
            os.kill(child, interrupt["number"])
            sent = now
        if now > until:
            os.killpg(child, signal.SIGKILL)
            until = float("inf")
        time.sleep(0.002)


def _is_due(interrupt: dict[str, Any], folder: Path, seconds: float) -> bool:
    if interrupt["sight"] is not None:
        sight = folder / interrupt["sight"]
        if not (sight.is_file() and sight.stat().st_size):
            return False
    return bool(seconds >= interrupt["seconds"])


if __name__ == "__main__":
    _serve()
