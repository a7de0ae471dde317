"""Copies of the tiny bundles with PyTorch's answers in them; it needs torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tiny import tiny_model
from tiny_ovformer import tiny_ovformer

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.verify.torch_recording import add_reference

NAMES = ("recorded", "recorded-windows")


def record_bundles(tiny: Path, windows: Path, folder: Path) -> None:
    """Copies under :data:`NAMES` in the folder, whose graphs are links to the originals."""
    models = (tiny_model(), tiny_ovformer("ovformer-video-r50"))
    for name, exported, model in zip(NAMES, (tiny, windows), models, strict=True):
        shutil.copytree(exported, folder / name, copy_function=os.link)
        add_reference(Bundle.open(folder / name), model)
