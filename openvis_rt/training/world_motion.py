"""How objects of the generated world move, and how they are rendered into a frame with masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openvis_rt.training.world_scenes import GRID, Camera, dull_colour

__all__ = ["Actor", "Path", "draw_occluder", "draw_path", "edges_of", "render"]

_SUPERSAMPLED = 2  # objects are rendered at so many times the frame, and reduced
_SHADOWS = [round(0.4 * alpha) for alpha in range(256)]
_SHADOW_FALL = 0.03  # heights of a frame from an object to its shadow


@dataclass(frozen=True, slots=True)
class Path:
    """The way of one object; lengths are in heights of a frame, times in frames.

    Attributes:
        place: x and y at the time ``middle``, from the scene's centre.
        speed: x and y a frame.
        middle: the time.
        swing: amplitude, radians a frame and phase of x, y, the size (in parts) and the angle.
        size: edge of the sprite.
        angle: radians at time 0.
        spin: radians a frame.
    """

    place: tuple[float, float]
    speed: tuple[float, float]
    middle: float
    swing: tuple[tuple[float, float, float], ...]
    size: float
    angle: float
    spin: float

    def at(self, frame: int) -> tuple[float, float, float, float]:
        """x, y, size and angle in a frame."""
        x, y, size, angle = (a * math.sin(w * frame + p) for a, w, p in self.swing)
        return (
            self.place[0] + self.speed[0] * (frame - self.middle) + x,
            self.place[1] + self.speed[1] * (frame - self.middle) + y,
            self.size * (1 + size),
            self.angle + self.spin * frame + angle,
        )


@dataclass(frozen=True, slots=True)
class Actor:
    """A sprite on its way.

    Attributes:
        sprite: RGBA, square.
        path: its way.
        nearness: of how far it goes with the camera, 1 as the background; nearer ones go further.
    """

    sprite: Image.Image
    path: Path
    nearness: float = 1.0


def draw_path(
    size: float, frames: int, aspect: float, near: Path | None, rng: np.random.Generator
) -> Path:
    """A way for an object of a size.

    Args:
        size: edge of its sprite.
        frames: of the video.
        aspect: width of a frame by its height.
        near: another object's way that this one crosses in the middle of the video, or None.
        rng: draws it.
    """
    unit = rng.random
    middle = (frames - 1) * (0.3 + 0.4 * unit())
    place = ((unit() - 0.5) * 0.8 * aspect, (unit() - 0.5) * 0.5)
    if near is not None:
        x, y, _, _ = near.at(round(middle))
        place = x + size * (unit() - 0.5), y + size * (unit() - 0.5)
    heading, pace = 2 * math.pi * unit(), 0.028 * unit()
    swing_x, swing_y = 0.12 * unit(), 0.1 * unit()
    rate = 0.08 + 0.25 * unit()
    if frames >= 8 and unit() < 0.25:  # it leaves and comes back
        pace, swing_x = 0.0, 0.55 * aspect + 0.3 * unit()
        place = (math.copysign(0.3 * aspect, unit() - 0.5), place[1])
        rate = 2 * math.pi / (frames * (0.6 + 0.5 * unit()))
    spins = unit() < 0.3
    return Path(
        place=place,
        speed=(pace * math.cos(heading), 0.6 * pace * math.sin(heading)),
        middle=middle,
        swing=(
            (swing_x, rate, 2 * math.pi * unit()),
            (swing_y, 0.08 + 0.25 * unit(), 2 * math.pi * unit()),
            (0.14 * unit(), 0.1 + 0.2 * unit(), 2 * math.pi * unit()),
            (0.35 * unit(), 0.1 + 0.2 * unit(), 2 * math.pi * unit()),
        ),
        size=size,
        angle=2 * math.pi * unit() if spins else 0.4 * (unit() - 0.5),
        spin=0.16 * (unit() - 0.5) if spins else 0.0,
    )


def draw_occluder(size: tuple[int, int], rng: np.random.Generator) -> Actor:
    """A post or a ragged block that stands near the camera of frames of (H, W); it has no name."""
    edge, (height, width) = 2 * size[0], size
    if rng.random() < 0.5:
        left, wide = 0.4 + 0.1 * rng.random(), 0.04 + 0.08 * rng.random()
        corners = [(left, 0.0), (left + wide, 0.0), (left + wide, 1.0), (left, 1.0)]
    else:
        reach = 0.1 + 0.16 * rng.random(9)
        turns = 2 * math.pi * np.sort(rng.random(9))
        corners = [
            (0.5 + r * math.cos(t), 0.5 + r * math.sin(t))
            for r, t in zip(reach, turns, strict=True)
        ]
    cover = Image.new("L", (edge, edge))
    ImageDraw.Draw(cover).polygon([(edge * x, edge * y) for x, y in corners], 255)
    sprite = Image.new("RGB", (edge, edge), dull_colour(rng))
    sprite.putalpha(cover)
    return Actor(sprite, draw_path(1.6, 1, width / height, None, rng), nearness=1.6)


def render(
    picture: Image.Image,
    actors: Sequence[Actor],
    camera: Camera,
    frame: int,
    *,
    shadows: bool,
) -> npt.NDArray[np.float32]:
    """Draw actors into a frame, the last one in front.

    Args:
        picture: the background as the camera sees it, RGB; it is drawn into.
        actors: from the back to the front.
        camera: the same that the background was seen by.
        frame: the time.
        shadows: whether objects throw them.

    Returns:
        What part of each pixel each actor fills to the eye, 0 .. 1, float32 [n, H, W]; the sum over
        actors is at most 1.
    """
    seen = np.zeros((len(actors), picture.height, picture.width), np.float32)
    for index, actor in enumerate(actors):
        placed = _placed(actor, camera, frame, picture.size)
        if placed is None:
            continue
        patch, left, top = placed
        alpha = patch.getchannel("A")
        if shadows:
            fall = round(_SHADOW_FALL * picture.height)
            picture.paste((0, 0, 0), (left + fall, top + fall), alpha.point(_SHADOWS))
        picture.paste(patch, (left, top), patch)
        part = np.asarray(alpha, np.float32) / np.float32(255)
        window = np.s_[:, top : top + patch.height, left : left + patch.width]
        seen[window][:index] *= 1 - part
        seen[window][index] = part
    return seen


def edges_of(actor: Actor, camera: Camera, frames: int, height: int) -> npt.NDArray[np.float64]:
    """Edge of an actor's sprite in pixels of frames of a height, whether seen or not, [frames]."""
    sizes = [actor.path.at(t)[2] * camera.at(t)[2] * height for t in range(frames)]
    return np.array(sizes)


def _placed(
    actor: Actor, camera: Camera, frame: int, size: tuple[int, int]
) -> tuple[Image.Image, int, int] | None:
    """The actor as it is seen, RGBA, and its left and top in the frame; None outside the frame."""
    width, height = size
    x, y, edge, angle = actor.path.at(frame)
    pan_x, pan_y, zoom, tilt = camera.at(frame)
    off_x, off_y = x - actor.nearness * pan_x, y - actor.nearness * pan_y
    scale = height * zoom
    center_x = width / 2 + scale * (math.cos(tilt) * off_x - math.sin(tilt) * off_y)
    center_y = height / 2 + scale * (math.sin(tilt) * off_x + math.cos(tilt) * off_y)
    cos, sin = math.cos(angle + tilt), math.sin(angle + tilt)
    reach = scale * edge / 2 * (abs(cos) + abs(sin))
    left, right = max(0, math.floor(center_x - reach)), min(width, math.ceil(center_x + reach))
    top, bottom = max(0, math.floor(center_y - reach)), min(height, math.ceil(center_y + reach))
    if left >= right or top >= bottom:
        return None
    # from a place in the patch to one in the sprite
    ratio = actor.sprite.width / (scale * edge)
    u, v = ratio * cos, ratio * sin
    middle = actor.sprite.width / 2
    dx, dy = left - center_x, top - center_y
    step = 1 / _SUPERSAMPLED
    matrix = (
        *(u * step, v * step, middle + u * dx + v * dy),
        *(-v * step, u * step, middle - v * dx + u * dy),
    )
    patch = actor.sprite.transform(
        (_SUPERSAMPLED * (right - left), _SUPERSAMPLED * (bottom - top)),
        Image.Transform.AFFINE,
        tuple(round(value * GRID) / GRID for value in matrix),
        Image.Resampling.BILINEAR,
    )
    return patch.reduce(_SUPERSAMPLED), left, top
