"""InstFormer's parts at full size against the public implementations' numbers and open_clip itself.

The references are outputs on seeded weights: Mask2Former as MinVIS uses it, OpenAI's CLIP, and the
side adapter of SAN, the nearest public relative of instance guidance. Each stage is fed with the
reference's own input where there is one; errors are relative to the stage's largest value.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need the extra [export]")

from openvis_rt.checkpoints.weights import load_strictly  # noqa: E402
from openvis_rt.models.clip import encode_text, open_clip_model  # noqa: E402 - after the skip
from openvis_rt.models.clip_blocks import block_after  # noqa: E402
from openvis_rt.models.images import Normalise  # noqa: E402
from openvis_rt.models.instance_clip import (  # noqa: E402
    HIDDEN,
    InstanceClip,
    instances_after,
)
from openvis_rt.models.mask2former import mask2former  # noqa: E402
from openvis_rt.systems import VARIANTS  # noqa: E402
from openvis_rt.systems.instformer import Guidance  # noqa: E402

STAGE = 1e-5  # float32 sums in another order
CHAIN = (
    5e-5  # the same through CLIP's 12 blocks: open_clip in float32 and in float64 differ by 4e-5
)
END = 5e-3  # one attention-mask bit may flip on the way; see docs/parity.md
VARIANT = VARIANTS["instformer-r50"]


def need(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Arrays of a reference, or a skip."""
    file = folder / f"{name}.npz"
    if not file.is_file():
        pytest.skip(f"no {name}.npz in {folder}")
    with np.load(file) as content:
        return dict(content)


def recipe(folder: Path) -> ModuleType:
    """The module that rebuilds seeded weights."""
    spec = importlib.util.spec_from_file_location("seeded", folder / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(model: torch.nn.Module, folder: Path, name: str) -> None:
    """Seeded weights, strictly."""
    seeded, file = recipe(folder), folder / f"{name}.weights.json"
    state = seeded.state_dict(seeded.load(file))
    load_strictly(model, {k: torch.from_numpy(v) for k, v in state.items()}, file, name)


def check(stage: str, found: torch.Tensor, wanted: np.ndarray, gate: float = STAGE) -> None:
    assert tuple(found.shape) == wanted.shape
    error = float((found - torch.from_numpy(wanted)).abs().max() / np.abs(wanted).max())
    print(f"{stage:45s} {error:9.1e}  gate {gate:.0e}")
    assert error < gate, stage


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def clip(reference):
    """OpenAI's ViT-B/32 with the reference's weights, and its arrays."""
    arrays = need(reference, "clip-vit-b32")
    model = open_clip_model(VARIANT).eval()
    load(model, reference, "clip-vit-b32")
    return model, arrays


def instance_clip(clip, rule: Guidance | None = None) -> InstanceClip:
    return InstanceClip(clip[0].visual, clip[0].logit_scale, rule or Guidance())


def test_mask2former_gives_minviss_numbers(reference):
    arrays = need(reference, "minvis-r50")
    model = mask2former(VARIANT, classes=40, decoder_layers=9, queries=100).eval()
    load(model, reference, "minvis-r50")
    frames = torch.from_numpy(arrays["frames_uint8"]).permute(0, 2, 3, 1)
    normalise = Normalise(VARIANT.pixel_mean, VARIANT.pixel_std, VARIANT.size_divisor)
    images = normalise(frames)
    check("normalised images", images[:1], arrays["images_normalised"])
    features = model.backbone(torch.from_numpy(arrays["images_normalised"]))
    for name in ("res3", "res4", "res5"):
        check(f"backbone {name}", features[name], arrays[f"backbone/{name}"])
    _, memory = model.sem_seg_head.pixel_decoder(features)
    for level in range(2):
        wanted = arrays[f"pixel_decoder/multi_scale/{level}"]
        check(f"memory at stride {32 >> level}", memory[level], wanted)
    found = model(images)
    check("class logits", found.class_logits[None], arrays["head/pred_logits"], END)
    check("queries", found.queries.permute(2, 0, 1)[None], arrays["head/pred_embds"], END)
    check(
        "mask logits", found.mask_logits[:1].transpose(0, 1)[None], arrays["head/pred_masks"], END
    )


def test_plain_tokens_are_clips_block_by_block(clip):
    model, arrays = clip
    ours = instance_clip(clip)
    for frame in range(2):
        image = torch.from_numpy(arrays["preprocessed"][frame : frame + 1])
        plain, _ = ours.embed(image)
        check(f"frame {frame}: tokens before the blocks", plain, arrays["visual/ln_pre"][frame])
        for index, block in enumerate(model.visual.transformer.resblocks):
            plain = block_after(block, plain)
            wanted = arrays[f"visual/block{index}"][:, frame]
            check(f"frame {frame}: block {index}", plain, wanted)
            plain = torch.from_numpy(wanted)


def test_image_and_text_embeddings_are_clips(clip):
    model, arrays = clip
    images = torch.from_numpy(arrays["preprocessed"])
    wanted = model.encode_image(images)
    ours = instance_clip(clip)
    for frame in range(2):
        tokens = ours(images[frame : frame + 1], torch.zeros(5, 49))
        public = np.tile(arrays["image_features"][frame], (5, 1))
        check(f"frame {frame}: guidance 0, reference", tokens, public, CHAIN)
        check(f"frame {frame}: guidance 0, open_clip", tokens, wanted[[frame] * 5].numpy(), CHAIN)
    words = torch.from_numpy(arrays["tokens"]).long()
    text = encode_text(model, words)
    check("text embeddings, reference", text, arrays["text_features"], CHAIN)
    check("text embeddings, open_clip", text, model.encode_text(words).numpy(), CHAIN)


@pytest.mark.parametrize("kind", ["continuous", "binary"])
@pytest.mark.parametrize("first_block", [0, 9])
def test_sans_side_adapter_is_a_choice_of_guidance(clip, first_block, kind):
    """SAN's tokens are copies of the class token before `first_block`, and see it no more."""
    arrays, name = clip[1], f"san{first_block}"
    ours = instance_clip(clip, Guidance(first_block=first_block))
    heads = len(arrays[f"{name}/attn_bias_full"]) // 2
    forms = (ours.run, ours.run_full) if first_block else (ours.run,)  # the full one takes longer
    for form in forms:
        found = []
        for frame in range(2):
            bias = torch.from_numpy(arrays[f"{name}/attn_bias_full"][frame * heads, :10, 11:])
            guidance = bias if kind == "continuous" else (bias <= 0).float() * HIDDEN
            patches = torch.from_numpy(arrays[f"{name}/pix"][frame]).flatten(1).T
            plain = torch.cat((torch.from_numpy(arrays[f"{name}/cls_tok"][:, frame]), patches))
            tokens = form(plain, plain[:1].expand(10, -1), guidance)
            found.append(torch.nn.functional.normalize(tokens, dim=-1))
        wanted = arrays[f"{name}/sos_out_{kind}"]
        check(f"{name}, {kind}, {form.__name__}", torch.stack(found), wanted, CHAIN)


def test_the_cheap_form_is_the_full_mask_at_the_deployed_size(clip):
    """Each block to 1e-5. Through twelve of them either form's own rounding is 3e-4 in float32, so
    the whole is held in float64."""
    ours = instance_clip(clip)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 384, 640, generator=generator)
    guidance = (torch.randn(100, 240, generator=generator) * 8).clamp(-30, 30)
    mask = ours.full_mask(guidance)
    plain, instances = ours._begin(images, 100)
    for index, block in enumerate(ours.visual.transformer.resblocks):
        full = block_after(block, torch.cat((plain[:1], instances, plain[1:])), mask)
        instances = instances_after(block, torch.cat((instances, plain)), guidance)
        plain = block_after(block, plain)
        check(f"cheap form, block {index}: instances", instances, full[1:101].numpy())
        check(f"cheap form, block {index}: patches", plain[1:], full[101:].numpy())
    exact, images, guidance = (x.double() for x in (copy.deepcopy(ours), images, guidance))
    images, guidance = images[:, :, :192, :320], guidance[:, :60]  # a quarter of the work
    wanted = exact.forward_full(images, guidance).numpy()
    check("cheap form in float64, 12 blocks", exact(images, guidance), wanted, 1e-10)
