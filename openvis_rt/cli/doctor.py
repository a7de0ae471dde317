"""``openvis doctor``: what is installed, what works here, and the command that adds the rest."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openvis_rt.cli.ui import print_json
from openvis_rt.engines.library import tensorrt_library
from openvis_rt.errors import DependencyError, UnavailableError
from openvis_rt.runtime.backends.tensorrt.cuda import open_cuda


@dataclass(frozen=True)
class Finding:
    """One ability: whether it works here, what was found, and what adds it."""

    ability: str
    works: bool
    found: str
    add: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Say what works on this machine and how to add what does not."""
    findings = [
        _runtime(),
        _export(),
        _onnxruntime("cpu", "CPUExecutionProvider", "cpu"),
        _onnxruntime("cuda", "CUDAExecutionProvider", "gpu"),
        _tensorrt("tensorrt-rtx", "build: TensorRT-RTX engines (no GPU needed)", "rtx"),
        _tensorrt("tensorrt", "build: TensorRT engines (on their GPU)", "tensorrt"),
        _gpu(),
        _video_encoder(),
    ]
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    table = Table("", "ability", "found", "to add it")
    for f in findings:
        table.add_row(
            "[green]yes[/]" if f.works else "[red]no[/]", f.ability, f.found, escape(f.add)
        )
    console = Console()
    console.print(f"Python {platform.python_version()} on {platform.platform()}", highlight=False)
    console.print(table)


def _installed(*names: str) -> tuple[list[str], list[str]]:
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
    return Finding(
        "runtime", not missing, ", ".join(found), "" if not missing else "pip install openvis-rt"
    )


def _export() -> Finding:
    found, missing = _installed("torch", "torchvision", "open_clip_torch", "onnx", "onnxscript")
    text = ", ".join([*found, *(f"no {m}" for m in missing)])
    if not missing:
        try:
            import_module("open_clip")
        except Exception as exc:  # torch and torchvision of different builds fail in many ways
            return Finding(
                "export", False, f"{text}, but importing failed: {exc}", _extra("export")
            )
    return Finding("export", not missing, text, "" if not missing else _extra("export"))


def _onnxruntime(device: str, provider: str, extra: str) -> Finding:
    ability = f"run: onnxruntime on {device}"
    add = _extra(extra)
    if extra == "gpu":
        add = f"pip uninstall onnxruntime; {add}"
    if find_spec("onnxruntime") is None:
        return Finding(ability, False, "no onnxruntime", add)
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    text = f"onnxruntime {onnxruntime.__version__}"
    if provider in offered and (device == "cpu" or shutil.which("nvidia-smi")):
        return Finding(ability, True, text)
    if provider in offered:  # that is what it was compiled with
        return Finding(ability, False, f"{text} with CUDA, but no NVIDIA driver", "a driver")
    return Finding(ability, False, f"{text} without {provider}", add)


def _tensorrt(backend: str, ability: str, extra: str) -> Finding:
    try:
        return Finding(ability, True, str(tensorrt_library(backend)))
    except UnavailableError as exc:
        return Finding(ability, False, str(exc).split(". ")[0], _extra(extra))


def _video_encoder() -> Finding:
    import av

    names = [name for name in ("libx264", "mpeg4") if name in av.codecs_available]
    found = f"PyAV {av.__version__}: {', '.join(names) or 'no encoder'}"
    return Finding("overlay video", bool(names), found, "" if names else "pip install --upgrade av")


def _gpu() -> Finding:
    """The GPU as the TensorRT backends reach it."""
    try:
        cuda = open_cuda()
    except UnavailableError as exc:
        add = _extra("tensorrt") if isinstance(exc, DependencyError) else "an NVIDIA GPU and driver"
        return Finding("run: engines on a GPU", False, str(exc).split(". ")[0], add)
    free, total = cuda.memory()
    cuda.close()
    graphs = "CUDA graphs" if cuda.has_graphs else "no CUDA graphs"
    found = (
        f"{cuda.device_name} ({cuda.capability}), {free / 1e9:.1f} of {total / 1e9:.1f} GB free, "
        f"{cuda.binding}, {graphs}"
    )
    return Finding("run: engines on a GPU", True, found)
