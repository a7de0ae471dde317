"""What all mask networks are trained by: predictions of every layer, live norms, batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")

from torch import nn  # noqa: E402 - after the skip

from openvis_rt.models.mask2former import ClassDecoder  # noqa: E402
from openvis_rt.models.resnet import FrozenNorm, ResNet  # noqa: E402
from openvis_rt.models.zero_shot import ZeroShotWindowDecoder  # noqa: E402
from openvis_rt.training.losses import mask_losses, objectness_loss  # noqa: E402
from openvis_rt.training.matcher import Matches, Targets, match_queries  # noqa: E402
from openvis_rt.training.ovformer import some_classes  # noqa: E402
from openvis_rt.training.segmentation import (  # noqa: E402
    POINTS,
    best_overlaps,
    deep_losses,
    each_layer,
    frame_targets,
    frozen_state,
    generator_of,
    live_norms,
    matched_losses,
    world_batch,
)
from openvis_rt.training.world import World, WorldVideo  # noqa: E402
from openvis_rt.training.world_categories import BASE, CATEGORIES  # noqa: E402

WIDTH, QUERIES = 32, 5


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder(*, of_windows: bool, layers: int = 4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"layers": layers, "queries": QUERIES, "width": WIDTH, "hidden": 48}
        if of_windows:
            return ZeroShotWindowDecoder(**sizes, embed_dim=16, aligned=True)
        return ClassDecoder(**sizes, classes=1)


# every layer


@pytest.mark.parametrize("of_windows", [False, True], ids=["frames", "window"])
def test_the_last_prediction_is_the_decoders_own(of_windows):
    predictor = decoder(of_windows=of_windows)
    features = drawn(2, WIDTH, 16, 24)
    memory = [drawn(2, WIDTH, *size, seed=i) for i, size in enumerate(((2, 3), (4, 6), (8, 12)))]
    with torch.no_grad():
        wanted = predictor(features, memory)
        found = list(each_layer(predictor, features, memory))
        first = predictor.first_queries(features)
        begin = predictor.decoder_norm(first), predictor.mask_logits(first, features)
    assert len(found) == 1 + predictor.layers
    for (queries, logits), pair in ((found[-1], wanted), (found[0], begin)):
        assert torch.equal(queries, pair[0])
        assert torch.equal(logits, pair[1])
    shape = (1, QUERIES, 2, 16, 24) if of_windows else (2, QUERIES, 16, 24)
    assert {tuple(logits.shape) for _, logits in found} == {shape}
    for (one, _), (other, _) in itertools.pairwise(found):
        assert (one - other).abs().max() > 1e-3


def test_earlier_losses_are_summed_as_one():
    predictions = [(torch.tensor(float(i)), torch.tensor(10.0 * i)) for i in range(1, 4)]

    def losses_of(queries, logits):
        number = int(queries)
        return {"a": queries, "b": logits}, [Matches(torch.tensor([number]), torch.tensor([0]))]

    losses, matches = deep_losses(predictions, losses_of)
    assert {name: float(loss) for name, loss in losses.items()} == {"a": 3, "b": 30, "deep": 33}
    assert matches[0].queries.tolist() == [3]


def test_the_losses_of_a_prediction_have_the_papers_weights():
    logits, objects = drawn(2, QUERIES, 1, 16, 24), drawn(2, QUERIES, 2, seed=1)
    targets = [
        Targets((drawn(n, 1, 64, 96, seed=n) > 0).float(), torch.zeros(n, dtype=torch.long))
        for n in (1, 3)
    ]
    losses, matches = matched_losses(logits, objects, targets, generator_of(0, 5))
    draws = generator_of(0, 5)
    scores = objects.softmax(-1)[..., 0]
    wanted = match_queries(logits, targets, object_scores=scores, points=POINTS, generator=draws)
    mask, dice = mask_losses(logits, targets, wanted, points=POINTS, generator=draws)
    for one, other in zip(matches, wanted, strict=True):
        assert torch.equal(one.queries, other.queries)
        assert torch.equal(one.objects, other.objects)
    assert losses["objectness"] == 2 * objectness_loss(objects, wanted)
    assert losses["mask"] == 5 * mask
    assert losses["dice"] == 5 * dice
    assert set(losses) == {"objectness", "mask", "dice"}


def test_an_iteration_has_points_of_its_own():
    first, again, next_one, other = (
        torch.rand(3, generator=generator_of(*key)).tolist()
        for key in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    assert first == again
    assert first not in (next_one, other)


# norms


def test_live_norms_learn_and_frozen_ones_take_what_they_learned():
    channels = (8, 16, 32, 64)
    network = ResNet((1, 1, 1, 1), channels)
    for number, buffer in enumerate(network.buffers()):
        buffer.add_(0.1 * drawn(*buffer.shape, seed=number).abs())
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    live_norms(network)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 10
    assert not any(isinstance(m, FrozenNorm) for m in network.modules())
    assert all(norm.weight.requires_grad for norm in norms)
    began = frozen_state(network.state_dict())
    assert {k: v.tolist() for k, v in began.items()} == {k: v.tolist() for k, v in kept.items()}
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        network(drawn(2, 3, 64, 64, seed=seed))["res5"].square().mean().backward()
        optimizer.step()
    frozen = ResNet((1, 1, 1, 1), channels)
    frozen.load_state_dict(frozen_state(network.state_dict()))  # strictly
    images = drawn(1, 3, 64, 64, seed=9)
    with torch.no_grad():
        live, wanted = frozen(images), network.eval()(images)
        untouched = ResNet((1, 1, 1, 1), channels)
        untouched.load_state_dict(kept)
        before = untouched(images)
    for name, value in wanted.items():
        assert torch.equal(live[name], value), name
        assert (before[name] - value).abs().max() > 1e-3


# batches


def test_iterations_share_no_video_and_show_base_categories():
    world = World("train", (32, 48), 2)
    first, second = world_batch(world, 0, 3), world_batch(world, 1, 3)
    assert first.frames.shape == (6, 32, 48, 3)
    assert first.frames.dtype == torch.uint8
    for place, video in enumerate(world[index] for index in range(6)):
        batch, number = (first, place) if place < 3 else (second, place - 3)
        frames = batch.frames[2 * number : 2 * number + 2].numpy()
        np.testing.assert_array_equal(frames, video.images)
        objects = video.masks.sum((1, 2, 3)) >= 12  # a world's own are 16 at least in a frame
        np.testing.assert_array_equal(batch.targets[number].masks.numpy(), video.masks[objects])
        np.testing.assert_array_equal(batch.targets[number].classes, video.categories[objects])
        assert set(batch.targets[number].classes.tolist()) <= set(BASE)


def test_a_frames_targets_are_what_it_shows_itself():
    masks = np.zeros((3, 2, 16, 24), np.bool_)
    masks[0, :, :4, :4] = True
    masks[1, 1, 8:, 8:] = True  # hidden in the first frame
    masks[2, :, 0, 10:13] = True  # too small to be a target
    categories = np.array((4, 5, 6))
    video = WorldVideo(
        "a", np.zeros((2, 16, 24, 3), np.uint8), masks, categories, masks.any((2, 3))
    )
    targets, objects = frame_targets(video)
    assert [o.tolist() for o in objects] == [[0], [0, 1]]
    assert [t.classes.tolist() for t in targets] == [[4], [4, 5]]
    for frame, target in enumerate(targets):
        wanted = masks[objects[frame].numpy(), frame, None]
        np.testing.assert_array_equal(target.masks.numpy(), wanted)


def test_an_iteration_tells_apart_all_classes_that_it_shows():
    rng = np.random.default_rng(0)
    shown = rng.choice(BASE, 7, replace=False)
    nothing = torch.zeros(0)
    targets = [Targets(nothing, torch.from_numpy(shown[part])) for part in (np.s_[:4], np.s_[2:])]
    classes = some_classes(targets, rng)
    assert len(classes) == len(set(classes.tolist())) == 48
    assert set(shown.tolist()) <= set(classes.tolist()) <= set(BASE)
    again = some_classes(targets, rng)
    assert set(again.tolist()) != set(classes.tolist())  # others are drawn beside them
    many = torch.tensor(BASE[:60])
    assert set(some_classes([Targets(nothing, many)], rng).tolist()) == set(many.tolist())


# the measure


def proposals(world: World, count: int, change):
    """What proposes the true masks of the world's videos, after a change; and one that is empty."""
    masks = {world[i].images.tobytes(): world[i].masks for i in range(count)}

    def propose(frames):
        found = change(torch.from_numpy(masks[frames.numpy().tobytes()]).float())
        return {"mask_logits": 20 * torch.cat((torch.zeros_like(found[:1]), found)) - 10}

    return propose


def test_perfect_masks_overlap_by_100_and_empty_ones_by_none():
    world = World("validation", (32, 48), 2)
    perfect = best_overlaps(proposals(world, 4, lambda masks: masks.flip(0)), world, 4)
    assert perfect == {"mean IoU": 100.0, "above 0.5": 100.0, "above 0.75": 100.0}
    empty = best_overlaps(proposals(world, 4, torch.zeros_like), world, 4)
    assert set(empty.values()) == {0.0}


def test_half_an_object_overlaps_by_a_half():
    world = World("validation", (32, 48), 2, most_objects=1)

    def first_frame(masks):
        masks[:, 1] = 0
        return masks

    found = best_overlaps(proposals(world, 4, first_frame), world, 4)
    wanted = [m[:, 0].sum() / m.sum() for m in (world[i].masks for i in range(4))]
    assert found["mean IoU"] == pytest.approx(100 * np.mean(wanted), rel=1e-5)


def test_categories_are_places_in_the_one_list():
    batch = world_batch(World("validation", (32, 48), 1), 0, 2)
    assert all(0 <= int(c) < len(CATEGORIES) for t in batch.targets for c in t.classes)
