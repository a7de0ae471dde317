"""Train a miniature CLIP on windows of the generated world with captions.

    L = 1/2 ( CE_rows(s I T^t) + CE_columns(s I T^t) ),   s = exp(logit_scale) <= 100

CLIP's symmetric contrast (Radford et al., 2021, figure 3) of unit image and text embeddings I and
T, with one change: captions of one batch that say the same are all right answers, since a small
world repeats itself. As the real CLIP has seen everything, base and novel categories are shown.
The pool of the ResNet often sees a part of its cells alone, so that it can name what is under a
mask. With a teacher, a ResNet whose image embeddings are J, and j for a cell alone (MaskCLIP, Zhou
et al., 2022: value and output projections of the pool), the transformer also learns by

    L_teacher = 10 mean(1 - cos(I, J)),     L_cells = 10 mean(1 - cos(i, j))

where i is the mean embedding of the patches of a cell; a token that attends to some patches alone
then finds there what CLIP says of them.

    python -m openvis_rt.training.clip vit FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import typer
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from openvis_rt.errors import InputError
from openvis_rt.models.attention import BLOCKED
from openvis_rt.models.clip import encode_text
from openvis_rt.models.images import Normalise
from openvis_rt.systems.miniature import MINI_CLIP_RESNET, MINI_CLIP_VIT
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD
from openvis_rt.training.command import Folder, Iterations, Rate, Seed, Threads, run_command, tell
from openvis_rt.training.run import Losses, Run, trained_weights
from openvis_rt.training.windows import Windows, draw_windows, stored_windows
from openvis_rt.training.world import World
from openvis_rt.training.world_categories import CATEGORIES
from openvis_rt.vocabulary import VILD_PROMPTS

__all__ = [
    "CLIPS",
    "LONGEST",
    "captions",
    "cells_of",
    "class_embeddings",
    "contrast",
    "new_clip",
    "of_cells",
    "of_patches",
    "pooled",
    "train_clip",
    "zero_shot_accuracy",
]

Encoder = Literal["resnet", "vit"]
CLIPS: dict[Encoder, Any] = {"resnet": MINI_CLIP_RESNET, "vit": MINI_CLIP_VIT}
LONGEST = 28  # tokens of a caption; CLIP reads up to 77
_TEACHING = 10.0  # weight of the teacher's losses, 1 - cosine
_MARGIN = 16  # pixels by which stored windows are larger than what CLIP sees, to shift it


def new_clip(name: Encoder, seed: int = 0) -> Any:
    """An untrained miniature, open_clip's model: ``resnet`` or ``vit``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**CLIPS[name], quick_gelu=False)


def captions(categories: npt.NDArray[np.int16], rng: np.random.Generator) -> list[str]:
    """A sentence for each window [n, 2]; objects of one window in any order."""
    sentences = []
    for pair in categories:
        names = [CATEGORIES[index].phrase for index in rng.permutation(pair) if index >= 0]
        prompt = VILD_PROMPTS[rng.integers(len(VILD_PROMPTS))]
        sentences.append(prompt.format(" and a ".join(names)))
    return sentences


def contrast(logits: Tensor, same: Tensor) -> Tensor:
    """L of this module's docstring.

    Args:
        logits: s I T^t, float [B, B].
        same: which texts are right for which image, bool [B, B], with a true diagonal; symmetric.
    """
    target = same.to(logits.dtype)
    target = target / target.sum(1, keepdim=True)
    rows, columns = (F.cross_entropy(x, target) for x in (logits, logits.T))
    return (rows + columns) / 2


def zero_shot_accuracy(clip: Any, windows: Windows, side: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy over all categories, of windows with one object, in percent.

    Args:
        clip: open_clip's model.
        windows: larger than ``side`` or equal; their middle is seen.
        side: pixels that CLIP sees.

    Returns:
        ``top1``, ``top5``, and ``top1`` of base and of novel categories.
    """
    normalise = Normalise(CLIP_MEAN, CLIP_STD)
    one = windows.categories[:, 1] < 0
    truth = torch.from_numpy(windows.categories[one, 0].astype(np.int64))
    margin = (windows.images.shape[1] - side) // 2
    images = windows.images[one][:, margin : margin + side, margin : margin + side]
    with torch.inference_mode():
        texts = class_embeddings(clip)
        found = [
            seen_by(clip, normalise(torch.from_numpy(np.ascontiguousarray(part))))
            for part in np.array_split(images, max(1, len(images) // 256))
        ]
        order = (F.normalize(torch.cat(found), dim=-1) @ texts.T).topk(5).indices
    right = (order == truth[:, None]).float()
    novel = torch.tensor([CATEGORIES[int(c)].novel for c in truth])
    percent = {"top1": right[:, 0], "top5": right.sum(1)}
    percent |= {"top1, base": right[~novel, 0], "top1, novel": right[novel, 0]}
    return {name: 100 * float(value.mean()) for name, value in percent.items()}


def class_embeddings(clip: Any, prompts: tuple[str, ...] = VILD_PROMPTS) -> Tensor:
    """Text embeddings of all categories: the mean over prompts of unit rows, unit, [K, D]."""
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    rows = []
    with torch.inference_mode():
        for category in CATEGORIES:
            tokens = tokenize([prompt.format(category.phrase) for prompt in prompts])
            rows.append(F.normalize(encode_text(clip, tokens), dim=-1).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)


def train_clip(
    name: Encoder,
    folder: Path,
    *,
    iterations: int,
    batch: int,
    count: int,
    rate: float,
    seed: int,
    teacher: Path | None = None,
) -> Any:
    """Train a miniature.

    Args:
        name: of its image encoder.
        folder: of the run; the windows are kept beside it, in ``windows``.
        iterations: in all.
        batch: windows of an iteration.
        count: of windows that are drawn from the world, at least ``batch``.
        rate: learning rate.
        seed: of weights and windows.
        teacher: folder of the run of a ``resnet``, whose text tower is taken over as it is, and
            whose embeddings of pictures and of their cells are learnt beside the captions: a
            transformer needs many more pictures than a convolution to get as far by captions
            alone. None is without; for a ``vit`` only.

    Raises:
        InputError: there are fewer windows than an iteration takes, the teacher is no run of a
            resnet, or a resnet is given one.

    Returns:
        open_clip's model, in evaluation mode.
    """
    if count < batch:
        raise InputError(f"an iteration of {batch} windows needs as many; found {count}")
    if teacher is not None and name != "vit":
        raise InputError(f"a {name} learns by captions alone, and takes no --teacher")
    side = CLIPS[name]["vision_cfg"]["image_size"]
    windows = stored_windows(folder.parent / "windows", count, side + _MARGIN, seed)
    clip = new_clip(name, seed).train().to(memory_format=torch.channels_last)  # convolutions: 1.6 x
    guide = None if teacher is None else _taught_by(teacher, clip)
    clip.visual.output_tokens = name == "vit"  # while it is trained
    normalise = Normalise(CLIP_MEAN, CLIP_STD)
    tokenize = open_clip.get_tokenizer("ViT-B-32")

    def step(iteration: int) -> Losses:
        rng = np.random.default_rng((seed, iteration))
        chosen = np.sort(rng.choice(len(windows.categories), batch, replace=False))
        categories = np.sort(windows.categories[chosen], axis=1)
        images = torch.from_numpy(_shifted(windows.images[chosen], side, rng))
        kept = _some_cells(side, batch, rng) if name == "resnet" else None
        same = (categories[:, None] == categories[None]).all(-1)
        tokens = tokenize(captions(categories, rng))[:, :LONGEST]
        with torch.autocast("cpu", torch.bfloat16):
            pictures = normalise(images).contiguous(memory_format=torch.channels_last)
            if kept is None:
                seen, cells = of_patches(clip.visual, pictures)
            else:
                seen = pooled(clip.visual, cells_of(clip.visual, pictures), kept)
            said = encode_text(clip, tokens)
        unit_seen, unit_said = (F.normalize(x.float(), dim=-1) for x in (seen, said))
        logits = clip.logit_scale.exp().clamp(max=100) * unit_seen @ unit_said.T
        losses = {"contrast": contrast(logits, torch.from_numpy(same))}
        if guide is not None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                shown = cells_of(guide.visual, pictures)
                whole = _pooled_whole(guide.visual, shown)
                alone = of_cells(guide.visual, shown)
            losses["teacher"] = _TEACHING * (1 - _cosines(seen, whole)).mean()
            losses["cells"] = _TEACHING * (1 - _cosines(cells, alone)).mean()
        return losses

    run = Run(folder, clip, rate=rate)
    with sdpa_kernel(SDPBackend.MATH):  # its flash kernel takes five times as long backward here
        run.train(step, iterations)
    clip.visual.output_tokens = False
    return clip.eval()


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of the last axes, float32."""
    return (F.normalize(one.float(), dim=-1) * F.normalize(other.float(), dim=-1)).sum(-1)


def cells_of(visual: Any, pictures: Tensor) -> Tensor:
    """The last feature of CLIP's ResNet, as its attention pool takes it.

    Args:
        visual: open_clip's ``ModifiedResNet``.
        pictures: normalised, float32 [B, 3, S, S], S as it was made for.

    Returns:
        [B, P, Cf], P = (S / 32)^2.
    """
    dense = visual.stem(pictures)
    for index in range(1, 5):
        dense = getattr(visual, f"layer{index}")(dense)
    cells: Tensor = dense.flatten(2).transpose(1, 2)
    return cells


def pooled(visual: Any, cells: Tensor, kept: Tensor) -> Tensor:
    """CLIP's attention pool over some cells alone, as CLIP-VIS pools under a mask.

    Args:
        visual: open_clip's ``ModifiedResNet``.
        cells: of :func:`cells_of`, [B, P, Cf].
        kept: cells that are seen, at least one of each picture, bool [B, P].

    Returns:
        [B, D]: for all cells as :meth:`~openvis_rt.models.clip.ClipResNet.pool` gives it.
    """
    head = visual.attnpool
    query = cells.mean(1, keepdim=True) + head.positional_embedding[:1]
    cells = cells + head.positional_embedding[1:]
    q, k, v = (
        project(x).unflatten(-1, (head.num_heads, -1)).transpose(1, 2)  # [B, heads, ., d]
        for project, x in ((head.q_proj, query), (head.k_proj, cells), (head.v_proj, cells))
    )
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + (~kept)[:, None, None] * BLOCKED
    out: Tensor = head.c_proj((logits.softmax(-1).to(v.dtype) @ v)[:, :, 0].flatten(1))
    return out


def of_cells(visual: Any, cells: Tensor) -> Tensor:
    """What the pool says of each cell alone, [B, P, D], from [B, P, Cf] of :func:`cells_of`."""
    head = visual.attnpool
    out: Tensor = head.c_proj(head.v_proj(cells + head.positional_embedding[1:]))
    return out


def of_patches(visual: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of CLIP's transformer: of the whole, and of its patches by a ResNet's cells.

    Args:
        visual: open_clip's ``VisionTransformer`` with ``output_tokens``.
        pictures: normalised, float32 [B, 3, S, S], S as it was made for.

    Returns:
        [B, D] and [B, (S / 32)^2, D], the mean of the patches of a cell of 32 pixels.
    """
    seen, patches = visual(pictures)
    side = pictures.shape[-1] // visual.patch_size[0]
    grid = (patches @ visual.proj).transpose(1, 2).unflatten(2, (side, side))
    cells = F.avg_pool2d(grid, 32 // visual.patch_size[0]).flatten(2).transpose(1, 2)
    return seen, cells


def seen_by(clip: Any, pictures: Tensor) -> Tensor:
    """Image embeddings [B, D] of normalised pictures, pooled over all cells as :func:`pooled` does.

    CLIP's own pool of a ResNet has the mean of its cells as one more key, which is not trained.
    """
    if not hasattr(clip.visual, "attnpool"):
        seen: Tensor = clip.visual(pictures)
        return seen
    return _pooled_whole(clip.visual, cells_of(clip.visual, pictures))


def _pooled_whole(visual: Any, cells: Tensor) -> Tensor:
    """The pool over all cells, [B, D], from [B, P, Cf] of :func:`cells_of`."""
    return pooled(visual, cells, torch.ones(cells.shape[:2], dtype=torch.bool))


def _some_cells(side: int, batch: int, rng: np.random.Generator) -> Tensor:
    """Which cells to pool: all in half of the iterations, else a random part of each picture's."""
    shape = (batch, (side // 32) ** 2)
    if rng.random() < 0.5:
        return torch.ones(shape, dtype=torch.bool)
    order = rng.random(shape)
    chosen = order < rng.uniform(0.2, 1.0, (batch, 1))
    return torch.from_numpy(chosen | (order == order.min(1, keepdims=True)))


def _shifted(
    images: npt.NDArray[np.uint8], side: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A square of each window, somewhere in it, mirrored or not: uint8 [n, side, side, 3]."""
    out = np.empty((len(images), side, side, 3), np.uint8)
    places = rng.integers(0, images.shape[1] - side + 1, (len(images), 2))
    for number, (top, left) in enumerate(places):
        part = images[number, top : top + side, left : left + side]
        out[number] = part[:, ::-1] if rng.random() < 0.5 else part
    return out


def _taught_by(teacher: Path, clip: Any) -> Any:
    """The teacher, frozen; its text tower is given to the other CLIP, where it learns no more."""
    guide = new_clip("resnet")
    try:
        guide.load_state_dict(trained_weights(teacher))
    except RuntimeError as exc:
        raise InputError(f"{teacher} is no run of a resnet of today's size; give one") from exc
    guide = guide.requires_grad_(requires_grad=False).eval()
    text = {k: v for k, v in guide.state_dict().items() if not k.startswith("visual.")}
    clip.load_state_dict(text, strict=False)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(requires_grad=name.startswith("visual."))
    return guide.to(memory_format=torch.channels_last)


def main(
    name: Annotated[Encoder, typer.Argument(help="The image encoder.")],
    folder: Folder,
    iterations: Iterations = 4000,
    batch: Annotated[int, typer.Option(min=2, help="Windows of an iteration.")] = 192,
    windows: Annotated[int, typer.Option(min=2, help="Drawn from the world.")] = 50000,
    rate: Rate = 1e-3,
    seed: Seed = 0,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of a resnet's run, to learn from as well.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Train a miniature CLIP and tell its zero-shot accuracy on held-out windows."""
    torch.set_num_threads(threads)
    clip = train_clip(
        name,
        folder,
        iterations=iterations,
        batch=batch,
        count=windows,
        rate=rate,
        seed=seed,
        teacher=teacher,
    )
    world = World("validation", frames=1, seed=seed, most_objects=2)
    side = CLIPS[name]["vision_cfg"]["image_size"]
    rng = np.random.default_rng(seed)
    drawn = [draw_windows(world[index], side, rng) for index in range(2000)]
    held_out = Windows(
        np.concatenate([w.images for w in drawn]), np.concatenate([w.categories for w in drawn])
    )
    tell(zero_shot_accuracy(clip, held_out, side))


if __name__ == "__main__":
    run_command(main)
