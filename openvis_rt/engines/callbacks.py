"""What the library calls back while it parses and compiles: its log, and its progress.

The classes that it calls derive from the library's own, so they are made where the library is known
and hold nothing; what they hear is kept in plain objects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Messages", "Progress", "Steps", "new_logger", "new_monitor", "without_driver"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, steps done, steps)``, one call at a time, from any thread."""


def without_driver(message: str) -> str:
    """The message without complaints about the missing driver, which compiling does not need."""
    return "\n".join(line for line in message.splitlines() if "catchCudaError" not in line)


class Messages:
    """Warnings and errors of the library."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def text(self) -> str:
        """One message a line, each set in."""
        kept = [without_driver(message) for message in self.kept]
        return "\n".join(f"  {message}" for message in kept if message) or "  (it gave no reason)"


def new_logger(trt: Any, messages: Messages) -> Any:
    """A logger that keeps warnings and errors and prints nothing."""
    severities = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                messages.kept.append(message)

    return Logger()


class Steps:
    """Hands progress on; keeps what a callback raises, which the library would swallow."""

    def __init__(self, progress: Progress | None) -> None:
        self.error: BaseException | None = None
        self._progress = progress
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()

    def start(self, phase: str, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._steps[phase] = steps

    def finish(self, phase: str) -> None:
        """It is over."""
        with self._lock:
            self._steps.pop(phase, None)

    def complete(self, phase: str, step: int) -> bool:
        """One more step is done; whether to go on."""
        try:
            with self._lock:
                if self._progress is not None and self.error is None:
                    self._progress(phase, step + 1, self._steps.get(phase, step + 1))
        except BaseException as exc:
            self.error = exc
        return self.error is None


def new_monitor(trt: Any, steps: Steps) -> Any:
    """The library's view of ``steps``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            steps.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            steps.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return steps.complete(phase_name, step)

    return Monitor()
