"""What works on this machine: the libraries that are here, and what adds the missing ones."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import av

from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import EXPORT_PYTHON, DependencyError, InputError, UnavailableError
from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda

__all__ = ["Finding", "find_abilities", "require_abilities"]


_CPU = Path("/proc/cpuinfo")
_INT8 = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # x86, then ARM


@dataclass(frozen=True)
class Finding:
    """One ability of this machine.

    Attributes:
        ability: in a few words, such as ``run: onnxruntime on cpu``.
        works: whether it is there.
        found: what was found of it.
        add: the command that adds it, or what else does; empty where it works.
    """

    ability: str
    works: bool
    found: str
    add: str = ""


def find_abilities(python: tuple[int, int] = sys.version_info[:2]) -> list[Finding]:
    """Look at every library that some part of this package needs, and at the GPU.

    Args:
        python: the version of Python that the advice is for.

    Returns:
        a finding for each ability, in the order of the path from a checkpoint to a video.
    """
    return [
        _runtime(),
        _export(python),
        _onnxruntime("cpu", "CPUExecutionProvider", "cpu"),
        _onnxruntime("cuda", "CUDAExecutionProvider", "gpu"),
        _calibration(),
        _tensorrt("tensorrt-rtx", "build: TensorRT-RTX engines (no GPU needed)", "rtx"),
        _tensorrt("tensorrt", "build: TensorRT engines (on their GPU)", "tensorrt"),
        _gpu(),
        _video_encoder(),
    ]


def require_abilities(findings: list[Finding], names: list[str]) -> None:
    """Refuse a machine that lacks an ability, as a container's health check does.

    Args:
        findings: of this machine.
        names: of the abilities that are needed.

    Raises:
        InputError: there is no such ability.
        UnavailableError: one does not work here.
    """
    found = {finding.ability: finding for finding in findings}
    for name in names:
        if name not in found:
            raise InputError(f"no ability {name!r} is known; there are {', '.join(found)}")
    missing = [found[name] for name in names if not found[name].works]
    if missing:
        raise UnavailableError("; ".join(f"{m.ability}: {m.found}. Add {m.add}" for m in missing))


def _installed(*names: str) -> tuple[list[str], list[str]]:
    """Distributions with their versions, and those that are missing."""
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return found, missing


def _extra(name: str) -> str:
    return f"pip install 'openvis-rt[{name}]'"


def _runtime() -> Finding:
    found, missing = _installed("openvis-rt", "numpy", "scipy", "av", "tokenizers", "pycocotools")
    text = ", ".join([*found, *(f"no {name}" for name in missing)])
    return Finding("runtime", not missing, text, "pip install openvis-rt" if missing else "")


def _export(python: tuple[int, int]) -> Finding:
    if python < EXPORT_PYTHON:
        has, needs = (".".join(map(str, numbers)) for numbers in (python, EXPORT_PYTHON))
        return Finding(
            "export",
            False,
            f"Python {has}, and torch and its partners need {needs}; bundles run here as they are",
            f"a Python {needs} or newer beside this one, and there {_extra('export')}",
        )
    found, missing = _installed("torch", "torchvision", "open_clip_torch", "onnx", "onnxscript")
    text = ", ".join([*found, *(f"no {name}" for name in missing)])
    if not missing:
        try:
            import_module("open_clip")
        except Exception as exc:  # torch and torchvision of different builds fail in many ways
            return Finding(
                "export", False, f"{text}, but importing failed: {exc}", _extra("export")
            )
    return Finding("export", not missing, text, _extra("export") if missing else "")


def _onnxruntime(device: str, provider: str, extra: str) -> Finding:
    ability, add = f"run: onnxruntime on {device}", _extra(extra)
    if find_spec("onnxruntime") is None:
        return Finding(ability, False, "no onnxruntime", add)
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    text = f"onnxruntime {onnxruntime.__version__}"
    if provider not in offered:
        return Finding(
            ability,
            False,
            f"{text} without {provider}",
            f"pip uninstall --yes onnxruntime && {add}" if extra == "gpu" else add,
        )
    if device == "cuda" and not shutil.which("nvidia-smi"):  # what it offers it was compiled with
        return Finding(
            ability, False, f"{text} with CUDA, but no NVIDIA driver", "an NVIDIA driver"
        )
    return Finding(ability, True, text)


def _calibration() -> Finding:
    """What makes INT8 graphs; and whether this processor multiplies INT8 faster than FP32."""
    found, missing = _installed("onnx", "onnxruntime")
    text = ", ".join([*found, *(f"no {name}" for name in missing)])
    if instructions := _int8_instructions():
        text += f"; this CPU multiplies INT8 by {instructions}"
    add = _extra("calib") if missing else ""
    return Finding("calibrate: INT8 graphs", not missing, text, add)


def _int8_instructions() -> str:
    """The CPU's dot products of INT8 by Linux's names; empty where none is known."""
    try:
        words = set(_CPU.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return ""
    return ", ".join(name for name in _INT8 if name in words)


def _tensorrt(backend: str, ability: str, extra: str) -> Finding:
    try:
        return Finding(ability, True, str(tensorrt_library(backend)))
    except UnavailableError as exc:
        return Finding(ability, False, _first_sentence(exc), _extra(extra))


def _gpu() -> Finding:
    """The GPU as the TensorRT backends reach it."""
    ability = "run: engines on a GPU"
    try:
        cuda = open_cuda()
    except UnavailableError as exc:
        add = _extra("tensorrt") if isinstance(exc, DependencyError) else "an NVIDIA GPU and driver"
        return Finding(ability, False, _first_sentence(exc), add)
    free, total = cuda.memory()
    cuda.close()
    graphs = "CUDA graphs" if cuda.has_graphs else "no CUDA graphs"
    found = (
        f"{cuda.device_name} ({cuda.capability}), {free / 1e9:.1f} of {total / 1e9:.1f} GB free, "
        f"{cuda.binding}, {graphs}"
    )
    return Finding(ability, True, found)


def _video_encoder() -> Finding:
    names = [name for name in ("libx264", "mpeg4") if name in av.codecs_available]
    found = f"PyAV {av.__version__}: {', '.join(names) or 'no encoder'}"
    return Finding("overlay video", bool(names), found, "" if names else "pip install --upgrade av")


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0]
