"""The machine that measured: what it is, how fast it is clocked, and who else used it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from openvis_rt._version import __version__
from openvis_rt.engines.gpu import gpu_of_this_machine

__all__ = ["CpuWatch", "Machine", "busy_seconds", "this_machine", "usable_cores"]

_PACKAGES = (
    *("numpy", "scipy", "av", "onnxruntime", "onnxruntime-gpu", "openvino", "torch"),
    *("tensorrt", "tensorrt-rtx", "nvidia-ml-py"),
)
_VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ORT_", "CUDA_")
_FREQUENCIES = "/sys/devices/system/cpu"


@dataclass(frozen=True)
class Machine:
    """What measured.

    Attributes:
        cpu: model name; the architecture where the system does not tell.
        cores: that this process may use.
        gpu: name and compute capability of the first one; empty without one.
        system, python: of the platform.
        versions: of the distributions that take part, as far as they are installed.
        environment: variables that decide how libraries use threads and devices.
    """

    cpu: str
    cores: int
    gpu: str
    system: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def this_machine() -> Machine:
    """Look at it."""
    gpu = gpu_of_this_machine()
    versions = {"openvis-rt": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)}
    return Machine(
        _cpu_name(),
        usable_cores(),
        " ".join(gpu or ()),
        platform.platform(),
        platform.python_version(),
        versions,
        environment,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    with contextlib.suppress(OSError):
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Seconds that all cores together were busy since the system began.

    Time that the host of a virtual machine took from it is included. None where the system does
    not tell.
    """
    try:
        numbers = [
            int(text) for text in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (*numbers, *[0] * 8)[:8]
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class CpuWatch:
    """The clock of the CPU's cores and how often it was throttled, sampled between turns.

    Args:
        folder: of the kernel's files, such as ``/sys/devices/system/cpu``.

    Attributes:
        mhz: mean of the cores at each sample; empty where the kernel does not tell, as in most
            virtual machines.
    """

    def __init__(self, folder: Path = Path(_FREQUENCIES)) -> None:
        self._clocks = sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._counts = sorted(folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self.mhz: list[float] = []
        self._begin = sum(_numbers(self._counts))

    def sample(self) -> None:
        """Look at the clocks once."""
        if khz := _numbers(self._clocks):
            self.mhz.append(sum(khz) / len(khz) / 1e3)

    @property
    def throttled(self) -> int | None:
        """Thermal throttling events since it was made; None where the kernel does not tell."""
        return sum(_numbers(self._counts)) - self._begin if self._counts else None


def _numbers(files: Iterable[Path]) -> list[int]:
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text(encoding="ascii")))
    return found
