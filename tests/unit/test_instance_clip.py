"""InstCLIP on a small ViT: it is CLIP where it must be, and instances see what they may see."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need the extra [export]")

from tiny_instformer import (  # noqa: E402 - after the skip
    CONFIG,
    EMBED,
    PATCH,
    QUERIES,
    SIDE,
    WIDTH,
    tiny_clip,
    tiny_instformer,
    tiny_proposal,
)

from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.models.instance_clip import (  # noqa: E402
    HIDDEN,
    InstanceClip,
    guidance_mask,
    instances_after,
    position_table,
)
from openvis_rt.models.instformer import object_logits  # noqa: E402
from openvis_rt.models.mask2former import Mask2Former  # noqa: E402
from openvis_rt.records import json_from_record, record_from_json  # noqa: E402
from openvis_rt.systems.instformer import Guidance, InstFormerConfig  # noqa: E402

ROUNDING = 1e-5  # of float32 sums in another order, relative to the largest value
GRID = (3, 4)  # rows and columns of a frame that is not CLIP's square


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def instance_clip(rule: Guidance | None = None, *, seed: int = 0, blocks: int = 3) -> InstanceClip:
    clip = tiny_clip(seed, blocks=blocks)
    return InstanceClip(clip.visual, clip.logit_scale, rule or Guidance())


def pictures(grid: tuple[int, int] = GRID, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, grid[0] * PATCH, grid[1] * PATCH, generator=generator)


def random_guidance(count: int, patches: int = GRID[0] * GRID[1], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, patches, generator=generator) * 5


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


# it is CLIP


def test_without_guidance_an_instance_is_clips_image_embedding():
    clip = tiny_clip()
    model = InstanceClip(clip.visual, clip.logit_scale, Guidance())
    images = pictures((3, 3))
    assert images.shape[-2:] == (SIDE, SIDE)
    wanted = clip.encode_image(images)
    found = model(images, torch.zeros(5, 9))
    error = relative(found, wanted.expand(5, -1))
    print(f"against open_clip's encode_image: {error:.1e}")
    assert error < ROUNDING


def test_on_another_grid_it_is_open_clip_built_for_that_grid():
    clip, other = tiny_clip(), tiny_clip()
    table = clip.visual.positional_embedding
    resampled = torch.cat((table[:1], position_table(table[1:], *GRID)))
    other.visual.positional_embedding = torch.nn.Parameter(resampled, requires_grad=False)
    other.visual.image_size = (GRID[0] * PATCH, GRID[1] * PATCH)
    model = InstanceClip(clip.visual, clip.logit_scale, Guidance())
    images = pictures()
    assert relative(model(images, torch.zeros(2, 12)), other.encode_image(images)) < ROUNDING


def test_the_position_table_is_itself_on_its_own_grid_and_bicubic_elsewhere():
    table = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0))
    assert position_table(table, 3, 3) is table
    ramp = torch.arange(3.0).repeat(3)[:, None]  # column index; rows first
    wide = position_table(ramp, 3, 6).view(3, 6)
    assert torch.equal(wide[0], wide[2])
    assert (wide[0].diff() > 0).all()
    constant = position_table(torch.ones(9, 2), 5, 7)
    assert constant.shape == (35, 2)
    np.testing.assert_allclose(constant, 1, atol=1e-6)  # bicubic weights sum to 1
    assert position_table(table, 1, 1).shape == (1, WIDTH)


def test_logits_are_scaled_cosines_and_the_scale_is_clips_own():
    clip = tiny_clip()
    model = InstanceClip(clip.visual, clip.logit_scale, Guidance())
    tokens = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    clip.logit_scale.fill_(np.log(10))
    np.testing.assert_allclose(model.logits(tokens, text), [[6, 8], [0, 0]], rtol=1e-6)
    clip.logit_scale.fill_(7)  # exp(7) is above 100
    np.testing.assert_allclose(model.logits(tokens, text)[0], [60, 80], rtol=1e-6)


def test_unprojected_tokens_are_projected_for_the_logits_alone():
    plain, wide = instance_clip(), instance_clip(Guidance(projected=False))
    images, guidance = pictures(), random_guidance(4)
    a, b = plain(images, guidance), wide(images, guidance)
    assert a.shape == (4, EMBED)
    assert b.shape == (4, WIDTH)
    text = torch.nn.functional.normalize(torch.randn(3, EMBED), dim=-1)
    assert relative(wide.logits(b, text), plain.logits(a, text)) < ROUNDING


# the cheap form is the paper's equation


@pytest.mark.parametrize("sees_register", [False, True])
@pytest.mark.parametrize("first_block", [0, 1, 2])
@pytest.mark.parametrize("values", ["logit", "binary"])
def test_the_cheap_form_is_the_full_mask(sees_register, first_block, values):
    rule = Guidance(sees_register=sees_register, first_block=first_block, values=values)
    model = instance_clip(rule)
    model.set_tokens(torch.randn(WIDTH), torch.randn(WIDTH))  # as if they had been trained
    guidance = random_guidance(7)
    if values == "binary":
        guidance = (guidance <= 0).float() * HIDDEN
    images = pictures()
    error = relative(model(images, guidance), model.forward_full(images, guidance))
    print(f"cheap form against full mask: {error:.1e}")
    assert error < ROUNDING


@pytest.mark.parametrize("sees_register", [False, True])
def test_the_full_mask_is_the_modules_table(sees_register):
    guidance = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    r, h = (0.0 if sees_register else HIDDEN), HIDDEN
    np.testing.assert_array_equal(
        instance_clip(Guidance(sees_register=sees_register)).full_mask(guidance),
        [
            [0, h, h, 0, 0, 0],  # register
            [r, 0, h, 1, 2, 3],  # instances: themselves, no other, patches by guidance
            [r, h, 0, 4, 5, 6],
            [0, h, h, 0, 0, 0],  # patches
            [0, h, h, 0, 0, 0],
            [0, h, h, 0, 0, 0],
        ],
    )


def test_the_choices_make_a_difference():
    images, guidance = pictures(), random_guidance(3)
    base = instance_clip()(images, guidance)
    for rule in (Guidance(sees_register=True), Guidance(first_block=1)):
        assert relative(instance_clip(rule)(images, guidance), base) > 1e-3
    assert relative(instance_clip()(images, guidance * 0), base) > 1e-3


def test_trained_tokens_are_used():
    images, guidance = pictures(), random_guidance(2)
    model = instance_clip()
    base = model(images, guidance)
    model.set_tokens(instance=torch.randn(WIDTH))
    assert relative(model(images, guidance), base) > 1e-3
    model.set_tokens()
    assert torch.equal(model(images, guidance), base)


# what an instance depends on


def outside_changed(plain: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The register and the patches outside replaced by others."""
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9)) * 3
    keep = torch.cat((torch.zeros(1, dtype=torch.bool), inside))
    return torch.where(keep[:, None], plain, noise)


@pytest.fixture
def hard_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """One object of five patches on the grid: which they are, and its binary guidance."""
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[:2, 1:3] = inside[2, 1] = True
    logits = torch.where(inside, 4.0, -4.0).repeat_interleave(8, 0).repeat_interleave(8, 1)
    return inside.flatten(), guidance_mask(logits[None], GRID, Guidance(values="binary"))


def picture_changed_outside(inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = pictures()
    keep = inside.view(GRID).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return images, torch.where(keep, images, pictures(seed=5))


def test_in_one_block_nothing_outside_a_hard_mask_matters(hard_mask):
    """A patch's own embedding holds its own pixels alone, so here nothing may change at all."""
    inside, guidance = hard_mask
    model = instance_clip(blocks=1)
    before, after = (model(images, guidance) for images in picture_changed_outside(inside))
    assert torch.equal(before, after)


def test_with_the_register_seen_only_what_the_register_carries_may_change(hard_mask):
    inside, guidance = hard_mask
    model = instance_clip(Guidance(sees_register=True), blocks=1)
    plain, instance = model.embed(pictures())
    base = model.run(plain, instance, guidance)
    other = outside_changed(plain, inside)
    assert relative(model.run(other, instance, guidance), base) > 1e-4
    other[0] = plain[0]
    assert torch.equal(model.run(other, instance, guidance), base)


def test_in_deeper_blocks_only_what_the_seen_patches_carry_may_change(hard_mask):
    """Patches look at each other, so from the second block on the seen ones carry the outside. With
    their keys and values held, block by block, the instance does not change by a bit."""
    inside, guidance = hard_mask
    images, changed = picture_changed_outside(inside)
    model = instance_clip()
    assert relative(model(changed, guidance), model(images, guidance)) > 1e-4  # it may change

    plain, instance = model.embed(images)
    held = instance.clone()
    for index, block in enumerate(model.visual.transformer.resblocks):
        instance = instances_after(block, torch.cat((instance, plain)), guidance)
        held = instances_after(block, torch.cat((held, outside_changed(plain, inside))), guidance)
        assert torch.equal(instance, held), f"block {index}"
        plain = block(plain[None])[0]  # plain CLIP


def test_an_instance_does_not_depend_on_the_others_nor_on_its_place():
    model, images, guidance = instance_clip(), pictures(), random_guidance(6)
    base = model(images, guidance)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert relative(model(images, guidance[order]), base[order]) < ROUNDING
    for i in range(6):
        assert relative(model(images, guidance[i : i + 1]), base[i : i + 1]) < ROUNDING
    full = model.forward_full(images, guidance[order])
    assert relative(full, base[order]) < ROUNDING


# the edges


def test_no_instances_are_no_rows():
    model = instance_clip()
    assert model(pictures(), torch.zeros(0, 12)).shape == (0, EMBED)
    assert model.forward_full(pictures(), torch.zeros(0, 12)).shape == (0, EMBED)
    assert model.logits(torch.zeros(0, EMBED), torch.zeros(4, EMBED)).shape == (0, 4)
    for to_grid in ("area", "bilinear", "max"):
        rule = Guidance(to_grid=to_grid)
        assert guidance_mask(torch.zeros(0, 8, 16), (1, 2), rule).shape == (0, 2)


@pytest.mark.parametrize("values", ["logit", "binary"])
def test_empty_masks_give_finite_tokens(values):
    rule = Guidance(values=values)
    guidance = guidance_mask(torch.full((4, 24, 32), -1e4), GRID, rule)
    assert float(guidance.min()) == float(guidance.max()) == (-30 if values == "logit" else -100)
    tokens = instance_clip(rule)(pictures(), guidance)
    assert torch.isfinite(tokens).all()
    assert relative(tokens[1:], tokens[:1].expand(3, -1)) < ROUNDING  # they see themselves alone


# guidance, by hand


MASK = torch.tensor(
    [
        [
            [1.0, 3.0, -2.0, -4.0, -8.0, -8.0, 0.0, 0.0],
            [5.0, 7.0, -6.0, -8.0, -8.0, 40.0, 0.0, 0.0],
            [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0],
            [9.0, 9.0, 9.0, 9.0, 5.0, 6.0, 7.0, 8.0],
        ]
    ]
)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (Guidance(), [-0.5, 2, 9, 4.5]),  # averages of 2 x 4 cells: (16 - 20) / 8, 16 / 8, ...
        # centres lie between the second and third column of four: (3 - 2 + 7 - 6) / 4, ...
        (Guidance(to_grid="bilinear"), [0.5, 8, 9, 4.5]),
        (Guidance(to_grid="max"), [7, 30, 9, 8]),  # 40 is clamped
        (Guidance(to_grid="max", clamp=8), [7, 8, 8, 8]),
        (Guidance(scale=2), [-1, 4, 18, 9]),
        (Guidance(scale=-1, clamp=3), [0.5, -2, -3, -3]),
        (Guidance(values="binary"), [HIDDEN, 0, 0, 0]),
        (Guidance(values="binary", scale=-5, clamp=1), [HIDDEN, 0, 0, 0]),  # of no effect
    ],
    ids=str,
)
def test_guidance_by_hand(rule, wanted):
    np.testing.assert_allclose(guidance_mask(MASK, (2, 2), rule), [wanted], rtol=1e-6)


def test_a_logit_of_zero_is_outside_a_binary_mask():
    rule = Guidance(values="binary")
    assert guidance_mask(torch.zeros(1, 2, 2), (1, 1), rule).item() == HIDDEN


def test_guidance_is_row_by_row():
    mask = torch.arange(6.0).view(1, 2, 3)
    np.testing.assert_array_equal(guidance_mask(mask, (2, 3), Guidance()), [[0, 1, 2, 3, 4, 5]])


def test_object_logits_are_of_any_class_against_none():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [5.0, 5.0, -5.0, 0.0]])
    share = logits.softmax(-1)
    found = object_logits(logits).softmax(-1)
    np.testing.assert_allclose(found[:, 1], share[:, 3], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], share[:, :3].sum(1), rtol=1e-6)
    agnostic = torch.tensor([[2.0, -1.0]])
    assert torch.equal(object_logits(agnostic), agnostic)


# the configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"to_grid": "nearest"}, "area, bilinear, max"),
        ({"values": "soft"}, "logit, binary"),
        ({"clamp": 0.0}, "clamp"),
        ({"clamp": float("nan")}, "clamp"),
        ({"scale": float("inf")}, "scale"),
        ({"first_block": -1}, "first_block"),
        ({"first_block": 1.5}, "first_block"),
        ({"scale": "1"}, "scale"),
        ({"scale": True}, "scale"),
        ({"sees_register": 1}, "sees_register"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused_by_its_name(fields, message):
    with pytest.raises(InputError, match=message):
        Guidance(**fields)
    with pytest.raises(InputError, match=message):
        record_from_json(InstFormerConfig, {"guidance": fields})


@pytest.mark.parametrize(
    "entry",
    [
        {"colour": 1},
        {"guidance": {"colour": 1}},
        {"guidance": [1]},
        {"guidance": None},
        {"video_score": "max"},
        {"queries": 0},
        {"classes": "many"},
        {"quick_gelu": "yes"},
        [],
        None,
        3,
    ],
    ids=str,
)
def test_a_malformed_configuration_is_refused(entry):
    with pytest.raises(InputError):
        record_from_json(InstFormerConfig, entry)


def test_a_configuration_survives_json():
    config = InstFormerConfig(
        guidance=Guidance(to_grid="max", values="binary", scale=2, sees_register=True),
        video_score="mean-logits-objectness",
        normalise_parts=False,
        quick_gelu=False,
        classes=80,
    )
    text = json.dumps(json_from_record(config))
    assert record_from_json(InstFormerConfig, json.loads(text)) == config
    assert record_from_json(InstFormerConfig, {}) == InstFormerConfig()


def test_instances_cannot_begin_behind_the_last_block():
    with pytest.raises(InputError, match="3 blocks"):
        instance_clip(Guidance(first_block=3))


# the whole model


@pytest.mark.parametrize("size", [(60, 90), (64, 96), (5, 7), (1, 1), (33, 200)])
def test_frames_of_any_size_are_padded_to_patches(size):
    model = tiny_instformer()
    frames = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    found = model.propose(frames)
    grid = tuple(-(-side // PATCH) for side in size)
    assert found["guidance_mask"].shape == (QUERIES, grid[0] * grid[1])
    assert found["mask_logits"].shape == (QUERIES, 1, grid[0] * 8, grid[1] * 8)
    assert found["queries"].shape == (QUERIES, 256)
    assert found["object_logits"].shape == (QUERIES, 2)
    assert found["mask_area"].shape == (QUERIES,)
    text = torch.nn.functional.normalize(torch.randn(4, EMBED), dim=-1)
    scored = model.classify(frames, found["guidance_mask"], text)
    tokens, logits = scored["instance_tokens"], scored["class_scores"]
    assert tokens.shape == (QUERIES, EMBED)
    assert logits.shape == (QUERIES, 4)
    assert torch.isfinite(tokens).all()
    assert torch.isfinite(logits).all()
    assert model.tracking_width == 256 + EMBED


def test_one_query_is_enough():
    model = tiny_instformer(replace(CONFIG, queries=1))
    frames = torch.randint(0, 256, (1, 40, 50, 3), dtype=torch.uint8)
    found = model.propose(frames)
    scored = model.classify(frames, found["guidance_mask"], torch.eye(EMBED))
    tokens = scored["instance_tokens"]
    assert tokens.shape == (1, EMBED)
    assert torch.isfinite(tokens).all()


def test_seeded_tokens_are_clips_class_token():
    model = tiny_instformer()
    token = model.clip_model.visual.class_embedding
    assert torch.equal(model.instance_clip.register_token, token)
    assert torch.equal(model.instance_clip.instance_token, token)
    assert model.instance_clip.log_scale is model.clip_model.logit_scale
    assert model.recurrence == {}


def test_the_proposal_network_has_the_official_keys():
    keys = tiny_proposal().state_dict().keys()
    assert isinstance(tiny_proposal(), Mask2Former)
    assert {
        "backbone.stem.conv1.norm.running_var",
        "backbone.res5.0.shortcut.weight",
        "sem_seg_head.pixel_decoder.adapter_1.weight",
        "sem_seg_head.predictor.class_embed.bias",
        "sem_seg_head.predictor.query_feat.weight",
    } <= keys
