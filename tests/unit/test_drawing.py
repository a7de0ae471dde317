"""Drawing: masks, contours, and labels that stay on their objects."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from openvis_rt.runtime.video.drawing import Drawer, Style, color_of, draw, font_for
from openvis_rt.runtime.video.labels import anchor_of, place_of
from openvis_rt.runtime.video.results import FrameResult, Instance
from openvis_rt.runtime.video.run_lengths import box_of, decode_mask, empty_rle, encode_masks

HEIGHT, WIDTH = 240, 320
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def instance(track_id: int, area: tuple[slice, slice], name: str = "cat") -> Instance:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[area] = True
    return instance_of(mask, track_id, name)


def instance_of(mask: np.ndarray, track_id: int = 1, name: str = "cat") -> Instance:
    [rle] = encode_masks(mask[None].astype(np.uint8))
    return Instance(track_id, 0, name, 0.87, box_of(rle), rle)


def frame(*instances: Instance) -> FrameResult:
    return FrameResult(0, 0.0, HEIGHT, WIDTH, instances)


def label_of(picture: np.ndarray, track_id: int = 1) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a track's label, which alone has its full colour."""
    rows, columns = np.nonzero((picture == color_of(track_id)).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) / width) ** 2 + ((rows - y) / height) ** 2 < 1


def drawn(*instances: Instance) -> np.ndarray:
    image = GREY.copy()
    result = draw(image, frame(*instances))
    assert (image == 100).all()
    assert result.shape == image.shape
    assert result.flags.writeable
    assert not np.shares_memory(result, image)
    return result


def test_colors_are_stable_and_apart():
    assert color_of(5) == color_of(5)
    colors = np.array([color_of(i) for i in range(24)], int)
    distance = np.abs(colors[:, None] - colors[None]).sum(-1)
    np.fill_diagonal(distance, 999)
    assert distance.min() > 20
    neighbours = np.abs(np.diff(colors, axis=0)).sum(-1)
    assert neighbours.min() > 100


def test_mask_is_filled_with_a_contour():
    area = np.s_[100:200, 50:150]
    result = drawn(instance(3, area)).astype(int)
    color = np.array(color_of(3))
    inside, edge = result[150, 100], result[150, 50]
    expected = 100 + (color - 100) * 110 / 255  # the fill's opacity
    np.testing.assert_allclose(inside, expected, atol=1)
    assert np.abs(edge - color).sum() < np.abs(inside - color).sum()
    assert (result[220:, :] == 100).all()
    assert (result[:, 200:] == 100).all()
    assert (result[60:99, 50:90] != 100).any()  # the label


def test_nothing_to_draw():
    assert (drawn() == 100).all()
    empty = Instance(1, 0, "cat", 0.5, (0, 0, 0, 0), empty_rle(HEIGHT, WIDTH))
    assert (drawn(empty) == 100).all()


@pytest.mark.parametrize(
    "name", ["猫と犬", "кот", "قط", "a\nb\tc", "", "🙂", "x" * 500, "\u200d", "\ud800"]
)
def test_any_name_is_drawn_without_a_crash(name):
    drawn(instance(0, np.s_[0:20, 300:320], name))


def test_a_label_has_the_first_of_the_synonyms():
    mask = np.zeros(GREY.shape[:2], bool)
    mask[40:80, 40:80] = True
    assert np.array_equal(
        drawn(instance_of(mask, name="bike, bicycle")), drawn(instance_of(mask, name="bike"))
    )


def test_labels_do_not_hide_each_other():
    area = np.s_[100:180, 100:200]
    one = (drawn(instance(1, area)) == color_of(1)).all(-1).sum()
    both = drawn(*[instance(i, area) for i in (1, 2, 3, 4)])
    assert (both == color_of(1)).all(-1).sum() >= 0.95 * one


def test_full_frame_and_single_pixel_masks():
    result = drawn(instance(1, np.s_[:, :]), instance(2, np.s_[239:240, 319:320]))
    assert (result[120, 160] != 100).any()


def test_size_must_match():
    with pytest.raises(ValueError, match="320x240"):
        draw(np.zeros((10, 10, 3), np.uint8), FrameResult(0, None, HEIGHT, WIDTH, ()))


@pytest.mark.parametrize("size", [2, 20])
def test_a_speck_far_away_does_not_move_the_label(size):
    mask = ellipse(230, 170, 60, 40)
    alone = label_of(drawn(instance_of(mask)))
    mask[3 : 3 + size, 2 : 2 + size] = True
    found = label_of(drawn(instance_of(mask)))
    np.testing.assert_allclose(found, alone, atol=2)  # a coarser grid may look at the mask


@pytest.mark.parametrize("count", [1, 300])
def test_a_mask_of_nothing_but_specks_is_labelled(count):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    rng = np.random.default_rng(0)
    mask[rng.integers(0, HEIGHT, count), rng.integers(0, WIDTH, count)] = True
    left, top, right, bottom = label_of(drawn(instance_of(mask)))
    assert left >= 0
    assert (right - left, bottom - top) > (30, 10)


def test_the_label_stands_on_a_slanting_object():
    """Where the box's corners are far from the object."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = (np.abs(rows - 40 - 0.6 * columns) < 12) & (columns > 40) & (columns < 280)
    left, _, right, bottom = label_of(drawn(instance_of(mask)))
    middle = (left + right) // 2
    edge = int(mask[:, middle].argmax())
    assert abs(middle - 160) <= 4
    assert abs(bottom - edge) <= 4


def test_the_label_of_a_ragged_mask_moves_little():
    rng = np.random.default_rng(0)
    drawer, feet = Drawer(), []
    for _ in range(40):
        mask = ellipse(150 + rng.normal(0, 3), 150 + rng.normal(0, 3), *rng.normal((70, 40), 3))
        specks = rng.integers(0, HEIGHT, (2, 5))
        mask[tuple(specks)] = True
        left, _, right, bottom = label_of(drawer.draw(GREY, frame(instance_of(mask))))
        feet.append(((left + right) / 2, bottom))
    steps = np.abs(np.diff(feet, axis=0))
    assert steps.mean() < 2
    assert steps.max() <= 6
    np.testing.assert_allclose(np.mean(feet, axis=0), (150, 110), atol=4)


def test_the_label_follows_its_object():
    drawer = Drawer()
    for x in range(60, 260, 5):
        picture = drawer.draw(GREY, frame(instance_of(ellipse(x, 150, 40, 30))))
        left, _, right, bottom = label_of(picture)
        assert abs((left + right) / 2 - x) <= 10
        assert abs(bottom - 120) <= 2


def test_the_label_stays_on_one_half_of_a_divided_object():
    drawer, middles = Drawer(), []
    for number in range(20):
        mask = ellipse(160, 150, 120, 40)
        post = 150 if number % 2 else 170
        mask[:, post : post + 8] = False  # now the left half is the larger one, now the right one
        left, _, right, _ = label_of(drawer.draw(GREY, frame(instance_of(mask))))
        middles.append((left + right) / 2)
    assert np.ptp(middles) < 15


def test_a_track_that_comes_back_begins_at_its_new_place():
    here, there = instance(1, np.s_[100:140, 20:80]), instance(1, np.s_[180:220, 220:300])
    drawer = Drawer()
    first = label_of(drawer.draw(GREY, frame(here)))
    moving = label_of(drawer.draw(GREY, frame(there)))
    assert first[0] < moving[0] < label_of(drawn(there))[0]
    drawer.draw(GREY, frame())
    assert label_of(drawer.draw(GREY, frame(there))) == label_of(drawn(there))


@pytest.mark.parametrize("height", [120, 240, 720])
def test_a_gap_stands_between_the_number_and_the_score(height):
    mask = np.zeros((height, 400), np.uint8)
    mask[60:100, 50:150] = 1
    [rle] = encode_masks(mask[None])
    found = Instance(1, 0, "box", 0.95, box_of(rle), rle)
    picture = draw(
        np.full((height, 400, 3), 100, np.uint8), FrameResult(0, 0.0, height, 400, (found,))
    )
    left, top, right, bottom = label_of(picture)
    inside = picture[top + 2 : bottom - 2, left + 3 : right - 3].astype(int)
    written = (np.abs(inside - color_of(1)).sum(-1) > 60).any(0)
    ends = np.flatnonzero(np.diff(written.astype(int)))
    gaps = np.diff(ends)[1::2]  # between letters, in columns
    wide = np.sort(gaps)[-2:]
    assert wide.min() >= 5  # box, #1, 0.95
    assert (np.sort(gaps)[:-2] < wide.min()).all()


# how it looks


def test_a_style_without_labels_draws_masks_alone():
    result = frame(instance(1, np.s_[80:160, 100:200]))
    picture = Drawer(Style(text=0)).draw(GREY, result)
    changed = np.flatnonzero((picture != GREY).any((1, 2)))
    assert (changed[0], changed[-1]) == (80, 159)


def test_a_style_says_how_thick_and_how_dense_a_mask_is():
    result = frame(instance(1, np.s_[80:160, 100:200]))
    picture = Drawer(Style(text=0, contour=5, fill=0)).draw(GREY, result)
    assert (picture[85:155, 105:195] == 100).all()
    border = np.abs(picture[80:160, 100:105].astype(int) - color_of(1))
    assert border.max() < 16


def test_a_drawer_takes_the_colours_of_tracks_from_its_caller():
    picture = Drawer(color={1: (10, 20, 200)}.__getitem__).draw(
        GREY, frame(instance(1, np.s_[80:160, 100:200]))
    )
    assert (picture == (10, 20, 200)).all(-1).any()  # of the label
    assert not (picture == color_of(1)).all(-1).any()


# by the plain way


def pasted(image: np.ndarray, result: FrameResult) -> np.ndarray:
    """What Pillow makes of the same masks and labels, drawn straight onto the whole picture."""
    canvas, style = Image.fromarray(image), Style().at(result.height)
    anchors = {}
    for found in sorted(result.instances, key=lambda found: -found.box[2] * found.box[3]):
        left, top, width, height = found.box
        mask = decode_mask(found.segmentation)
        inside = np.pad(mask, 1)
        for _ in range(style.contour):
            inside[1:-1, 1:-1] &= (
                np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1)
                & np.roll(inside, -1, 1)
            )[1:-1, 1:-1]  # fmt: skip
        opacity = np.where(inside[1:-1, 1:-1], style.fill, 240 * mask).astype(np.uint8)
        canvas.paste(color_of(found.track_id), None, Image.fromarray(opacity))
        box = mask[top : top + height, left : left + width]
        anchors[found.track_id] = anchor_of(box, (left, top), None)
    taken = []
    for found in sorted(result.instances, key=lambda found: found.track_id):
        paste_label(canvas, found, anchors[found.track_id].foot, style.text, taken)
    return np.array(canvas)


def paste_label(canvas: Image.Image, found: Instance, foot, size: int, taken: list) -> None:
    words = [found.name, f"#{found.track_id}", f"{found.score:.2f}"]
    color, font = color_of(found.track_id), font_for("".join(words), size)
    pad, gap = max(2, size // 4), max(5, size // 2)
    widths = [round(font.getlength(word)) for word in words]
    extent = (sum(widths) + 2 * gap + 2 * pad, round(size * 1.25) + pad)
    taken.append(place_of(canvas.size, foot, extent, taken))
    left, top, right, bottom = taken[-1]
    pen = ImageDraw.Draw(canvas)
    pen.rounded_rectangle((left, top, right - 1, bottom - 1), pad, fill=color)
    ink = (0, 0, 0) if np.dot((0.299, 0.587, 0.114), color) > 130 else (255, 255, 255)
    left += pad
    for word, width in zip(words, widths, strict=True):
        pen.text((left, (top + bottom) / 2), word, fill=ink, font=font, anchor="lm")
        left += width + gap


@pytest.mark.parametrize("height", [97, 240, 720])
def test_the_picture_is_pillows_pixel_by_pixel(height):
    rng = np.random.default_rng(height)
    width = height * 4 // 3
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    found = []
    for number in range(6):  # which overlap, and reach over the edges
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.1, 0.4) * height
        mask = np.hypot(columns - x, rows - y) < size
        mask &= rng.random(mask.shape) < 0.98  # holes, each with a contour
        [rle] = encode_masks(mask[None].astype(np.uint8))
        found.append(Instance(number, 1, f"class {number}", rng.random(), box_of(rle), rle))
    result = FrameResult(0, 0.0, height, width, tuple(found))
    np.testing.assert_array_equal(draw(image, result), pasted(image, result))


def test_a_frame_is_painted_in_place_also_where_rows_lie_apart():
    result = frame(instance(1, np.s_[80:160, 100:200]), instance(2, np.s_[0:240, 310:320]))
    memory = np.full((3, HEIGHT, WIDTH + 32), 100, np.uint8)
    Drawer().paint(tuple(memory[:, :, :WIDTH]), result)
    np.testing.assert_array_equal(memory[:, :, :WIDTH].transpose(1, 2, 0), draw(GREY, result))
    assert (memory[:, :, WIDTH:] == 100).all()


def test_a_label_shows_letters_that_turn_the_text_by_their_numbers():
    area = np.s_[100:200, 50:150]
    shown = drawn(instance(1, area, "a\u202eb"))
    np.testing.assert_array_equal(shown, drawn(instance(1, area, r"a\u202eb")))
