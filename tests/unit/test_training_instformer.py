"""InstFormer's stages: low-rank terms, tracking tokens by slots, and the rollout's recurrence."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")
pytest.importorskip("matplotlib", reason="a run's curves need the extra [eval]")

from pathlib import Path  # noqa: E402 - after the skip

from tiny_instformer import QUERIES, tiny_instformer  # noqa: E402
from torch import nn  # noqa: E402

from openvis_rt.checkpoints.lora import merge_adapter  # noqa: E402
from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.models.instance_clip import guidance_mask  # noqa: E402
from openvis_rt.runtime.tracking.rollout import Cell, Rollout  # noqa: E402
from openvis_rt.training.instance_tokens import (  # noqa: E402
    adapted,
    first_tokens,
    matched_proposals,
    token_parts,
)
from openvis_rt.training.matcher import match_queries  # noqa: E402
from openvis_rt.training.rollout import slot_tokens, train_rollout  # noqa: E402
from openvis_rt.training.run import trained_weights  # noqa: E402
from openvis_rt.training.segmentation import (  # noqa: E402
    POINTS,
    frame_targets,
    generator_of,
    world_batch,
)
from openvis_rt.training.world import World  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other take minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(model):
    frame = drawn(1, 3, 64, 96, seed=3)
    return model.instance_clip(frame, drawn(4, 6, seed=4))


# tokens


def test_an_adapter_in_training_is_the_adapter_of_a_checkpoint():
    model, plain = tiny_instformer(), tiny_instformer()
    before = seen(plain)
    adapters, tokens = adapted(model, 0), first_tokens(model)
    assert torch.equal(seen(model), before)  # B begins as 0, and both tokens as CLIP's own
    with torch.no_grad():
        for number, parameter in enumerate((*adapters.parameters(), *tokens.values())):
            parameter.copy_(0.2 * drawn(*parameter.shape, seed=number))
    state = nn.ModuleDict({"adapters": adapters, "tokens": tokens}).state_dict()
    parts = token_parts(state)
    merge_adapter(plain.clip_model.visual, parts["adapter"], Path("trained"))
    plain.instance_clip.set_tokens(**parts["tokens"])
    blocks = zip(*(m.clip_model.visual.transformer.resblocks for m in (model, plain)), strict=True)
    for one, other in blocks:
        torch.testing.assert_close(one.attn.in_proj_weight, other.attn.in_proj_weight)
        width = one.attn.embed_dim
        key = one.attn.parametrizations.in_proj_weight.original[width : 2 * width]
        assert torch.equal(other.attn.in_proj_weight[width : 2 * width], key)  # k is as it was
    torch.testing.assert_close(seen(model), seen(plain), atol=1e-5, rtol=1e-5)
    assert (seen(plain) - before).abs().max() > 1e-2


def test_only_the_adapters_and_the_tokens_learn():
    model = tiny_instformer()
    trained = [*adapted(model, 0).parameters(), *first_tokens(model).values()]
    model.instance_clip.logits(seen(model), drawn(3, 32)).square().sum().backward()
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(p) for p in trained}
    assert len(trained) == 3 * 4 + 2
    # A has no gradient while B is 0
    assert all(float(p.grad.abs().max()) > 0 for p in trained if p.shape[-1] == 8 or p.ndim == 1)


def test_objects_are_guided_by_the_masks_that_are_matched_with_them():
    model, world = tiny_instformer(), World("train", (64, 96), 1)
    data = world_batch(world, 0, 2)
    found = list(matched_proposals(model, data, 0, 0))
    assert [number for number, _, _ in found] == [0, 1]
    for number, guidance, match in found:
        assert guidance.shape == (len(match.queries), 6)
        assert len(set(match.queries.tolist())) == len(data.targets[number].classes)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            masks = model.proposal(model.normalise(data.frames)).mask_logits.float()
        chosen = masks[number, match.queries]
        torch.testing.assert_close(guidance, guidance_mask(chosen, (2, 3), model.config.guidance))


# slots


def comes_in_late(video) -> bool:
    """Whether some frame shows an object, but not the first one: slots are not places then."""
    _, kept = frame_targets(video)
    return any(len(objects) and objects[0] > 0 for objects in kept)


def test_an_objects_slot_holds_the_query_that_is_matched_with_it():
    model, world = tiny_instformer(), World("train", (64, 96), 3)
    index = next(i for i in range(1000) if comes_in_late(world[i]))
    video = world[index]
    tokens = slot_tokens(model, world, index, seed=5)
    assert tokens.shape == (3, QUERIES, model.tracking_width)
    targets, kept = frame_targets(video)
    own, masks, scores = [], [], []
    for image in torch.from_numpy(video.images):  # as the graphs do it, frame by frame
        found = model.propose(image[None])
        guidance = found["guidance_mask"]
        names = model.classify(image[None], guidance, torch.eye(32)[:2])["instance_tokens"]
        parts = (found["queries"], names)
        own.append(torch.cat([p / p.norm(dim=-1, keepdim=True) for p in parts], 1))
        masks.append(found["mask_logits"])
        scores.append(found["object_logits"].softmax(-1)[:, 0])
    matches = match_queries(
        torch.stack(masks),
        targets,
        object_scores=torch.stack(scores),
        points=POINTS,
        generator=generator_of(5, index),
    )
    for frame, match in enumerate(matches):
        for query, place in zip(match.queries, match.objects, strict=True):
            slot = kept[frame][place]
            torch.testing.assert_close(tokens[frame, slot], own[frame][query], atol=1e-4, rtol=1e-4)
        # the other slots hold the other queries, each once
        order = torch.cdist(tokens[frame], own[frame]).argmin(1)
        assert sorted(order.tolist()) == list(range(QUERIES))


# the recurrence


@pytest.fixture
def trained(tmp_path):
    """A model, and the folder of a short run over tokens that are drawn and not found."""
    model = tiny_instformer()
    first = nn.functional.normalize(drawn(3, QUERIES, model.tracking_width), dim=-1)
    # a track's next token is far from its last one, and known: the channels move on
    tokens = torch.stack([first.roll(7 * frame, -1) for frame in range(5)], 1)
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    weights = train_rollout(tmp_path, model, iterations=4, videos=3, frames=5, seed=0)
    return model, tmp_path, weights


def test_the_runtimes_cell_predicts_what_torch_predicts(trained):
    model, folder, weights = trained
    assert all(torch.equal(value, weights[key]) for key, value in trained_weights(folder).items())
    width = model.tracking_width
    rnn = nn.RNN(width, width, batch_first=True)
    rnn.load_state_dict(weights)
    cell = Cell({key: value.numpy() for key, value in weights.items()})
    windows = torch.from_numpy(np.load(folder / "tokens.npy"))[0].transpose(0, 1)  # [N, T, D]
    with torch.no_grad():
        wanted = rnn(windows)[0]
    for frame in range(windows.shape[1]):
        found = cell.step(np.ascontiguousarray(windows[:, frame].numpy()))
        np.testing.assert_allclose(found, wanted[:, frame].numpy(), atol=1e-5)


def test_training_brings_the_prediction_to_the_next_token(trained):
    """And the association that uses it then finds tracks in any order of the queries."""
    model, folder, _ = trained
    (folder / "more").mkdir()
    (folder / "tokens.npy").rename(folder / "more" / "tokens.npy")
    weights = train_rollout(folder / "more", model, iterations=120, videos=3, frames=5, seed=0)
    text = (folder / "more" / "losses.jsonl").read_text()
    losses = [json.loads(line)["rollout"] for line in text.splitlines()]
    assert losses[-1] < losses[0] / 2
    rollout = Rollout(Cell({key: value.numpy() for key, value in weights.items()}))
    rng = np.random.default_rng(0)
    for number, frame in enumerate(np.load(folder / "more" / "tokens.npy")[0]):
        order = rng.permutation(QUERIES) if number else np.arange(QUERIES)
        np.testing.assert_array_equal(order[rollout.step(frame[order])], np.arange(QUERIES))


def test_kept_tokens_of_other_numbers_are_refused(trained):
    model, folder, _ = trained
    with pytest.raises(InputError, match=r"holds tokens \[3, 5, .* are needed: remove it"):
        train_rollout(folder, model, iterations=9, videos=4, frames=5, seed=0)
