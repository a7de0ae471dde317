"""Full-size weights without training: random, but for last layers solved to find known objects.

Random weights find nothing, so what FP16 does to masks and tracks cannot be seen with them. Random
convolutions still tell textures apart, so the last layers are solved in closed form on some frames
of the generated video, whose true masks are known; all others stay as the seed drew them.

    mask logits      w_o . mask_features(x), w_o by weighted ridge regression on the true masks;
                     ``mask_embed`` is then solved so that query o answers w_o
    objectness, IoU  ``object_embed`` and ``iou_head``: yes for those queries, no for the rest
    classes          CLIP's pooling projection: pooled features lie along text embeddings

The result knows this one video.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from openvis_rt.checkpoints.load import load_model
from openvis_rt.errors import InputError
from openvis_rt.models.clip import ClipResNet
from openvis_rt.models.clip_vis import ClipVis
from openvis_rt.vocabulary import VILD_PROMPTS, prompts_for

__all__ = ["solved_model"]

Image8 = npt.NDArray[np.uint8]

_COUPLING = (
    0.02  # of the decoder's residual branches: queries hardly move, and stay what was solved
)
_MARGIN = 0.4  # of the regression's -1 .. 1 at which a pixel counts as inside
_SHARPNESS = 10.0  # mask logits for one unit of the regression
_RIDGE = 1e-6


def solved_model(
    name: str,
    frames: Sequence[Image8],
    masks: Sequence[Image8],
    phrases: Sequence[str],
    class_of_object: Sequence[int],
    *,
    network_size: tuple[int, int],
    seed: int = 0,
) -> ClipVis:
    """Solve the last layers of a random model on frames whose objects are known.

    Args:
        name: a variant with attention pooling.
        frames: uint8 [Hs, Ws, 3] each, RGB.
        masks: uint8 [O, Hs, Ws] each, 1 inside object o.
        phrases: the classes' names.
        class_of_object: for each object its class, 0..C-1.
        network_size: (H, W) that frames are resized to.
        seed: of everything that is not solved.

    Returns:
        the model, in evaluation mode; its first O queries find the objects.

    Raises:
        InputError: the variant does not pool by attention.
    """
    model = load_model(name, seed).model
    if not isinstance(model, ClipVis) or not isinstance(model.backbone, ClipResNet):
        raise InputError(f"weights are solved for attention pooling, which {name} has not")
    tokenize = open_clip.get_tokenizer(model.variant.clip)
    tokens = torch.stack([tokenize(prompts_for(p, VILD_PROMPTS)) for p in phrases])
    resized = np.stack([_resize(frame, network_size) for frame in frames])
    with torch.no_grad():
        _quiet_decoder(model)
        images = model.normalise(torch.from_numpy(resized))
        features = [model.backbone(image[None]) for image in images]
        head = model.sem_seg_head
        last: Any = head.pixel_decoder.mask_features
        last.weight[-1], last.bias[-1] = 0, 1  # one channel is the regression's constant
        mask_features = torch.cat([head.pixel_decoder(f)[0] for f in features])
        truth = _stride4(masks, network_size, mask_features.shape[-2:])
        probes = _probes(mask_features, truth)
        _answer(model, probes)
        logits = torch.einsum("oc,tchw->tohw", probes, mask_features)
        _solve_classes(model, features, model.pool_mask(logits), tokens, class_of_object)
    return model


def _resize(frame: Image8, size: tuple[int, int]) -> Image8:
    return np.array(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR))


def _quiet_decoder(model: ClipVis) -> None:
    decoder: Any = model.sem_seg_head.predictor
    for layer in (
        *(block.multihead_attn.out_proj for block in decoder.transformer_cross_attention_layers),
        *(block.self_attn.out_proj for block in decoder.transformer_self_attention_layers),
        *(block.linear2 for block in decoder.transformer_ffn_layers),
    ):
        layer.weight *= _COUPLING
        layer.bias *= _COUPLING


def _stride4(masks: Sequence[Image8], size: tuple[int, int], grid: torch.Size) -> Tensor:
    """True masks on the padded stride-4 grid: float32 [T, O, h, w], 0 or 1."""
    truth = torch.from_numpy(np.stack(masks)).float()
    small = F.interpolate(truth, size=size, mode="area")
    padded = F.pad(small, (0, grid[1] * 4 - size[1], 0, grid[0] * 4 - size[0]))
    return (F.avg_pool2d(padded, 4) > 0.5).float()


def _probes(mask_features: Tensor, truth: Tensor) -> Tensor:
    """For each object a direction in mask-feature space: float32 [O, C]."""
    x = mask_features.permute(0, 2, 3, 1).flatten(0, 2).double()
    probes = []
    for inside in truth.transpose(0, 1).flatten(1).bool():
        y = inside.double() * 2 - 1
        # both sides weigh the same, however small the object is
        weight = torch.where(inside, 0.5 / inside.sum(), 0.5 / (~inside).sum()).double()
        gram = (x * weight[:, None]).T @ x + _RIDGE * torch.eye(x.shape[1])
        probe = torch.linalg.solve(gram, x.T @ (weight * y))
        probe[-1] -= _MARGIN
        probes.append(_SHARPNESS * probe)
    return torch.stack(probes).float()


def _answer(model: ClipVis, probes: Tensor) -> None:
    """Solve the heads' last layers: the first queries answer the probes, the others nothing."""
    decoder: Any = model.sem_seg_head.predictor
    query = decoder.query_feat.weight[None]
    for index in range(decoder.layers):  # as they come out where attention adds nothing
        for block in (
            decoder.transformer_cross_attention_layers[index],
            decoder.transformer_self_attention_layers[index],
            decoder.transformer_ffn_layers[index],
        ):
            query = block.norm(query)
    embedding = decoder.decoder_norm(query)[0]
    objects = len(probes)
    wanted = torch.zeros(len(embedding), probes.shape[1])
    wanted[:, -1] = -_SHARPNESS  # below zero everywhere
    wanted[:objects] = probes
    _solve_last(decoder.mask_embed.layers, embedding, wanted)
    yes = torch.zeros(len(embedding), 1)
    yes[:objects] = 1
    _solve_last(decoder.object_embed.layers, embedding, torch.cat((8 * yes - 4, 4 - 8 * yes), 1))
    _solve_last(decoder.iou_head.layers, embedding, 6 * yes - 3)


def _solve_last(layers: nn.ModuleList, x: Tensor, wanted: Tensor) -> None:
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    _solve_linear(layers[-1], x, wanted)


def _solve_linear(layer: nn.Module, x: Tensor, wanted: Tensor) -> None:
    """Least squares with the smallest weights: layer(x) = wanted."""
    assert isinstance(layer, nn.Linear)
    mean = x.mean(0)
    layer.weight.copy_((torch.linalg.pinv(x - mean, rtol=1e-4) @ (wanted - wanted.mean(0))).T)
    layer.bias.copy_(wanted.mean(0) - layer.weight @ mean)


def _solve_classes(
    model: ClipVis,
    features: list[dict[str, Tensor]],
    pool_masks: Tensor,
    tokens: Tensor,
    class_of_object: Sequence[int],
) -> None:
    backbone = model.backbone
    backbone.clip_model.logit_scale.fill_(float(np.log(100.0)))
    raw = model.text(tokens.flatten(0, 1))["embeddings"]
    text = F.normalize(raw, dim=-1).reshape(*tokens.shape[:2], -1).mean(1)
    text = F.normalize(text, dim=-1)
    # random text embeddings nearly agree; along row c of this, class c alone stands out
    directions = torch.linalg.pinv(text - text.mean(0)).T
    projection = backbone.clip_model.visual.attnpool.c_proj
    pooled: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    for feature, mask in zip(features, pool_masks, strict=True):
        backbone.pool(feature["res5"], mask)
    hook.remove()
    classes = torch.as_tensor(class_of_object).repeat(len(pooled))
    seen = pool_masks.flatten(2).any(2).flatten()
    x, wanted = torch.cat(pooled)[seen], F.normalize(directions, dim=-1)[classes[seen]]
    _solve_linear(projection, x, wanted)
