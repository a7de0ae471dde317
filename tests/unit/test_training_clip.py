"""The miniature CLIP's recipe: its loss against numpy, its windows and its captions."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra [export]")

import open_clip  # noqa: E402 - after the skip

from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.models.clip import EOT, ClipResNet, encode_image, encode_text  # noqa: E402
from openvis_rt.systems.system import CLIP_MEAN, CLIP_STD  # noqa: E402
from openvis_rt.training import clip as recipe  # noqa: E402
from openvis_rt.training import windows as windows_of_world  # noqa: E402
from openvis_rt.training.clip import (  # noqa: E402
    LONGEST,
    captions,
    cells_of,
    contrast,
    new_clip,
    of_cells,
    of_patches,
    pooled,
    train_clip,
    zero_shot_accuracy,
)
from openvis_rt.training.windows import Windows, draw_windows, stored_windows  # noqa: E402
from openvis_rt.training.world import WorldVideo  # noqa: E402
from openvis_rt.training.world_categories import BASE, CATEGORIES, NOVEL  # noqa: E402
from openvis_rt.vocabulary import VILD_PROMPTS  # noqa: E402

# the loss


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-(target * np.log(probabilities)).sum(1).mean())


@pytest.mark.parametrize("names", [(0, 1, 2, 3, 4), (0, 1, 0, 2, 0), (7, 7, 7, 7, 7)])
def test_captions_that_say_the_same_are_all_right_answers(names):
    logits = np.random.default_rng(0).normal(0, 3, (5, 5))
    same = np.array(names)[:, None] == np.array(names)[None]
    target = same / same.sum(1, keepdims=True)
    wanted = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    found = contrast(torch.from_numpy(logits), torch.from_numpy(same))
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_without_repeats_it_is_clips_own_loss():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.arange(6)
    rows, columns = (torch.nn.functional.cross_entropy(x, own) for x in (logits, logits.T))
    found = contrast(logits, torch.eye(6, dtype=torch.bool))
    assert float(found) == pytest.approx(float(rows + columns) / 2, rel=1e-12)


# pooling


def test_some_cells_are_pooled_as_clip_vis_pools_them_under_a_mask():
    clip = new_clip("resnet").eval()
    side = clip.visual.image_size
    pictures = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    kept = torch.rand(3, (side // 32) ** 2, generator=torch.Generator().manual_seed(1)) < 0.4
    kept[1] = True
    backbone = ClipResNet(clip)
    with torch.inference_mode():
        cells = cells_of(clip.visual, pictures)
        found = pooled(clip.visual, cells, kept)
        dense = backbone(pictures)["res5"]
        for number, mask in enumerate(kept):
            grid = mask.reshape(1, side // 32, side // 32)
            wanted = backbone.pool(dense[number : number + 1], grid)
            torch.testing.assert_close(found[number : number + 1], wanted, atol=1e-5, rtol=1e-4)
        everything = pooled(clip.visual, cells, torch.ones_like(kept))
    assert (everything - found).abs().amax(1).gt(1e-4).tolist() == [True, False, True]


def test_what_is_said_of_a_cell_is_the_pool_over_it_alone():
    visual = new_clip("resnet").eval().visual
    pictures = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cells = cells_of(visual, pictures)
        said = of_cells(visual, cells)
        for number in (0, 5, 15):
            only = torch.zeros(2, 16, dtype=torch.bool)
            only[:, number] = True
            torch.testing.assert_close(said[:, number], pooled(visual, cells, only))


def test_patches_are_taken_together_by_the_cells_that_they_lie_in():
    visual = new_clip("vit").eval().visual
    pictures = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = visual(pictures)
        visual.output_tokens = True
        _, patches = visual(pictures)
        seen, cells = of_patches(visual, pictures)
    assert torch.equal(seen, whole)
    patches = (patches @ visual.proj).reshape(2, 8, 8, -1)
    assert cells.shape == (2, 16, 128)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        of_cell = patches[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
        torch.testing.assert_close(cells[:, 4 * row + column], of_cell)


def test_a_teacher_is_for_the_transformer(tmp_path):
    with pytest.raises(InputError, match="a resnet learns by captions alone"):
        train_clip(
            "resnet",
            tmp_path / "run",
            iterations=1,
            batch=2,
            count=4,
            rate=1e-3,
            seed=0,
            teacher=tmp_path,
        )


# windows


def squares(*, second_seen: float) -> WorldVideo:
    """Two squares in four frames of 64 x 96 whose pixels tell where they are: frame, row, column.

    The first is seen whole, the second by a part; in the last frame nothing is seen.
    """
    frames, rows, columns = np.meshgrid(np.arange(4), np.arange(64), np.arange(96), indexing="ij")
    images = np.stack((frames, rows, columns), -1).astype(np.uint8)
    masks = np.zeros((2, 4, 64, 96), np.bool_)
    masks[0, :3, 20:36, 20:36] = True
    masks[1, :3, 20:36, 40:56] = True
    visible = np.array(((1, 1, 1, 0), (*[second_seen] * 3, 0)), np.float32)
    return WorldVideo("a", images, masks, np.array((BASE[3], NOVEL[5])), visible)


def test_a_window_is_a_part_of_its_frame_and_tells_what_is_in_it():
    video, told = squares(second_seen=1.0), set()
    for seed in range(30):
        windows = draw_windows(video, 40, np.random.default_rng(seed))
        assert windows.images.shape == (3, 40, 40, 3)  # of the last frame none
        assert windows.categories.dtype == np.int16
        for image, categories in zip(windows.images, windows.categories, strict=True):
            frame, top, left = image[0, 0].tolist()
            part = np.s_[frame, top : top + 40, left : left + 40]
            np.testing.assert_array_equal(image, video.images[part])
            inside = [mask[part].sum() > 0.7 * mask[frame].sum() for mask in video.masks]
            wanted = [int(c) for c, there in zip(video.categories, inside, strict=True) if there]
            assert [c for c in categories.tolist() if c >= 0] == wanted
            told.add(tuple(wanted))
    assert told == {(BASE[3],), (NOVEL[5],), (BASE[3], NOVEL[5])}


def test_what_is_hidden_is_not_named():
    video = squares(second_seen=0.5)
    for seed in range(10):
        windows = draw_windows(video, 32, np.random.default_rng(seed))
        assert set(windows.categories.flatten().tolist()) <= {BASE[3], -1}
    nothing = draw_windows(
        WorldVideo("a", video.images, video.masks, video.categories, video.visible * 0),
        32,
        np.random.default_rng(0),
    )
    assert nothing.images.shape == (0, 32, 32, 3)
    assert nothing.categories.shape == (0, 2)


def test_windows_are_drawn_once_and_belong_to_their_seed_and_size(tmp_path, monkeypatch):
    first = stored_windows(tmp_path, 6, 64, 0)
    assert first.images.shape == (6, 64, 64, 3)
    assert (first.categories[:, 0] >= 0).all()
    others = stored_windows(tmp_path, 6, 64, 1), stored_windows(tmp_path, 6, 48, 0)
    assert others[1].images.shape == (6, 48, 48, 3)
    assert not np.array_equal(first.images, others[0].images)
    monkeypatch.setattr(windows_of_world, "draw_windows", None)  # not needed any more
    again = stored_windows(tmp_path, 6, 64, 0)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.categories, again.categories)


def test_windows_that_were_not_finished_leave_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("the power went out")

    monkeypatch.setattr(windows_of_world, "draw_windows", fail)
    with pytest.raises(RuntimeError):
        stored_windows(tmp_path, 6, 64, 0)
    assert list(tmp_path.iterdir()) == []


def test_fewer_windows_than_a_batch_are_refused(tmp_path):
    with pytest.raises(InputError, match="an iteration of 8 windows needs as many; found 4"):
        train_clip("vit", tmp_path / "run", iterations=1, batch=8, count=4, rate=1e-3, seed=0)


# captions


def test_a_caption_names_all_objects_in_any_order():
    rng = np.random.default_rng(0)
    pairs = np.array([(BASE[0], NOVEL[0])] * 40 + [(-1, BASE[9])] * 10, np.int16)
    sentences = captions(pairs, rng)
    first, second, alone = (CATEGORIES[i].phrase for i in (BASE[0], NOVEL[0], BASE[9]))
    orders = set()
    for sentence in sentences[:40]:
        orders.add(sentence.index(first) < sentence.index(second))
        assert " and a " in sentence
    assert orders == {False, True}
    assert all(alone in sentence and " and a " not in sentence for sentence in sentences[40:])
    assert len(set(sentences[40:])) > 3  # in several sentences


def test_every_caption_ends_within_what_is_read_of_it():
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    phrases = sorted((c.phrase for c in CATEGORIES), key=lambda p: (tokenize([p]) > 0).sum().item())
    longest = " and a ".join(phrases[-2:])
    tokens = tokenize([prompt.format(longest) for prompt in VILD_PROMPTS])
    assert (tokens[:, :LONGEST] == EOT).any(1).all()
    assert not tokens[:, LONGEST:].any()


def test_a_short_row_of_tokens_has_the_embedding_of_the_long_one():
    clip = new_clip("vit").eval()
    tokens = open_clip.get_tokenizer("ViT-B-32")(
        ["a photo of a striped star.", "fish", "This is one small blue moon and a giant key."]
    )
    with torch.inference_mode():
        short, long = (encode_text(clip, tokens[:, :length]) for length in (LONGEST, 77))
    # the padding comes after the end, which never sees it; sums of other lengths round otherwise
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
    assert (long[0] - long[1]).abs().max() > 1e-2


def test_pictures_and_phrases_are_embedded_as_open_clip_does():
    """Only the queries are scaled, and the last block is computed for one token."""
    clip = new_clip("vit").eval()
    side = clip.visual.image_size[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, side, side, generator=generator)
    tokens = open_clip.get_tokenizer("ViT-B-32")(["a striped star.", "fish"])
    with torch.inference_mode():
        for found, wanted in (
            (encode_image(clip.visual, images), clip.encode_image(images)),
            (encode_text(clip, tokens), clip.encode_text(tokens)),
        ):
            assert (wanted[0] - wanted[1]).abs().max() > 1e-2
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# the measure


class ReadsRed:
    """In place of a CLIP: what a window's red says is the place of the nearest text."""

    def visual(self, images):
        red = images[:, 0].mean((1, 2)) * CLIP_STD[0] + CLIP_MEAN[0]
        return torch.nn.functional.one_hot(red.round().long(), len(CATEGORIES)).float()


def test_accuracy_is_of_windows_with_one_object_by_base_and_novel(monkeypatch):
    monkeypatch.setattr(recipe, "class_embeddings", lambda _: torch.eye(len(CATEGORIES)))
    base, novel = BASE[2], NOVEL[2]
    said = [base, base + 1, base, novel, novel]
    truth = [(base, -1), (base, -1), (base, -1), (novel, -1), (base, novel)]
    images = np.zeros((5, 10, 10, 3), np.uint8)
    images[:, 1:9, 1:9, 0] = np.array(said)[:, None, None]  # the rim is not seen
    found = zero_shot_accuracy(ReadsRed(), Windows(images, np.array(truth, np.int16)), 8)
    assert found["top1"] == pytest.approx(75)
    assert found["top1, base"] == pytest.approx(200 / 3)
    assert found["top1, novel"] == pytest.approx(100)
    assert 75 <= found["top5"] <= 100
