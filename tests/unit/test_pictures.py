"""Pictures of every kind as frames: what their numbers become, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from openvis_rt.errors import VideoError
from openvis_rt.geometry import frames_at_once
from openvis_rt.runtime.video.reading import open_video

RAMP = np.linspace(0, 65_535, 48 * 64).reshape(48, 64).astype(np.uint16)
COLORS = np.stack([RAMP >> 8, (RAMP >> 8)[::-1], np.full_like(RAMP, 90)], -1).astype(np.uint8)


def frame_of(folder) -> tuple[np.ndarray, list[str]]:
    """The first frame of a folder of pictures, and the warnings."""
    with open_video(str(folder)) as video:
        [frame] = video
    assert frame.image.flags.writeable
    assert frame.image.flags.c_contiguous
    return frame.image, video.warnings


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "frames").mkdir()
    return tmp_path / "frames"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_in_16_bits_keeps_its_shades(folder, suffix):
    Image.fromarray(RAMP).save(folder / f"0{suffix}")
    if suffix == ".tif":  # Pillow goes by what a file holds, not by its name
        (folder / "0.tif").rename(folder / "0.png")
    image, warnings = frame_of(folder)
    np.testing.assert_array_equal(image, np.stack([RAMP >> 8] * 3, -1))
    assert not warnings


def test_grey_in_12_bits_is_told_to_be_dark(folder):
    Image.fromarray(RAMP >> 4).save(folder / "0.png")
    image, [warning] = frame_of(folder)
    assert image.max() == 15
    assert "the brightest value of the first is 4095 of 65535" in warning


def test_colors_in_16_bits_lose_the_low_ones(folder):
    cv2 = pytest.importorskip("cv2", reason="writing 16 bits a colour needs opencv")

    words = COLORS.astype(np.uint16) * 256 + 77
    cv2.imwrite(str(folder / "0.png"), words[..., ::-1])
    np.testing.assert_array_equal(frame_of(folder)[0], COLORS)


def test_a_palette_with_alpha_keeps_its_colors(folder):
    picture = Image.fromarray(COLORS).quantize(32)
    picture.save(folder / "0.png", transparency=bytes(range(0, 256, 8)))
    image, warnings = frame_of(folder)
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))
    assert not warnings


def test_an_alpha_beside_the_colors_is_left_out(folder):
    alpha = np.full((48, 64, 1), 3, np.uint8)
    Image.fromarray(np.concatenate([COLORS, alpha], -1)).save(folder / "0.png")
    np.testing.assert_array_equal(frame_of(folder)[0], COLORS)


def test_a_bit_a_pixel(folder):
    bits = RAMP > 30_000
    Image.fromarray(bits).save(folder / "0.png")
    np.testing.assert_array_equal(frame_of(folder)[0], np.stack([bits * np.uint8(255)] * 3, -1))


def test_four_inks(folder):
    Image.fromarray(COLORS).convert("CMYK").save(folder / "0.jpg", quality=100)
    image, _ = frame_of(folder)
    assert np.abs(image.astype(int) - COLORS).mean() < 2  # of 255; JPEG is lossy


@pytest.mark.parametrize("kind", ["16 bits", "8 bits"])
def test_exif_turns_pictures_of_any_depth(folder, kind):
    grey = RAMP if kind == "16 bits" else (RAMP >> 8).astype(np.uint8)
    picture = Image.fromarray(grey)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.save(folder / "0.png", exif=exif)
    np.testing.assert_array_equal(frame_of(folder)[0][..., 0], np.rot90(RAMP >> 8, -1))


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) / 65_535, RAMP.astype(np.int32) * 9])
def test_numbers_of_no_known_range_are_refused(folder, values):
    Image.fromarray(values).save(folder / "0.tif")
    (folder / "0.tif").rename(folder / "0.png")
    with pytest.raises(
        VideoError, match=r"black and white is not known\. Give pictures of 8 or 16"
    ):
        frame_of(folder)


@pytest.mark.parametrize(
    ("size", "frames"), [((480, 640), 4), ((4320, 7680), 2), ((20_000,) * 2, 1)]
)
def test_so_many_frames_wait(size, frames):
    assert frames_at_once(*size, 4) == frames
