"""Good files to start from, made once: a bundle, a video, weights."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path

from court import Court

from openvis_rt.runtime.video.generated import write_sample_video

__all__ = ["Workshop"]


class Workshop:
    """Makes what is asked for when it is asked for first, in a folder of its own.

    What it gives is shared by all cases: take a copy, or link to it, and never write to it.
    """

    def __init__(self, place: Path, bench: Court) -> None:
        self.place = place
        self.bench = bench

    @cached_property
    def bundle(self) -> Path:
        """A small bundle of clip-vis-mini with the weights of the package, in FP32."""
        return self.exported("clip-vis-mini")

    @cached_property
    def video(self) -> Path:
        """Eight frames of 96 x 64."""
        path = self.place / "video.mp4"
        write_sample_video(path, width=96, height=64, fps=8, seconds=1, objects=2)
        return path

    @cached_property
    def results(self) -> str:
        """What a run of the good bundle gives on the video, for the one name ``disc``."""
        arguments = ["run", self.bundle, self.video, "-c", "disc", "--only", "-o", "good"]
        done = self.bench.run(arguments, self.place)
        assert done.code == 0, done.stderr
        return (self.place / "good/results.json").read_text()

    def exported(self, variant: str, *more: str) -> Path:
        """A bundle of a variant, with more options of `openvis export`."""
        name = "-".join([variant, *(part.strip("-") for part in more)])
        if not (self.place / name).exists():
            arguments = ["export", variant, "-o", name, "--size", "64x96", "--precision", "fp32"]
            done = self.bench.run([*arguments, "--no-reference", *more], self.place, seconds=300)
            assert done.code == 0, done.stderr
        return self.place / name

    @cached_property
    def recorded(self) -> Path:
        """As :attr:`bundle`, with PyTorch's answers in it."""
        name = self.place / "with-answers"
        order = ["export", "clip-vis-mini", "--size", "64x96", "--precision", "fp32", "-o", name]
        done = self.bench.run(order, self.place, seconds=300)
        assert done.code == 0, done.stderr
        return name

    def linked(self, folder: Path, bundle: Path | None = None) -> Path:
        """A copy of the bundle as ``folder/bundle``, whose files are hard links: replace them."""
        target = folder / "bundle"
        shutil.copytree(bundle or self.bundle, target, copy_function=os.link)
        return target
