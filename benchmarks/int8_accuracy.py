"""What INT8 costs the trained miniatures: AP by method, and by the frames that were calibrated on.

    python benchmarks/int8_accuracy.py methods FOLDER [MODEL ...] [--videos 120] [--threads 1]
    python benchmarks/int8_accuracy.py frames FOLDER [MODEL ...] [--other VIDEO ...] [--videos 120]

`methods` runs FP32, FP16, INT8 by each method, the graph for a CPU, and INT8 everywhere: what
onnxruntime.quantization makes of every graph if it is left alone (all operators, min-max). It ends
with exit code 4 if the default loses more than a point of AP over all categories.
`frames` runs ranges from 8, 32, 128 and 512 frames of the world's `train` split, and from 128
frames of other videos, if some are given. Ids are the share of FP32's objects, in all frames, whose
best partner overlaps them by half and has the same track id.

FP16, and INT8 with FP16, are computed by FP16 emulation, on ONNX Runtime. The models, FOLDER and
results.jsonl in it are as for benchmarks/miniatures.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from int8_everywhere import quantised_everywhere
from miniature_runs import (
    GROUPS,
    MEASURES,
    DataSet,
    Fp16Emulation,
    Progress,
    data_set,
    measured,
    opened,
)
from miniature_tables import Line, minus, number
from miniatures import (
    MODELS,
    Miniature,
    Results,
    check_models,
    forget_texts,
    miniature,
    write,
)

from openvis_rt.bench.markdown import table
from openvis_rt.bundle.bundle import Bundle
from openvis_rt.calib.calibrate import DEFAULT_METHOD, CalibrationFrames, calibrate, rebuild_int8
from openvis_rt.calib.frames import choose_frames
from openvis_rt.calib.histograms import METHODS, Method
from openvis_rt.cli.ui import progress_bar, warn
from openvis_rt.errors import OpenVISError, ParityError
from openvis_rt.runtime.backends.base import Backend
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.video.results import FrameResult
from openvis_rt.training.world_files import ANNOTATIONS
from openvis_rt.verify.sequence import agreement

FP32 = "FP32"
DEFAULT = f"INT8, {DEFAULT_METHOD}"
CALIBRATED_ON = 128  # frames, by default
COUNTS = (8, 32, 128, 512)
TRAINING_VIDEOS = 160  # of 24 frames: a fifth of them are candidates
NAIVE_FRAMES = 32
MOST_LOST = 1.0  # points of AP


@dataclass(frozen=True)
class Way:
    """A way to compute a miniature: a bundle, one of its precisions, and the backend."""

    bundle: Callable[[], Bundle]
    precision: str
    backend: Callable[[], Backend]


def main() -> None:
    """Run what the command line asks for; an error of ours becomes its message and exit code."""
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        with progress_bar() as progress:
            found = run(options, Results(options.folder / "results.jsonl"), progress)
        write(options, found)
        if options.part == "methods":
            check_loss(found["rows"])
    except OpenVISError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for part in ("methods", "frames"):
        command = parts.add_parser(part)
        command.add_argument("folder", type=Path)
        command.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
        command.add_argument("--videos", type=int, default=120)
        command.add_argument("--threads", type=int, default=1)
        if part == "frames":
            command.add_argument("--other", nargs="+", default=[], metavar="VIDEO")
    options = parser.parse_args()
    check_models(parser, options)
    return options


def run(options: argparse.Namespace, results: Results, progress: Progress) -> Line:
    """Every way of every miniature that is not known yet, and the rows of the table."""
    rows: list[Line] = []
    for name in options.models:
        mini = miniature(name)
        ways = (methods if options.part == "methods" else frames)(mini, options, progress)
        found = {title: results.find(key(mini, title, options)) for title in ways}
        missing = {t: way for t, way in ways.items() if found[t] is None}
        if missing:
            missing = {FP32: ways[FP32], **missing}
            data = videos(options, "validation", options.videos, progress)
            for title, line in compared(missing, data, progress).items():
                results.add(key(mini, title, options), line)
                found[title] = line
        rows += [row for title in ways for row in rows_of(name, title, found)]
    told = f"{options.videos} videos of the world's validation split, seed 0."
    return {"rows": rows, "markdown": [told, "", *markdown(rows)]}


def key(mini: Miniature, title: str, options: argparse.Namespace) -> Line:
    """Of a result."""
    return {
        "part": "int8",
        "model": mini.name,
        "setting": title,
        "videos": options.videos,
        "weights": mini.weights,
    }


def videos(options: argparse.Namespace, split: Any, count: int, progress: Progress) -> DataSet:
    """The first videos of a split."""
    return data_set(options.folder / "videos", split, 0, count, progress)


def methods(mini: Miniature, options: argparse.Namespace, progress: Progress) -> dict[str, Way]:
    """FP32, FP16, INT8 by method, for a CPU, and everywhere."""
    threads = options.threads
    ours = Int8Bundles(mini, options, progress)

    def of_method(method: Method) -> Callable[[], Bundle]:
        return lambda: ours.by(method)

    ways = plain(mini, options)
    ways |= {f"INT8, {m}": Way(of_method(m), "int8", emulated(threads)) for m in METHODS}
    cpu = Way(of_method(DEFAULT_METHOD), "int8-fp32", lambda: OnnxRuntime("cpu", threads=threads))
    ways[f"{DEFAULT}, for a CPU"] = cpu
    ways["INT8 everywhere"] = Way(
        lambda: mini.bundle(options.folder), "fp32", lambda: naive(mini, options, progress)
    )
    return ways


def frames(mini: Miniature, options: argparse.Namespace, progress: Progress) -> dict[str, Way]:
    """FP32, and the default by the frames that it was calibrated on."""
    ours = Int8Bundles(mini, options, progress)

    def of_count(count: int) -> Callable[[], Bundle]:
        return lambda: ours.on(count)

    ways = {FP32: plain(mini, options)[FP32]}
    for count in COUNTS:
        title = DEFAULT if count == CALIBRATED_ON else f"{DEFAULT}, {count} frames"
        ways[title] = Way(of_count(count), "int8", emulated(options.threads))
    if options.other:
        title = (
            f"{DEFAULT}, {CALIBRATED_ON} frames of {', '.join(Path(o).name for o in options.other)}"
        )
        ways[title] = Way(
            lambda: ours.on(CALIBRATED_ON, options.other), "int8", emulated(options.threads)
        )
    return ways


def plain(mini: Miniature, options: argparse.Namespace) -> dict[str, Way]:
    """FP32 and FP16."""

    def bundle() -> Bundle:
        return mini.bundle(options.folder)

    fp32 = Way(bundle, "fp32", lambda: OnnxRuntime("cpu", threads=options.threads))
    return {FP32: fp32, "FP16": Way(bundle, "fp16", emulated(options.threads))}


def emulated(threads: int) -> Callable[[], Backend]:
    """What computes FP16 on a CPU."""
    return lambda: Fp16Emulation("cpu", threads=threads)


class Int8Bundles:
    """Calibrated bundles of a miniature, from their folder or made now."""

    def __init__(self, mini: Miniature, options: argparse.Namespace, progress: Progress) -> None:
        self._mini, self._options, self._progress = mini, options, progress

    def by(self, method: Method) -> Bundle:
        """With ranges by a method, from the default's frames."""
        if method == DEFAULT_METHOD:
            return self.on(CALIBRATED_ON)
        place = self._place(method)
        if not place.exists():
            rebuild_int8(self.on(CALIBRATED_ON), output=place, method=method)
        return Bundle.open(place)

    def on(self, count: int, others: Sequence[str] = ()) -> Bundle:
        """With the default's ranges, from so many frames of the training videos, or of others."""
        place = self._place("other" if others else str(count))
        if not place.exists():
            sources = others or [training_videos(self._options, self._progress)]
            calibrate(
                self._mini.bundle(self._options.folder),
                sources,
                output=place,
                frames=CalibrationFrames(count, stride=5, allow_few=count < min(COUNTS[1:])),
                check=False,  # what it costs is measured here
                threads=self._options.threads,
                progress=self._progress,
                warn=warn,
            )
        return Bundle.open(place)

    def _place(self, what: str) -> Path:
        return Path(self._options.folder, "int8", f"{self._mini.name}-{self._mini.weights}-{what}")


def training_videos(options: argparse.Namespace, progress: Progress) -> str:
    """The annotation file of what is calibrated on."""
    data = videos(options, "train", TRAINING_VIDEOS, progress)
    return str(data.videos.parent / ANNOTATIONS)


@dataclass
class Ids:
    """How far ids agree with FP32's, video by video."""

    reference: list[FrameResult] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)

    def see(self, title: str, results: list[FrameResult]) -> None:
        """Take what a way found in a video; FP32's comes first."""
        if title == FP32:
            self.reference = results
        share, _ = agreement(results, self.reference)
        self.shares.setdefault(title, []).append(share)


def compared(ways: Mapping[str, Way], data: DataSet, progress: Progress) -> dict[str, Line]:
    """The figures of each way over the same videos, FP32 first."""
    ids = Ids()
    with ExitStack() as stack:
        pipelines = {}
        for title, way in ways.items():
            bundle = way.bundle()
            forget_texts()
            pipeline = opened(bundle, way.backend(), data, way.precision)
            pipelines[title] = stack.enter_context(pipeline)
        found = measured(pipelines, data, progress, watch=ids.see)
    return {t: {"figures": f, "ids": 100 * mean(ids.shares[t])} for t, f in found.items()}


def naive(mini: Miniature, options: argparse.Namespace, progress: Progress) -> Backend:
    """What onnxruntime.quantization makes of the graphs, from frames of the training videos."""
    folder = options.folder / "int8" / f"{mini.name}-{mini.weights}-everywhere"
    bundle = mini.bundle(options.folder)
    source = [training_videos(options, progress)]
    length = bundle.manifest.window_length
    chosen = choose_frames(source, NAIVE_FRAMES, window_length=length, progress=progress)
    return quantised_everywhere(bundle, chosen.windows, folder, options.threads)


def rows_of(model: str, title: str, found: Mapping[str, Any]) -> list[Line]:
    """A row for each group of categories."""
    own, wide = found[title]["figures"], found[FP32]["figures"]
    return [
        {
            "model": model,
            "setting": title,
            "classes": group,
            "figures": own[group],
            "lost": minus(wide[group]["AP"], own[group]["AP"]),
            "ids": found[title]["ids"],
        }
        for group in GROUPS
    ]


def markdown(rows: Sequence[Line]) -> list[str]:
    """A line for each way of each model: AP by group, and what is lost of it."""
    lines = []
    for first in range(0, len(rows), len(GROUPS)):
        three = rows[first : first + len(GROUPS)]
        one = three[0]
        cells = [one["model"], one["setting"], *(number(r["figures"]["AP"]) for r in three)]
        cells += [number(one["figures"][m]) for m in MEASURES if m != "AP"]
        is_wide = one["setting"] == FP32
        lost = [number(-r["lost"], "+.1f") if r["lost"] is not None else "-" for r in three]
        cells += ["", ""] if is_wide else [" / ".join(lost), number(one["ids"])]
        lines.append(cells)
    header = ["model", "", *(f"AP, {g}" for g in GROUPS), *(m for m in MEASURES if m != "AP")]
    return table([*header, "AP less FP32's", "ids that agree, %"], lines)


def check_loss(rows: Sequence[Line]) -> None:
    """Refuse a default that loses too much.

    Raises:
        ParityError: the message lists them.
    """
    far = [
        f"{row['model']}, {row['setting']}: {row['lost']:.2f}"
        for row in rows
        if row["classes"] == "all" and row["setting"].startswith(DEFAULT)
        if (row["lost"] or 0.0) > MOST_LOST
    ]
    if far:
        raise ParityError(f"INT8 loses more than {MOST_LOST} points of AP: {'; '.join(far)}")


if __name__ == "__main__":
    main()
