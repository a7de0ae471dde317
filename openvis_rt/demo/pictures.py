"""What people look at: systems side by side as a video, and some frames of them on one sheet.

An object has one colour in all of them, so that a track that keeps its colour is the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openvis_rt.files import output_errors, output_file
from openvis_rt.runtime.video.drawing import RGB, Drawer, Style, font_for
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.runtime.video.run_lengths import box_of, encode_masks

__all__ = ["Panel", "write_contact_sheet", "write_side_by_side"]

Image8 = npt.NDArray[np.uint8]

_PAPER, _INK, _PALE = (22, 26, 33), (240, 243, 247), (150, 160, 174)
_PANEL_HEIGHT = 384  # pixels, about: frames are enlarged by a whole number
_STRIP, _GAP = 44, 6
# colours are names here, so they must be seen through the masks
_VIDEO_STYLE, _SHEET_STYLE = Style(text=15, contour=3, fill=50), Style(text=0, contour=2, fill=50)
# of the sheet
_CELL_HEIGHT, _MARGIN, _SPACE = 192, 24, 8
_LEGEND = 420  # width
_LARGE, _SMALL = 30, 21


@dataclass(frozen=True)
class Panel:
    """One system's results, or the truth.

    Attributes:
        title: the system's name.
        facts: a few words below it.
        results: of every frame.
        colors: of each track, by its id.
        legend: name and colour of what was found, best first.
    """

    title: str
    facts: str
    results: Sequence[FrameResult]
    colors: dict[int, RGB]
    legend: Sequence[tuple[str, RGB]]


def write_side_by_side(
    path: Path, images: Image8, panels: Sequence[Panel], fps: Fraction | float
) -> None:
    """Write a video with the panels beside each other, each below its title.

    Args:
        path: ends in ``.mp4``, ``.mkv`` or ``.mov``.
        images: uint8 [T, H, W, 3] RGB; they are enlarged.
        panels: each with T results of H x W pixels.
        fps: frames a second.

    Raises:
        OutputError: the place cannot be written.
    """
    factor = max(1, round(_PANEL_HEIGHT / images.shape[1]))
    height, width = factor * images.shape[1], factor * images.shape[2]
    strips = [_strip(panel, width) for panel in panels]
    drawers = [Drawer(_VIDEO_STYLE, panel.colors.__getitem__) for panel in panels]
    gap = np.full((_STRIP + height, _GAP, 3), _PAPER, np.uint8)
    total = len(panels) * (width + _GAP) - _GAP
    with OverlayWriter(path, total, _STRIP + height, fps) as writer:
        for index, image in enumerate(images):
            large, columns = _enlarged_image(image, (height, width)), []
            for strip, drawer, panel in zip(strips, drawers, panels, strict=True):
                result = _enlarged_result(panel.results[index], (height, width))
                columns += [gap, np.concatenate((strip, drawer.draw(large, result)))]
            writer.write(np.concatenate(columns[1:], axis=1))


def write_contact_sheet(
    path: Path,
    images: Image8,
    panels: Sequence[Panel],
    *,
    heading: str,
    columns: int = 6,
) -> None:
    """Write a picture: a row for each panel, evenly spaced frames as columns.

    Args:
        path: of a PNG file.
        images: uint8 [T, H, W, 3] RGB; they are enlarged.
        panels: each with T results of H x W pixels.
        heading: a line above everything.
        columns: how many frames, fewer if there are fewer.

    Raises:
        OutputError: the place cannot be written.
    """
    count, height, width, _ = images.shape
    frames = np.unique(np.linspace(0, count - 1, columns).round().astype(int)).tolist()
    cell = (_CELL_HEIGHT, round(_CELL_HEIGHT * width / height))
    top = _MARGIN + _LARGE + 2 * _SPACE + _SMALL + 2 * _SPACE
    sheet = Image.new(
        "RGB",
        (
            _MARGIN + _LEGEND + len(frames) * (cell[1] + _SPACE) - _SPACE + _MARGIN,
            top + len(panels) * (cell[0] + _SPACE) - _SPACE + _MARGIN,
        ),
        _PAPER,
    )
    room = sheet.width - 2 * _MARGIN
    _write(sheet, (_MARGIN, _MARGIN + _LARGE // 2), heading, _SMALL, _INK, room)
    for column, frame in enumerate(frames):
        x = _MARGIN + _LEGEND + column * (cell[1] + _SPACE)
        _write(sheet, (x, top - 2 * _SPACE - _SMALL // 2), f"frame {frame}", _SMALL, _PALE, cell[1])
        large = _enlarged_image(images[frame], cell)
        for row, panel in enumerate(panels):
            result = _enlarged_result(panel.results[frame], cell)
            drawn = Drawer(_SHEET_STYLE, panel.colors.__getitem__).draw(large, result)
            sheet.paste(Image.fromarray(drawn), (x, top + row * (cell[0] + _SPACE)))
    for row, panel in enumerate(panels):
        _draw_legend(sheet, panel, (_MARGIN, top + row * (cell[0] + _SPACE)))
    with output_file(path) as partial, output_errors(path):
        sheet.save(partial, format="PNG", optimize=True)


def _strip(panel: Panel, width: int) -> Image8:
    """Title and facts above a panel, uint8 [_STRIP, width, 3]."""
    strip = Image.new("RGB", (width, _STRIP), _PAPER)
    middle = _STRIP // 2
    end = _write(strip, (10, middle), panel.title, 24, _INK, width // 2)
    _write(strip, (end + 16, middle + 2), panel.facts, 17, _PALE, width - end - 26)
    return np.array(strip)


def _draw_legend(sheet: Image.Image, panel: Panel, corner: tuple[int, int]) -> None:
    """Title, facts and what was found, each beside its colour, as far as there is room."""
    x, y = corner
    room, line = _LEGEND - 2 * _MARGIN, _SMALL + 8
    _write(sheet, (x, y + _LARGE // 2), panel.title, _LARGE, _INK, room)
    y += _LARGE + 8
    if panel.facts:
        _write(sheet, (x, y + _SMALL // 2), panel.facts, _SMALL, _PALE, room)
        y += line
    lines = max(1, (corner[1] + _CELL_HEIGHT - y) // line)
    shown = panel.legend if len(panel.legend) <= lines else panel.legend[: lines - 1]
    pen = ImageDraw.Draw(sheet)
    for text, color in shown:
        pen.rounded_rectangle((x, y + 2, x + _SMALL - 3, y + _SMALL - 1), 4, fill=color)
        _write(sheet, (x + _SMALL + 8, y + _SMALL // 2), text, _SMALL, _INK, room - _SMALL - 8)
        y += line
    left = len(panel.legend) - len(shown)
    if left or not panel.legend:
        words = f"and {left} more" if left else "nothing"
        _write(sheet, (x + _SMALL + 8, y + _SMALL // 2), words, _SMALL, _PALE, room)


def _write(
    canvas: Image.Image, place: tuple[int, int], text: str, size: int, color: RGB, room: int
) -> int:
    """Write one line, its middle at a height, cut to the room; the place where it ends, in x."""
    font = font_for(text, size)
    while text and font.getlength(text) > room:
        text = text[:-2].rstrip(" ,;") + "…" if len(text) > 2 else ""
    ImageDraw.Draw(canvas).text(place, text, fill=color, font=font, anchor="lm")
    return place[0] + round(font.getlength(text))


def _enlarged_image(image: Image8, size: tuple[int, int]) -> Image8:
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def _enlarged_result(result: FrameResult, size: tuple[int, int]) -> FrameResult:
    """The same objects in a picture of (H, W); edges of masks become smooth, not finer."""
    height, width = size
    instances = []
    for instance in result.instances:
        mask = Image.fromarray(instance.mask.astype(np.uint8) * np.uint8(255))
        large = np.asarray(mask.resize((width, height), Image.Resampling.BICUBIC)) > 127
        [rle] = encode_masks(large.astype(np.uint8)[None])
        instances.append(replace(instance, box=box_of(rle), segmentation=rle))
    return FrameResult(result.index, result.time, height, width, tuple(instances))
