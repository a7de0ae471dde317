"""Who takes part: a bundle, what runs it, and in which precision.

    torch            the exported modules by PyTorch eager
    torch-compile    the same through torch.compile
    openvino         the bundle's ONNX files by OpenVINO, in FP32 or INT8 with FP32
    onnxruntime, tensorrt, tensorrt-rtx, auto     the runtime's own backends
    a folder         another bundle, on the first one's backend

Each may be followed by a colon and a precision that the bundle holds, such as ``onnxruntime:fp16``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.errors import DependencyError, InputError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.registry import (
    BACKENDS,
    BackendOptions,
    Device,
    open_backend,
)
from openvis_rt.systems.graphs import INT8, PRECISIONS, QUANTISED

if TYPE_CHECKING:
    from openvis_rt.models.network import Network

__all__ = ["OTHERS", "Contender", "Weights", "backend_of", "contender_from_text"]

OTHERS = ("torch", "torch-compile", "openvino")
"""Besides the runtime's own backends."""
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Weights:
    """Where PyTorch's contenders take the model's weights from, if not from the manifest's seed.

    Attributes:
        checkpoint: the file that the bundle was exported from.
        clip, quick_gelu: as the export was given them.
    """

    checkpoint: Path | None = None
    clip: str | None = None
    quick_gelu: bool | None = None


@dataclass(frozen=True)
class Contender:
    """One that takes part.

    Attributes:
        bundle: its folder.
        runs_on: a backend's name, or one of :data:`OTHERS`.
        precision: ``fp32``, or another one that the bundle holds.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: that compute one graph on a CPU.
        weights: for PyTorch.
        sha256: of the bundle, which must be in the folder still; None for any.
    """

    bundle: Path
    runs_on: str = "auto"
    precision: str = "fp32"
    device: Device = "auto"
    threads: int | None = None
    weights: Weights = field(default_factory=Weights)
    sha256: str | None = None

    @property
    def name(self) -> str:
        """What the report calls it; bundles of other folders are told apart by their names."""
        return f"{self.runs_on} {self.precision}"


def contender_from_text(text: str, base: Contender) -> Contender:
    """What ``--against`` names; all that it does not say is the base's.

    Raises:
        InputError: it is neither a name of the module's docstring nor a folder.
    """
    name, colon, precision = text.rpartition(":")
    if not colon or precision not in (*PRECISIONS, *QUANTISED):
        name, precision = text, base.precision
    if name in (*OTHERS, *BACKENDS, "auto"):
        return replace(base, runs_on=name, precision=precision)
    if Path(name).is_dir():
        return replace(base, bundle=Path(name), precision=precision)
    raise InputError(
        f"nothing to compare with is called {text!r}, and there is no such folder. Give one of "
        f"{', '.join((*OTHERS, *BACKENDS))}, or the folder of a bundle, with :fp16 behind it for "
        "that precision"
    )


def backend_of(contender: Contender, bundle: Bundle, warn: Warn = lambda _: None) -> Backend:
    """Open what a contender runs on.

    Raises:
        InputError: the weights for PyTorch are not the bundle's, or are not known.
        UnavailableError: it does not work on this machine.
    """
    if contender.runs_on == "openvino":
        from openvis_rt.bench.openvino_backend import OpenVino

        return OpenVino(contender.threads)
    if contender.runs_on in ("torch", "torch-compile"):
        if contender.precision in QUANTISED:
            usual = "fp16" if contender.precision == INT8 else "fp32"
            raise InputError(
                f"PyTorch runs the exported modules, which are not quantised: give "
                f"{contender.runs_on}:{usual} to compare {contender.precision} with"
            )
        try:
            from openvis_rt.verify.torch_backend import TorchBackend
        except ImportError as exc:
            raise DependencyError(exc.name or "torch", "export") from exc
        return TorchBackend(
            model_of(bundle, contender.weights),
            compiled=contender.runs_on == "torch-compile",
            half=contender.precision == "fp16",
            device=contender.device,
            threads=contender.threads,
        )
    options = BackendOptions(contender.device, threads=contender.threads)
    return open_backend(contender.runs_on, bundle, contender.precision, options, warn)


def model_of(bundle: Bundle, weights: Weights) -> Network:
    """The model that a bundle was exported from, by the manifest's seed or from its checkpoint.

    Raises:
        InputError: the checkpoint is another one than the manifest names, or none was given.
        CheckpointError: it cannot be loaded.
    """
    from openvis_rt.checkpoints.load import load_model

    facts = bundle.manifest.checkpoint
    seed = facts.get("random_weights")
    if isinstance(seed, int):
        return load_model(bundle.manifest.variant, seed).model
    if weights.checkpoint is None:
        raise InputError(
            f"PyTorch needs the weights of {bundle.path}, which was exported from "
            f"{facts.get('file', 'a checkpoint')}; give it with --checkpoint (and --clip, where "
            "the export took one)"
        )
    loaded = load_model(
        bundle.manifest.variant, weights.checkpoint, weights.clip, weights.quick_gelu
    )
    if (found := _digests(loaded.facts)) != (wanted := _digests(facts)):
        raise InputError(
            f"{weights.checkpoint} is not what {bundle.path} was exported from: its sha256 are "
            f"{found}, and the manifest says {wanted}. Give the same files"
        )
    return loaded.model


def _digests(facts: dict[str, Any]) -> list[str]:
    """SHA-256 of the checkpoint and of CLIP, shortened; in the order of the manifest."""
    files = (facts, facts.get("clip") or {})
    return [str(file["sha256"])[:16] for file in files if "sha256" in file]
