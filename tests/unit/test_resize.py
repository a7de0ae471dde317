"""Resizing in a graph, and CLIP's picture, against Pillow and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="resizing in a graph is of the extra [export]")

from torchvision import transforms  # noqa: E402

from openvis_rt.geometry import resized_size  # noqa: E402
from openvis_rt.models.resize import (  # noqa: E402
    PillowResize,
    filter_matrix,
    resize_to_clip,
    taps,
)
from openvis_rt.runtime.preprocessing import clip_picture  # noqa: E402

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(120, 180), (180, 120), (97, 211), (224, 224), (360, 640), (61, 64)]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges and noise, uint8."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3), np.uint8)
    wide = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))
    return np.clip(wide + rng.normal(0, 12, wide.shape), 0, 255).astype(np.uint8)


def close(found: torch.Tensor, wanted: np.ndarray) -> None:
    """Pillow sums in integers, so sums that end on a half may round the other way."""
    difference = np.abs(found.numpy() - wanted.astype(np.float32))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("short_side", [60, 97, 301])
def test_the_matrices_are_pillows_filters(kernel, source, short_side):
    """Of pictures that keep their shape, portraits too, whatever the order of Pillow's passes."""
    target = resized_size(*source, short_side, 1333)
    image = picture(*source)
    wanted = np.asarray(Image.fromarray(image).resize(target[::-1], FILTERS[kernel]))
    found = PillowResize(source, target, kernel)(torch.from_numpy(image[None]))[0]
    close(found, wanted)


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("side", [224, 96])
def test_clips_picture_is_torchvisions(source, side):
    image = Image.fromarray(picture(*source))
    clip = transforms.Compose(  # as CLIP's own preprocess begins
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
        ]
    )
    wanted = np.asarray(clip(image))
    np.testing.assert_array_equal(clip_picture(np.asarray(image), side), wanted)
    found = resize_to_clip(source, side)(torch.from_numpy(np.array(image)[None]))[0]
    close(found, wanted)


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(("source", "target"), [(1920, 853), (61, 97), (64, 64), (640, 7), (3, 5)])
def test_taps_hold_the_whole_matrix(kernel, source, target):
    matrix = filter_matrix(source, target, kernel)
    index, weights = taps(matrix)
    again = np.zeros_like(matrix)
    again[np.arange(target), index] = weights
    np.testing.assert_array_equal(again, matrix)
    assert all(len(set(column)) == len(index) for column in index.T)
    if (source, target, kernel) == (1920, 853, "bilinear"):
        assert len(index) == 5
