"""Numbers of the public implementations to compare with, and one line of such a comparison."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

STAGE = 1e-5  # sums in another order, relative to the stage's scale
FLIPS = 5e-3  # end to end: attention-mask bits flip on rounding (two runs of the public code: 1e-3)


@dataclass(frozen=True)
class Row:
    """One comparison: the stage, its error, and the largest error that passes."""

    stage: str
    error: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its gate."""
        return self.error <= self.gate


@dataclass(frozen=True)
class Reference:
    """Numbers of a public run, and the checkpoint that rebuilds its weights."""

    name: str
    variant: str
    arrays: dict[str, Array]
    weights: Path

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    @property
    def frames(self) -> Array:
        """uint8 [T, H, W, 3]."""
        return np.ascontiguousarray(self.arrays["frames_uint8"].transpose(0, 2, 3, 1))

    @property
    def rows_of_class(self) -> list[int]:
        """Synonyms of each class."""
        return [int(n) for n in self.arrays["text/num_templates"]]


def references(folder: Path, system: str = "clip-vis") -> list[str]:
    """Names of a system's references that lie in a folder."""
    return sorted(p.stem for p in folder.glob(f"{system}-*.npz"))


def load_reference(folder: Path, name: str, work: Path) -> Reference:
    """Read a reference and write its weights into ``work``, as an official checkpoint."""
    seeded = _module(folder / "seeded_weights.py")
    state = seeded.state_dict(seeded.load(folder / f"{name}.weights.json"))
    weights = work / f"{name}.pth"
    torch.save({"model": {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}}, weights)
    backbones = {"convnext": "-convnext-b", "swin": "-swin-b", "r50": "-r50"}
    part = next(part for part in backbones if f"-{part}" in name)
    variant = name.partition(f"-{part}")[0] + backbones[part]
    with np.load(folder / f"{name}.npz") as arrays:
        return Reference(name, variant, dict(arrays), weights)


def row(stage: str, found: torch.Tensor, wanted: torch.Tensor, gate: float = STAGE) -> Row:
    """Largest difference over the largest value."""
    error = float((found - wanted).abs().max() / wanted.abs().max())
    return Row(stage, error, gate)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_folder() -> Path:
    """Of the command line, of OPENVIS_REFERENCE, or beside the project."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OPENVIS_REFERENCE")
    return Path(given or Path(__file__).parents[2] / "shared" / "reference")
