"""Matching and the losses against plain numpy, and where there is nothing to match."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")

from openvis_rt.training.losses import (  # noqa: E402
    classification_loss,
    dice_loss,
    iou_loss,
    mask_bce_loss,
    mask_losses,
    objectness_loss,
    semantic_contrast_loss,
    temporal_contrast_loss,
)
from openvis_rt.training.matcher import (  # noqa: E402
    MatcherWeights,
    Matches,
    Targets,
    match_queries,
    matching_cost,
    window_targets,
)
from openvis_rt.training.points import sample_points, uncertain_points  # noqa: E402
from openvis_rt.training.world import World  # noqa: E402

WINDOWS, QUERIES, FRAMES, CLASSES, POINTS = 2, 6, 3, 5, 400


def seeded(seed: int = 0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def boxes(count: int, frames: int = FRAMES, seed: int = 0):
    """Boxes that move through a window, bool [count, frames, 24, 32]."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(count, frames, 24, 32, dtype=torch.bool)
    for mask in masks:
        top, left = rng.integers(0, 12, 2)
        for frame in range(frames):
            mask[frame, top : top + 10, left + frame : left + frame + 12] = True
    return masks


def logits_of(masks, sharpness: float = 8.0):
    """Predictions at a quarter of the size that answer masks."""
    small = torch.nn.functional.avg_pool2d(masks.double(), 4)
    return sharpness * (2 * small - 1)


def pairs(*matched):
    """Matches of windows, each as (queries, objects)."""
    return [
        Matches(torch.tensor(q, dtype=torch.long), torch.tensor(o, dtype=torch.long))
        for q, o in matched
    ]


@pytest.fixture
def batch():
    """Predictions, targets of 3 and 0 objects, and their matches."""
    targets = [
        Targets(boxes(3).double(), torch.tensor([4, 0, 4])),
        Targets(boxes(0).double(), torch.zeros(0, dtype=torch.long)),
    ]
    logits = drawn(WINDOWS, QUERIES, FRAMES, 6, 8)
    return logits, targets, pairs(([0, 2, 5], [1, 0, 2]), ([], []))


# points


def test_points_are_bilinear_values():
    mask = drawn(1, 4, 5)
    centres = torch.tensor([[(2 + 0.5) / 5, (1 + 0.5) / 4], [3 / 5, (1 + 0.5) / 4]])
    found = sample_points(mask, centres[None].double())[0]
    wanted = torch.stack((mask[0, 1, 2], (mask[0, 1, 2] + mask[0, 1, 3]) / 2))
    torch.testing.assert_close(found, wanted)


def test_points_lie_where_the_prediction_is_unsure():
    x = torch.linspace(-9, 9, 64).expand(1, 64, 64)  # unsure in the middle columns
    points = uncertain_points(x, 400, seeded())
    assert points.shape == (1, 400, 2)
    assert points.min() >= 0
    assert points.max() < 1
    near = (points[0, :, 0] - 0.5).abs() < 0.2
    assert near[:300].all()
    assert 0.2 < near[300:].float().mean() < 0.6  # the others lie anywhere: 0.4


# matching


def test_the_cost_is_that_of_the_formula():
    x, target = drawn(QUERIES, FRAMES, 6, 8), Targets(boxes(3).double(), torch.tensor([4, 0, 4]))
    p, o = drawn(QUERIES, CLASSES, seed=1).sigmoid(), drawn(QUERIES, seed=2).sigmoid()
    # the middles of the pixels of a 6 x 8 grid, where the truth is read between four of its pixels
    y, z = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(8) + 0.5) / 8, indexing="ij")
    coordinates = torch.from_numpy(np.stack((z, y), -1).reshape(1, 48, 2)).repeat(FRAMES, 1, 1)
    found = matching_cost(x, target, p, o, MatcherWeights(2, 3, 5, 7), coordinates)
    logits = x.numpy().reshape(QUERIES, -1)
    blocks = target.masks.numpy().reshape(3, FRAMES, 6, 4, 8, 4)[:, :, :, 1:3, :, 1:3]
    truth = blocks.mean((3, 5)).reshape(3, -1)
    s = sigmoid(logits)
    for i, j in itertools.product(range(QUERIES), range(3)):
        a, b = s[i], truth[j]
        mask = -np.mean(b * np.log(a) + (1 - b) * np.log(1 - a))
        dice = 1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1)
        wanted = 5 * mask + 7 * dice - 2 * float(p[i, target.classes[j]]) - 3 * float(o[i])
        assert float(found[i, j]) == pytest.approx(wanted, rel=1e-9)


def test_queries_that_answer_objects_are_matched_whatever_their_order():
    masks = boxes(4)
    shuffle = torch.tensor([5, 0, 3, 1])  # the query of each object
    logits = torch.full((1, QUERIES, FRAMES, 6, 8), -8.0)
    logits[0, shuffle] = logits_of(masks).float()
    target = Targets(masks.float(), torch.zeros(4, dtype=torch.long))
    (found,) = match_queries(logits, [target], points=POINTS, generator=seeded())
    assert dict(zip(found.queries.tolist(), found.objects.tolist(), strict=True)) == {
        5: 0,
        0: 1,
        3: 2,
        1: 3,
    }
    order = torch.tensor([2, 0, 3, 1])
    turned = Targets(target.masks[order], target.classes)
    (again,) = match_queries(logits, [turned], points=POINTS, generator=seeded())
    assert order[again.objects].tolist() == found.objects.tolist()


def test_a_window_is_matched_as_one():
    # nothing is seen in the first frame, where both queries say the same; the second decides
    masks = torch.zeros(2, 2, 24, 32)
    masks[0, 1, :12], masks[1, 1, 12:] = 1, 1
    target = Targets(masks, torch.zeros(2, dtype=torch.long))
    logits = logits_of(masks.flip(0))[None].float()
    (found,) = match_queries(logits, [target], points=POINTS, generator=seeded())
    assert found.objects.tolist() == [1, 0]


@pytest.mark.parametrize("scores", ["class", "object", "none"])
def test_scores_decide_between_equal_masks_only_if_they_are_given(scores):
    masks = boxes(1)
    logits = logits_of(masks).float().expand(2, FRAMES, 6, 8)[None]
    target = Targets(masks.float(), torch.tensor([1]))
    given = {
        "class": {"class_scores": torch.tensor([[[0.9, 0.1], [0.1, 0.9]]])},
        "object": {"object_scores": torch.tensor([[0.2, 0.8]])},
        "none": {},
    }[scores]
    (found,) = match_queries(logits, [target], points=POINTS, generator=seeded(), **given)
    assert found.queries.tolist() == ([0] if scores == "none" else [1])


def test_no_objects_and_more_objects_than_queries():
    logits = drawn(2, 3, FRAMES, 6, 8).float()
    none = Targets(boxes(0).float(), torch.zeros(0, dtype=torch.long))
    many = Targets(boxes(5).float(), torch.zeros(5, dtype=torch.long))
    empty, full = match_queries(logits, [none, many], points=50, generator=seeded())
    assert empty.queries.tolist() == empty.objects.tolist() == []
    assert full.queries.tolist() == [0, 1, 2]
    assert len(set(full.objects.tolist())) == 3


def test_objects_that_a_window_does_not_show_are_left_out():
    masks = boxes(3)
    masks[1] = False
    target, kept = window_targets(masks, torch.tensor([7, 8, 9]))
    assert kept.tolist() == [0, 2]
    assert target.classes.tolist() == [7, 9]
    torch.testing.assert_close(target.masks, masks[[0, 2]].float())


# masks


def test_mask_losses_are_those_of_the_formulas():
    x, y = drawn(4, 50), (drawn(4, 50, seed=1) > 0).double()
    y[3] = 0  # an empty mask
    a, b = sigmoid(x.numpy()), y.numpy()
    bce = -np.mean(b * np.log(a) + (1 - b) * np.log(1 - a))
    dice = np.mean(1 - (2 * (a * b).sum(1) + 1) / (a.sum(1) + b.sum(1) + 1))
    assert float(mask_bce_loss(x, y)) == pytest.approx(bce, rel=1e-12)
    assert float(dice_loss(x, y)) == pytest.approx(dice, rel=1e-12)


def test_a_perfect_mask_costs_nothing_and_an_empty_one_neither():
    y = torch.cat((torch.ones(1, 40), torch.zeros(1, 40)))
    x = 60 * (2 * y - 1)
    assert float(mask_bce_loss(x, y)) < 1e-20
    assert float(dice_loss(x, y)) < 1e-6
    assert float(dice_loss(-x, y)) > 0.95  # 1 / 41 is left by the ones


def test_mask_losses_take_matched_masks_only_and_fall_as_masks_fit(batch):
    logits, targets, matches = batch
    fitting = logits.clone()
    fitting[0, [0, 2, 5]] = logits_of(targets[0].masks[[1, 0, 2]])
    for wrong, right in zip(
        mask_losses(logits, targets, matches, points=POINTS, generator=seeded()),
        mask_losses(fitting, targets, matches, points=POINTS, generator=seeded()),
        strict=True,
    ):
        assert right < 0.5 * wrong
    logits.requires_grad_()
    sum(mask_losses(logits, targets, matches, points=POINTS, generator=seeded())).backward()
    learns = logits.grad.flatten(2).abs().sum(2) > 0
    assert learns.nonzero().tolist() == [[0, 0], [0, 2], [0, 5]]
    assert learns.any()


def test_gradients_of_mask_losses_are_right():
    truth = Targets(boxes(2).double(), torch.zeros(2, dtype=torch.long))

    def losses(logits):
        coordinates = torch.rand(2 * FRAMES, 30, 2, generator=seeded(), dtype=torch.float64)
        x = sample_points(logits.flatten(0, 1), coordinates).reshape(2, -1)
        y = sample_points(truth.masks.flatten(0, 1), coordinates).reshape(2, -1)
        return mask_bce_loss(x, y), dice_loss(x, y)

    assert torch.autograd.gradcheck(losses, drawn(2, FRAMES, 3, 4).requires_grad_())


# IoU


def test_the_iou_loss_is_the_distance_to_the_true_iou():
    masks = torch.zeros(2, 1, 24, 32)
    masks[0, 0, :, :16] = 1  # half of the grid; the second is empty
    logits = torch.full((1, 3, 1, 6, 8), -1.0)
    logits[0, 1, 0, :, 2:6] = 1  # shares 12 of 36 cells with the first
    told = torch.tensor([[0.25, 0.9, 0.5]], requires_grad=True)
    target = Targets(masks, torch.zeros(2, dtype=torch.long))
    loss = iou_loss(told, logits, [target], pairs(([0, 1], [1, 0])))
    assert float(loss.detach()) == pytest.approx(
        (0.25 + abs(0.9 - 12 / 36)) / 2
    )  # empty and empty: 0
    loss.backward()
    torch.testing.assert_close(told.grad, torch.tensor([[0.5, 0.5, 0.0]]))


# objectness and classes


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_objectness_weighs_queries_without_an_object_less(batch):
    _, _, matches = batch
    x = drawn(WINDOWS, QUERIES, 2)
    logs, has_object = log_softmax(x.numpy()), np.zeros((WINDOWS, QUERIES), bool)
    has_object[0, [0, 2, 5]] = True
    each = np.where(has_object, -logs[..., 0], -0.1 * logs[..., 1])
    wanted = each.sum() / np.where(has_object, 1, 0.1).sum()
    assert float(objectness_loss(x, matches)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_classification_is_that_of_the_formula(batch, activation):
    _, targets, matches = batch
    x = 3 * drawn(WINDOWS, QUERIES, CLASSES)
    classes = np.full((WINDOWS, QUERIES), CLASSES)
    classes[0, [0, 2, 5]] = [0, 4, 4]
    total = weights = 0.0
    for b, i in np.ndindex(WINDOWS, QUERIES):
        row, label = x[b, i].numpy(), classes[b, i]
        if activation == "softmax":
            loss = -log_softmax(np.append(row, 0.0))[label]
        else:
            is_class = np.arange(CLASSES) == label
            loss = -np.log(np.where(is_class, sigmoid(row), 1 - sigmoid(row))).sum()
        weight = 0.2 if label == CLASSES else 1.0
        total, weights = total + weight * loss, weights + weight
    found = classification_loss(x, targets, matches, activation=activation, no_object=0.2)
    assert float(found) == pytest.approx(total / weights, rel=1e-12)


# contrasts


def test_semantic_contrast_pushes_only_what_is_too_much_alike():
    q = torch.tensor([[[1.0, 0.0], [0.9, np.sqrt(0.19)], [0.0, 2.0]]], dtype=torch.float64)
    # cosines 0.9, 0 and sqrt(0.19) = 0.44
    assert float(semantic_contrast_loss(q)) == pytest.approx(2 * 0.1, abs=1e-12)
    assert float(semantic_contrast_loss(q, margin=0.4)) == pytest.approx(
        2 * (0.5 + np.sqrt(0.19) - 0.4), abs=1e-12
    )
    assert float(semantic_contrast_loss(q, margin=1.0)) == 0


def test_temporal_contrast_is_the_cross_entropy_of_cosines():
    a, t = drawn(2, 4, 7), drawn(2, 4, 7, seed=1)
    valid = torch.tensor([[True, True, False, True], [False, True, True, False]])
    total = 0.0
    for rows, keys, seen in zip(a.numpy(), t.numpy(), valid.numpy(), strict=True):
        rows, keys = rows[seen], keys[seen]  # noqa: PLW2901
        norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(keys, axis=1)[None]
        total -= np.trace(log_softmax(rows @ keys.T / norms / 0.5))
    found = temporal_contrast_loss(a, t, valid, temperature=0.5)
    assert float(found) == pytest.approx(total / 2, rel=1e-12)
    right, wrong = temporal_contrast_loss(t, t), temporal_contrast_loss(t.flip(1), t)
    assert right < wrong


def test_gradients_of_the_contrasts_are_right():
    assert torch.autograd.gradcheck(
        lambda q: semantic_contrast_loss(q, margin=-0.3), drawn(2, 4, 5).requires_grad_()
    )
    assert torch.autograd.gradcheck(
        temporal_contrast_loss,
        (drawn(2, 3, 5).requires_grad_(), drawn(2, 3, 5, seed=1).requires_grad_()),
    )


# whatever the order, and where there is nothing


def every_loss(outputs, targets, matches):
    masks, boxes_iou, objects, classes, queries = outputs
    return torch.stack(
        [
            *mask_losses(masks, targets, matches, points=POINTS, generator=seeded()),
            iou_loss(boxes_iou.sigmoid(), masks, targets, matches),
            objectness_loss(objects, matches),
            classification_loss(classes, targets, matches),
            classification_loss(classes, targets, matches, activation="softmax"),
            semantic_contrast_loss(queries, margin=-0.5),
            temporal_contrast_loss(queries, queries + 1),
        ]
    )


def outputs_of(dtype=torch.float64):
    return [
        drawn(WINDOWS, QUERIES, FRAMES, 6, 8, dtype=dtype),
        drawn(WINDOWS, QUERIES, seed=1, dtype=dtype),
        drawn(WINDOWS, QUERIES, 2, seed=2, dtype=dtype),
        drawn(WINDOWS, QUERIES, CLASSES, seed=3, dtype=dtype),
        drawn(WINDOWS, QUERIES, 16, seed=4, dtype=dtype),
    ]


def test_the_order_of_queries_and_objects_does_not_matter(batch):
    _, targets, matches = batch
    order, turned = torch.tensor([3, 5, 0, 1, 4, 2]), torch.tensor([2, 0, 1])
    place, object_place = order.argsort(), turned.argsort()
    moved = [
        # in the order of the first ones, so that the same points are drawn for each
        Matches(place[m.queries], object_place[m.objects]) if len(m.queries) else m
        for m in matches
    ]
    other = [Targets(t.masks[turned], t.classes[turned]) if len(t.classes) else t for t in targets]
    outputs = outputs_of()
    torch.testing.assert_close(
        every_loss([o[:, order] for o in outputs], other, moved),
        every_loss(outputs, targets, matches),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_any_object_losses_are_finite_and_gradients_too(dtype):
    nothing = [Targets(boxes(0).to(dtype), torch.zeros(0, dtype=torch.long))] * WINDOWS
    outputs = [o.requires_grad_() for o in outputs_of(dtype)]
    losses = every_loss(outputs, nothing, pairs(([], []), ([], [])))
    assert losses.dtype == dtype
    assert losses[:3].tolist() == [0, 0, 0]  # masks and IoU have nothing to learn from
    assert (losses[3:6] > 0).all()  # that there is no object is learned
    losses.sum().backward()
    for output in outputs:
        assert torch.isfinite(output.grad).all()
    assert not outputs[0].grad.any()
    unseen = torch.zeros(WINDOWS, QUERIES, dtype=torch.bool)
    alone = temporal_contrast_loss(outputs[4], outputs[4], unseen)
    assert float(alone.detach()) == 0
    assert torch.isfinite(torch.autograd.grad(alone, outputs[4])[0]).all()


def test_extreme_predictions_have_finite_losses_and_gradients(batch):
    _, targets, matches = batch
    targets = [Targets(targets[0].masks * 0, targets[0].classes), targets[1]]  # empty masks
    outputs = [(1e4 * o.sign()).requires_grad_() for o in outputs_of(torch.float32)]
    targets = [Targets(t.masks.float(), t.classes) for t in targets]
    losses = every_loss(outputs, targets, matches)
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    for output in outputs:
        assert torch.isfinite(output.grad).all()


def test_what_the_losses_ask_for_is_the_masks_of_a_video():
    videos = map(World("train", (48, 64), 2, seed=3).__getitem__, range(100))
    video = next(video for video in videos if len(video.categories) == 3)
    target, _ = window_targets(torch.from_numpy(video.masks), torch.from_numpy(video.categories))
    assert len(target.classes) >= 3
    masks = (0.1 * drawn(1, QUERIES, 2, 24, 32).float()).requires_grad_()
    objects = torch.zeros(1, QUERIES, 2, requires_grad=True)
    optimiser, generator = torch.optim.Adam([masks, objects], lr=0.6), seeded()
    for _ in range(40):
        scores = objects.detach().softmax(-1)[..., 0]
        found = match_queries(
            masks, [target], object_scores=scores, points=200, generator=generator
        )
        bce, dice = mask_losses(masks, [target], found, points=200, generator=generator)
        loss = 5 * bce + 5 * dice + 2 * objectness_loss(objects, found)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    is_object = objects.detach().softmax(-1)[0, :, 0] > 0.5
    assert is_object.nonzero()[:, 0].tolist() == found[0].queries.tolist()
    perfect = torch.ones(1, QUERIES)
    lost = iou_loss(perfect, masks.detach(), [target], found)
    assert float(lost) < 0.15  # what the stride-2 grid does not resolve
