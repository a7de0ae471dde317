"""Power, clocks and memory of a GPU or of a Jetson board while something runs.

    NVML         desktop and server GPUs (``nvidia-ml-py``)
    jtop         Jetson boards (``jetson-stats`` with its service)
    tegrastats   Jetson boards, NVIDIA's own command, from its lines of text

The first of them that works here and tells power is taken. None of them is needed: without one the
report says that power was not measured, and why.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import IO, Any, Protocol

from openvis_rt.errors import DependencyError

__all__ = ["Meter", "PowerLog", "Reading", "mean_watts", "open_meter", "reading_from_tegrastats"]

_EVERY = 0.1  # seconds between readings
_PATIENCE = 3.0  # seconds for the first line of tegrastats


@dataclass(frozen=True)
class Reading:
    """What a meter tells at one moment; None for what it does not.

    Attributes:
        watts: of the GPU by NVML, of the whole board on a Jetson.
        gpu_mhz, memory_mhz: clocks.
        celsius: of the GPU.
        throttled: why the clock is held down, in words; empty if it is not.
        memory: bytes on the device by process.
    """

    watts: float | None = None
    gpu_mhz: float | None = None
    memory_mhz: float | None = None
    celsius: float | None = None
    throttled: tuple[str, ...] = ()
    memory: tuple[tuple[int, int], ...] = ()


class Meter(Protocol):
    """Something that can be read.

    Attributes:
        name: for people, with what its watts are of.
    """

    name: str

    def read(self) -> Reading:
        """Now."""

    def close(self) -> None:
        """Give it back."""


_REASONS = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "heat, hardware",
    "SwThermalSlowdown": "heat, software",
    "HwPowerBrakeSlowdown": "power brake",
    "SyncBoost": "sync boost",
}
"""NVML's reasons for a clock that is held down, by the ends of their names."""


class Nvml:
    """The first GPU by NVML.

    Args:
        pynvml: the module.

    Raises:
        OSError: with NVML's own words, if there is no driver, no GPU, or it tells no power.
    """

    def __init__(self, pynvml: Any) -> None:
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            name = pynvml.nvmlDeviceGetName(self._gpu)
            pynvml.nvmlDeviceGetPowerUsage(self._gpu)
        except pynvml.NVMLError as exc:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            raise OSError(str(exc)) from exc
        text = name.decode() if isinstance(name, bytes) else name
        self.name = f"NVML: {text}, power of the GPU's board"

    def read(self) -> Reading:
        """See :class:`Meter`; what this GPU does not tell is None."""
        nvml, gpu = self._nvml, self._gpu
        milliwatts = self._asked(nvml.nvmlDeviceGetPowerUsage, gpu)
        processes = self._asked(nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or ()
        return Reading(
            None if milliwatts is None else milliwatts / 1e3,
            self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            self._asked(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            self._asked(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            self._throttled(),
            tuple((p.pid, p.usedGpuMemory) for p in processes if p.usedGpuMemory is not None),
        )

    def close(self) -> None:
        """See :class:`Meter`."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _throttled(self) -> tuple[str, ...]:
        bits = self._asked(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._gpu) or 0
        names = ((f"nvmlClocksThrottleReason{key}", text) for key, text in _REASONS.items())
        return tuple(text for key, text in names if bits & getattr(self._nvml, key, 0))

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


class Jtop:
    """A Jetson by jetson-stats, whose service must run.

    Args:
        jtop: the class of the package ``jtop``.

    Raises:
        OSError: the service does not answer, or tells no power.
    """

    name = "jtop: power of the whole board"

    def __init__(self, jtop: Any) -> None:
        self._board = jtop(interval=_EVERY)
        try:
            self._board.start()
            if not self._board.ok() or self.read().watts is None:
                raise OSError("jtop tells no power of this board")
        except Exception as exc:  # its own exceptions, of a class that moved between versions
            self.close()
            raise OSError(f"jtop: {exc}") from exc

    def read(self) -> Reading:
        """See :class:`Meter`."""
        total = self._board.power.get("tot", {})
        gpu: dict[str, Any] = next(iter(self._board.gpu.values()), {})
        degrees = {k.lower(): v for k, v in self._board.temperature.items()}.get("gpu", {})
        milliwatts, kilohertz = total.get("power"), gpu.get("freq", {}).get("cur")
        return Reading(
            None if milliwatts is None else milliwatts / 1e3,
            None if kilohertz is None else kilohertz / 1e3,
            celsius=degrees.get("temp") if isinstance(degrees, dict) else degrees,
        )

    def close(self) -> None:
        """See :class:`Meter`."""
        with contextlib.suppress(Exception):
            self._board.close()


class Tegrastats:
    """A Jetson by NVIDIA's tegrastats, whose lines a thread reads.

    Args:
        command: that prints a line every 100 ms.

    Raises:
        OSError: it does not start, or prints no line that tells power.
    """

    name = "tegrastats: power of the whole board, where it tells, else of its rails together"

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a fixed command
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._last: Reading | None = None
        self._first = threading.Event()
        self._thread = threading.Thread(
            target=self._follow, args=(self._process.stdout,), name="tegrastats", daemon=True
        )
        self._thread.start()
        self._first.wait(_PATIENCE)
        if self._last is None:
            self.close()
            raise OSError("tegrastats printed no line that tells power")

    def read(self) -> Reading:
        """See :class:`Meter`: the newest line."""
        return self._last or Reading()

    def close(self) -> None:
        """See :class:`Meter`."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _follow(self, lines: IO[str] | None) -> None:
        for line in lines or ():
            reading = reading_from_tegrastats(line)
            if reading.watts is not None:
                self._last = reading
                self._first.set()
        self._first.set()


_RAIL = re.compile(r"\b(\w+) (\d+)(?:mW)?/(\d+)(?:mW)?(?=\s|$)")
_BOARD = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")
"""The rail of the whole board: Orin and Xavier NX, Nano and TX2, AGX Orin's carrier."""
_RAILS = ("VDD_", "POM_", "VIN_", "GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")


def reading_from_tegrastats(line: str) -> Reading:
    """What one line of tegrastats tells.

    ``VDD_IN 4993mW/4812mW`` is power now and its mean; older releases leave the unit out. Without a
    rail of the whole board the rails are added up. ``GR3D_FREQ 45%@[918]`` or ``45%@918`` is load
    and clock in MHz, ``gpu@46.2C`` a temperature.
    """
    rails = {
        name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line) if name.startswith(_RAILS)
    }
    whole = next((rails[name] for name in _BOARD if name in rails), None)
    if whole is None and rails:
        whole = sum(rails.values())
    clock = re.search(r"GR3D_FREQ \d+%@\[?(\d+)", line)
    memory = re.search(r"EMC_FREQ \d+%@(\d+)", line)
    heat = re.search(r"\bgpu@(-?[\d.]+)C", line, re.IGNORECASE)
    return Reading(
        whole,
        float(clock[1]) if clock else None,
        float(memory[1]) if memory else None,
        float(heat[1]) if heat else None,
    )


def open_meter() -> tuple[Meter | None, str]:
    """The first meter that works here; or None, and why there is none."""
    reasons = []
    for name, opened in _METERS.items():
        try:
            return opened(), ""
        except (DependencyError, OSError) as exc:
            reasons.append(f"{name}: {str(exc).rstrip('.')}")
        except ImportError:
            reasons.append(f"{name}: not installed (jetson-stats, on a Jetson)")
    return None, "power is not measured. " + "; ".join(reasons)


def _nvml() -> Meter:
    try:
        import pynvml
    except ImportError as exc:
        raise DependencyError("pynvml", "bench") from exc
    return Nvml(pynvml)


def _jtop() -> Meter:
    from jtop import jtop

    return Jtop(jtop)


def _tegrastats() -> Meter:
    command = shutil.which("tegrastats")
    if command is None:
        raise OSError("not a Jetson, or not on the PATH")
    return Tegrastats((command, "--interval", str(round(_EVERY * 1e3))))


_METERS: dict[str, Callable[[], Meter]] = {
    "NVML": _nvml,
    "jtop": _jtop,
    "tegrastats": _tegrastats,
}


class PowerLog:
    """Reads a meter in a thread of its own until it is closed.

    Args:
        meter: it is closed with the log.
        every: seconds between readings.
    """

    def __init__(self, meter: Meter, every: float = _EVERY) -> None:
        self.name = meter.name
        self._meter, self._every = meter, every
        self._readings: list[tuple[float, Reading]] = []
        self._stopped = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._follow, name="power", daemon=True)
        self._thread.start()

    def between(self, begin: float, end: float) -> list[tuple[float, Reading]]:
        """Readings of ``time.perf_counter`` seconds from ``begin`` to ``end``."""
        return [(time, reading) for time, reading in list(self._readings) if begin <= time <= end]

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._thread.join()
        self._meter.close()

    def _take(self) -> None:
        self._readings.append((perf_counter(), self._meter.read()))

    def _follow(self) -> None:
        while not self._stopped.wait(self._every):
            self._take()


def mean_watts(readings: Iterable[tuple[float, Reading]]) -> float | None:
    """Mean power of readings; None if none of them tells it."""
    watts = [reading.watts for _, reading in readings if reading.watts is not None]
    return sum(watts) / len(watts) if watts else None
