"""From the folders of the training runs to the weights that come with the package.

    python -m openvis_rt.training.miniatures RUNS -o openvis_rt/checkpoints/shipped

RUNS holds the folders ``clip-resnet``, ``clip-vis``, ``clip-vit``, ``proposals``, ``tokens``,
``tracker`` and ``ovformer`` of the recipes of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import open_clip
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from openvis_rt.checkpoints.instformer import write_parts
from openvis_rt.checkpoints.shipped import compact
from openvis_rt.errors import InputError
from openvis_rt.files import output_file
from openvis_rt.training.clip import LONGEST
from openvis_rt.training.command import run_command
from openvis_rt.training.instformer import parts_of_runs
from openvis_rt.training.run import trained_weights
from openvis_rt.training.segmentation import frozen_state
from openvis_rt.training.world_categories import CATEGORIES
from openvis_rt.vocabulary import VILD_PROMPTS

__all__ = ["captions_tokens", "pack"]


def captions_tokens() -> Tensor:
    """Every token that a caption of the world can have, int64 [n], ascending."""
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    phrases = [category.phrase for category in CATEGORIES]
    texts = [prompt.format(phrases[0]) for prompt in VILD_PROMPTS]
    texts += [VILD_PROMPTS[0].format(f"{phrase} and a {phrase}") for phrase in phrases]
    found: Tensor = tokenize(texts).unique()
    return found


def pack(runs: Path, folder: Path) -> list[Path]:
    """Write the files of all miniatures whose runs are there.

    Args:
        runs: folder of the runs.
        folder: takes the files, each whole or not at all.

    Returns:
        the files.

    Raises:
        InputError: no miniature's run is there, or one is without those that it builds on.
    """
    packers = {"clip-vis": _pack_clip_vis, "tokens": _pack_instformer, "ovformer": _pack_ovformer}
    there = [packer for name, packer in packers.items() if (runs / name).is_dir()]
    if not there:
        raise InputError(f"{runs} holds none of the runs {', '.join(packers)}")
    return [packer(runs, folder) for packer in there]


def _pack_clip_vis(runs: Path, folder: Path) -> Path:
    backbone = {
        f"backbone.clip_model.{key}": value
        for key, value in frozen_state(trained_weights(runs / "clip-resnet")).items()
    }
    head = {f"sem_seg_head.{k}": v for k, v in trained_weights(runs / "clip-vis").items()}
    return _saved(backbone | head, folder / "clip-vis-mini.safetensors")


def _pack_ovformer(runs: Path, folder: Path) -> Path:
    return _saved(trained_weights(runs / "ovformer"), folder / "ovformer-mini.safetensors")


def _pack_instformer(runs: Path, folder: Path) -> Path:
    proposals, clip, trained = (runs / name for name in ("proposals", "clip-vit", "tokens"))
    tracker = runs / "tracker" if (runs / "tracker").is_dir() else None
    parts = parts_of_runs(proposals, clip, trained, tracker)
    small = replace(
        parts,
        proposal=_small(parts.proposal),
        clip=_small(parts.clip),
        tokens=_small(parts.tokens),
        tracker=_small(parts.tracker),
        sources={"trained": "python -m openvis_rt.training.instformer"},
    )
    path = folder / "instformer-mini.safetensors"
    with output_file(path) as partial:
        write_parts(small, partial)
    return path


def _saved(state: Mapping[str, Tensor], path: Path) -> Path:
    with output_file(path) as partial:
        save_file(_small(state), partial, {"format": "pt"})
    return path


def _small(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what no caption of the world reaches."""
    return compact(state, captions_tokens(), LONGEST)


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs of all recipes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Takes the files.")],
) -> None:
    """Pack the trained miniatures as FP16 safetensors."""
    torch.set_num_threads(1)
    for path in pack(runs, output):
        typer.echo(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    run_command(main)
