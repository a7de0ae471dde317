"""Low-rank adapters of CLIP's query and value projections (LoRA, Hu et al. 2021).

    W' = W + alpha / r * B A,    A [r, d], B [d, r], W [d, d]

so that W' x = W x + alpha / r * B (A x). open_clip keeps the three projections of a block in one
matrix, ``attn.in_proj_weight`` [3 d, d]: rows 0..d are the query's, rows 2 d..3 d the value's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvis_rt.checkpoints.tensors import refuse_twice, some_of
from openvis_rt.checkpoints.weights import Weights, check_numbers, read_weights
from openvis_rt.errors import CheckpointError
from openvis_rt.given_files import given_json

__all__ = ["Adapter", "adapter_from_peft", "adapter_from_tensors", "merge_adapter"]

_ROWS = {"q": 0, "v": 2}  # which third of in_proj_weight
_KEY = re.compile(r"(0|[1-9]\d{0,8})\.([qv])\.([AB])")
_PEFT_KEY = re.compile(
    r"(?:.*?\.)?"  # the shortest, so that `visual.` is the tower's
    r"(?P<tower>vision_model\.encoder\.layers|text_model\.encoder\.layers"
    r"|visual\.transformer\.resblocks|transformer\.resblocks)\."
    r"(?P<block>\d+)\.(?:self_attn|attn)\.(?P<target>\w+)\.lora_(?P<matrix>[AB])"
    r"(?P<name>\.\w+)?\.weight"
)
_OTHER_FORMULAS = {  # PEFT's options that change what is added to W
    "use_rslora": "alpha / sqrt(r)",
    "use_dora": "a learned magnitude",
    "rank_pattern": "a rank for each layer",
    "alpha_pattern": "an alpha for each layer",
}


@dataclass(frozen=True)
class Adapter:
    """Low-rank terms of some blocks.

    Attributes:
        alpha: of the factor alpha / r.
        rank: r, one for all.
        pairs: A float [r, d] and B float [d, r] by block and projection, ``(0, "q")``.
    """

    alpha: float
    rank: int
    pairs: dict[tuple[int, str], tuple[Tensor, Tensor]]

    def tensors(self) -> dict[str, Tensor]:
        """As our own checkpoints name them, ``{block}.{q|v}.{A|B}``."""
        return {
            f"{block}.{target}.{name}": matrix
            for (block, target), pair in sorted(self.pairs.items())
            for name, matrix in zip("AB", pair, strict=True)
        }

    def __str__(self) -> str:
        blocks = sorted({block for block, _ in self.pairs})
        return f"rank {self.rank}, alpha {self.alpha:g}, blocks {', '.join(map(str, blocks))}"


def adapter_from_tensors(tensors: Mapping[str, Tensor], alpha: float, path: Path) -> Adapter:
    """Inverse of :meth:`Adapter.tensors`.

    Raises:
        CheckpointError: a key is unknown, a matrix has no partner, the ranks differ, or alpha is
            not above 0.
    """
    strange = [key for key in tensors if not _KEY.fullmatch(key)]
    if strange:
        raise CheckpointError(
            f"{path}: adapter keys are BLOCK.q.A and the like; found {some_of(strange)}"
        )
    if not (math.isfinite(alpha) and alpha > 0):
        raise CheckpointError(f"{path}: alpha of a LoRA adapter is above 0; got {alpha}")
    check_numbers(tensors, path)
    names = sorted({key.rpartition(".")[0] for key in tensors})
    alone = [name for name in names if not {f"{name}.A", f"{name}.B"} <= tensors.keys()]
    if alone:
        raise CheckpointError(f"{path}: only one of the pair A and B for {some_of(alone)}")
    pairs = {}
    for name in names:
        block, target = name.split(".")
        pairs[int(block), target] = (tensors[f"{name}.A"], tensors[f"{name}.B"])
    return Adapter(alpha, _rank(pairs, path), pairs)


def adapter_from_peft(path: Path, alpha: float | None = None) -> Adapter:
    """An adapter as PEFT saves it, for CLIP's image encoder.

    Args:
        path: its weights, such as ``adapter_model.safetensors``; keys are those of Hugging Face's
            or of open_clip's modules, they end in
            ``vision_model.encoder.layers.N.self_attn.q_proj.lora_A.weight`` or
            ``transformer.resblocks.N.attn.q_proj.lora_A.weight``, maybe with ``.default`` before
            ``.weight``.
        alpha: if None, ``lora_alpha`` of ``adapter_config.json`` beside the file, or of the file's
            metadata.

    Raises:
        CheckpointError: other keys, other projections than q and v, the text tower, ranks that
            differ, a matrix without its partner, or no alpha.
    """
    weights = read_weights(path)
    config = _peft_config(path)
    found: dict[str, Tensor] = {}
    meant = []
    strange, towers = [], set()
    for key, value in weights.tensors.items():
        match = _PEFT_KEY.fullmatch(key)
        target = match["target"].removesuffix("_proj") if match else ""
        if match is None or target not in _ROWS or match["tower"].startswith("text_model"):
            strange.append(key)
            continue
        towers.add((match["tower"], match["name"]))
        name = f"{int(match['block'])}.{target}.{match['matrix']}"
        meant.append((name, key))
        found[name] = value
    if strange:
        raise CheckpointError(
            f"{path}: an InstFormer adapter has lora_A and lora_B of q_proj and v_proj in CLIP's "
            f"image encoder, and nothing else; found {len(strange)} other keys: {some_of(strange)}"
        )
    if len(towers) != 1:
        listed = sorted(f"{tower} ({name or 'no name'})" for tower, name in towers)
        raise CheckpointError(
            f"{path} holds {len(towers)} adapters, one is needed: {', '.join(listed) or 'no keys'}"
        )
    refuse_twice(meant, path)
    return adapter_from_tensors(found, _alpha(weights, config, alpha), path)


def merge_adapter(visual: Any, adapter: Adapter, path: Path) -> None:
    """Add an adapter to the weights of open_clip's ``VisionTransformer``, in place.

    ``in_proj_weight[rows] += alpha / r * B @ A``, in float32, with the rows of this module's
    docstring.

    Raises:
        CheckpointError: the encoder has no such block, or another width, and nothing was changed;
            or the sum is not finite.
    """
    blocks = visual.transformer.resblocks
    width = blocks[0].attn.in_proj_weight.shape[1]
    beyond = sorted({block for block, _ in adapter.pairs if block >= len(blocks)})
    if beyond:
        raise CheckpointError(
            f"{path}: the adapter has block {', '.join(map(str, beyond))}, and the image encoder's "
            f"are 0..{len(blocks) - 1}"
        )
    for (block, target), (a, b) in adapter.pairs.items():
        if (a.shape[1], b.shape[0]) != (width, width):
            raise CheckpointError(
                f"{path}: the adapter of block {block} {target} is {a.shape[1]} -> {b.shape[0]} "
                f"wide, and the image encoder's projections are {width} -> {width}"
            )
    with torch.no_grad():
        for (block, target), (a, b) in adapter.pairs.items():
            first = _ROWS[target] * width
            rows = blocks[block].attn.in_proj_weight[first : first + width]
            rows += adapter.alpha / adapter.rank * (b.float() @ a.float())
            if not torch.isfinite(rows).all():
                raise CheckpointError(
                    f"{path}: the adapter of block {block} {target}, with alpha {adapter.alpha:g}, "
                    "makes weights that are infinite or no numbers; check its alpha and its file"
                )


def _rank(pairs: Mapping[tuple[int, str], tuple[Tensor, Tensor]], path: Path) -> int:
    shapes = {f"{b} {t}": (tuple(x.shape), tuple(y.shape)) for (b, t), (x, y) in pairs.items()}
    flat = [name for name, (a, b) in shapes.items() if len(a) != 2 or len(b) != 2 or a[0] != b[1]]
    if flat or not shapes:
        listed = ", ".join(f"{name}: A {shapes[name][0]}, B {shapes[name][1]}" for name in flat)
        raise CheckpointError(
            f"{path}: A is [r, width] and B [width, r]; found {listed or 'no matrices'}"
        )
    ranks = {name: a[0] for name, (a, _) in shapes.items()}
    if len(set(ranks.values())) != 1 or 0 in ranks.values():
        listed = ", ".join(f"{name}: {rank}" for name, rank in sorted(ranks.items()))
        raise CheckpointError(
            f"{path}: every layer of an adapter has the same rank, at least 1; found {listed}"
        )
    return next(iter(ranks.values()))


def _peft_config(path: Path) -> dict[str, Any]:
    file = path.with_name("adapter_config.json")
    if not file.is_file():
        return {}
    config = given_json(file, 1 << 20, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no JSON object")
    for option, formula in _OTHER_FORMULAS.items():
        if config.get(option):
            raise CheckpointError(
                f"{file}: {option} ({formula}) is set; adapters here add alpha / r * B A. "
                "Merge this one yourself and give the merged CLIP as --clip."
            )
    return config


def _alpha(weights: Weights, config: Mapping[str, Any], given: float | None) -> float:
    if given is not None:
        return given
    said = [e["lora_alpha"] for e in (config, weights.metadata) if "lora_alpha" in e]

    def told(said: list[Any]) -> str:
        return " and ".join(str(value)[:40] for value in said)

    try:
        values = {float(value) for value in said}
    except (TypeError, ValueError) as exc:
        raise CheckpointError(f"{weights.path}: lora_alpha is no number: {told(said)}") from exc
    if len(values) != 1:
        found = told(said) or "none"
        raise CheckpointError(
            f"{weights.path}: the adapter's alpha is needed, from adapter_config.json beside the "
            f"file, from the file's metadata (lora_alpha) or by --lora-alpha; found {found}"
        )
    return values.pop()
