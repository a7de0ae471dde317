"""The networks of OVFormer and OV2Seg against their definitions, in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models are PyTorch's")

from tiny_instformer import EMBED, SIDE  # noqa: E402 - after the skip
from tiny_ovformer import OPEN, QUERIES, tiny_minvis, tiny_ovformer  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from openvis_rt.models.attention import BLOCKED  # noqa: E402
from openvis_rt.models.network import build_network  # noqa: E402
from openvis_rt.models.positions import sine_positions, window_positions  # noqa: E402
from openvis_rt.models.query_decoder import QueryDecoder, WindowQueryDecoder  # noqa: E402
from openvis_rt.models.zero_shot import ZeroShotHead  # noqa: E402
from openvis_rt.systems import VARIANTS, system_of  # noqa: E402
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD  # noqa: E402

WIDTH, HEADS, N = 32, 4, 5  # of the small decoders
LEVELS = [(2, 3), (4, 6), (8, 12)]
GRID = (16, 24)


def decoder(kind=WindowQueryDecoder, *, layers=4, seed=0):
    """A decoder whose every weight is random (biases and norms start as 0 and 1), and strong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = kind(layers=layers, queries=N, width=WIDTH, heads=HEADS, hidden=48)
        for name, value in made.state_dict().items():
            noise = torch.randn_like(value)
            if "norm.weight" in name:
                value.copy_(1 + 0.2 * noise)
            elif "norm.bias" in name or name.endswith("bias"):
                value.copy_(0.3 * noise)
            elif "mask_embed" in name or "in_proj" in name:
                value.mul_(3)
    return made.requires_grad_(requires_grad=False).eval()


def features(frames, seed=0):
    """Mask features and memory of a window; a strong common part leaves some queries no cell."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    mask_features = normal(frames, WIDTH, *GRID) + 1.5 * normal(1, WIDTH, 1, 1)
    return mask_features, [normal(frames, WIDTH, *size) for size in LEVELS]


# the decoder by hand


def angle(index, size, j, count):
    return 2 * math.pi * (index + 1) / (size + 1e-6) / 10000 ** (2 * (j // 2) / count)


def wave(index, size, j, count):
    """Number j of the ``count`` numbers for place ``index`` on an axis."""
    return (math.cos if j % 2 else math.sin)(angle(index, size, j, count))


def position(t, y, x, frames, height, width):
    half = WIDTH // 2
    plane = [wave(y, height, j, half) for j in range(half)]
    plane += [wave(x, width, j, half) for j in range(half)]
    return np.array([plane[j] + wave(t, frames, j, WIDTH) for j in range(WIDTH)])


def shrunk(logits, size):
    """Bilinear, align_corners false, no antialias: [h, w] to ``size``."""

    def places(source, target):
        for i in range(target):
            at = max(0.0, (i + 0.5) * source / target - 0.5)
            low = int(at)
            yield low, min(low + 1, source - 1), at - low

    out = np.empty(size)
    for i, (y0, y1, v) in enumerate(places(logits.shape[0], size[0])):
        for j, (x0, x1, u) in enumerate(places(logits.shape[1], size[1])):
            above = logits[y0, x0] * (1 - u) + logits[y0, x1] * u
            below = logits[y1, x0] * (1 - u) + logits[y1, x1] * u
            out[i, j] = above * (1 - v) + below * v
    return out


class ByHand:
    """The window decoder, a query and a key at a time where it matters."""

    def __init__(self, module):
        self._w = {k: v.double().numpy() for k, v in module.state_dict().items()}
        self._layers = module.layers
        self.opened = self.partly = 0

    def _norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]

    def _linear(self, x, name):
        return x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]

    def _attend(self, name, query, key, value, seen):
        q, k, v = (
            x @ w.T + b
            for x, w, b in zip(
                (query, key, value),
                np.split(self._w[f"{name}.in_proj_weight"], 3),
                np.split(self._w[f"{name}.in_proj_bias"], 3),
                strict=True,
            )
        )
        size = WIDTH // HEADS
        out = np.zeros_like(q)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for n in range(len(q)):
                keys = np.flatnonzero(seen[n])
                logits = k[keys, part] @ q[n, part] / math.sqrt(size)
                weights = np.exp(logits - logits.max())
                out[n, part] = weights / weights.sum() @ v[keys, part]
        return self._linear(out, f"{name}.out_proj")

    def _masks(self, query, mask_features):
        x = self._norm(query, "decoder_norm")
        for index in range(3):
            x = self._linear(x, f"mask_embed.layers.{index}")
            x = np.maximum(x, 0) if index < 2 else x
        return np.einsum("nc,tchw->nthw", x, mask_features)

    def _seen(self, masks, size):
        """Which of the T h w cells, frame after frame, each query sees."""
        seen = np.array(
            [np.concatenate([(shrunk(m, size) >= 0).ravel() for m in window]) for window in masks]
        )
        for row in seen:
            self.partly += bool(row.any() and not row.all())
            if not row.any():
                self.opened += 1
                row[:] = True
        return seen

    def __call__(self, mask_features, memory):
        mask_features = mask_features.double().numpy()
        query, embed = self._w["query_feat.weight"], self._w["query_embed.weight"]
        for index in range(self._layers):
            level = memory[index % 3].double().numpy()
            frames, _, height, width = level.shape
            cells, places = [], []
            for t in range(frames):
                for y in range(height):
                    for x in range(width):
                        cells.append(level[t, :, y, x] + self._w["level_embed.weight"][index % 3])
                        places.append(position(t, y, x, frames, height, width))
            value = np.array(cells)
            key = value + np.array(places)
            seen = self._seen(self._masks(query, mask_features), (height, width))
            name = f"transformer_cross_attention_layers.{index}"
            found = self._attend(f"{name}.multihead_attn", query + embed, key, value, seen)
            query = self._norm(query + found, f"{name}.norm")
            name = f"transformer_self_attention_layers.{index}"
            everything = np.ones((N, N), bool)
            own = query + embed
            found = self._attend(f"{name}.self_attn", own, own, query, everything)
            query = self._norm(query + found, f"{name}.norm")
            name = f"transformer_ffn_layers.{index}"
            hidden = np.maximum(self._linear(query, f"{name}.linear1"), 0)
            query = self._norm(query + self._linear(hidden, f"{name}.linear2"), f"{name}.norm")
        return self._norm(query, "decoder_norm"), self._masks(query, mask_features)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_clip_decoder_is_its_definition(frames):
    module = decoder()
    by_hand = ByHand(module)
    inputs = features(frames)
    wanted_queries, wanted_masks = by_hand(*inputs)
    queries, masks = module(*inputs)
    assert queries.shape == (1, N, WIDTH)
    assert masks.shape == (1, N, frames, *GRID)
    np.testing.assert_allclose(queries[0], wanted_queries, atol=2e-5)
    np.testing.assert_allclose(masks[0], wanted_masks, atol=2e-5 * np.abs(wanted_masks).max())
    assert by_hand.opened  # or the test would not try the rows that block every cell
    assert by_hand.partly


def test_a_clips_positions_are_those_of_the_definition():
    level = torch.zeros(3, WIDTH, 2, 4)
    wanted = [position(t, y, x, 3, 2, 4) for t in range(3) for y in range(2) for x in range(4)]
    np.testing.assert_allclose(decoder().positions(level), wanted, atol=1e-6)


def test_the_position_of_a_frame_depends_on_the_clips_length():
    tables = [window_positions(frames, WIDTH) for frames in range(1, 7)]
    for frames, table in enumerate(tables, 1):
        wanted = [[wave(t, frames, j, WIDTH) for j in range(WIDTH)] for t in range(frames)]
        np.testing.assert_allclose(table, wanted, atol=1e-6)
        for other in tables[: frames - 1]:
            assert not torch.allclose(table[0], other[0], atol=1e-3)
    for table in tables[1:]:  # the last frame is at 2 pi, whatever the length
        torch.testing.assert_close(table[-1], tables[0][0], atol=1e-5, rtol=0)


def test_cells_come_frame_after_frame_and_row_after_row():
    level = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)  # [T, C, h, w]
    cells = decoder().cells(level)
    assert cells.shape == (1, 8, 3)
    assert cells[0, :, 0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert cells[0, 5].tolist() == [13, 17, 21]


def test_a_row_is_opened_only_if_it_sees_no_cell_of_any_frame():
    masks = -torch.ones(1, 4, 2, 2, 3)
    masks[0, 1] = 1  # sees all
    masks[0, 2, 1] = 1  # the second frame alone
    masks[0, 3, 0, :1] = 1  # the upper half of the first frame
    bias = decoder().attention_bias(masks)
    assert bias.shape == (1, 1, 4, 12)
    nothing, low = [0.0] * 6, [BLOCKED] * 6
    rows = bias[0, 0].tolist()
    assert rows[0] == rows[1] == nothing + nothing
    assert rows[2] == low + nothing
    assert rows[3] == [0.0] * 3 + [BLOCKED] * 3 + low


@pytest.mark.parametrize("kind", [QueryDecoder, WindowQueryDecoder])
def test_attention_masks_are_the_mask_logits_at_the_level_s_size(kind):
    """A bit differs from the official order, product before resize, only within rounding of 0."""
    mask_features, memory = features(2)
    model = decoder(kind)
    query = model.first_queries(mask_features) + torch.randn(1, 1, WIDTH)
    whole = model.mask_logits(query, mask_features)
    for level in memory:
        small = model.mask_logits(query, model.features_at(mask_features, level))
        size = (*small.shape[2:-2], *level.shape[-2:])
        wanted = F.interpolate(
            whole.flatten(0, -3)[:, None], size=size[-2:], mode="bilinear", align_corners=False
        ).view_as(small)
        torch.testing.assert_close(small, wanted, atol=1e-5, rtol=1e-5)
        blocked = wanted.sigmoid() < 0.5
        assert ((small < 0) == blocked)[wanted.abs() > 1e-5].all()
        blocked &= ~blocked.flatten(2).all(-1).view(*blocked.shape[:2], *[1] * (blocked.ndim - 2))
        bias = model.attention_bias(small)[:, 0].view_as(small)
        clear = wanted.abs().flatten(2).amin(-1) > 1e-5  # rows without a number near 0
        assert clear.any()
        assert ((bias != 0) == blocked)[clear].all()


def test_a_clip_of_one_frame_is_a_frame():
    """Their positions differ by the frame's, which moves all keys alike."""
    clip, frame = decoder(WindowQueryDecoder), decoder(QueryDecoder)
    frame.load_state_dict(clip.state_dict())
    mask_features, memory = features(1)
    for level in memory:
        term = clip.positions(level) - frame.positions(level)
        torch.testing.assert_close(
            term, window_positions(1, WIDTH).expand_as(term), atol=1e-6, rtol=0
        )
        assert term.abs().max() > 0.9
    queries, masks = clip(mask_features, memory)
    frame_queries, frame_masks = frame(mask_features, memory)
    torch.testing.assert_close(queries, frame_queries, atol=5e-5, rtol=0)
    torch.testing.assert_close(masks[:, :, 0], frame_masks, atol=5e-4, rtol=0)


def test_the_frames_own_positions_have_no_frame_term():
    level = torch.zeros(2, WIDTH, 2, 3)
    wanted = sine_positions(2, 3, WIDTH).flatten(1).T
    torch.testing.assert_close(decoder(QueryDecoder).positions(level), wanted)


# the class head


def head(*, aligned=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ZeroShotHead(WIDTH, EMBED, aligned=aligned)
        for value in made.state_dict().values():
            value.add_(0.3 * torch.randn_like(value))
    return made.requires_grad_(requires_grad=False)


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_with_one_frame_only_values_and_output_of_the_attention_matter():
    made, queries, key = head(), normal(N, WIDTH), normal(1, EMBED, seed=4)
    x = made.linear(queries)
    attention, norm = made.cross_attention.multihead_attn, made.cross_attention.norm
    _, _, weight = attention.in_proj_weight.split(EMBED)
    value = key @ weight.T + attention.in_proj_bias[2 * EMBED :]
    alone = value @ attention.out_proj.weight.T + attention.out_proj.bias
    wanted = nn.functional.layer_norm(x + alone, (EMBED,), norm.weight, norm.bias)
    torch.testing.assert_close(made(queries, key), wanted, atol=1e-5, rtol=0)
    attention.in_proj_weight[: 2 * EMBED] = normal(2 * EMBED, EMBED, seed=8)
    attention.in_proj_bias[: 2 * EMBED] = normal(2 * EMBED, seed=9)
    torch.testing.assert_close(made(queries, key), wanted, atol=1e-5, rtol=0)
    attention.in_proj_bias[2 * EMBED :] += 1
    assert not torch.allclose(made(queries, key), wanted, atol=1e-2)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_the_attention_to_a_clips_frames_is_torchs_with_eight_heads(frames):
    made, queries, keys = head(), normal(N, WIDTH), normal(frames, EMBED, seed=frames)
    theirs = nn.MultiheadAttention(EMBED, 8)
    theirs.load_state_dict(made.cross_attention.multihead_attn.state_dict())
    x = made.linear(queries)[:, None]  # [N, 1, D], as the public code has it
    found, _ = theirs(x, keys[:, None], keys[:, None])
    norm = made.cross_attention.norm
    wanted = nn.functional.layer_norm(x + found, (EMBED,), norm.weight, norm.bias)[:, 0]
    torch.testing.assert_close(made(queries, keys), wanted, atol=1e-5, rtol=0)
    shuffled = keys[torch.randperm(frames, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(made(queries, shuffled), wanted, atol=1e-5, rtol=0)  # no positions


def test_image_embeddings_are_taken_as_long_as_they_are():
    made, queries, keys = head(), normal(N, WIDTH), normal(3, EMBED)
    assert not torch.allclose(made(queries, keys), made(queries, 2 * keys), atol=1e-2)


def test_without_alignment_the_head_is_two_layers():
    made, queries = head(aligned=False), normal(N, WIDTH)
    assert {name.split(".")[0] for name in made.state_dict()} == {"linear"}
    first, _, second = made.linear
    wanted = torch.relu(queries @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(made(queries), wanted, atol=1e-5, rtol=0)


def test_logits_are_fifty_cosines():
    tokens, texts = 7 * normal(N, EMBED), normal(4, EMBED, seed=6)
    texts[3] = 0  # the public code's background
    texts[:3] /= texts[:3].norm(dim=1, keepdim=True)
    found = ZeroShotHead.logits(tokens, texts)
    for n in range(N):
        for k in range(3):
            a, b = tokens[n].double(), texts[k].double()
            cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
            assert float(found[n, k]) == pytest.approx(50 * cosine, abs=1e-4)
    assert (found[:, 3] == 0).all()
    own = ZeroShotHead.logits(texts[:3], texts[:3])
    torch.testing.assert_close(own.diagonal(), torch.full((3,), 50.0), atol=1e-4, rtol=0)


# the whole models


def frames_of(count, seed=0):
    made = np.random.default_rng(seed).integers(0, 256, (count, 60, 90, 3)).astype(np.uint8)
    return torch.from_numpy(made)


@pytest.mark.parametrize("name", OPEN)
def test_every_variant_proposes_and_classifies(name):
    model = tiny_ovformer(name, with_clip=False)
    count = 3 if model.variant.window_length > 1 else 1
    found = model.propose(frames_of(count))
    assert found["mask_logits"].shape == (QUERIES, count, 16, 24)  # of the padded 64x96
    assert found["queries"].shape == (QUERIES, 256)
    assert found["object_logits"].shape == (QUERIES, 2)
    given = {"queries": found["queries"], "image_embeddings": normal(count, EMBED)}
    given["text_embeddings"] = normal(4, EMBED)
    inputs = [t.name for t in system_of(model.variant).graphs["classify"].inputs]
    scored = model.classify(**{name: given[name] for name in inputs})
    assert scored["instance_tokens"].shape == (QUERIES, EMBED)
    assert scored["class_scores"].shape == (QUERIES, 4)


def test_outputs_are_those_of_the_graphs():
    for name in OPEN:
        model = tiny_ovformer(name, with_clip=False)
        found = model.propose(frames_of(1))
        assert set(found) == {t.name for t in model.graphs["propose"].outputs}
        assert "text" not in model.graphs


def test_the_objectness_head_has_two_layers():
    model = tiny_ovformer(with_clip=False)
    layers = model.network.predictor.object_embed.layers
    assert [(x.in_features, x.out_features) for x in layers] == [(256, 256), (256, 2)]
    found = model.propose(frames_of(2))
    hidden = torch.relu(layers[0](found["queries"]))
    torch.testing.assert_close(found["object_logits"], layers[1](hidden))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_clip_may_have_any_length(count):
    model = tiny_ovformer(with_clip=False)
    found = model.propose(frames_of(count))
    assert found["mask_logits"].shape == (QUERIES, count, 16, 24)
    assert torch.isfinite(found["mask_logits"]).all()


def test_queries_see_every_frame_of_their_clip():
    model, frames = tiny_ovformer(with_clip=False), frames_of(3)
    before = model.propose(frames)
    frames[2] = 255 - frames[2]
    after = model.propose(frames)
    assert not torch.allclose(before["queries"], after["queries"], atol=1e-3)
    first = [found["mask_logits"][:, 0] for found in (before, after)]
    assert not torch.allclose(*first, atol=1e-3)


def test_pictures_are_normalised_as_clip_was_trained_and_embeddings_keep_their_length():
    model = tiny_ovformer()
    made = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
    images = ((made - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(0, 3, 1, 2)
    wanted = model.clip_model.encode_image(torch.from_numpy(images.astype(np.float32)))
    found = model.embed(torch.from_numpy(made))["image_embeddings"]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(found.norm(dim=1), torch.ones(3), atol=0.1)
    each = [model.embed(torch.from_numpy(picture)[None])["image_embeddings"] for picture in made]
    torch.testing.assert_close(found, torch.cat(each), atol=1e-5, rtol=0)  # frames do not mix


def test_minvis_has_a_class_for_no_object():
    model = tiny_minvis(classes=6)
    found = model.propose(frames_of(1))
    queries = found["queries"]
    assert found["mask_logits"].shape == (QUERIES, 1, 16, 24)
    logits = model.classify(queries)["class_scores"]
    assert logits.shape == (QUERIES, 7)
    linear = model.network.predictor.class_embed
    torch.testing.assert_close(logits, queries @ linear.weight.T + linear.bias)


@pytest.mark.parametrize(("name", "layers"), [("ovformer-video-r50", 9), ("ov2seg-r50", 6)])
def test_the_released_sizes(name, layers):
    with torch.device("meta"):  # shapes alone
        model = build_network(VARIANTS[name], with_clip=False)
    predictor = model.network.predictor
    assert predictor.layers == layers
    assert predictor.query_feat.weight.shape == (100, 256)
    first, _, second = predictor.class_embed.linear
    assert (first.in_features, first.out_features) == (256, 256)
    assert (second.in_features, second.out_features) == (256, 512)
    if name == "ovformer-video-r50":
        assert predictor.class_embed.cross_attention.multihead_attn.heads == 8
