"""Swin against torchvision's, against a formula cell by cell, and through ONNX."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the model is PyTorch's")

import onnxruntime  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other people's packages warn of while they are imported
    from torchvision.models.swin_transformer import SwinTransformer

from openvis_rt.export.onnx_export import onnx_from_module  # noqa: E402
from openvis_rt.models.swin import Swin  # noqa: E402
from openvis_rt.systems.graphs import GraphSpec, TensorSpec  # noqa: E402

DEPTHS = (2, 2, 3, 2)
HEADS = (1, 2, 4, 8)
NAMES = ("res2", "res3", "res4", "res5")


def tiny(embed_dim=16, window=4, seed=0):
    """A network whose every number is drawn, so that no bias or norm is left out unseen."""
    net = Swin(embed_dim, DEPTHS, HEADS, window).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias_table"):
                parameter.copy_(drawn)  # as large as the logits
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * drawn + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
    return net


def pictures(batch, height, width, seed=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(net, images):
    return net(images)


def name_in_torchvision(name):
    """torchvision's ``features``: the embedding, then stages and mergings by turns."""
    head, *rest = name.split(".")
    if head == "patch_embed":
        return ".".join(("features.0", {"proj": "0", "norm": "2"}[rest[0]], *rest[1:]))
    stage = 2 * int(rest[0]) + 1
    if rest[1] == "downsample":
        return ".".join((f"features.{stage + 1}", *rest[2:]))
    inner = ".".join(rest[2:]).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{stage}.{inner}"


def torchvision_twin(net, embed_dim, window):
    theirs = SwinTransformer([4, 4], embed_dim, list(DEPTHS), list(HEADS), [window] * 2).eval()
    state = {
        name_in_torchvision(name): value
        for name, value in net.state_dict().items()
        if not name.startswith("norm")  # of the outputs
    }
    found = theirs.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    own = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert {k for k in found.missing_keys if not k.endswith("relative_position_index")} == own
    return theirs


@pytest.mark.parametrize(
    ("window", "height", "width"),
    # maps of 41x53, 21x27, 11x14, 6x7 and of 40x56, 20x28, 10x14, 5x7: whole and broken windows,
    # even and odd mergings, and always more than one window, as torchvision would not shift a map
    # of one
    [(4, 164, 212), (4, 160, 224), (3, 164, 212)],
)
def test_features_are_torchvisions(window, height, width):
    net = tiny(window=window)
    theirs = torchvision_twin(net, 16, window)
    images = pictures(2, height, width)
    ours = run(net, images)
    x = images
    with torch.no_grad():
        for index, layer in enumerate(theirs.features):
            x = layer(x)
            if index % 2:
                norm = getattr(net, f"norm{index // 2}")
                wanted = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias).permute(0, 3, 1, 2)
                got = ours[NAMES[index // 2]]
                # the same FP32 terms, added up in another order: 1e-5 of the largest number
                torch.testing.assert_close(
                    got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item()
                )


def test_the_index_and_the_size_of_swin_b_are_torchvisions():
    theirs = SwinTransformer([4, 4], 8, [2], [1], [12, 12]).features[1][0].attn
    ours = Swin(8, (1, 1, 1, 1), (1, 1, 1, 1), 12).layers[0].blocks[0].attn
    index = ours.relative_position_index
    assert index.dtype == torch.int64
    assert index.shape == (144, 144)
    assert torch.equal(index.flatten(), theirs.relative_position_index)

    with torch.device("meta"):
        theirs = SwinTransformer([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [12, 12])
        theirs.head = nn.Identity()
        ours = Swin()
    of_outputs = 2 * (128 + 256 + 512)  # norm0..norm2; norm3 is their last norm
    assert size_of(ours) == size_of(theirs) + of_outputs


def size_of(net):
    return sum(parameter.numel() for parameter in net.parameters())


def attended_by_hand(attention, x, window, shift):
    """Window attention of a padded map [H, W, C], one cell after the other.

    A cell belongs to the window floor((cell - shift) / window). The windows -1 and last share one
    attention, at a price of -100, since the roll puts them side by side; a grid of H / window
    windows has so many attentions on an axis.
    """
    height, width, channels = x.shape
    depth = channels // attention.heads
    table = attention.relative_position_bias_table
    q, k, v = (t.reshape(height, width, -1, depth) for t in attention.qkv(x).chunk(3, dim=-1))
    cells = [(i, j) for i in range(height) for j in range(width)]

    def place(cell):
        return [divmod(c - shift, window) for c in cell]

    def attention_of(cell):
        (top, _), (left, _) = place(cell)
        return top % (height // window), left % (width // window)

    out = torch.zeros_like(x)
    for cell in cells:
        (top, row), (left, column) = place(cell)
        logits, values = [], []
        for key in cells:
            if attention_of(key) != attention_of(cell):
                continue
            (key_top, key_row), (key_left, key_column) = place(key)
            offset = (row - key_row + window - 1) * (2 * window - 1)
            bias = table[offset + column - key_column + window - 1]
            price = -100.0 if (key_top, key_left) != (top, left) else 0.0
            logits.append((q[cell] * k[key]).sum(-1) / depth**0.5 + bias + price)
            values.append(v[key])
        weights = torch.stack(logits).softmax(0)  # [keys, heads]
        assert len(logits) == window * window
        out[cell] = (weights[..., None] * torch.stack(values)).sum(0).flatten()
    return attention.proj(out)


def block_by_hand(block, x, window, shift):
    """A block on one map [h, w, C]."""
    height, width = x.shape[:2]
    padded = F.pad(block.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
    x = x + attended_by_hand(block.attn, padded, window, shift)[:height, :width]
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize(
    ("height", "width", "window"),
    # the first four have one window; the fifth one row of windows
    [(4, 4, 4), (3, 4, 4), (2, 1, 4), (3, 3, 3), (4, 7, 4), (5, 6, 4), (7, 4, 3)],
)
@torch.no_grad()
def test_odd_blocks_shift_whatever_the_size(height, width, window):
    stage = tiny(8, window).double().layers[1]
    for block in stage.blocks:  # so strong that some cells see across the price
        block.attn.relative_position_bias_table.mul_(100)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(height, width, 16, dtype=torch.float64, generator=generator)
    got = stage(x[None])[0][0]
    even = block_by_hand(stage.blocks[0], x, window, 0)
    wanted = block_by_hand(stage.blocks[1], even, window, window // 2)
    # FP64's own rounding, on logits of hundreds
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    unshifted = block_by_hand(stage.blocks[1], even, window, 0)
    assert (unshifted - wanted).abs().max() > 1e-3  # the inputs can tell the two apart


def test_a_broken_patch_is_filled_with_zeros():
    net = tiny()
    images = pictures(1, 63, 90)
    got, wanted = run(net, images), run(net, F.pad(images, (0, 2, 0, 1)))
    for name in NAMES:
        assert torch.equal(got[name], wanted[name])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 160), (224, 32), (288, 352)])
def test_shapes_and_strides(height, width):
    net = tiny()
    assert net.channels == (16, 32, 64, 128)
    features = run(net, pictures(2, height, width))
    assert tuple(features) == NAMES
    for name, channels, stride in zip(NAMES, net.channels, (4, 8, 16, 32), strict=True):
        assert features[name].shape == (2, channels, height // stride, width // stride)
        assert features[name].dtype == torch.float32
        assert features[name].isfinite().all()


def expected_names():
    """A checkpoint's names without ``backbone.`` and without ``relative_position_index``."""
    pairs = ["patch_embed.proj", "patch_embed.norm", *(f"norm{n}" for n in range(4))]
    single = []
    for stage, depth in enumerate((2, 2, 18, 2)):
        for block in range(depth):
            path = f"layers.{stage}.blocks.{block}"
            inner = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            pairs += [f"{path}.{name}" for name in inner]
            single.append(f"{path}.attn.relative_position_bias_table")
        if stage < 3:
            pairs.append(f"layers.{stage}.downsample.norm")
            single.append(f"layers.{stage}.downsample.reduction.weight")
    return [f"{name}.{kind}" for name in pairs for kind in ("weight", "bias")] + single


def test_the_names_and_shapes_of_swin_b():
    with torch.device("meta"):
        net = Swin()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert net.channels == (128, 256, 512, 1024)
    assert set(shapes) == set(expected_names())
    assert len(shapes) == 357 - 24
    assert {
        "patch_embed.proj.weight": (128, 3, 4, 4),
        "patch_embed.norm.bias": (128,),
        "layers.0.blocks.1.attn.relative_position_bias_table": (529, 4),
        "layers.0.downsample.norm.weight": (512,),
        "layers.0.downsample.reduction.weight": (256, 512),
        "layers.2.blocks.17.attn.qkv.weight": (1536, 512),
        "layers.2.blocks.17.attn.relative_position_bias_table": (529, 16),
        "layers.3.blocks.1.attn.proj.weight": (1024, 1024),
        "layers.3.blocks.1.mlp.fc1.weight": (4096, 1024),
        "layers.3.blocks.1.mlp.fc2.bias": (1024,),
        "norm0.weight": (128,),
        "norm3.bias": (1024,),
    }.items() <= shapes.items()


class Outputs(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return tuple(self.net(images).values())


def test_onnx_with_any_batch():
    net = tiny()
    height, width = 96, 160  # maps of 24x40, 12x20, 6x10 and 3x5
    outputs = tuple(
        TensorSpec(name, "float32", ("T", channels, height // stride, width // stride))
        for name, channels, stride in zip(NAMES, net.channels, (4, 8, 16, 32), strict=True)
    )
    inputs = (TensorSpec("images", "float32", ("T", 3, height, width)),)
    model = onnx_from_module(Outputs(net), GraphSpec("swin", inputs, outputs))

    # masks, biases and the batch's reshapes are constants; a mask once for each stage
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Range", "Gather", "GatherND", "Equal", "Shape", "Expand", "Tile", "Where"}
    masks = Counter(
        tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 5 and t.data_type == 1
    )
    assert masks == {(1, windows, 1, 16, 16): 1 for windows in (60, 15, 6, 2)}

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for batch in (1, 2, 5):
        images = pictures(batch, height, width, seed=batch)
        wanted = run(net, images)
        for name, got in zip(NAMES, session.run(None, {"images": images.numpy()}), strict=True):
            expected = wanted[name].numpy()
            assert got.shape == expected.shape
            # the same FP32 formula in other kernels
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
