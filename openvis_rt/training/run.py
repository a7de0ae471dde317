"""One training run: a loop with warm-up and decay, that logs, saves and goes on where it was.

A run lives in a folder of its own: ``last.pt`` (weights, optimiser, iteration), ``losses.jsonl`` (a
line every few iterations) and ``losses.svg``. What is drawn at an iteration follows from the seed
and its number alone, except what torch's own generator draws (dropout), whose state is saved. So a
run that was cut off and goes on with the same arguments ends with the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from openvis_rt.checkpoints.weights import read_torch_file, read_weights
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.files import output_file

__all__ = ["Losses", "Run", "learning_rate", "trained_weights"]

Losses = dict[str, Tensor]
"""Each loss by its name, weighted; a run minimises their sum."""

_LOG_EVERY = 20  # iterations
_SAVE_EVERY = 200
_CLIP_NORM = 1.0  # of the gradient


def learning_rate(iteration: int, iterations: int, warm_up: int) -> float:
    """The part of the full rate: linear up for ``warm_up`` iterations, then a half cosine to 0."""
    if iteration < warm_up:
        return (iteration + 1) / warm_up
    done = (iteration - warm_up) / max(1, iterations - warm_up)
    return 0.5 * (1 + math.cos(math.pi * done))


class Run:
    """A run in a folder.

    Args:
        folder: taken or made.
        model: whose trainable parameters are trained, and whose whole state is saved.
        rate: the full learning rate.
        decay: AdamW's weight decay, of matrices alone.
        slower: prefixes of parameters' names, and the part of the rate that they get.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        *,
        rate: float,
        decay: float = 0.05,
        slower: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self.model, self.rate = folder, model, rate
        folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = torch.optim.AdamW(_groups(model, decay, slower or {}), lr=rate)
        self.iteration, self.seconds = 0, 0.0

    @property
    def last(self) -> Path:
        """The file that a run goes on from."""
        return self.folder / "last.pt"

    def resume(self) -> None:
        """Go on from the last save, if there is one; what was logged after it is forgotten.

        Raises:
            InputError: the folder holds a run of another model.
        """
        if self.last.exists():
            saved = read_torch_file(self.last)
            try:
                self.model.load_state_dict(saved["model"])
                self.optimizer.load_state_dict(saved["optimizer"])
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as exc:
                raise InputError(
                    f"{self.last} is of another model or recipe than this one: give a new folder. "
                    f"({str(exc).splitlines()[0]})"
                ) from exc
            self.iteration, self.seconds = int(saved["iteration"]), float(saved["seconds"])
            torch.set_rng_state(saved.get("random", torch.get_rng_state()))
        lines = self._lines()
        kept = [line for line in lines if line["iteration"] <= self.iteration]
        if len(kept) < len(lines):
            with output_file(self._log_file) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def save(self) -> None:
        """Save the state, whole or not at all."""
        with output_file(self.last) as partial:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "iteration": self.iteration,
                    "seconds": self.seconds,
                    "random": torch.get_rng_state(),
                },
                partial,
            )

    def train(
        self,
        step: Callable[[int], Losses],
        iterations: int,
        *,
        warm_up: int = 200,
    ) -> None:
        """Train to an iteration; Ctrl-C ends the iteration, saves and stops.

        Args:
            step: the losses of an iteration, by its number.
            iterations: in all, with those of earlier calls.
            warm_up: iterations of a rising rate.

        Raises:
            InputError: the folder holds a run of another model, or a loss became infinite or NaN.
            KeyboardInterrupt: after the save; a second Ctrl-C does not wait for it.
        """
        self.resume()
        if self.iteration >= iterations:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        recent: list[dict[str, float]] = []
        with Progress(*columns, *times, console=console) as bar, _interrupts() as interrupts:
            task = bar.add_task("training", total=iterations, completed=self.iteration)
            while self.iteration < iterations and not interrupts:
                begin = time.perf_counter()
                recent.append(
                    self._change(step, learning_rate(self.iteration, iterations, warm_up))
                )
                self.iteration += 1
                self.seconds += time.perf_counter() - begin
                if self.iteration % _LOG_EVERY == 0 or self.iteration == iterations:
                    told = self._log(recent)
                    recent.clear()
                    bar.update(task, completed=self.iteration, description=told)
                if self.iteration % _SAVE_EVERY == 0:
                    self.save()
            self.save()
        if interrupts:
            raise KeyboardInterrupt
        self.draw()

    def _change(self, step: Callable[[int], Losses], part: float) -> dict[str, float]:
        """One change of the weights, by a part of the full rate; the losses before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * part * group["part"]
        losses = step(self.iteration)
        told = {name: float(loss.detach()) for name, loss in losses.items()}
        if not all(map(math.isfinite, told.values())):
            raise InputError(
                f"iteration {self.iteration} has losses that are no numbers: {told}. Give a lower "
                f"--rate and a new folder; {self.last} is from before, if it is there"
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(tuple(losses.values())).sum().backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        self.optimizer.step()
        return told

    @property
    def _log_file(self) -> Path:
        return self.folder / "losses.jsonl"

    def _lines(self) -> list[dict[str, float]]:
        if not self._log_file.exists():
            return []
        return [json.loads(line) for line in self._log_file.read_text("utf-8").splitlines()]

    def _log(self, recent: Sequence[Mapping[str, float]]) -> str:
        means = {name: float(np.mean([line[name] for line in recent])) for name in recent[0]}
        line = {"iteration": self.iteration, "seconds": round(self.seconds, 1), **means}
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return " ".join(f"{name} {value:.3f}" for name, value in means.items())

    def draw(self) -> None:
        """The curves of the losses, as ``losses.svg``.

        Raises:
            DependencyError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as exc:
            raise DependencyError(exc.name or "matplotlib", "eval") from exc
        lines = self._lines()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for name in (key for key in lines[0] if key not in ("iteration", "seconds")):
            x = [line["iteration"] for line in lines if name in line]
            axes.plot(x, [line[name] for line in lines if name in line], label=name, lw=1)
        axes.set(xlabel="iteration", ylabel="loss, weighted", ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        with output_file(self.folder / "losses.svg") as partial:
            figure.savefig(partial, format="svg")


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that a run has come to.

    Raises:
        InputError: there is no run.
    """
    last = folder / "last.pt"
    if not last.exists():
        raise InputError(f"{folder} holds no run: there is no {last}")
    return read_weights(last).tensors


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as an entry of the list in place of an exception, so that no iteration is left half.

    A second one raises. Where Ctrl-C is ignored, or cannot be caught since this is not the main
    thread, it stays so.
    """
    pressed: list[int] = []

    def press(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _groups(model: nn.Module, decay: float, slower: Mapping[str, float]) -> list[dict[str, object]]:
    """Parameters by decay and rate: vectors do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((p for prefix, p in slower.items() if name.startswith(prefix)), 1.0)
            key = (decay if parameter.ndim > 1 else 0.0, part)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "part": part}
        for (decay, part), parameters in groups.items()
    ]
