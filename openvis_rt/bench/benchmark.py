"""A bundle on several backends in turn: the measurement itself.

Every contender has a process of its own, in which one video is decoded, segmented, drawn and
encoded (:mod:`.player` says what is timed). The processes take turns: in a round each runs the same
number of windows, and the next round goes the other way round (A B C, C B A, ...), so that what
drifts slowly meets all of them. While one runs, the others wait at a pipe.

Before a contender's time is quoted its outputs are held against the base's. Then come windows to
warm up, which are not counted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from openvis_rt.bench.agreement import GATE, agreement_of
from openvis_rt.bench.contenders import Contender, Weights, contender_from_text
from openvis_rt.bench.figures import Turn, figures_of
from openvis_rt.bench.machine import CpuWatch, busy_seconds, this_machine, usable_cores
from openvis_rt.bench.peak import measured_peak
from openvis_rt.bench.player import Playing, Run, vocabulary_of
from openvis_rt.bench.power import PowerLog, open_meter
from openvis_rt.bench.products import Peak
from openvis_rt.bench.remote import RemotePlayer
from openvis_rt.bench.report import Agreement, Report, Result, spread
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import BundleError, InputError, OpenVISError
from openvis_rt.runtime.backends.registry import LARGEST_THREADS, Device
from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Mode
from openvis_rt.runtime.video.generated import write_sample_video

__all__ = ["BenchmarkSettings", "benchmark"]

Progress = Callable[[str, int, int | None], None]
Warn = Callable[[str], None]
OpenPlayer = Callable[[Contender, Run, Warn], Playing]

TIMED = (
    "A window, or a frame of models that work frame by frame, on its way from the encoded video to "
    "the encoded overlay, one at a time: decoding in the measuring thread, placing, the graphs, "
    "association, scores, run lengths, drawing and encoding. Opening, warm-up and what lies "
    "between windows are outside."
)
_SOURCE = (720, 1280)
_FPS = 25
_LONGEST = 200  # frames of a generated video; then it begins anew
_MOST, _MOST_CLASSES = 1_000_000, 100_000  # frames, windows and rounds; random embeddings
_OTHERS = 0.05  # share of the cores that others may take before it is told


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured, and how often.

    Attributes:
        runs_on, precision, device: of the base; see :class:`~.contenders.Contender`.
        threads: that compute a graph on a CPU, for every contender; None for all cores.
        video: that is run; None for a generated one.
        source_size: (H, W) of the generated one; None for the bundle's, or 720x1280.
        frames: timed of each contender, at least; rounded up to whole windows and rounds.
        rounds: in which the contenders take turns, at least 2; intervals come from them.
        warm_up: windows before the first timed one, at least 1.
        compared: windows on which outputs are compared.
        mode, selection, classes: see :class:`~.player.Run`.
        overlay: draw and encode.
        weights: for PyTorch, where the bundle has no seed.

    Raises:
        InputError: a number is out of range.
    """

    runs_on: str = "auto"
    precision: str = "fp32"
    device: Device = "auto"
    threads: int | None = None
    video: str | None = None
    source_size: tuple[int, int] | None = None
    frames: int = 50
    rounds: int = 10
    warm_up: int = 3
    compared: int = 2
    mode: Mode = "stream"
    selection: Selection = field(default_factory=lambda: Selection(threshold=0.0, limit=10))
    classes: int = 40
    overlay: bool = True
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        """Refuse what would give no figures, or wrong ones."""
        if self.warm_up < 1:
            raise InputError(
                f"a benchmark needs one window to warm up at least, got {self.warm_up}: the first "
                "one allocates, and torch.compile compiles in it. Give --warm-up 1 or more"
            )
        for name, value, least, most in (
            ("rounds", self.rounds, 2, _MOST),
            ("frames", self.frames, 1, _MOST),
            ("warm-up windows", self.warm_up, 1, _MOST),
            ("compared windows", self.compared, 1, _MOST),
            ("classes", self.classes, 1, _MOST_CLASSES),
            ("threads", 1 if self.threads is None else self.threads, 1, LARGEST_THREADS),
        ):
            if value < least:
                raise InputError(f"a benchmark needs at least {least} {name}; got {value}")
            if value > most:
                raise InputError(f"a benchmark has at most {most:,} {name}; got {value}")

    def resolved(self) -> dict[str, Any]:
        """As JSON types, with the number of threads on this machine."""
        found = asdict(self)
        found["weights"] = {k: v if v is None else str(v) for k, v in found["weights"].items()}
        return {**found, "threads": self.threads or usable_cores()}


def benchmark(
    bundle: str | Path,
    *,
    against: Iterable[str] = (),
    settings: BenchmarkSettings | None = None,
    progress: Progress = lambda *_: None,
    warn: Warn = lambda _: None,
    open_player: OpenPlayer = RemotePlayer,
) -> Report:
    """Measure a bundle, and others beside it.

    Args:
        bundle: its folder.
        against: what it is compared with, as :mod:`.contenders` names it. One that does not work
            here has no figures and a reason; the base must work.
        settings: see the class.
        progress: told of the phase, rounds done and in all.
        warn: told what does not stop the work, when it arises.
        open_player: makes the player of a contender; by default in a process of its own.

    Raises:
        InputError: a name is not known, a folder is no bundle, or the video is too short.
        UnavailableError: the base does not work here.
    """
    settings = settings or BenchmarkSettings()
    threads = settings.threads or usable_cores()
    base = Contender(
        Path(bundle),
        settings.runs_on,
        settings.precision,
        settings.device,
        threads,
        settings.weights,
    )
    contenders = [base, *(contender_from_text(text, base) for text in against)]
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        warn(message)

    with ExitStack() as stack:
        contest = _Contest(settings, contenders, tell, progress, open_player, stack)
        return contest.report(threads, told)


class _Contest:
    """One benchmark on its way."""

    def __init__(
        self,
        settings: BenchmarkSettings,
        contenders: list[Contender],
        tell: Warn,
        progress: Progress,
        open_player: OpenPlayer,
        stack: ExitStack,
    ) -> None:
        self._settings, self._tell, self._progress = settings, tell, progress
        self._bundles = {c.bundle: Bundle.open(c.bundle) for c in contenders}
        contenders = [replace(c, sha256=self._bundles[c.bundle].sha256) for c in contenders]
        names = _unique_names(contenders)
        self._entries = [_Entry(n, c) for n, c in zip(names, contenders, strict=True)]
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._open_player, self._stack = open_player, stack
        self._cpu = CpuWatch()

    def report(self, threads: int, told: list[str]) -> Report:
        """Run everything."""
        made, load = datetime.now(timezone.utc).astimezone().isoformat("T", "seconds"), _load()
        run = self._run()
        for entry in self._entries:
            with self._left_out_if_it_fails(entry):
                self._open(entry, run)
        for entry in self._entries[1:]:
            with self._left_out_if_it_fails(entry):
                self._compare(entry)
        self._warm_up()
        meter, why = open_meter()
        log = PowerLog(meter) if meter is not None else None
        if log is not None:
            self._stack.callback(log.close)
        peaks = [self._peak(threads)]
        self._rounds()
        self._flow()
        peaks.append(self._peak(threads))  # the machine may have been busier at one of the times
        peak = max((p for p in peaks if p is not None), key=lambda p: p.flops, default=None)
        others = self._others()
        if others is not None and others > _OTHERS:
            self._tell(
                f"other processes took {others:.0%} of the cores while this was measured: believe "
                "the ratios before the times, and measure again on an idle machine"
            )
        missing = [why] if why else []
        if find_spec("onnx") is None:
            missing.append("operations are not counted: onnx is not installed (extra [export])")
        if peak is None:
            missing.append("the matrix product was not measured: PyTorch reaches no GPU here")
        return Report(
            made,
            this_machine(),
            self._settings.resolved(),
            tuple(self._result(entry, peak, log) for entry in self._entries),
            TIMED,
            peak,
            tuple(missing),
            (load, _load()),
            others,
            spread(self._cpu.mhz),
            self._cpu.throttled,
            log.name if log is not None else "",
            tuple(told),
        )

    def _peak(self, threads: int) -> Peak | None:
        self._progress("measuring the matrix product", 0, None)
        return measured_peak(threads, self._entries[0].facts["device"])

    def _run(self) -> Run:
        """The video, the same for all of them."""
        settings = self._settings
        rule = self._bundles[self._entries[0].contender.bundle].manifest.preprocess
        video = settings.video
        if video is None:
            height, width = settings.source_size or rule.source_size or _SOURCE
            path = self._folder / "video.mp4"
            length = max(b.manifest.window_length for b in self._bundles.values())
            windows = settings.compared + settings.warm_up + self._turn_windows(length)
            count = min(_LONGEST, length * max(windows, settings.compared * 2 + 1))
            self._progress("drawing the video", 0, None)
            write_sample_video(
                path, width=width, height=height, fps=_FPS, seconds=count / _FPS, audio=False
            )
            video = str(path)
        overlay = self._folder if settings.overlay else None
        return Run(video, overlay, settings.mode, settings.selection, settings.classes)

    def _turn_windows(self, length: int) -> int:
        """Windows of one contender in one round."""
        return max(1, -(-self._settings.frames // (length * self._settings.rounds)))

    def _open(self, entry: _Entry, run: Run) -> None:
        self._progress(f"opening {entry.name}", 0, None)
        entry.player = self._open_player(
            entry.contender, run, lambda text: self._tell(f"{entry.name}: {text}")
        )
        self._stack.callback(entry.player.close)
        entry.facts = entry.player.facts()
        if entry.contender.runs_on == "auto":
            entry.name += f" ({entry.facts['backend']})"

    def _compare(self, entry: _Entry) -> None:
        """Hold a contender's outputs against the base's, if they should be the same."""
        base = self._entries[0]
        if entry.player is None or not self._same_model(entry):
            return
        self._progress(f"comparing {entry.name}", 0, None)
        if base.outputs is None:
            base.outputs = base.running.outputs(self._settings.compared)
        same = entry.contender.precision == base.contender.precision
        found = entry.player.outputs(self._settings.compared)
        entry.agreement = agreement_of(found, base.outputs, gate=GATE if same else None)
        if not entry.agreement.passed:
            worst = {k: v for k, v in entry.agreement.sqnr.items() if v < GATE}
            listed = ", ".join(f"{k} {v:.0f} dB" for k, v in worst.items())
            raise InputError(
                f"its outputs differ from those of {base.name}, so its time means nothing: "
                f"{listed}; {GATE:.0f} dB are needed"
            )

    def _same_model(self, entry: _Entry) -> bool:
        ours, base = (self._bundles[e.contender.bundle].manifest for e in (entry, self._entries[0]))
        return (
            ours.variant == base.variant
            and ours.checkpoint == base.checkpoint
            and ours.preprocess == base.preprocess
            and ours.window_length == base.window_length
        )

    def _warm_up(self) -> None:
        for entry in self._running():
            self._progress(f"warming up {entry.name}", 0, None)
            with self._left_out_if_it_fails(entry):
                entry.running.turn(self._settings.warm_up)

    def _rounds(self) -> None:
        rounds = self._settings.rounds
        for number in range(rounds):
            self._progress("measuring", number, rounds)
            running = self._running()
            for entry in running if number % 2 == 0 else running[::-1]:
                with self._left_out_if_it_fails(entry):
                    self._turn(entry)
        self._progress("measuring", rounds, rounds)

    def _turn(self, entry: _Entry) -> None:
        windows = self._turn_windows(entry.facts["window_length"])
        busy, begin = busy_seconds(), perf_counter()
        spent = entry.running.turn(windows)
        end, after = perf_counter(), busy_seconds()
        taken = None if busy is None or after is None else max(0.0, after - busy)
        entry.turns.append(Turn(begin, end, spent, taken))
        self._cpu.sample()

    def _flow(self) -> None:
        """Frames a second with several windows in flight, where that is another figure."""
        for entry in self._running():
            if entry.facts["slots"] > 1:
                self._progress(f"streaming {entry.name}", 0, None)
                with self._left_out_if_it_fails(entry):
                    length = entry.facts["window_length"]
                    windows = max(2, -(-self._settings.frames // length))
                    entry.running.flow(self._settings.warm_up)
                    entry.flow = windows * length / entry.running.flow(windows)

    def _others(self) -> float | None:
        """Share of the cores' time in the turns that was not the contender's own."""
        turns = [turn for entry in self._entries for turn in entry.turns]
        if not turns or any(turn.busy is None for turn in turns):
            return None
        room = sum(turn.end - turn.begin for turn in turns) * usable_cores()
        others = sum((turn.busy or 0.0) - turn.spent.cpu_seconds for turn in turns)
        return min(1.0, max(0.0, others / room))

    def _result(self, entry: _Entry, peak: Peak | None, log: PowerLog | None) -> Result:
        contender, manifest = entry.contender, self._bundles[entry.contender.bundle].manifest
        measured = None
        if entry.player is not None and len(entry.turns) == self._settings.rounds:
            base = None if entry is self._entries[0] else self._entries[0].turns
            measured = figures_of(
                entry.turns,
                base,
                peak_bytes=entry.player.peak_bytes(),
                pid=getattr(entry.player, "pid", None),
                flow=entry.flow,
                flops=self._flops(contender),
                peak=peak,
                log=log,
            )
        return Result(
            entry.name,
            str(contender.bundle),
            manifest.variant,
            contender.precision,
            entry.facts.get("backend", contender.runs_on),
            entry.facts.get("device", contender.device),
            manifest.preprocess.network_size,
            tuple(entry.facts.get("source_size", (0, 0))),
            manifest.window_length,
            entry.facts.get("open_seconds", 0.0),
            entry.not_run,
            entry.agreement,
            measured,
            measured.trtexec() if measured is not None else {},
        )

    def _flops(self, contender: Contender) -> dict[str, int] | None:
        if find_spec("onnx") is None:
            return None
        from openvis_rt.bench.onnx_operations import flops_of_bundle

        bundle = self._bundles[contender.bundle]
        classes = len(vocabulary_of(bundle, self._settings.classes)[0])
        self._progress("counting operations", 0, None)
        try:
            return flops_of_bundle(bundle, contender.precision, classes)
        except BundleError as exc:
            self._tell(f"{contender.bundle}: {exc}")
            return None

    def _running(self) -> list[_Entry]:
        return [entry for entry in self._entries if entry.player is not None]

    @contextmanager
    def _left_out_if_it_fails(self, entry: _Entry) -> Iterator[None]:
        """A contender that fails has a reason in place of figures; the base's error is raised."""
        try:
            yield
        except OpenVISError as exc:
            if entry is self._entries[0]:
                raise
            entry.not_run = " ".join(str(exc).split())
            self._tell(f"{entry.name} is left out: {entry.not_run}")
            if entry.player is not None:
                entry.player.close()
            entry.player = None


class _Entry:
    """A contender and what is known of it so far."""

    def __init__(self, name: str, contender: Contender) -> None:
        self.name, self.contender = name, contender
        self.player: Playing | None = None
        self.facts: dict[str, Any] = {}
        self.outputs: Any = None
        self.agreement: Agreement | None = None
        self.turns: list[Turn] = []
        self.flow: float | None = None
        self.not_run = ""

    @property
    def running(self) -> Playing:
        """The player, of an entry that was not left out."""
        assert self.player is not None
        return self.player


def _unique_names(contenders: list[Contender]) -> list[str]:
    """Each one's name, with its folder where another bundle than the first one's is meant.

    Raises:
        InputError: the same contender twice.
    """
    first = contenders[0].bundle
    names = [c.name if c.bundle == first else f"{c.bundle.name}: {c.name}" for c in contenders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} takes part twice; give each contender once")
    return names


def _load() -> float:
    return os.getloadavg()[0]
