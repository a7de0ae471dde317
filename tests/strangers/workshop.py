"""Good files to start from, made once: a bundle, a video, weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

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

    def linked(self, folder: Path, bundle: Path | None = None) -> Path:
        """A copy of the bundle as ``folder/bundle``, whose files are hard links: replace them."""
        target = folder / "bundle"
        shutil.copytree(bundle or self.bundle, target, copy_function=os.link)
        return target


def replaced(bundle: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of a bundle's file, and their true digest into the manifest."""
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "bundle.json").read_text())
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    sealed(bundle, {**manifest, "files": {**manifest["files"], name: entry}})


def sealed(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the digest that belongs to it."""
    data = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    (bundle / "bundle.json").unlink()
    (bundle / "bundle.json").write_text(json.dumps({**data, "manifest_sha256": digest}))
