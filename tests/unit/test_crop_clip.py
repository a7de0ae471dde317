"""Crops against a plain loop over pixels, and MinVIS-CLIP from PyTorch through ONNX to a video."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the model is PyTorch's")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn of while they are imported
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

import onnxruntime  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from openvis_rt import Pipeline, Selection, TrackingOptions  # noqa: E402
from openvis_rt.bundle.bundle import Bundle  # noqa: E402
from openvis_rt.errors import InputError  # noqa: E402
from openvis_rt.export.bundle import export_bundle  # noqa: E402
from openvis_rt.export.fp16.convert import fp16_from_fp32  # noqa: E402
from openvis_rt.export.fp16.keeps import GraphView  # noqa: E402
from openvis_rt.export.graph_module import GraphModule  # noqa: E402
from openvis_rt.export.onnx_export import onnx_from_module  # noqa: E402
from openvis_rt.models.instformer import InstFormer  # noqa: E402
from openvis_rt.models.mask2former import ClassDecoder, Mask2Former  # noqa: E402
from openvis_rt.models.minvis_clip import (  # noqa: E402
    CropConfig,
    MaskedCrops,
    MinVisClip,
    boxes_of,
)
from openvis_rt.models.pixel_decoder import PixelDecoder  # noqa: E402
from openvis_rt.models.resnet import ResNet  # noqa: E402
from openvis_rt.systems import SYSTEMS, VARIANTS  # noqa: E402
from openvis_rt.systems.instformer import InstFormerConfig  # noqa: E402

FRAME = (28, 45)  # of a padded frame of 32x64: 4 rows and 19 columns of padding
GRID = (8, 16)
SIZE = 24
MEAN = (122.7709383, 116.7460125, 104.09373615)
STD = (68.5005327, 66.6321579, 70.32316305)
VARIANT = replace(
    VARIANTS["minvis-clip-r50"],
    backbone="tiny",
    clip="none",
    embed_dim=32,
    feature_channels=(16, 32, 64, 128),
    short_side=60,
    max_side=160,
)


def masks_by_hand():
    """Logits float32 [6, 1, 8, 16] of masks that try every border; +-1 is far from 0."""
    masks = -np.ones((6, 1, *GRID), np.float32)
    masks[0, 0, 2:5, 3:9] = 1  # inside the frame, wide
    masks[1, 0, 5:8, 0:2] = 1  # at the left and lower borders, into the padding
    masks[2, 0, 3, 5] = 1  # one cell
    masks[3] = 1  # the whole frame
    masks[5, 0, 0:7, 10:11] = 1  # high, at the upper border
    return torch.from_numpy(masks)  # 4 has no pixel


def picture(seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (1, *FRAME, 3)).astype(np.uint8))


def crop_by_hand(frame, mask, background):
    """One crop, float64 [3, SIZE, SIZE]: cut the square out pixel by pixel, then sample."""
    height, width, _ = frame.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, high, left, wide = 0, height, 0, width
    if len(rows):
        top, high = rows[0], rows[-1] + 1 - rows[0]
        left, wide = columns[0], columns[-1] + 1 - columns[0]
    side = max(high, wide)
    top, left = top - -((high - side) // 2), left - -((wide - side) // 2)
    values = np.asarray(frame, np.float64)
    if background == "mean":
        values = (values - MEAN) / STD
    square = np.zeros((side, side, 3))
    for y in range(side):
        for x in range(side):
            at = top + y, left + x
            if 0 <= at[0] < height and 0 <= at[1] < width and mask[at]:
                square[y, x] = values[at]
    out = np.zeros((SIZE, SIZE, 3))
    for y in range(SIZE):
        for x in range(SIZE):
            out[y, x] = sample(square, (y + 0.5) * side / SIZE - 0.5, (x + 0.5) * side / SIZE - 0.5)
    if background == "black":
        out = (out - MEAN) / STD
    return out.transpose(2, 0, 1)


def sample(square, y, x):
    """Bilinear, held at the border."""
    last = len(square) - 1
    y, x = min(max(y, 0), last), min(max(x, 0), last)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, last), min(x0 + 1, last)
    above = square[y0, x0] * (1 - (x - x0)) + square[y0, x1] * (x - x0)
    below = square[y1, x0] * (1 - (x - x0)) + square[y1, x1] * (x - x0)
    return above * (1 - (y - y0)) + below * (y - y0)


def pixel_masks(mask_logits):
    """Bool [N, H, W] as the reference has them: interpolated by torch, cut."""
    padded = [4 * side for side in mask_logits.shape[-2:]]
    full = F.interpolate(mask_logits, size=padded, mode="bilinear", align_corners=False)
    return (full[:, 0, : FRAME[0], : FRAME[1]] > 0).numpy()


@pytest.mark.parametrize("background", ["black", "mean"])
def test_crops_are_those_of_a_loop_over_pixels(background):
    frame, logits = picture(), masks_by_hand()
    found = MaskedCrops(SIZE, CropConfig(background))(frame, logits).numpy()
    masks = pixel_masks(logits)
    assert masks[0].any()
    assert masks[3].all()
    assert not masks[4].any()
    for index, mask in enumerate(masks):
        wanted = crop_by_hand(frame[0].numpy(), mask, background)
        # 0..255 / 68 in float32, and weights of coordinates up to 64: 1e-5 of a value of 2
        np.testing.assert_allclose(found[index], wanted, atol=1e-4, err_msg=f"mask {index}")


def test_a_square_crop_of_the_frame_is_torchs_interpolation():
    frame = picture()
    logits = -torch.ones(1, 1, *GRID)
    logits[0, 0, 1:5, 2:6] = 1  # edges interpolate to whole cells of 4 pixels
    mask = pixel_masks(logits)[0]
    box = np.argwhere(mask)
    (top, left), (bottom, right) = box.min(0), box.max(0) + 1
    assert bottom - top == right - left
    pixels = (frame[0] * torch.from_numpy(mask)[..., None]).float().permute(2, 0, 1)[None]
    cut = pixels[..., top:bottom, left:right]
    wanted = F.interpolate(cut, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    wanted = (wanted - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    found = MaskedCrops(SIZE, CropConfig())(frame, logits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "start", "side"),
    [
        ([(3, 4)], (3, 4), 1),
        ([(0, 0), (2, 9)], (-4, 0), 10),  # 3 high, 10 wide: 4 rows above, 3 below
        ([(0, 0), (11, 14)], (-2, 0), 15),
        ([], (-2, 0), 15),  # the whole frame
        ([(5, 14), (11, 14)], (5, 11), 7),  # over the right border
    ],
)
def test_boxes_of_masks(pixels, start, side):
    mask = torch.zeros(1, 12, 15)
    for y, x in pixels:
        mask[0, y, x] = 1
    found, length = boxes_of(mask)
    assert found.tolist() == [list(start)]
    assert length.item() == side


def test_an_unknown_background_is_refused():
    with pytest.raises(InputError, match="black, mean; got 'grey'"):
        CropConfig("grey")


def tiny(queries=6):
    """The baseline in small, over a tiny InstFormer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIP(
            VARIANT.embed_dim,
            CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=SIZE),
            CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=1),
            quick_gelu=True,
        )
        predictor = ClassDecoder(classes=1, layers=1, queries=queries)
        backbone = ResNet((1, 1, 1, 1), VARIANT.feature_channels)
        proposal = Mask2Former(backbone, predictor, PixelDecoder(backbone.channels, layers=1))
        torch.nn.init.normal_(clip.visual.positional_embedding, std=0.5)
    model = InstFormer(VARIANT, InstFormerConfig(queries=queries), clip, proposal)
    return MinVisClip.from_instformer(model, variant=VARIANT)


@pytest.fixture(scope="module")
def model():
    return tiny()


def texts(count=5):
    rows = torch.from_numpy(np.random.default_rng(3).standard_normal((count, 32), np.float32))
    return rows / rows.norm(dim=1, keepdim=True)


def classified(model, frame, logits):
    """Instance tokens and class scores."""
    found = model.classify(frames=frame, mask_logits=logits, text_embeddings=texts())
    assert list(found) == [t.name for t in SYSTEMS["minvis-clip"].graphs["classify"].outputs]
    return tuple(found.values())


def test_tokens_are_clips_own_of_each_crop(model):
    frame, logits = picture(), masks_by_hand()
    tokens, scores = classified(model, frame, logits)
    crops = model.crops(frame, logits)
    for index in range(len(logits)):
        wanted = model.clip_model.encode_image(crops[index : index + 1])[0]
        torch.testing.assert_close(tokens[index], wanted, rtol=0, atol=1e-5)  # another batch size
    cosine = F.cosine_similarity(tokens[:, None], texts()[None], dim=-1)
    scale = min(100.0, float(model.clip_model.logit_scale.exp()))
    torch.testing.assert_close(scores, scale * cosine, rtol=0, atol=1e-4)


def test_permuted_masks_give_permuted_tokens(model):
    frame, logits = picture(), masks_by_hand()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    tokens, scores = classified(model, frame, logits)
    permuted = classified(model, frame, logits[order])
    torch.testing.assert_close(permuted[0], tokens[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted[1], scores[order], rtol=0, atol=1e-4)


def test_what_is_outside_a_mask_does_not_matter(model):
    frame, logits = picture(), masks_by_hand()
    mask = torch.from_numpy(pixel_masks(logits)[0])
    other = torch.where(mask[..., None], frame[0], picture(seed=1)[0])[None]
    one = classified(model, frame, logits[:1])
    two = classified(model, other, logits[:1])
    assert torch.equal(one[0], two[0])


def sized(count, height=FRAME[0], width=FRAME[1], grid=GRID):
    return (
        SYSTEMS["minvis-clip"]
        .graphs["classify"]
        .with_sizes(
            {
                "N": count,
                "T": 1,
                "H": height,
                "W": width,
                "h": grid[0],
                "w": grid[1],
                "D": 32,
                "Dt": 32,
            }
        )
    )


@pytest.mark.parametrize("count", [1, 6])
def test_onnx_runtime_gives_pytorchs_numbers(model, count):
    spec = sized(count)
    graph = onnx_from_module(GraphModule(model, spec), spec)
    data_dependent = {"NonZero", "Loop", "If", "Scan", "GridSample", "ScatterND"}
    assert not data_dependent & {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for logits in (masks_by_hand()[:count], masks_by_hand()[-count:], masks_by_hand() * 0 - 1):
        inputs = (picture(seed=2), logits[:count], texts())
        wanted = classified(model, *inputs[:2])
        given = {t.name: x.numpy() for t, x in zip(spec.inputs, inputs, strict=True)}
        found = session.run(None, given)
        assert np.isfinite(found[0]).all()
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)  # tokens are of order 1
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-3)  # times 14, over the norm


def test_fp16_computes_the_crops_in_fp32(model):
    spec = sized(6)
    half = fp16_from_fp32(onnx_from_module(GraphModule(model, spec), spec), spec)
    assert half.kept["crops"] > 40
    view = GraphView(half.model.graph)
    [conv] = [i for i, node in enumerate(view.nodes) if node.op_type == "Conv"]
    before = [view.nodes[i] for i in view.upstream(view.nodes[conv].input[0], until=())]
    assert len(before) > 5
    narrow = [node.name for node in view.nodes[:conv] if in_fp16(view, node)]
    assert [name for name in narrow if "cast" not in name] == []  # the crops, for the convolution


def in_fp16(view, node):
    return any(view.types.get(name) == 10 for name in (*node.input, *node.output))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("minvis") / "bundle"
    export_bundle(model, path, network_size=(60, 90), checkpoint={"random_weights": 0})
    return Bundle.open(path)


def test_a_bundle_runs_through_the_same_runtime(bundle, tmp_path):
    assert bundle.manifest.tracker == SYSTEMS["minvis-clip"].tracker
    np.save(tmp_path / "rows.npy", texts(2).numpy())
    rng = np.random.default_rng(0)
    with Pipeline.open(
        bundle,
        vocabulary=("disc", "box"),
        classifier=tmp_path / "rows.npy",
        backend="onnxruntime",
        selection=Selection(threshold=0.0),
    ) as pipeline:
        for _ in range(3):
            pipeline.step(rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
        video = pipeline.finish()
    assert video.frame_count == 3
    assert 0 < len(video.instances) <= VARIANT.detections


def test_t_and_k_are_refused(bundle):
    with pytest.raises(InputError, match="momentum has no frames; it has alpha"):
        Pipeline.open(bundle, vocabulary=("disc",), tracking=TrackingOptions(frames=4))
