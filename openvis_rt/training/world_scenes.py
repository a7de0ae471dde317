"""What the objects of the generated world are seen in: backgrounds, the camera, light and lens.

A background is a picture half as large again as a frame, which the camera moves over. Everything
that a frame needs is drawn when its scene is made, so that frames can be rendered in any order.
Places are in heights of a frame and rounded to :data:`GRID`, so that the last bits of a sine,
which differ between mathematical libraries, decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = ["GRID", "Camera", "Lens", "draw_background", "draw_camera", "draw_lens", "dull_colour"]

GRID = 4096.0
_MARGIN = 1.5  # of a background to a frame
_DULL = 0.62  # of a background's colours, so that objects stand out by more than their outline
_RNG = np.random.Generator


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera that pans, shakes, zooms and tilts.

    Attributes:
        drift: heights of a frame that it pans between the first frame and the last, x and y.
        swing: amplitude in heights, radians a frame, and phase, of x, y, zoom and tilt.
        shake: unsteady hands, in heights, float [T, 2].
    """

    drift: tuple[float, float]
    swing: tuple[tuple[float, float, float], ...]
    shake: npt.NDArray[np.float64]

    def at(self, frame: int) -> tuple[float, float, float, float]:
        """Where it looks: x and y in heights from the scene's centre, zoom, tilt in radians."""
        progress = frame / max(1, len(self.shake) - 1) - 0.5
        x, y, zoom, tilt = (a * math.sin(w * frame + p) for a, w, p in self.swing)
        x += self.drift[0] * progress + self.shake[frame, 0]
        y += self.drift[1] * progress + self.shake[frame, 1]
        return _on_grid(x), _on_grid(y), _on_grid(1.05 + zoom), _on_grid(tilt)

    def background(self, picture: Image.Image, frame: int, size: tuple[int, int]) -> Image.Image:
        """The part of a background that a frame of (H, W) sees, RGB."""
        height, width = size
        x, y, zoom, tilt = self.at(frame)
        cos, sin = math.cos(tilt) / zoom, math.sin(tilt) / zoom
        left = picture.width / 2 + x * height - cos * width / 2 - sin * height / 2
        top = picture.height / 2 + y * height + sin * width / 2 - cos * height / 2
        matrix = tuple(map(_on_grid, (cos, sin, left, -sin, cos, top)))
        return picture.transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )


@dataclass(frozen=True, slots=True)
class Lens:
    """What happens to a rendered frame before it is stored.

    Attributes:
        gain: of red, green and blue in each frame, 1 is none, float32 [T, 3].
        shade: light that falls unevenly, 1 is full, float32 [H, W, 1].
        blur: radius in pixels in each frame, float [T].
        noise: grey levels, int16 [2H, 2W, 3]; each frame takes another part of it.
        corners: of those parts, int [T, 2].
    """

    gain: npt.NDArray[np.float32]
    shade: npt.NDArray[np.float32]
    blur: npt.NDArray[np.float64]
    noise: npt.NDArray[np.int16]
    corners: npt.NDArray[np.int64]

    def photograph(self, picture: Image.Image, frame: int) -> npt.NDArray[np.uint8]:
        """A frame as it is stored, uint8 [H, W, 3]."""
        if self.blur[frame] > 0:
            picture = picture.filter(ImageFilter.GaussianBlur(float(self.blur[frame])))
        top, left = self.corners[frame]
        height, width = picture.height, picture.width
        lit = np.asarray(picture) * self.shade * self.gain[frame]
        lit += self.noise[top : top + height, left : left + width]
        picture8: npt.NDArray[np.uint8] = np.clip(lit, 0, 255, out=lit).astype(np.uint8)
        return picture8


def _on_grid(value: float) -> float:
    return round(value * GRID) / GRID


def _between(rng: _RNG, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def draw_camera(frames: int, rng: _RNG) -> Camera:
    """A camera for a video of so many frames; one in four stands still."""
    moves = 0.0 if rng.random() < 0.25 else 1.0
    drift = tuple(moves * _between(rng, -m, m) * min(1, frames / 12) for m in (0.3, 0.12))
    amplitudes = (0.05, 0.03, 0.05, 0.05)
    swing = tuple(
        (moves * a * rng.random(), _between(rng, 0.1, 0.35), _between(rng, 0, 6.28))
        for a in amplitudes
    )
    shake = moves * _between(rng, 0, 0.012) * (rng.random((frames, 2)) * 2 - 1)
    return Camera((drift[0], drift[1]), swing, shake)


def draw_lens(frames: int, size: tuple[int, int], rng: _RNG) -> Lens:
    """Light, focus and noise for a video of so many frames of (H, W)."""
    height, width = size
    time = np.arange(frames)
    tint = 1 + 0.1 * (rng.random(3) * 2 - 1)
    level = _between(rng, 0.75, 1.12)
    flicker = _between(rng, 0, 0.16) * np.sin(time * _between(rng, 0.1, 0.6) + 6 * rng.random())
    gain = np.round((level + flicker)[:, None] * tint * 256) / 256
    y, x = np.mgrid[:height, :width] / np.array((height, width)).reshape(2, 1, 1) - 0.5
    slope = 0.5 * (rng.random(2) * 2 - 1)
    shade = np.clip(1 + slope[0] * y + slope[1] * x, 0.6, 1.2)
    focus = max(0.0, _between(rng, -0.8, 0.8))
    blur = np.maximum(0, focus + 0.4 * np.sin(time * 0.3 + 6 * rng.random()) * (rng.random() < 0.3))
    strength = int(rng.integers(2, 12))
    noise = rng.integers(-strength, strength + 1, (2 * height, 2 * width, 3), dtype=np.int16)
    corners = np.stack((rng.integers(0, height, frames), rng.integers(0, width, frames)), 1)
    return Lens(
        gain.astype(np.float32),
        shade[..., None].astype(np.float32),
        np.round(blur * 64) / 64,
        noise,
        corners,
    )


# backgrounds


def draw_background(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """A cluttered place without any object of a category, RGB, half as large again as (H, W)."""
    height, width = (round(_MARGIN * edge) for edge in size)
    picture = _PLACES[rng.integers(len(_PLACES))]((width, height), rng)
    _draw_clutter(picture, rng)
    return picture


def dull_colour(rng: _RNG, low: int = 30, high: int = 215) -> tuple[int, int, int]:
    """A colour with little saturation."""
    grey = rng.integers(low, high)
    red, green, blue = (int(c) for c in grey + (1 - _DULL) * rng.integers(-90, 91, 3))
    return min(255, max(0, red)), min(255, max(0, green)), min(255, max(0, blue))


def _clouds(size: tuple[int, int], cells: int, rng: _RNG) -> Image.Image:
    """Smooth noise of two octaves, L."""
    octaves = []
    for count in (cells, 3 * cells):
        small = rng.integers(0, 256, (count, 2 * count), dtype=np.uint8)
        octaves.append(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    return Image.blend(octaves[0], octaves[1], 0.35)


def _mixed(size: tuple[int, int], where: Image.Image, rng: _RNG) -> Image.Image:
    """Two dull colours by a map."""
    first, second = (Image.new("RGB", size, dull_colour(rng)) for _ in range(2))
    return Image.composite(first, second, where)


def _sky(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """Hills before a cloudy sky."""
    picture = _mixed(size, _clouds(size, 3, rng), rng)
    pen, (width, height) = ImageDraw.Draw(picture), size
    for layer in range(3):
        base = height * (0.45 + 0.17 * layer)
        waves = [(_between(rng, 1, 5), 6.28 * rng.random()) for _ in range(3)]
        line = [
            (x, base - 0.05 * height * sum(math.sin(w * x / width * 4 + p) for w, p in waves))
            for x in range(0, width + 8, 8)
        ]
        pen.polygon([(0, height), *line, (width, height)], dull_colour(rng))
    return picture


def _fog(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """Patches, as of stone, water or leaves."""
    coarse = _mixed(size, _clouds(size, int(rng.integers(3, 8)), rng), rng)
    fine = _mixed(size, _clouds(size, int(rng.integers(12, 24)), rng), rng)
    return Image.blend(coarse, fine, _between(rng, 0.15, 0.5))


def _planks(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """Boards with grain."""
    picture, wide = Image.new("RGB", size), int(rng.integers(size[1] // 9, size[1] // 4))
    pen, base = ImageDraw.Draw(picture), np.array(dull_colour(rng, 60, 180))
    for top in range(0, size[1], wide):
        colour = tuple(int(c) for c in np.clip(base + rng.integers(-22, 23), 0, 255))
        pen.rectangle((0, top, size[0], top + wide - 2), colour)
    grain = _clouds((size[0], size[1]), 30, rng).resize((size[0] * 3, size[1])).crop((0, 0, *size))
    return ImageChops.multiply(picture, grain.point(lambda v: 150 + 0.4 * v).convert("RGB"))


def _tiles(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """A floor or a wall of bricks."""
    picture = Image.new("RGB", size, dull_colour(rng))
    pen, base = ImageDraw.Draw(picture), np.array(dull_colour(rng, 70, 190))
    high = int(rng.integers(size[1] // 12, size[1] // 5))
    wide = high * int(rng.integers(1, 3))
    for row, top in enumerate(range(0, size[1], high)):
        for left in range(-(row % 2) * wide // 2, size[0], wide):
            colour = tuple(int(c) for c in np.clip(base + rng.integers(-26, 27, 3), 0, 255))
            pen.rectangle((left, top, left + wide - 2, top + high - 2), colour)
    return picture


def _streets(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """Blocks of houses with windows, seen from afar."""
    picture = _mixed(size, _clouds(size, 3, rng), rng)
    pen, left = ImageDraw.Draw(picture), 0
    while left < size[0]:
        wide = int(rng.integers(size[1] // 8, size[1] // 3))
        top = int(size[1] * _between(rng, 0.2, 0.65))
        pen.rectangle((left, top, left + wide - 1, size[1]), dull_colour(rng))
        window, step = dull_colour(rng), int(rng.integers(6, 11))
        for y in range(top + 4, size[1], step):
            for x in range(left + 3, left + wide - 4, step):
                pen.rectangle((x, y, x + step // 2 - 1, y + step // 2), window)
        left += wide
    return picture


def _meadow(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """Blades of grass, or fur, in one direction."""
    picture = _mixed(size, _clouds(size, 5, rng), rng)
    pen, base = ImageDraw.Draw(picture), np.array(dull_colour(rng, 50, 200))
    angle, length = 6.28 * rng.random(), size[1] * _between(rng, 0.05, 0.15)
    count = 220
    roots, turns = rng.random((count, 2)) * size, angle + 0.8 * (rng.random(count) - 0.5)
    tones = np.clip(base + rng.integers(-40, 41, (count, 1)), 0, 255)
    for (x, y), turn, tone in zip(roots, turns, tones, strict=True):
        tip = (x + length * math.cos(turn), y + length * math.sin(turn))
        pen.line(((x, y), tip), tuple(int(c) for c in tone), 2)
    return picture


def _room(size: tuple[int, int], rng: _RNG) -> Image.Image:
    """A wall and a floor, with frames on the wall."""
    picture = Image.new("RGB", size, dull_colour(rng, 90, 215))
    pen, edge = ImageDraw.Draw(picture), int(size[1] * _between(rng, 0.5, 0.75))
    pen.rectangle((0, edge, *size), dull_colour(rng))
    pen.rectangle((0, edge, size[0], edge + 3), dull_colour(rng))
    for _ in range(rng.integers(1, 5)):
        left, top = size[0] * rng.random(), edge * 0.8 * rng.random()
        right, bottom = left + size[1] * _between(rng, 0.3, 0.5), top + size[1] * 0.16
        pen.rectangle((left, top, right, bottom), dull_colour(rng), dull_colour(rng), 2)
    vanishing = size[0] * rng.random()
    for x in range(-size[0], 2 * size[0], size[0] // 7):  # the floor's joints
        pen.line((x, size[1], vanishing + (x - vanishing) * 0.4, edge + 4), dull_colour(rng))
    return picture


_PLACES: tuple[Callable[[tuple[int, int], _RNG], Image.Image], ...] = (
    *(_sky, _fog, _planks, _tiles, _streets, _meadow, _room),
)


def _draw_clutter(picture: Image.Image, rng: _RNG) -> None:
    """Rubble, wires and smears that are no objects."""
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    for _ in range(rng.integers(0, 14)):
        x, y = width * rng.random(), height * rng.random()
        radius = height * _between(rng, 0.02, 0.12)
        turns = np.sort(rng.random(rng.integers(4, 9))) * 2 * math.pi
        reach = radius * (0.4 + 0.6 * rng.random(len(turns)))
        corners = [
            (x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(reach, turns, strict=True)
        ]
        pen.polygon(corners, dull_colour(rng))
    for _ in range(rng.integers(0, 5)):
        ends = [(width * rng.random(), height * rng.random()) for _ in range(3)]
        pen.line(ends, dull_colour(rng), int(rng.integers(1, 4)))
