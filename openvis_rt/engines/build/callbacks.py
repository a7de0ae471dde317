"""What the library calls back while it compiles: its progress.

The class that it calls derives from the library's own, so it is made where the library is known and
holds nothing; what it hears is kept in a plain object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from openvis_rt.engines.api import Module, ProgressMonitor

__all__ = ["Progress", "Steps", "new_monitor"]

Progress = Callable[[str, int, int], None]
"""Called as ``progress(phase, steps done, steps)``, one call at a time, from any thread."""


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


def new_monitor(trt: Module, steps: Steps) -> ProgressMonitor:
    """The library's view of ``steps``."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # a class of the library, which has no types
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            steps.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            steps.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return steps.complete(phase_name, step)

    monitor: ProgressMonitor = Monitor()
    return monitor
