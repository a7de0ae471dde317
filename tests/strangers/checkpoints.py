"""Checkpoints and parts of strangers: strange tensors, strange keys, strange headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from court import Case
from torch import Tensor, nn
from weights import SYSTEMS, good, metadata, strange_file, written
from workshop import Workshop

__all__ = ["ROWS"]


def _with(tensor: Tensor, number: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[changed.numel() // 2] = number
    return changed


def _expanded(tensor: Tensor) -> Tensor:
    return torch.zeros((1,) * tensor.ndim).expand(tensor.shape)


def _windowed(tensor: Tensor) -> Tensor:
    """Rows that overlap: fewer numbers are stored than are shown."""
    return torch.zeros(tensor.numel() // 2 + 1).as_strided(
        tensor.shape, (1,) * tensor.ndim if tensor.numel() > tensor.shape[0] else (0,)
    )


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous().T if tensor.ndim == 2 else tensor


def _in_a_larger_one(tensor: Tensor) -> Tensor:
    return torch.cat([torch.full((7,), torch.nan), tensor.flatten()])[7:].view(tensor.shape)


def _quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "quantised": _quantised,
    "on no device": lambda t: t.to("meta"),
    "a scalar": lambda t: t.flatten()[0].clone(),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t > 0,
    "int8": lambda t: (t * 100).to(torch.int8),
    "int64": lambda t: (t * 100).to(torch.int64),
    "uint16": lambda t: (t.abs() * 100).to(torch.uint16),
    "fp8": lambda t: t.to(torch.float8_e4m3fn),
    "expanded from one number": _expanded,
    "overlapping rows": _windowed,
    "no rows": lambda t: t[:0].clone(),
    "no columns and 1e11 rows": lambda t: torch.empty(10**11, *t.shape[1:-1], 0),
    "a row less": lambda t: t[:-1].clone(),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "an axis more": lambda t: t[None].clone(),
    "80 axes": lambda t: t.reshape((1,) * 80 + t.shape),
    "flat with its number of numbers prime": lambda t: t.new_zeros(99991),
    "NaN": lambda t: _with(t, torch.nan),
    "infinity": lambda t: _with(t, torch.inf),
    "minus infinity": lambda t: _with(t, -torch.inf),
    "1.8e36": lambda t: _with(t, 1.8e36),
    "float64 beyond float32": lambda t: _with(t.double(), 1e300),
    "a dict": lambda t: {"weight": t},
    "a list": lambda t: [t],
    "lists in lists": lambda t: [[[[[[t]]]]]],
    "numbers": lambda t: t.flatten()[:3].tolist(),
    "an array of numpy": lambda t: t.numpy(),
    "a number of numpy": lambda _: np.float64(3),
    "text": lambda _: "text",
    "None": lambda _: None,
}
TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "a parameter": lambda t: nn.Parameter(t.clone()),
    "float64": lambda t: t.double(),
    "transposed in memory": _transposed,
    "a part of a larger one": _in_a_larger_one,
}
HEAD = "sem_seg_head.predictor."
PLACES = {
    "clip-vis-mini": (
        "sem_seg_head.predictor.query_feat.weight",
        "backbone.clip_model.logit_scale",
    ),
    "ovformer-mini": ("backbone.res2.0.conv1.norm.bias",),
    "proposal": ("sem_seg_head.predictor.class_embed.weight",),
    "clip": ("transformer.resblocks.0.attn.in_proj_weight",),
    "adapter": ("base_model.model.vision_model.encoder.layers.2.self_attn.v_proj.lora_B.weight",),
    "tracker": ("weight_hh_l0",),
    "tokens": ("register",),
}
SHAPELESS = {"a scalar", "no rows", "a row less", "an axis more", "expanded from one number"}


def tensors(_: Workshop) -> Iterator[Case]:
    """One tensor of a file of torch's is not what it should be; zip and legacy in turn."""
    number = 0
    for kind, keys in PLACES.items():
        for key in keys:
            for name, change in (*REFUSED.items(), *TAKEN.items()):
                tensor = good(kind)[key]
                if not tensor.ndim and name not in {"sparse", "int8", "NaN", "1.8e36", "None"}:
                    continue
                state = {**good(kind), key: change(tensor)}
                number += 1
                loads = None if kind == "tokens" and name == "an axis more" else name in TAKEN
                file = ("weights.pth", "weights.pt")[number % 2]
                if name == "on no device" or (number % 2 and name in {"uint16"}):
                    file = "weights.pth"

                def make(path: Path, state: Any = state, kind: str = kind) -> None:
                    written(state, path, kind)

                yield from strange_file(f"{key} is {name}", kind, file, make, loads=loads)


IN_SAFETENSORS = (
    *("complex", "bool", "int8", "int64", "fp8", "no rows", "no columns and 1e11 rows"),
    *("a row less", "a row more", "an axis more", "80 axes", "NaN", "infinity", "1.8e36"),
    *("float64 beyond float32", "float64"),
)


def tensors_in_safetensors(_: Workshop) -> Iterator[Case]:
    """The same in safetensors, and in every group of InstFormer's own format."""
    places = {
        **PLACES,
        "instformer-mini": (
            *("tokens.register", "adapter.0.q.A", "tracker.bias_hh_l0"),
            *("proposal.sem_seg_head.predictor.query_feat.weight", "clip.visual.proj"),
        ),
    }
    for kind, keys in places.items():
        for key in keys:
            for name in IN_SAFETENSORS:
                tensor = good(kind)[key]
                if not tensor.ndim and name not in {"int8", "NaN", "1.8e36"}:
                    continue
                state = {**good(kind), key: {**REFUSED, **TAKEN}[name](tensor)}
                loads = None if kind == "tokens" and name == "an axis more" else name in TAKEN

                def make(path: Path, state: Any = state, kind: str = kind) -> None:
                    written(state, path, kind)

                title = f"{key} is {name}"
                yield from strange_file(title, kind, "weights.safetensors", make, loads=loads)


NAMES = (
    *(
        "",
        " ",
        "a" * 301,
        "a" * 10_000,
        "k" * 1_000_000,
        "\0",
        "\x1b]0;title\x07",
        "\u202ebackwards",
    ),
    *("\u00e9", "\n", "..", "../../etc/passwd", "__class__", "model", "items", "%s%n{}"),
    *("sem_seg_head.predictor.transformer_ffn_layers.10000000000.linear1.weight",),
    *("sem_seg_head.predictor.transformer_ffn_layers." + "9" * 250 + ".norm.weight",),
    *("backbone.base.layer9.9.conv9.weight", "adapter.9999999999.q.A", "tokens.register"),
    *("sem_seg_head.predictor." + "a." * 130, "token_embedding.rows", "criterion." + "x" * 280),
)
NO_NAMES = (7, 2.5, None, True, b"bytes", ("a", 1), 10**30, -1)


def keys(_: Workshop) -> Iterator[Case]:
    """A key too many, too few, or no key at all."""
    number = 0
    for kind in ("clip-vis-mini", "ovformer-mini", "proposal", "clip", "tracker"):
        for name in (*NAMES, *NO_NAMES):
            state = {**good(kind), name: torch.zeros(2)}
            loads = False
            if isinstance(name, str) and name.startswith("criterion.") and kind != "tracker":
                loads = None
            number += 1
            file = ("weights.pth", "weights.pt")[number % 2]

            def make(path: Path, state: Any = state, kind: str = kind) -> None:
                written(state, path, kind)

            yield from strange_file(f"a key {str(name)[:30]!r}", kind, file, make, loads=loads)
        for name, state in _halves(kind):

            def make(path: Path, state: Any = state, kind: str = kind) -> None:
                written(state, path, kind)

            yield from strange_file(name, kind, "weights.pth", make)


def _halves(kind: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    state = dict(good(kind))
    items = list(state.items())
    yield "the first half", dict(items[: len(items) // 2])
    yield "the second half", dict(items[len(items) // 2 :])
    yield "without the last key", dict(items[:-1])
    yield "without the first key", dict(items[1:])
    yield "all under a prefix", {f"ema.{key}": value for key, value in items}
    yield "keys in capitals", {key.upper(): value for key, value in items}
    yield (
        "keys of another's",
        {k: v for (k, _), v in zip(items, state.values(), strict=True)}
        | {"extra.weight": torch.zeros(3)},
    )
    if kind in SYSTEMS:
        other = SYSTEMS[1 - SYSTEMS.index(kind)]
        yield f"and {other} in one", {**good(other), **state}
        yield "twice in one, once as an average", {**state, **{f"ema.{k}": v for k, v in items}}
    if kind != "tracker":
        yield "under numbers alone", {str(n): value for n, (_, value) in enumerate(items)}


def twice(_: Workshop) -> Iterator[Case]:
    """Two keys that mean the same: which of the two is loaded must not be left to chance."""
    for kind in ("clip-vis-mini", "ovformer-mini", "proposal"):
        query = good(kind)[f"{HEAD}query_feat.weight"]
        state = {**good(kind), f"{HEAD}static_query.weight": query + 1}
        yield from _twice(kind, "old and new name of the queries", state)
        yield from _twice(kind, "new and old name", dict(reversed(state.items())))
    for key, other in (
        ("res2.0.conv1.weight", "layer1.0.conv1.weight"),
        ("stem.conv1.weight", "conv1.weight"),
        ("res3.0.shortcut.weight", "layer2.0.downsample.0.weight"),
    ):
        for kind in ("ovformer-mini", "proposal"):
            if (tensor := good(kind).get(f"backbone.{key}")) is not None:
                state = {**good(kind), f"backbone.base.{other}": tensor + 1}
                yield from _twice(kind, f"{key} and timm's name", state)
    adapter = good("adapter")
    for key in [key for key in adapter if "layers.0." in key][:4]:
        state = {**adapter, key.replace("layers.0.", "layers.00."): adapter[key] + 1}
        yield from _twice("adapter", f"block 0 and block 00 of {key[-30:]}", state)
    for name in ("register", "instance"):
        yield from _twice(
            "tokens", name, {**good("tokens"), f"tokens.{name}": good("tokens")[name] + 1}
        )
    clip = good("clip")
    rows = {
        "token_embedding.rows": torch.ones(2, clip["token_embedding.weight"].shape[1]),
        "token_embedding.kept": torch.tensor([1, 2], dtype=torch.int32),
    }
    first = {"positional_embedding.first": clip["positional_embedding"][:5].clone() + 1}
    yield from _twice("clip", "the table of tokens and some rows", {**clip, **rows})
    yield from _twice("clip", "all positions and the first", {**clip, **first})


def _twice(kind: str, name: str, state: dict[str, Tensor]) -> Iterator[Case]:
    for file in ("weights.pth", "weights.safetensors"):

        def make(path: Path) -> None:
            written(state, path, kind)

        yield from strange_file(f"{name}, twice", kind, file, make)


def shared(_: Workshop) -> Iterator[Case]:
    """Tensors that share their numbers: allowed, and the result must not depend on it."""
    for kind in ("clip-vis-mini", "ovformer-mini", "proposal", "clip", "tracker", "tokens"):
        state = dict(good(kind))
        alike: dict[torch.Size, str] = {}
        for key, value in state.items():
            state[key] = state[alike.setdefault(value.shape, key)]
        flat = torch.cat([value.flatten() for value in good(kind).values()])
        parts = flat.split([value.numel() for value in good(kind).values()])
        views = {k: p.view(v.shape) for (k, v), p in zip(good(kind).items(), parts, strict=True)}
        for name, made in (("one for all of a shape", state), ("parts of one", views)):
            for file in ("weights.pth", "weights.pt"):

                def make(path: Path, made: Any = made, kind: str = kind) -> None:
                    written(made, path, kind)

                title = f"{name}, shared"
                yield from strange_file(title, kind, file, make, loads=True, same=made)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a tensor": lambda s: next(iter(s.values())),
    "a list": lambda s: list(s.items()),
    "a tuple": lambda s: (s,),
    "nothing": lambda _: {},
    "None": lambda _: None,
    "model is None": lambda _: {"model": None},
    "model is nothing": lambda _: {"model": {}},
    "model in model": lambda s: {"model": {"model": s}},
    "state_dict in model": lambda s: {"model": {"state_dict": s}},
    "a number": lambda _: 3,
    "text": lambda _: "weights",
    "a list of 10,000 lists": lambda _: [[]] * 10_000,
    "an optimizer alone": lambda s: {"optimizer": {"state": s}},
    "both entries, the first empty": lambda s: {"model": {}, "state_dict": s},
    "a model and a state dict": lambda s: {"net": s, "epoch": 3},
}


def wrapped(_: Workshop) -> Iterator[Case]:
    """What stands around the weights is something else."""
    for kind in ("clip-vis-mini", "ovformer-mini", "clip", "tracker"):
        for number, (name, change) in enumerate(WRAPPED.items()):
            file = ("weights.pth", "weights.pt")[number % 2]

            def make(path: Path, kind: str = kind, change: Any = change) -> None:
                zipped = path.suffix == ".pth"
                content = change(dict(good(kind)))
                torch.save(content, path, _use_new_zipfile_serialization=zipped)

            yield from strange_file(name, kind, file, make)


CONFIG = {
    **{f"queries {n}": {"queries": n} for n in (0, -1, 10**9, 2.5, "20", None, True, 21)},
    **{f"layers {n}": {"decoder_layers": n} for n in (0, -1, 10**9, "3", [3], 4)},
    **{f"classes {n}": {"classes": n} for n in (0, -1, 10**9, 2)},
    **{f"unknown {k}": {k: 1} for k in ("extra", "\x1b[31m", "__class__")},
    **{f"guidance {v!r}": {"guidance": v} for v in (None, [], {"scale": 1e400}, {"clamp": -1})},
    **{f"score {v!r}": {"video_score": v} for v in ("best", "", 3, "\u202e")},
}
FIELDS = {
    "format": ("", "openvis-rt", "openvis-rt instformer ", "\x1b[31m"),
    "format_version": ("", "0", "2", "1.0", "9" * 5000, "-1"),
    "config": ("", "{", "[]", "null", "3", "[" * 100_000, '{"a":' * 5000, "NaN", "\ud83d"),
    "sources": ("{", "[" * 100_000, "[" * 90 + "]" * 90, '"' + "x" * 2_000_000 + '"', "Infinity"),
    "lora_alpha": ("", "nan", "inf", "-1", "0", "1e400", "x" * 100_000, "1_0", "0x10"),
}


def headers(_: Workshop) -> Iterator[Case]:
    """Metadata of InstFormer's format."""
    usual = metadata("instformer-mini")
    changes = {name: {"config": {**json.loads(usual["config"]), **c}} for name, c in CONFIG.items()}
    texts = {name: {"config": json.dumps(c["config"])} for name, c in changes.items()}
    for field, values in FIELDS.items():
        texts |= {f"{field} {value[:20]!r}": {field: value} for value in values}
    for name, change in texts.items():
        header = {**usual, **change}
        taken = name in {"sources '[[[[[[[[[[[[[[[[[[[['"} and len(change["sources"]) < 1000

        def make(path: Path, header: Any = header) -> None:
            _safetensors(path, good("instformer-mini"), header)

        harmless = taken or name == "lora_alpha '1_0'"
        loads = None if harmless or name.startswith("guidance {") else False
        yield from strange_file(name, "instformer-mini", "weights.safetensors", make, loads=loads)


def _safetensors(path: Path, state: Any, header: Any) -> None:
    """As the library writes it, but for what it would refuse to write."""
    entries: dict[str, Any] = {"__metadata__": dict(header)}
    place = 0
    for key, value in state.items():
        end = place + 4 * value.numel()
        entries[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    body = b"".join(value.contiguous().numpy().tobytes() for value in state.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


ROWS = {
    "tensors": tensors,
    "tensors in safetensors": tensors_in_safetensors,
    "keys": keys,
    "keys twice": twice,
    "shared tensors": shared,
    "wrapped weights": wrapped,
    "headers": headers,
}
