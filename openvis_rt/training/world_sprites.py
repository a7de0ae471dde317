"""Objects of the generated world: an outline, a texture that it cuts out, light, and a pale rim.

Outlines are polygons in a frame of -1 .. 1, x to the right and y down. An object is drawn once as
an RGBA picture, and every frame of its video takes it from there, turned and scaled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from openvis_rt.training.world_categories import WorldCategory

__all__ = ["draw_sprite"]

Point = tuple[float, float]
Colour = tuple[int, int, int]
Outline = tuple[tuple[int, tuple[Point, ...]], ...]  # 1 adds a polygon, 0 cuts one out

_COLOURS: dict[str, Colour] = {
    "red": (214, 40, 44),
    "orange": (246, 138, 30),
    "yellow": (250, 220, 50),
    "green": (52, 158, 68),
    "blue": (44, 92, 210),
    "purple": (132, 58, 170),
    "white": (244, 244, 240),
    "black": (28, 28, 32),
}
_UNNAMED: tuple[Colour, ...] = ((150, 150, 154), (206, 172, 130), (96, 162, 160))
_CONTRAST = 90  # grey levels between the two colours of a texture
_RIM: Colour = (250, 250, 246)  # of every object, as of a sticker: what texture it has ends there
_RIM_WIDTH = 0.03  # by the picture's edge
_JITTER = 14  # grey levels that a colour may be off
_SMOOTH = 2  # outlines are drawn at so many times the edge, and reduced


def draw_sprite(category: WorldCategory, edge: int, rng: np.random.Generator) -> Image.Image:
    """Draw one object of a category.

    Args:
        category: its shape and attribute.
        edge: of the picture in pixels, even; the outline's -1 .. 1.
        rng: draws the colours, and the texture's turn and place.

    Returns:
        RGBA [edge, edge]. The colours go on outside the outline, where alpha is 0, so that
        interpolation brings no fringe.
    """
    kind, name = category.attribute.kind, category.attribute.name
    if kind == "texture":
        picture = _TEXTURES[name](edge, _two_colours(rng), rng)
    else:
        named = _COLOURS[name] if kind == "colour" else _UNNAMED[rng.integers(len(_UNNAMED))]
        picture = Image.new("RGB", (edge, edge), _near(named, rng))
    picture = ImageChops.multiply(picture, _light(edge))
    if name == "eyes":
        _draw_eyes(picture, *_BODIES[category.shape])
    picture.paste(_RIM, mask=_rim(category.shape, edge))
    picture.putalpha(_outline(category.shape, edge))
    return picture


@functools.lru_cache(256)
def _outline(shape: str, edge: int) -> Image.Image:
    """Coverage of a shape, L [edge, edge]."""
    size = edge * _SMOOTH
    picture = Image.new("L", (size, size))
    pen = ImageDraw.Draw(picture)
    for added, points in _OUTLINES[shape]:
        pen.polygon([((u + 1) * size / 2, (v + 1) * size / 2) for u, v in points], 255 * added)
    return picture.reduce(_SMOOTH)


@functools.lru_cache(256)
def _rim(shape: str, edge: int) -> Image.Image:
    """Where an object's rim is, and all outside it, L [edge, edge]."""
    reach = 2 * round(_RIM_WIDTH * edge) + 1
    return ImageChops.invert(_outline(shape, edge).filter(ImageFilter.MinFilter(reach)))


@functools.lru_cache(64)
def _light(edge: int) -> Image.Image:
    """Light from above left, RGB; 255 is full."""
    y, x = np.mgrid[:edge, :edge] * 2.0 / edge - 1
    light = np.clip(246 - 34 * (x + y), 0, 255).astype(np.uint8)
    return Image.fromarray(light).convert("RGB")


def _near(colour: Colour, rng: np.random.Generator) -> Colour:
    off = rng.integers(-_JITTER, _JITTER + 1, 3)
    red, green, blue = (int(c) for c in np.clip(np.add(colour, off), 0, 255))
    return red, green, blue


def _two_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    palette = (*_COLOURS.values(), *_UNNAMED)
    grey = np.array(palette) @ (0.3, 0.6, 0.1)
    first = int(rng.integers(len(palette)))
    others = np.flatnonzero(np.abs(grey - grey[first]) > _CONTRAST)
    second = int(others[rng.integers(len(others))])
    return _near(palette[first], rng), _near(palette[second], rng)


# textures


def _striped(edge: int, colours: tuple[Colour, Colour], rng: np.random.Generator) -> Image.Image:
    return _folded(edge, colours, rng, lambda u, _: u % 0.5 < 0.25)


def _zigzag(edge: int, colours: tuple[Colour, Colour], rng: np.random.Generator) -> Image.Image:
    return _folded(edge, colours, rng, lambda u, v: (u + 0.6 * np.abs(v % 0.6 - 0.3)) % 0.44 < 0.22)


def _checkered(edge: int, colours: tuple[Colour, Colour], rng: np.random.Generator) -> Image.Image:
    return _folded(edge, colours, rng, lambda u, v: (u % 0.6 < 0.3) ^ (v % 0.6 < 0.3))


def _dotted(edge: int, colours: tuple[Colour, Colour], rng: np.random.Generator) -> Image.Image:
    def dots(u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        shifted = u + 0.22 * (v % 0.88 < 0.44)
        return (shifted % 0.44 - 0.22) ** 2 + (v % 0.44 - 0.22) ** 2 < 0.135**2

    return _folded(edge, colours, rng, dots)


_TEXTURES = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
}


def _folded(
    edge: int,
    colours: tuple[Colour, Colour],
    rng: np.random.Generator,
    is_first: Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], npt.NDArray[np.bool_]],
) -> Image.Image:
    """Two colours by a rule on coordinates that are turned and shifted by chance."""
    angle = 2 * math.pi * rng.random()
    move = rng.random(2)
    y, x = np.mgrid[:edge, :edge] * 2.0 / edge - 1
    u = math.cos(angle) * x + math.sin(angle) * y + move[0]
    v = math.cos(angle) * y - math.sin(angle) * x + move[1]
    first, second = np.array(colours, np.uint8)
    return Image.fromarray(np.where(is_first(u, v)[..., None], first, second))


def _draw_eyes(picture: Image.Image, centre: Point, room: float) -> None:
    pen, half = ImageDraw.Draw(picture), picture.width / 2
    for side in (-1, 1):
        for radius, fill in ((0.5, (250, 250, 250)), (0.27, (10, 10, 14))):
            x, y = centre[0] + side * 0.55 * room, centre[1]
            corners = [(c + sign * radius * room + 1) * half for sign in (-1, 1) for c in (x, y)]
            pen.ellipse(corners, fill)


# outlines


def _ellipse(x: float, y: float, rx: float, ry: float | None = None) -> tuple[Point, ...]:
    turns = [2 * math.pi * k / 40 for k in range(40)]
    ry = rx if ry is None else ry
    return tuple((x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns)


def _spikes(count: int, inner: float, outer: float) -> tuple[Point, ...]:
    radii = [outer, inner] * count
    turns = [math.pi * (k / count - 0.5) for k in range(2 * count)]
    return tuple((r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True))


def _teeth(count: int, inner: float, outer: float) -> tuple[Point, ...]:
    points = []
    for k in range(4 * count):
        t, radius = 2 * math.pi * (k + 0.5) / (4 * count), outer if k % 4 < 2 else inner
        points.append((radius * math.cos(t), radius * math.sin(t)))
    return tuple(points)


def _box(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    return (left, top), (right, top), (right, bottom), (left, bottom)


def _heart() -> tuple[Point, ...]:
    points = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.92 * math.sin(t) ** 3, -0.056 * y - 0.1))
    return tuple(points)


def _flower() -> Outline:
    turns = [2 * math.pi * (k / 5 - 0.25) for k in range(5)]
    petals = [(1, _ellipse(0.6 * math.cos(t), 0.6 * math.sin(t), 0.36)) for t in turns]
    return (*petals, (1, _ellipse(0, 0, 0.4)))


_OUTLINES: dict[str, Outline] = {
    "disc": ((1, _ellipse(0, 0, 0.88)),),
    "square": ((1, _box(-0.76, -0.76, 0.76, 0.76)),),
    "triangle": ((1, ((0, -0.88), (0.95, 0.76), (-0.95, 0.76))),),
    "star": ((1, _spikes(5, 0.4, 1.0)),),
    "heart": ((1, _heart()),),
    "ring": ((1, _ellipse(0, 0, 0.92)), (0, _ellipse(0, 0, 0.56))),
    "cross": ((1, _box(-0.28, -0.9, 0.28, 0.9)), (1, _box(-0.9, -0.28, 0.9, 0.28))),
    "arrow": (
        (1, _box(-0.95, -0.26, 0.2, 0.26)),
        (1, ((0.08, -0.8), (0.98, 0), (0.08, 0.8))),
    ),
    "moon": ((1, _ellipse(0, 0, 0.92)), (0, _ellipse(0.44, -0.12, 0.74))),
    "flower": _flower(),
    "house": (
        (1, _box(-0.66, -0.15, 0.66, 0.88)),
        (1, ((-0.95, -0.1), (0, -0.92), (0.95, -0.1))),
        (1, _box(0.38, -0.85, 0.62, -0.2)),
    ),
    "tree": (
        (1, ((0, -0.98), (0.5, -0.3), (-0.5, -0.3))),
        (1, ((0, -0.62), (0.68, 0.16), (-0.68, 0.16))),
        (1, ((0, -0.2), (0.84, 0.62), (-0.84, 0.62))),
        (1, _box(-0.16, 0.6, 0.16, 0.98)),
    ),
    "fish": (
        (1, _ellipse(0.22, 0, 0.74, 0.5)),
        (1, ((-0.3, 0), (-0.96, -0.56), (-0.8, 0), (-0.96, 0.56))),
        (1, ((0.0, -0.4), (0.2, -0.82), (0.5, -0.4))),
    ),
    "bolt": (
        (
            1,
            (
                *((0.2, -1.0), (-0.62, 0.14), (-0.08, 0.14)),
                *((-0.3, 1.0), (0.66, -0.28), (0.1, -0.28), (0.52, -1.0)),
            ),
        ),
    ),
    "gear": ((1, _teeth(8, 0.7, 0.98)), (0, _ellipse(0, 0, 0.3))),
    "butterfly": (
        *((1, _ellipse(side * 0.52, -0.38, 0.44, 0.5)) for side in (-1, 1)),
        *((1, _ellipse(side * 0.42, 0.46, 0.34, 0.42)) for side in (-1, 1)),
        (1, _ellipse(0, 0.02, 0.13, 0.72)),
    ),
    "boat": (
        (1, ((-0.96, 0.34), (0.96, 0.34), (0.6, 0.86), (-0.6, 0.86))),
        (1, ((0.02, -0.94), (0.74, 0.22), (0.02, 0.22))),
        (1, ((-0.08, -0.7), (-0.08, 0.22), (-0.6, 0.22))),
        (1, _box(-0.06, -0.94, 0.02, 0.4)),
    ),
    "key": (
        (1, _ellipse(-0.55, 0, 0.43)),
        (0, _ellipse(-0.55, 0, 0.2)),
        (1, _box(-0.2, -0.11, 0.97, 0.11)),
        (1, _box(0.74, 0, 0.95, 0.46)),
        (1, _box(0.36, 0, 0.57, 0.38)),
    ),
}

_BODIES: dict[str, tuple[Point, float]] = {  # where a part may be, and its largest radius
    **dict.fromkeys(_OUTLINES, ((0.0, 0.0), 0.4)),
    "square": ((0.0, 0.0), 0.46),
    "triangle": ((0.0, 0.3), 0.38),
    "star": ((0.0, 0.02), 0.36),
    "heart": ((0.0, -0.14), 0.42),
    "cross": ((0.0, 0.0), 0.36),
    "arrow": ((0.34, 0.0), 0.34),
    "house": ((0.0, 0.28), 0.42),
    "tree": ((0.0, 0.26), 0.36),
    "fish": ((0.36, -0.06), 0.32),
    "butterfly": ((0.0, -0.34), 0.36),
    "boat": ((0.0, 0.58), 0.24),
}
