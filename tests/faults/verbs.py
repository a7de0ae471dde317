"""Commands that write, small: their arguments, what an older output is, and when one is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
from court import Court

from openvis_rt.bundle.bundle import Bundle
from openvis_rt.runtime.video.generated import write_sample_video

__all__ = ["FRAMES", "VERBS", "Goods", "Verb", "copied"]

FRAMES = 6
_EXPORT = ("export", "clip-vis-mini", "--size", "64x96", "--precision", "fp32", "--no-reference")
_CALIBRATE = ("--stride", 1, "--frames", 2, "--allow-few", "--no-check", "--precision", "int8-fp32")


class Goods:
    """A bundle, a video and results to start from, which nothing writes to.

    Those that are in the folder already, of another time, are taken as they are.
    """

    def __init__(self, folder: Path, bench: Court) -> None:
        self.folder, self.bench = folder, bench
        self.video = folder / "video.mp4"
        self.bundle, self.results = folder / "bundle", folder / "results"
        if not self.bundle.exists():
            write_sample_video(self.video, width=96, height=64, fps=6, seconds=1, objects=2)
            self.must(*_EXPORT, "-o", self.bundle)
        if not self.results.exists():
            self.must(*_run(self, self.results))

    def must(self, *arguments: object) -> None:
        """Run a command that has to end well."""
        outcome = self.bench.run([str(a) for a in arguments], self.folder, seconds=120)
        assert outcome.code == 0, outcome.stderr


@dataclass(frozen=True)
class Verb:
    """A command that writes ``out`` in a folder.

    Attributes:
        arguments: without ``--overwrite``, for the output's path.
        whole: raises where what stands at the path is not whole; it is there.
        older: how an output that is replaced is made; None if the verb changes one in place.
        grows: an output has to be there: the command adds to it.
        file: name of the output.
    """

    arguments: Callable[[Goods, Path], tuple[object, ...]]
    whole: Callable[[Path], None]
    grows: bool = False
    file: str = "out"
    overwrites: bool = True


def _run(goods: Goods, out: Path) -> tuple[object, ...]:
    return ("run", goods.bundle, goods.video, "-c", "ring", "-c", "star", "-o", out)


def _whole_run(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert {"categories.json", "frames.jsonl"} <= names, names
    assert names <= {"categories.json", "frames.jsonl", "overlay.mp4", "results.json"}, names
    assert len((out / "frames.jsonl").read_text().splitlines()) == FRAMES
    for name in names - {"frames.jsonl", "overlay.mp4"}:
        json.loads((out / name).read_text())
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES


def _whole_bundle(out: Path) -> None:
    bundle = Bundle.open(out)  # digests hold
    assert bundle.manifest.variant == "clip-vis-mini"
    assert set(bundle.manifest.graphs) <= {"fp32", "int8-fp32"}


def _whole_lines(out: Path) -> None:
    for line in out.read_text().splitlines():
        json.loads(line)
    assert out.read_text().endswith("\n")


def _whole_page(out: Path) -> None:
    assert out.read_text().rstrip().endswith("</html>")


def _whole_json(out: Path) -> None:
    json.loads(out.read_text())


def _whole_batch(out: Path) -> None:
    assert (out / "index.json").is_file() or list(out.iterdir()), "nothing there"
    for file in out.rglob("*.json"):
        json.loads(file.read_text())
    for film in out.rglob("overlay.mp4"):
        with av.open(str(film)) as container:
            assert sum(1 for _ in container.decode(video=0)) == FRAMES


def _whole_folder(out: Path) -> None:
    for file in out.rglob("*.json"):
        json.loads(file.read_text())
    assert any(out.rglob("*.onnx")), "no graph"


def _whole_weights(out: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(out), framework="np") as weights:
        assert list(weights.keys())


VERBS = {
    "export": Verb(lambda _, out: (*_EXPORT, "-o", out), _whole_bundle),
    "run": Verb(_run, _whole_run),
    "run --mode stream": Verb(lambda g, out: (*_run(g, out), "--mode", "stream"), _whole_run),
    "calibrate --into": Verb(
        lambda g, out: ("calibrate", out, g.video, "--into", *_CALIBRATE),
        _whole_bundle,
        grows=True,
    ),
    "calibrate": Verb(
        lambda g, out: ("calibrate", g.bundle, g.video, *_CALIBRATE, "-o", out), _whole_bundle
    ),
    "convert to coco": Verb(
        lambda g, out: ("convert", g.results, "--to", "coco", "-o", out),
        _whole_json,
        file="out.json",
    ),
    "convert to html": Verb(
        lambda g, out: ("convert", g.results, "--to", "html", "--video", g.video, "-o", out),
        _whole_page,
        file="out.html",
    ),
    "batch": Verb(
        lambda g, out: ("batch", g.bundle, g.video, "-c", "ring", "--workers", 0, "-o", out),
        _whole_batch,
        overwrites=False,
    ),
    "triton": Verb(lambda g, out: ("triton", g.bundle, "-c", "ring", "-o", out), _whole_folder),
}


def copied(source: Path, place: Path) -> None:
    """A copy of a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copyfile(source, place)
