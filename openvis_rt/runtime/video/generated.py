"""A generated video of moving objects with known masks, to measure and to test with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from openvis_rt.files import output_errors, output_file
from openvis_rt.runtime.video.overlay import encode_image, open_output, video_stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from av.audio.stream import AudioStream
    from av.container import OutputContainer

__all__ = ["SAMPLE_CLASSES", "sample_frames", "sample_names", "write_sample_video"]

SAMPLE_CLASSES = ("disc", "box", "triangle")
_SPRITE = 512  # pixels: objects are drawn once at this size and scaled down
_SOUND_RATE = 44100  # Hz
_SOUND_BLOCK = 1024  # samples in a packet of AAC
# (body, texture) as RGB
_COLORS = (
    ((233, 111, 81), (244, 162, 97)),
    ((42, 157, 143), (138, 201, 184)),
    ((233, 196, 106), (255, 232, 180)),
    ((94, 96, 206), (150, 160, 240)),
    ((214, 64, 112), (245, 150, 180)),
    ((72, 149, 239), (170, 210, 250)),
)


@dataclass(frozen=True, slots=True)
class _Path:
    """The way of one object: where it is, how large and how turned at a time in seconds."""

    center: tuple[float, float]  # of the picture's width and height
    reach: tuple[float, float]
    speed: tuple[float, float]  # radians a second
    phase: float
    size: float  # of the picture's height
    spin: float  # degrees a second

    def at(self, time: float) -> tuple[float, float, float, float]:
        """Centre x and y (of width and height), size (of height) and angle (degrees)."""
        x = self.center[0] + self.reach[0] * np.sin(self.speed[0] * time + self.phase)
        y = self.center[1] + self.reach[1] * np.cos(self.speed[1] * time + self.phase * 1.7)
        size = self.size * (1 + 0.25 * np.sin(0.9 * time + self.phase))
        return float(x), float(y), float(size), self.spin * time + self.phase * 57


def sample_names(objects: int) -> tuple[str, ...]:
    """The class name of each object: disc, box, triangle, disc, ..."""
    return tuple(SAMPLE_CLASSES[index % len(SAMPLE_CLASSES)] for index in range(objects))


def sample_frames(
    *,
    width: int = 1280,
    height: int = 720,
    fps: Fraction | float = 25,
    seconds: float = 10.0,
    seed: int = 0,
    objects: int = 4,
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Frames and what is seen of each object, the same for the same arguments.

    Yields:
        image: uint8 [H, W, 3] RGB.
        masks: uint8 [objects, H, W] of 0 and 1; later objects hide earlier ones.
    """
    rng = np.random.default_rng(seed)
    background = _background(width, height, rng)
    kinds = sample_names(objects)
    sprites = [_sprite(kind, *_COLORS[i % len(_COLORS)]) for i, kind in enumerate(kinds)]
    paths = [_path(index, objects, rng) for index in range(objects)]
    for index in range(round(seconds * fps)):
        time = float(index / fps)
        picture = _background_at(background, width, height, time)
        masks = np.zeros((objects, height, width), np.uint8)
        for number, (sprite, path) in enumerate(zip(sprites, paths, strict=True)):
            alpha = _paste(picture, sprite, path.at(time))
            masks[:number] *= ~alpha
            masks[number] = alpha
        yield np.array(picture), masks


def write_sample_video(
    path: Path,
    *,
    width: int = 1280,
    height: int = 720,
    fps: Fraction | float = 25,
    seconds: float = 10.0,
    audio: bool = True,
    seed: int = 0,
    objects: int = 4,
    rotation: int = 0,
) -> None:
    """Write :func:`sample_frames` as a video with a soft tone.

    Args:
        path: ends in ``.mp4``, ``.mkv`` or ``.mov``.
        width: as shown, in pixels; even, or a row or column is added.
        height: as shown, in pixels.
        fps: frames a second.
        seconds: length.
        audio: add a track of AAC.
        seed: of textures and ways.
        objects: how many.
        rotation: 0, 90, 180 or 270: store the pictures turned, as a phone does that is held so,
            with the note that players must turn them by so many degrees counter-clockwise.

    Raises:
        OutputError: the place cannot be written.
    """
    rate = Fraction(fps).limit_denominator(1001)
    turns = rotation // 90 % 4
    stored = (height, width) if turns % 2 else (width, height)
    frames = sample_frames(
        width=width, height=height, fps=rate, seconds=seconds, seed=seed, objects=objects
    )
    with output_file(path) as partial, output_errors(path), open_output(partial) as container:
        video = video_stream_of(container, *stored, rate)
        if turns:
            video.set_display_rotation(rotation)
        tone = _Tone(container) if audio else None
        for index, (image, _) in enumerate(frames):
            encode_image(container, video, np.ascontiguousarray(np.rot90(image, -turns)), index)
            if tone is not None:
                tone.write_until(float((index + 1) / rate))
        container.mux(video.encode())
        if tone is not None:
            tone.finish()
        container.close()


def _path(index: int, objects: int, rng: np.random.Generator) -> _Path:
    side = (index + 0.5) / objects
    return _Path(
        center=(0.2 + 0.6 * side, 0.5 + 0.1 * float(rng.uniform(-1, 1))),
        reach=(0.22, 0.24),
        speed=(float(rng.uniform(0.5, 0.9)), float(rng.uniform(0.6, 1.1))),
        phase=2.4 * index + float(rng.uniform(0, 0.8)),
        size=float(rng.uniform(0.28, 0.40)),
        spin=float(rng.uniform(-28, 28)),
    )


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A dusk of soft clouds with a fine grid, a quarter larger than the picture to move in it."""
    large = (width + width // 4 + 8, height + height // 4 + 8)
    clouds = np.zeros((large[1], large[0]), np.float32)
    for cells, weight in ((4, 0.55), (9, 0.28), (22, 0.17)):
        noise = Image.fromarray(rng.random((cells, cells * 2), np.float32))
        clouds += weight * np.asarray(noise.resize(large, Image.Resampling.BICUBIC), np.float32)
    fall = np.linspace(0, 1, large[1], dtype=np.float32)[:, None, None]
    high, low = np.array((24, 38, 70), np.float32), np.array((58, 92, 118), np.float32)
    color = high + (low - high) * fall + (clouds[..., None] - 0.5) * np.array((70, 78, 86))
    picture = Image.fromarray(np.clip(color, 0, 255).astype(np.uint8))
    pen, step = ImageDraw.Draw(picture, "RGBA"), max(16, height // 12)
    for x in range(0, large[0], step):
        pen.line((x, 0, x, large[1]), fill=(255, 255, 255, 16))
    for y in range(0, large[1], step):
        pen.line((0, y, large[0], y), fill=(255, 255, 255, 16))
    return picture


def _background_at(background: Image.Image, width: int, height: int, time: float) -> Image.Image:
    left = (background.width - width) * (0.5 + 0.5 * np.sin(0.35 * time))
    top = (background.height - height) * (0.5 + 0.5 * np.cos(0.27 * time))
    return background.crop((round(left), round(top), round(left) + width, round(top) + height))


def _sprite(kind: str, body: tuple[int, int, int], texture: tuple[int, int, int]) -> Image.Image:
    """An object of RGBA [_SPRITE, _SPRITE] with a texture of its own and light from above left."""
    shape = Image.new("L", (_SPRITE, _SPRITE))
    pen, (low, high) = ImageDraw.Draw(shape), (_SPRITE // 10, _SPRITE - _SPRITE // 10)
    picture = Image.new("RGB", shape.size, body)
    brush = ImageDraw.Draw(picture)
    step = _SPRITE // 8
    if kind == "disc":
        pen.ellipse((low, low, high, high), fill=255)
        for x in range(-_SPRITE, _SPRITE, step):
            brush.line((x, 0, x + _SPRITE, _SPRITE), fill=texture, width=step // 3)
    elif kind == "box":
        pen.rounded_rectangle((low, low, high, high), _SPRITE // 14, fill=255)
        for y in range(0, _SPRITE, step):
            for x in range(y // step % 2 * step, _SPRITE, 2 * step):
                brush.rectangle((x, y, x + step - 1, y + step - 1), fill=texture)
    else:
        pen.polygon(((_SPRITE // 2, low), (high, high), (low, high)), fill=255)
        for y in range(0, _SPRITE, step):
            for x in range(y // step % 2 * step // 2, _SPRITE, step):
                brush.ellipse((x, y, x + step // 2, y + step // 2), fill=texture)
    grid = np.mgrid[:_SPRITE, :_SPRITE].astype(np.float32) / _SPRITE
    light = np.clip(1.18 - 0.75 * np.hypot(grid[0] - 0.28, grid[1] - 0.28), 0.4, 1.2)
    shaded = np.clip(np.asarray(picture) * light[..., None], 0, 255).astype(np.uint8)
    sprite = Image.fromarray(shaded)
    sprite.putalpha(shape)
    return sprite


def _paste(
    picture: Image.Image, sprite: Image.Image, place: tuple[float, float, float, float]
) -> npt.NDArray[np.bool_]:
    """Draw an object and its shadow; what it covers, bool [H, W]."""
    x, y, size, angle = place
    edge = max(2, round(size * picture.height))
    turned = sprite.resize((edge, edge), Image.Resampling.BILINEAR).rotate(
        angle, Image.Resampling.BILINEAR, expand=True
    )
    corner = (
        round(x * picture.width - turned.width / 2),
        round(y * picture.height - turned.height / 2),
    )
    alpha = turned.getchannel("A")
    drop = max(1, edge // 24)
    shadow = ImageOps.expand(alpha, border=4 * drop).point(lambda value: value * 0.45)
    small = shadow.reduce(4).filter(ImageFilter.GaussianBlur(drop / 3))
    shadow = small.resize(shadow.size, Image.Resampling.BILINEAR)
    picture.paste((8, 12, 24), (corner[0] - 3 * drop, corner[1] - 2 * drop), shadow)
    picture.paste(turned, corner, alpha)
    covered = Image.new("L", picture.size)
    covered.paste(alpha, corner)
    return np.asarray(covered) > 127


class _Tone:
    """A soft chord in a track of AAC."""

    def __init__(self, container: OutputContainer) -> None:
        self._container = container
        self._stream: AudioStream = container.add_stream("aac", rate=_SOUND_RATE, layout="mono")
        self._samples = 0

    def write_until(self, seconds: float) -> None:
        """Encode whole blocks up to a time."""
        while self._samples + _SOUND_BLOCK <= seconds * _SOUND_RATE:
            time = (self._samples + np.arange(_SOUND_BLOCK)) / _SOUND_RATE
            wave = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.18, 329.63))
            swell = 0.05 * (0.6 + 0.4 * np.sin(2 * np.pi * 0.25 * time))
            block = (wave * swell).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = _SOUND_RATE, self._samples
            frame.time_base = Fraction(1, _SOUND_RATE)
            self._samples += _SOUND_BLOCK
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))
